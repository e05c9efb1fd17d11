"""Every new row is bound to an audit event, in one chain, however many write at once."""

import hashlib
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, MetaData, event, select, text
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.orm import Session

from app.db import audit
from app.db.checkpoint import Checkpoint, Head
from app.db.digest import raw_rows, row_digest
from app.db.session import Sessions
from app.db.session import engine as open_engine
from app.db.session import sessions as open_sessions
from app.db.tables import APPEND_ONLY, AUDITED, AuditEvent, AuditSubject, FindingRow, PredictionRow, Study
from app.errors import AuditUnbound, AuditUnserialised, CheckpointUnreadable, UnstorableValue
from app.identity import LOCAL_USER, SYSTEM
from tests.app.records import Clock, fill, prediction, study


def holds(sessions: Sessions, checkpoint_path: Path | None) -> audit.AuditReport:
    with sessions() as session:
        report = audit.verify(session, Checkpoint(checkpoint_path) if checkpoint_path else None)
    assert report.broken is None
    return report


def fail_after_an_event(session: Session, now: Clock) -> None:
    audit.append(session, actor=LOCAL_USER, action="receive", subjects=[study(now())], now=now)
    raise ZeroDivisionError


def test_an_empty_trail_holds(sessions: Sessions, checkpoint_path: Path) -> None:
    assert holds(sessions, checkpoint_path) == audit.AuditReport(0, 0, None, None, None)


def test_a_filled_trail_holds_and_ends_at_the_checkpoint(sessions: Sessions, checkpoint_path: Path, now: Clock) -> None:
    fill(sessions, now)
    report = holds(sessions, checkpoint_path)
    assert report.events == 4
    assert report.rows == 14
    assert report.head == report.checkpoint == Checkpoint(checkpoint_path).head()


def test_events_count_from_one_and_each_carries_the_hash_before(sessions: Sessions, now: Clock) -> None:
    fill(sessions, now)
    with sessions() as session:
        events = session.scalars(select(AuditEvent).order_by(AuditEvent.sequence)).all()
    assert [one.sequence for one in events] == [1, 2, 3, 4]
    assert [one.previous_hash for one in events] == ["0" * 64, *(one.hash for one in events[:-1])]
    assert [one.action for one in events] == ["receive", "predict", "predict", "view"]


def test_rows_that_the_caller_did_not_name_are_bound_as_well(
    sessions: Sessions, checkpoint_path: Path, now: Clock
) -> None:
    with sessions.begin() as session:
        kept = study(now())
        session.add(prediction(kept.series[0].instances[0], now()))
        appended = audit.append(session, actor=LOCAL_USER, action="receive", subjects=[kept], now=now)
        named = [subject.table_name for subject in appended.subjects]
    assert named[0] == "study"
    assert sorted(named[1:]) == [
        "finding", "finding", "instance", "instance", "prediction", "series", "withheld"
    ]  # fmt: skip
    holds(sessions, checkpoint_path)


def test_a_row_without_an_event_cannot_be_committed(sessions: Sessions, now: Clock) -> None:
    with pytest.raises(AuditUnbound, match="instance, series, study"), sessions.begin() as session:
        session.add(study(now()))
    with sessions() as session:
        assert session.scalars(select(Study)).all() == []


def test_rows_added_after_the_event_need_another_one(sessions: Sessions, checkpoint_path: Path, now: Clock) -> None:
    def too_late() -> None:
        with sessions.begin() as session:
            kept = study(now())
            audit.append(session, actor=LOCAL_USER, action="receive", subjects=[kept], now=now)
            session.add(prediction(kept.series[0].instances[0], now()))

    with pytest.raises(AuditUnbound, match="prediction"):
        too_late()
    assert holds(sessions, checkpoint_path).events == 0


def test_a_transaction_that_fails_leaves_neither_rows_nor_event_nor_checkpoint(
    sessions: Sessions, checkpoint_path: Path, now: Clock
) -> None:
    with pytest.raises(ZeroDivisionError), sessions.begin() as session:
        fail_after_an_event(session, now)
    assert not checkpoint_path.exists()
    assert holds(sessions, checkpoint_path).events == 0


def test_a_savepoint_that_is_rolled_back_takes_its_event_with_it(
    sessions: Sessions, checkpoint_path: Path, now: Clock
) -> None:
    with sessions.begin() as session:
        audit.append(session, actor=SYSTEM, action="start", now=now)
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            fail_after_an_event(session, now)
    assert holds(sessions, None).events == 1
    kept = Checkpoint(checkpoint_path).head()
    assert kept is None or kept.sequence == 1  # may lag, never lead


def test_an_event_outside_a_writing_session_is_refused(sessions: Sessions, now: Clock) -> None:
    with sessions() as session, pytest.raises(AuditUnserialised):
        audit.append(session, actor=LOCAL_USER, action="login", now=now)


