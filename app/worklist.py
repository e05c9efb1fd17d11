"""The worklist: studies that came over the network, from their first image to the end of their diagnosis.

The states are those of the Unified Procedure Step (PS3.4 Annex CC). Every change is an audit event of the same
transaction, and all writers follow each other, so two can never claim one item.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db import audit, queries
from app.db.session import Sessions
from app.db.tables import Series, StoredInstance, Study
from app.db.work import AwaitedStudy, WorkItem, WorkItemState, new_uid
from app.errors import (
    AlreadyClaimed,
    AlreadyEnded,
    NotClaimed,
    PerformerUnreachable,
    TransactionMissing,
    TransactionWrong,
    Unfinished,
)
from app.identity import SYSTEM, Actor

Now = Callable[[], datetime]

PERFORMED_PROCEDURE = "00741216"  # Unified Procedure Step Performed Procedure Sequence
OUTPUT_INFORMATION = "00404033"  # may be empty, and must be there
FINAL = {
    "00404028": "PerformedStationNameCodeSequence",
    "00404050": "PerformedProcedureStepStartDateTime",
    "00404019": "PerformedWorkitemCodeSequence",
    "00404051": "PerformedProcedureStepEndDateTime",
}


def expect(session: Session, study: Study, *, requested_by: str, instances: int | None, now: Now) -> None:
    """Note, in the transaction that stores an image, that its study is coming in.

    Where the image says how many instances the study has, the last of them makes its work item at once. What comes
    beyond that number is waited for as if none had been stated.
    """
    awaited = session.get(AwaitedStudy, study.id)
    if awaited is None:
        session.add(awaited := AwaitedStudy(study_id=study.id))
    awaited.last_instance_at, awaited.requested_by = now(), requested_by
    if instances is not None:
        stored = select(func.count()).select_from(StoredInstance).join(Series).where(Series.study_id == study.id)
        if session.scalar(stored) == instances:
            _schedule(session, awaited, now=now)


def schedule(sessions: Sessions, *, quiet_seconds: float, now: Now) -> list[str]:
    """Make a work item of every study of which nothing new has come for so long; their UIDs.

    No DICOM message says that a study is complete. An image that comes later has its study awaited, and then diagnosed,
    once more.
    """
    before = now() - timedelta(seconds=quiet_seconds)
    quiet = select(AwaitedStudy).where(AwaitedStudy.last_instance_at <= before).order_by(AwaitedStudy.last_instance_at)
    with sessions() as session:
        if session.scalar(quiet.limit(1)) is None:  # the writers' lock is not for looking
            return []
    with sessions.begin() as session:
        return [_schedule(session, awaited, now=now) for awaited in session.scalars(quiet).all()]


def claim(
    sessions: Sessions, *, actor: Actor, holder: str, lease_seconds: float, head_start_seconds: float = 0.0, now: Now
) -> WorkItem | None:
    """The oldest work item that nobody holds, now held by `holder`, a worker of ours; None where there is none.

    New items are left to other applications for `head_start_seconds`. An item whose holder let its lease run out is
    taken over: its process has died.
    """
    left = (WorkItem.state == "SCHEDULED") & (WorkItem.scheduled_at <= now() - timedelta(seconds=head_start_seconds))
    free = left | ((WorkItem.state == "IN PROGRESS") & (WorkItem.lease_until < now()))
    oldest = select(WorkItem).where(free).order_by(WorkItem.id).limit(1)
    with sessions() as session:
        if session.scalar(oldest) is None:
            return None
    with sessions.begin() as session:
        item = session.scalar(oldest)
        if item is None:
            return None
        item.state = "IN PROGRESS"
        item.claimed_by, item.transaction_uid, item.outside, item.performed = holder, new_uid(), False, None
        item.lease_until = now() + timedelta(seconds=lease_seconds)
        item.attempts += 1
        _changed(session, item, actor=actor, now=now)
        return item


def renew(sessions: Sessions, item: WorkItem, *, lease_seconds: float, now: Now) -> bool:
    """Hold the item for longer; False where another has taken it over."""
    with sessions.begin() as session:
        held = _held(session, item)
        if held is not None:
            held.lease_until = now() + timedelta(seconds=lease_seconds)
        return held is not None


def complete(session: Session, item: WorkItem, *, actor: Actor, now: Now) -> bool:
    """End the item, in the caller's transaction; False, with nothing changed, where another has taken it over."""
    return _end(session, item, state="COMPLETED", actor=actor, now=now)


