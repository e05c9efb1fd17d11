"""Write and verify the audit trail: each event carries the hash before it and the digests of the rows it brought.

The hash of an event is SHA-256(previous_hash || canonical JSON of all its other columns and its subjects), so
nothing in an event or in a row that it names can change unseen, and no event can leave the middle of the chain. Its
end is held by a checkpoint outside the database (`app.db.checkpoint`).
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import exists, insert, select
from sqlalchemy.orm import Session

from app.db.canonical import canonical, sha256_hex
from app.db.checkpoint import Checkpoint, Head
from app.db.columns import storable, utc_text
from app.db.digest import RawRow, raw_rows, row_digest
from app.db.session import holds_writers_lock
from app.db.tables import AUDITED, AuditEvent, AuditSubject, Base
from app.errors import AuditUnserialised, CheckpointUnreadable
from app.identity import Actor

logger = logging.getLogger(__name__)

BEFORE_THE_FIRST = "0" * 64  # the previous_hash of event 1
EVENTS_A_BATCH = 200
TABLES = {row.__tablename__: Base.metadata.tables[row.__tablename__] for row in AUDITED}
EVENTS = Base.metadata.tables[AuditEvent.__tablename__]
SUBJECTS = Base.metadata.tables[AuditSubject.__tablename__]


def append(
    session: Session,
    *,
    actor: Actor,
    action: str,
    subjects: Iterable[Base] = (),
    detail: Mapping[str, Any] | None = None,
    now: Callable[[], datetime],
) -> AuditEvent:
    """Add the next event to the trail, in the caller's transaction.

    `subjects` are rows that the event is about, new ones (which are added) or old ones that were looked at; every
    other new row of the transaction is bound as well. `detail` is JSON and must hold no patient data.
    Raises AuditUnserialised outside `sessions.begin()`.
    """
    if not holds_writers_lock(session):
        raise AuditUnserialised
    named = list(subjects)
    session.add_all(named)
    session.flush()  # gives the new rows their ids
    new: list[Any] = session.info.pop("unbound", [])
    known = {id(row) for row in named}
    others = sorted((row for row in new if id(row) not in known), key=lambda row: (row.__tablename__, row.id))
    bound = _subjects(session, named + others)

    last = session.execute(select(AuditEvent.sequence, AuditEvent.hash).order_by(AuditEvent.sequence.desc()).limit(1))
    head = Head(*row) if (row := last.one_or_none()) else Head(sequence=0, hash=BEFORE_THE_FIRST)
    event = AuditEvent(
        sequence=head.sequence + 1,
        at=now(),
        actor=storable(actor.name),
        actor_kind=actor.kind,
        action=storable(action),
        detail=dict(detail or {}),
        previous_hash=head.hash,
    )
    event.hash = event_hash(
        {
            "sequence": event.sequence,
            "at": utc_text(event.at),
            "actor": event.actor,
            "actor_kind": event.actor_kind,
            "action": event.action,
            "detail": storable(canonical(event.detail)),
            "previous_hash": event.previous_hash,
        },
        bound,
    )
    session.add(event)
    session.flush()
    if bound:
        session.execute(insert(AuditSubject), [{"sequence": event.sequence, **subject} for subject in bound])
    # An earlier event of this transaction has looked already.
    if "head" in session.info or _agrees_with_checkpoint(session, head):
        session.info["head"] = Head(event.sequence, event.hash)
    return event


def event_hash(event: Mapping[str, object], subjects: Sequence[Mapping[str, object]]) -> str:
    """The hash of an event, given its columns and its subjects' as `raw_rows` yields them, subjects by position."""
    body = {name: value for name, value in event.items() if name != "hash"}
    covered = [{name: subject.get(name) for name in ("table_name", "row_id", "sha256")} for subject in subjects]
    return sha256_hex(str(event.get("previous_hash")), canonical({**body, "subjects": covered}))