def test_the_whole_event_is_covered_as_the_docstring_says(sessions: Sessions, now: Clock) -> None:
    # Recomputed with nothing but hashlib and json; the values are ASCII and whole, where json.dumps is canonical.
    with sessions.begin() as session:
        one = audit.append(session, actor=LOCAL_USER, action="login", detail={"tries": 1}, now=now)
    body = {
        "sequence": 1,
        "at": "2026-01-02T03:04:06.678901Z",
        "actor": "local",
        "actor_kind": "user",
        "action": "login",
        "detail": '{"tries":1}',
        "previous_hash": "0" * 64,
        "subjects": [],
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    assert one.hash == hashlib.sha256(("0" * 64 + text).encode()).hexdigest()


def test_both_engines_give_the_same_rows_the_same_digests(
    sessions: Sessions, engine: Engine, now: Clock, tmp_path: Path, migrated_sqlite: Path
) -> None:
    shutil.copy(migrated_sqlite, tmp_path / "other.db")
    other = open_engine(f"sqlite:///{tmp_path}/other.db")
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    hashes = []
    for one in (sessions, open_sessions(other, checkpoint=None)):
        with one.begin() as session:
            kept = study(at)
            kept.patient_name = "M\u00fcller\x00^\ud800 \U0001f600"
            row = prediction(kept.series[0].instances[0], at)
            row.uid = "1" * 32
            row.route_probability = float(np.float32(0.1))
            row.stated_age_years = -0.0
            row.latency_ms = {"decode": 0.1 + 0.2, "prepare": 1e-7, "inference": 100.0}
            appended = audit.append(session, actor=LOCAL_USER, action="receive", subjects=[kept, row], now=lambda: at)
        hashes.append(appended.hash)
        holds(one, None)
    other.dispose()
    assert hashes[0] == hashes[1]


def test_values_come_back_as_they_went_in(sessions: Sessions, now: Clock) -> None:
    at = datetime(2026, 7, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=-5)))
    with sessions.begin() as session:
        kept = study(at)
        kept.patient_name = "a\x00b\ud800"
        row = prediction(kept.series[0].instances[0], at)
        audit.append(session, actor=LOCAL_USER, action="receive", subjects=[kept, row], now=now)
    with sessions() as session:
        read = session.scalars(select(Study)).one()
        assert read.received_at == at
        assert read.received_at.utcoffset() == timedelta(0)
        assert read.patient_name == "a\ufffdb\ufffd"
        again = session.scalars(select(PredictionRow)).one()
        assert again.latency_ms == {"decode": 12.5, "prepare": 3, "inference": 101}
        assert again.route_probability == 0.9912345678901234
        assert again.warnings == ["the header names no body part"]
        assert [finding.positive for finding in again.findings] == [False, True]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_refused_on_both_engines(sessions: Sessions, now: Clock, value: float) -> None:
    kept = study(now())
    kept.series[0].instances[0].patient_age_years = value
    with pytest.raises((UnstorableValue, StatementError), match="cannot be stored"), sessions.begin() as session:
        audit.append(session, actor=LOCAL_USER, action="receive", subjects=[kept], now=now)


def test_a_time_without_a_zone_is_refused(sessions: Sessions, now: Clock) -> None:
    kept = study(datetime(2026, 1, 2))  # noqa: DTZ001 (the point of the test)
    with pytest.raises((UnstorableValue, StatementError), match="without a time zone"), sessions.begin() as session:
        audit.append(session, actor=LOCAL_USER, action="receive", subjects=[kept], now=now)


def test_a_clock_that_goes_back_does_not_break_the_order(sessions: Sessions, checkpoint_path: Path) -> None:
    for hour in (12, 3, 13):
        with sessions.begin() as session:
            at = datetime(2026, 3, 29, hour, tzinfo=UTC)
            audit.append(session, actor=SYSTEM, action="start", now=lambda at=at: at)  # type: ignore[misc]
    assert holds(sessions, checkpoint_path).events == 3


def test_an_event_over_a_whole_series_takes_few_statements(
    sessions: Sessions, engine: Engine, checkpoint_path: Path, now: Clock
) -> None:
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *parts: statements.append(parts[2]))
    with sessions.begin() as session:
        kept = study(now(), instances=500)
        rows = [prediction(image, now()) for image in kept.series[0].instances]
        audit.append(session, actor=LOCAL_USER, action="predict", subjects=[kept, *rows], now=now)
    assert sum(statement.startswith("SELECT") for statement in statements) < 30  # one a batch and table, not one a row
    report = holds(sessions, checkpoint_path)
    assert (report.events, report.rows) == (1, 1 + 1 + 500 + 500 + 1000 + 500)