def cancel(session: Session, item: WorkItem, *, code: str, message: str, actor: Actor, now: Now) -> bool:
    """Give the item up for a reason, in the caller's transaction; False where another has taken it over."""
    return _end(session, item, state="CANCELED", actor=actor, now=now, error=(code, message))


def put_off(
    sessions: Sessions, item: WorkItem, *, code: str, message: str, wait_seconds: float, actor: Actor, now: Now
) -> None:
    """Put the item back for another try, which no worker begins before so long."""
    _put_back(sessions, item, error=(code, message), at=now() + timedelta(seconds=wait_seconds), actor=actor, now=now)


def give_back(sessions: Sessions, item: WorkItem, *, actor: Actor, now: Now) -> None:
    """Put the item back as if it had not been claimed: its holder stops, and another may go on at once."""
    _put_back(sessions, item, error=(None, None), at=item.scheduled_at, attempts=-1, actor=actor, now=now)


def take(
    sessions: Sessions, uid: str, *, transaction_uid: str, performer: Actor, hold_seconds: float, now: Now
) -> None:
    """Have another application hold an item under its own transaction UID, as long as it is heard of.

    Raises NotFound, AlreadyClaimed, AlreadyEnded.
    """
    with sessions.begin() as session:
        item = queries.work_item(session, performer, uid)
        if item.state == "IN PROGRESS":
            raise AlreadyClaimed
        if item.state != "SCHEDULED":
            raise AlreadyEnded(item.state)
        item.state, item.outside, item.performed = "IN PROGRESS", True, None
        item.claimed_by, item.transaction_uid = performer.name, transaction_uid
        item.lease_until = now() + timedelta(seconds=hold_seconds)
        _changed(session, item, actor=performer, now=now)


def report(
    sessions: Sessions,
    uid: str,
    *,
    transaction_uid: str | None,
    said: dict[str, Any],
    performer: Actor,
    hold_seconds: float,
    now: Now,
) -> None:
    """Note what the holding application says of its work: attributes in the DICOM JSON model, each over its last value.

    Raises NotFound, NotClaimed, AlreadyEnded, TransactionMissing, TransactionWrong.
    """
    with sessions.begin() as session:
        item = _held_outside(session, uid, transaction_uid=transaction_uid, performer=performer)
        item.performed = {**(item.performed or {}), **said}
        item.lease_until = now() + timedelta(seconds=hold_seconds)
        _changed(session, item, actor=performer, now=now)


def finish(
    sessions: Sessions,
    uid: str,
    *,
    transaction_uid: str | None,
    state: Literal["COMPLETED", "CANCELED"],
    performer: Actor,
    now: Now,
) -> bool:
    """End an item for the application that holds it; False where it was in that state already.

    Raises NotFound, NotClaimed, AlreadyEnded, TransactionMissing, TransactionWrong, Unfinished.
    """
    with sessions.begin() as session:
        item = queries.work_item(session, performer, uid)
        if item.state == state and transaction_uid is not None and transaction_uid == item.transaction_uid:
            return False
        item = _held_outside(session, uid, transaction_uid=transaction_uid, performer=performer)
        if state == "COMPLETED" and (missing := _missing(item.performed or {})):
            raise Unfinished(missing)
        error = (None, f"cancelled by {performer.name}") if state == "CANCELED" else (None, None)
        return _end(session, item, state=state, actor=performer, now=now, error=error)


