"""Storage commitment: a sender asks whether its instances are safe here, and is told, maybe much later (PS3.4 J)."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import select

from app.config import Pacs
from app.db import audit
from app.db.session import Sessions
from app.db.tables import StoredInstance
from app.db.work import Commitment
from app.errors import NotInSpool
from app.identity import Actor
from app.peers import remote
from app.spool import Spool
from dicom_io.commitment import Committed, report
from dicom_io.errors import DicomError
from dicom_io.listener import CommitmentRequest

logger = logging.getLogger(__name__)

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 5.0, 3600.0
NO_SUCH_INSTANCE, CLASS_CONFLICT = 0x0112, 0x0119  # PS3.3 Table C.14-1, Failure Reason


def ask(request: CommitmentRequest, *, sessions: Sessions, now: Callable[[], datetime]) -> None:
    """Keep the question; it is answered over an association of our own."""
    actor = Actor(name=request.caller.ae_title, kind="ae", roles=frozenset())
    with sessions.begin() as session:
        same = select(Commitment).where(
            Commitment.ae_title == actor.name, Commitment.transaction_uid == request.transaction_uid
        )
        if session.scalar(same) is not None:
            return  # asked again because our response was lost
        session.add(
            Commitment(
                ae_title=actor.name,
                transaction_uid=request.transaction_uid,
                instances={instance: sop_class for sop_class, instance in request.references},
                requested_at=now(),
                next_attempt_at=now(),
            )
        )
        detail = {"transaction_uid": request.transaction_uid, "instances": len(request.references)}
        audit.append(session, actor=actor, action="commitment-asked", detail=detail, now=now)


def answer(
    *,
    pacs: Pacs,
    sessions: Sessions,
    spool: Spool,
    now: Callable[[], datetime],
) -> int:
    """Answer every question that is due; how many were. A sender out of reach is tried again, ever more seldom.

    Only a sender that is a peer of the settings can be answered: the request does not say where it listens.
    """
    with sessions() as session:
        due = session.scalars(
            select(Commitment)
            .where(Commitment.answered_at.is_(None), Commitment.next_attempt_at <= now())
            .order_by(Commitment.id)
        ).all()
    done = 0
    for question in due:
        peer = next((p for p in pacs.peers.values() if p.ae_title == question.ae_title), None)
        error: str | None = "pacs.no-such-peer"
        if peer is not None:
            try:
                report(_committed(question, sessions=sessions, spool=spool), remote=remote(peer, pacs))
                error = None
            except DicomError as failure:
                error = failure.code
        done += error is None
        _note(question, error, sessions=sessions, now=now)
    return done


def _committed(question: Commitment, *, sessions: Sessions, spool: Spool) -> Committed:
    """What is safe, by what lies in the database and on the disk now."""
    with sessions() as session:
        rows = session.scalars(
            select(StoredInstance).where(StoredInstance.sop_instance_uid.in_(list(question.instances)))
        ).all()
    stored = {row.sop_instance_uid: row for row in rows}
    safe: list[tuple[str, str]] = []
    failed: list[tuple[str, str, int]] = []
    for instance, sop_class in question.instances.items():
        row = stored.get(instance)
        if row is None or not _on_disk(row, spool):
            failed.append((sop_class, instance, NO_SUCH_INSTANCE))
        elif row.sop_class_uid != sop_class:
            failed.append((sop_class, instance, CLASS_CONFLICT))
        else:
            safe.append((sop_class, instance))
    return Committed(question.transaction_uid, tuple(safe), tuple(failed))


def _on_disk(row: StoredInstance, spool: Spool) -> bool:
    try:
        return spool.path(row.sha256).stat().st_size == row.size_bytes
    except NotInSpool:
        return False


def _note(question: Commitment, error: str | None, *, sessions: Sessions, now: Callable[[], datetime]) -> None:
    with sessions.begin() as session:
        row = session.get(Commitment, question.id)
        assert row is not None  # these rows are never removed
        row.attempts += 1
        if error is None:
            row.answered_at = now()
        else:
            wait = min(FIRST_WAIT_SECONDS * 2 ** (row.attempts - 1), LONGEST_WAIT_SECONDS)
            row.next_attempt_at = now() + timedelta(seconds=wait)
            logger.warning("storage commitment of %s could not be answered: %s", question.ae_title, error)
        actor = Actor(name=question.ae_title, kind="ae", roles=frozenset())
        detail = {"transaction_uid": question.transaction_uid, "error": error}
        audit.append(session, actor=actor, action="commitment-answered", detail=detail, now=now)