def test_writers_at_once_never_fork_the_chain(
    sessions: Sessions, database_url: str, checkpoint_path: Path, now: Clock
) -> None:
    second_engine = open_engine(database_url)  # as another process would have it
    second = open_sessions(second_engine, checkpoint=checkpoint_path)

    def write(number: int) -> None:
        with (sessions, second)[number % 2].begin() as session:
            uid = f"1.2.{number % 10}"
            if session.scalar(select(Study).where(Study.study_instance_uid == uid)) is None:
                session.add(study(now(), uid=uid, instances=1))
            audit.append(session, actor=LOCAL_USER, action="receive", now=now)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    second_engine.dispose()
    report = holds(sessions, checkpoint_path)
    assert report.events == 40
    assert report.checkpoint == report.head
    with sessions() as session:
        assert len(session.scalars(select(Study)).all()) == 10


def test_reading_does_not_wait_for_a_writer(sessions: Sessions, now: Clock) -> None:
    fill(sessions, now)
    with sessions.begin() as writer:
        audit.append(writer, actor=SYSTEM, action="start", now=now)
        with sessions() as reader:
            assert len(reader.scalars(select(AuditEvent)).all()) == 4


def test_the_engine_refuses_to_change_or_delete_a_row(sessions: Sessions, engine: Engine, now: Clock) -> None:
    fill(sessions, now)
    for table in APPEND_ONLY:
        key = "sequence" if table.startswith("audit") else "id"
        changes = [f"UPDATE {table} SET {key} = {key}", f"DELETE FROM {table}"]
        if engine.dialect.name == "sqlite":
            changes.append(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}")
        else:
            changes += [f"TRUNCATE {table} CASCADE", f"SET session_replication_role = replica; DELETE FROM {table}"]
        for change in changes:
            with pytest.raises(DBAPIError, match="is append-only"), engine.begin() as connection:
                connection.execute(text(change))


def test_a_column_that_is_added_later_leaves_old_digests_alone(sessions: Sessions, engine: Engine, now: Clock) -> None:
    kept = fill(sessions, now)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE study ADD COLUMN referring_department TEXT"))
        later = MetaData()
        later.reflect(connection, only=["study"])
    with sessions() as session:
        (row,) = raw_rows(session, audit.TABLES["study"], key="id", keys=[kept.id])[kept.id] or []
        bound = session.scalars(select(AuditSubject.sha256).where(AuditSubject.table_name == "study")).first()
        grown = session.execute(select(later.tables["study"])).mappings().one()
    assert "referring_department" in grown
    assert row_digest(row) == bound
    assert row_digest({**row, "referring_department": "x"}) != bound


def test_every_table_with_rows_is_audited_or_the_audit_itself() -> None:
    assert {row.__tablename__ for row in AUDITED} | {"audit_event", "audit_subject"} == set(APPEND_ONLY)


def test_the_checkpoint_never_goes_back(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "deep" / "checkpoint.json")
    assert checkpoint.head() is None
    for sequence in (2, 1, 3, 3):
        checkpoint.advance(Head(sequence, f"{sequence}" * 64))
    assert checkpoint.head() == Head(3, "3" * 64)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"sequence": "x", "hash": ""}', "\x00\x00"])
def test_a_damaged_checkpoint_is_named_and_stops_nobody(
    sessions: Sessions, checkpoint_path: Path, now: Clock, content: str
) -> None:
    checkpoint_path.write_text(content)
    fill(sessions, now)
    with sessions() as session, pytest.raises(CheckpointUnreadable):
        audit.verify(session, Checkpoint(checkpoint_path))
    assert checkpoint_path.read_text() == content


def test_a_checkpoint_that_cannot_be_written_does_not_undo_the_commit(
    sessions: Sessions, checkpoint_path: Path, now: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint_path.with_suffix(".lock").mkdir()  # open() fails with EISDIR, also for root
    fill(sessions, now)
    assert "could not be written" in caplog.text
    assert holds(sessions, None).events == 4


def test_a_refused_statement_shows_no_patient(sessions: Sessions, now: Clock) -> None:
    fill(sessions, now)
    with pytest.raises(DBAPIError) as caught, sessions.begin() as session:
        audit.append(session, actor=LOCAL_USER, action="receive", subjects=[study(now())], now=now)
    assert "Ada" not in str(caught.value)
    assert "Ada" not in repr(study(now()))


def test_findings_come_in_the_order_of_the_task(sessions: Sessions, now: Clock) -> None:
    fill(sessions, now)
    with sessions() as session:
        row = session.scalars(select(PredictionRow).order_by(PredictionRow.id)).first()
        assert row
        assert [finding.label for finding in row.findings] == ["normal", "pneumonia"]
        assert isinstance(row.findings[0], FindingRow)