def request_cancellation(sessions: Sessions, uid: str, *, requester: Actor, now: Now) -> bool:
    """Cancel an item that nobody outside holds, our own worker's too; False where it is cancelled already.

    Raises NotFound, AlreadyEnded, PerformerUnreachable.
    """
    with sessions.begin() as session:
        item = queries.work_item(session, requester, uid)
        if item.state == "CANCELED":
            return False
        if item.state == "COMPLETED":
            raise AlreadyEnded(item.state)
        if item.state == "IN PROGRESS" and item.outside:
            raise PerformerUnreachable(item.claimed_by or "another application")
        item.state, item.ended_at, item.lease_until = "CANCELED", now(), None
        item.error_code, item.error_message = None, f"cancelled as {requester.name} asked"
        _changed(session, item, actor=requester, now=now)
        return True


def _schedule(session: Session, awaited: AwaitedStudy, *, now: Now) -> str:
    item = WorkItem(study_id=awaited.study_id, requested_by=awaited.requested_by, scheduled_at=now())
    session.add(item)
    session.delete(awaited)
    session.flush()
    _changed(session, item, actor=SYSTEM, now=now)
    return item.uid


def _put_back(
    sessions: Sessions,
    item: WorkItem,
    *,
    error: tuple[str | None, str | None],
    at: datetime,
    attempts: int = 0,
    actor: Actor,
    now: Now,
) -> None:
    with sessions.begin() as session:
        held = _held(session, item)
        if held is not None:
            held.state, held.transaction_uid, held.claimed_by, held.lease_until = "SCHEDULED", None, None, None
            held.outside, held.scheduled_at = None, at
            held.attempts += attempts
            held.error_code, held.error_message = error
            _changed(session, held, actor=actor, now=now)


def _held_outside(session: Session, uid: str, *, transaction_uid: str | None, performer: Actor) -> WorkItem:
    item = queries.work_item(session, performer, uid)
    if item.state == "SCHEDULED":
        raise NotClaimed
    if item.state != "IN PROGRESS":
        raise AlreadyEnded(item.state)
    if transaction_uid is None:
        raise TransactionMissing
    if transaction_uid != item.transaction_uid:
        raise TransactionWrong
    return item


def _missing(performed: dict[str, Any]) -> list[str]:
    """Keywords of what a completed step must say and `performed` does not (PS3.4 Table CC.2.5-3, final state)."""
    items = performed.get(PERFORMED_PROCEDURE, {}).get("Value") or [{}]
    lacking = [keyword for tag, keyword in FINAL.items() if not items[0].get(tag, {}).get("Value")]
    return lacking if OUTPUT_INFORMATION in items[0] else [*lacking, "OutputInformationSequence"]


def _held(session: Session, item: WorkItem) -> WorkItem | None:
    """The item as it stands, if it is still held under the same transaction UID."""
    return session.scalar(
        select(WorkItem).where(
            WorkItem.id == item.id,
            WorkItem.state == "IN PROGRESS",
            WorkItem.transaction_uid == item.transaction_uid,
        )
    )


def _end(
    session: Session,
    item: WorkItem,
    *,
    state: WorkItemState,
    actor: Actor,
    now: Now,
    error: tuple[str | None, str | None] = (None, None),
) -> bool:
    held = _held(session, item)
    if held is None:
        return False
    held.state, held.ended_at, held.lease_until = state, now(), None
    held.error_code, held.error_message = error
    _changed(session, held, actor=actor, now=now)
    return True


def _changed(session: Session, item: WorkItem, *, actor: Actor, now: Now) -> None:
    study = session.get(Study, item.study_id)
    assert study is not None  # a foreign key
    detail = {"work_item": item.uid, "state": item.state, "attempt": item.attempts, "error": item.error_code}
    audit.append(session, actor=actor, action="work-item", subjects=[study], detail=detail, now=now)