@dataclass(frozen=True, slots=True)
class Break:
    """The first row that does not hold."""

    table: str
    row: int | None  # its id, the sequence number for events
    what: str

    def __str__(self) -> str:
        """`finding 12: the row has changed since ...`."""
        return f"{self.table}{'' if self.row is None else f' {self.row}'}: {self.what}"


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What a verification saw."""

    events: int
    rows: int  # rows named by the events, each counted once an event
    head: Head | None
    checkpoint: Head | None
    broken: Break | None


def verify(
    session: Session, checkpoint: Checkpoint | None, *, progress: Callable[[int], None] = lambda _events: None
) -> AuditReport:
    """Recompute the whole chain and every row's digest, and stop at the first row that does not hold.

    Finds a change in any column, a missing or an added row, swapped rows, a cut tail and a chain that was recomputed
    since the checkpoint. The session only reads. `progress` is told the number of events seen so far.
    """
    kept = checkpoint.head() if checkpoint else None  # before the chain is read, so that it cannot be ahead of it
    check = _Verification(session, kept)
    broken = check.chain(progress) or check.tail() or check.strays()
    if broken is None and checkpoint is not None and kept is None and check.events:
        broken = Break(
            "checkpoint", None, f"{checkpoint.path} is missing, so nothing shows that the tail is whole; restore a copy"
        )
    head = Head(check.events, check.hash) if check.events else None
    return AuditReport(check.events, check.rows, head, kept, broken)


class _Verification:
    """One walk along the chain."""

    def __init__(self, session: Session, kept: Head | None) -> None:
        self.session = session
        self.kept = kept
        self.events = 0
        self.rows = 0
        self.hash = BEFORE_THE_FIRST

    def chain(self, progress: Callable[[int], None]) -> Break | None:
        """The events in order, each with the rows it names."""
        upcoming = select(EVENTS.c.sequence).order_by(EVENTS.c.sequence).limit(EVENTS_A_BATCH)
        sequences = list(self.session.scalars(upcoming))
        while sequences:
            events = raw_rows(self.session, EVENTS, key="sequence", keys=sequences)
            subjects = raw_rows(self.session, SUBJECTS, key="sequence", keys=sequences, order="position")
            rows = self._named_rows(subjects)
            for sequence in sequences:
                broken = self._event(sequence, events.get(sequence), subjects.get(sequence, []), rows)
                if broken:
                    return broken
            progress(self.events)
            sequences = list(self.session.scalars(upcoming.where(EVENTS.c.sequence > sequences[-1])))
        return None

    def tail(self) -> Break | None:
        """Events that the checkpoint knows and the database does not."""
        if self.kept is None or self.kept.sequence <= self.events:
            return None
        what = f"is missing: the checkpoint knows {self.kept.sequence} events, the database ends at {self.events}"
        return Break("audit_event", self.events + 1, what)

    def strays(self) -> Break | None:
        """Rows that no event names."""
        lost = select(SUBJECTS.c.sequence).where(~exists().where(EVENTS.c.sequence == SUBJECTS.c.sequence)).limit(1)
        sequence = self.session.scalar(lost)
        if sequence is not None:
            return Break("audit_subject", sequence, "names rows of an event that is not there")
        for name, table in TABLES.items():
            named = exists().where(SUBJECTS.c.table_name == name, SUBJECTS.c.row_id == table.c.id)
            stray = self.session.scalar(select(table.c.id).where(~named).order_by(table.c.id).limit(1))
            if stray is not None:
                return Break(name, stray, "has no audit event: it did not come through Hilum")
        return None

    def _event(
        self,
        sequence: int,
        event: list[RawRow] | None,
        subjects: list[RawRow] | None,
        rows: Mapping[str, Mapping[int, list[RawRow] | None]],
    ) -> Break | None:
        expected = self.events + 1
        if sequence != expected:
            return Break("audit_event", expected, f"is missing: the next event is {sequence}")
        if not event:
            return Break("audit_event", sequence, "cannot be read")
        if subjects is None:
            return Break("audit_subject", sequence, "cannot be read")
        (columns,) = event
        if columns.get("previous_hash") != self.hash:
            return Break("audit_event", sequence, f"does not follow event {sequence - 1}: its previous_hash is another")
        if [subject.get("position") for subject in subjects] != list(range(len(subjects))):
            return Break("audit_subject", sequence, "a row is missing, or its position has changed")
        if event_hash(columns, subjects) != columns.get("hash"):
            return Break("audit_event", sequence, "has changed since it was written, or its audit_subject rows have")
        if self.kept and self.kept.sequence == sequence and self.kept.hash != columns["hash"]:
            return Break("audit_event", sequence, "is not the event that the checkpoint knows: the chain was rewritten")
        for subject in subjects:
            broken = _row(subject, rows, sequence=sequence)
            if broken:
                return broken
        self.events, self.hash = sequence, str(columns["hash"])
        self.rows += len(subjects)
        return None

    def _named_rows(self, subjects: Mapping[int, list[RawRow] | None]) -> dict[str, dict[int, list[RawRow] | None]]:
        wanted: dict[str, dict[int, None]] = {name: {} for name in TABLES}
        for named in subjects.values():
            for subject in named or []:
                name, row_id = subject.get("table_name"), subject.get("row_id")
                if isinstance(name, str) and name in wanted and isinstance(row_id, int):
                    wanted[name][row_id] = None
        return {name: raw_rows(self.session, TABLES[name], key="id", keys=list(ids)) for name, ids in wanted.items()}


def _row(subject: RawRow, rows: Mapping[str, Mapping[int, list[RawRow] | None]], *, sequence: int) -> Break | None:
    name, row_id = str(subject["table_name"]), subject["row_id"]
    assert isinstance(row_id, int)  # the event's hash holds
    if name not in rows:
        return Break(name, row_id, f"is named by audit event {sequence}, and this version knows no such table")
    found = rows[name].get(row_id, [])
    if found is None:
        return Break(name, row_id, "cannot be read")
    if not found:
        return Break(name, row_id, f"is missing: audit event {sequence} names it")
    if row_digest(found[0]) != subject["sha256"]:
        return Break(name, row_id, f"has changed since audit event {sequence} named it")
    return None


def _subjects(session: Session, rows: Sequence[Base]) -> list[dict[str, object]]:
    """Position, table, id and digest of each row, read back from the database: what it holds is what is signed."""
    by_table: dict[str, list[int]] = {}
    for row in rows:
        by_table.setdefault(row.__tablename__, []).append(row.id)  # type: ignore[attr-defined]
    stored = {name: raw_rows(session, TABLES[name], key="id", keys=ids) for name, ids in by_table.items()}
    subjects: list[dict[str, object]] = []
    for position, row in enumerate(rows):
        name, row_id = row.__tablename__, row.id  # type: ignore[attr-defined]
        found = stored[name][row_id]
        assert found  # it was flushed, or read, in this transaction
        subjects.append({"position": position, "table_name": name, "row_id": row_id, "sha256": row_digest(found[0])})
    return subjects


def _agrees_with_checkpoint(session: Session, head: Head) -> bool:
    """Whether the trail still holds the event that the checkpoint knows.

    Where it does not, the checkpoint stays as it is: following a rewritten chain would destroy the evidence.
    """
    checkpoint: Checkpoint | None = session.info.get("checkpoint")
    if checkpoint is None:
        return False
    try:
        kept = checkpoint.head()
    except CheckpointUnreadable as error:
        logger.error("%s", error)
        return False
    if kept is None or kept == head:
        return True
    known = session.scalar(select(AuditEvent.hash).where(AuditEvent.sequence == kept.sequence))
    if known != kept.hash:
        logger.error(
            "the audit trail no longer holds event %s of %s; run `hilum audit verify`", kept.sequence, checkpoint.path
        )
    return known == kept.hash
