"""The worklist: studies that came over the network, from their first image to the end of their diagnosis.

The states are those of the Unified Procedure Step (PS3.4 Annex CC). Every change is an audit event of the same
transaction, and all writers follow each other, so two can never claim one item.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import audit
from app.db.session import Sessions
from app.db.tables import Study
from app.db.work import AwaitedStudy, WorkItem, WorkItemState, new_uid
from app.identity import SYSTEM, Actor

Now = Callable[[], datetime]


def expect(session: Session, study: Study, *, requested_by: str, at: datetime) -> None:
    """Note, in the transaction that stores an image, that its study is coming in."""
    session.flush()  # a new study has no id before
    awaited = session.get(AwaitedStudy, study.id)
    if awaited is None:
        session.add(AwaitedStudy(study_id=study.id, last_instance_at=at, requested_by=requested_by))
    else:
        awaited.last_instance_at, awaited.requested_by = at, requested_by


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
    made = []
    with sessions.begin() as session:
        for awaited in session.scalars(quiet).all():
            item = WorkItem(study_id=awaited.study_id, requested_by=awaited.requested_by, scheduled_at=now())
            session.add(item)
            session.delete(awaited)
            session.flush()
            _changed(session, item, actor=SYSTEM, now=now)
            made.append(item.uid)
    return made


def claim(sessions: Sessions, *, actor: Actor, holder: str, lease_seconds: float, now: Now) -> WorkItem | None:
    """The oldest work item that nobody holds, now held by `holder`; None where there is none.

    An item whose holder let its lease run out is taken over: its process has died.
    """
    free = (WorkItem.state == "SCHEDULED") | ((WorkItem.state == "IN PROGRESS") & (WorkItem.lease_until < now()))
    oldest = select(WorkItem).where(free).order_by(WorkItem.id).limit(1)
    with sessions() as session:
        if session.scalar(oldest) is None:
            return None
    with sessions.begin() as session:
        item = session.scalar(oldest)
        if item is None:
            return None
        item.state = "IN PROGRESS"
        item.claimed_by, item.transaction_uid = holder, new_uid()
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


def release(sessions: Sessions, item: WorkItem, *, code: str, message: str, actor: Actor, now: Now) -> None:
    """Put the item back for another try."""
    with sessions.begin() as session:
        held = _held(session, item)
        if held is not None:
            held.state, held.transaction_uid, held.claimed_by, held.lease_until = "SCHEDULED", None, None, None
            held.error_code, held.error_message = code, message
            _changed(session, held, actor=actor, now=now)


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
