"""Whatever is changed behind Hilum's back, `audit.verify` names the first row that does not hold."""

import json
import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Boolean, Column, Engine, text

from app.db import audit
from app.db.checkpoint import Checkpoint
from app.db.digest import raw_rows, row_digest
from app.db.session import Sessions
from app.db.session import engine as open_engine
from app.db.session import sessions as open_sessions
from app.db.tables import APPEND_ONLY, AUDITED, Base
from tests import services
from tests.app.records import fill

COLUMNS = [column for table in APPEND_ONLY for column in Base.metadata.tables[table].columns]


class Intruder:
    """Somebody who owns the database: takes triggers and foreign keys out of the way, then writes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sqlite = engine.dialect.name == "sqlite"
        for table in APPEND_ONLY:
            if self.sqlite:
                self.run(f"DROP TRIGGER {table}_refuses_update", f"DROP TRIGGER {table}_refuses_delete")
            else:
                self.run(f"ALTER TABLE {table} DISABLE TRIGGER ALL")

    def run(self, *statements: str, **values: Any) -> None:
        with self.engine.connect() as connection:
            if self.sqlite:
                raw = connection.connection.dbapi_connection
                assert isinstance(raw, sqlite3.Connection)
                raw.execute("PRAGMA foreign_keys=OFF")
            with connection.begin():
                for statement in statements:
                    connection.execute(text(statement), values)

    def ask(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """Rows as the driver gives them, without Hilum's conversions."""
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query), values)]


@dataclass(frozen=True)
class Scene:
    """A filled database, its checkpoint and the intruder."""

    sessions: Sessions
    checkpoint: Checkpoint
    intruder: Intruder

    def verify(self) -> audit.AuditReport:
        with self.sessions() as session:
            return audit.verify(session, self.checkpoint)

    def broken(self) -> audit.Break:
        found = self.verify().broken
        assert found is not None
        return found


def clock() -> Callable[[], datetime]:
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

    def read() -> datetime:
        nonlocal at
        at += timedelta(seconds=1)
        return at

    return read


def scene(url: str, checkpoint: Path) -> Scene:
    engine = open_engine(url)
    sessions = open_sessions(engine, checkpoint=checkpoint)
    now = clock()
    fill(sessions, now)
    fill(sessions, now, uid="1.2.4", instances=1)
    return Scene(sessions, Checkpoint(checkpoint), Intruder(engine))


@pytest.fixture
def fresh(database_url: str, checkpoint_path: Path) -> Iterator[Scene]:
    made = scene(database_url, checkpoint_path)
    yield made
    made.intruder.engine.dispose()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def lasting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One database for many tests, each of which leaves it as it was."""
    folder = tmp_path_factory.mktemp("lasting")
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_sqlite"), folder / "hilum.db")
        url = f"sqlite:///{folder}/hilum.db"
    else:
        server: services.PostgreSQL = request.getfixturevalue("postgresql")
        url = server.create(template=request.getfixturevalue("migrated_postgresql"))
    made = scene(url, folder / "checkpoint.json")
    yield made
    made.intruder.engine.dispose()


def one_bit_off(column: Column[Any], value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int():
            return value ^ (1 if isinstance(column.type, Boolean) else 1 << 20)  # far from any other key
        case float():
            (bits,) = struct.unpack("<q", struct.pack("<d", value))
            return struct.unpack("<d", struct.pack("<q", bits ^ 1))[0]
        case datetime():
            return value + timedelta(microseconds=1)
        case date():
            return date.fromordinal(value.toordinal() ^ 1)
        case str():
            return value[:-1] + chr(ord(value[-1]) ^ 1)
    raise AssertionError(column)


@pytest.mark.parametrize("column", COLUMNS, ids=str)
def test_one_flipped_bit_is_found_in_every_column(lasting: Scene, column: Column[Any]) -> None:
    table, keys = column.table.name, [key.name for key in column.table.primary_key.columns]
    newest = ", ".join(f"{key} DESC" for key in keys)
    where = " AND ".join(f"{key} = :{key}" for key in keys)
    names = ", ".join(f'"{name}"' for name in [column.name, *keys])
    [(before, *key_values), *_] = lasting.intruder.ask(f'SELECT {names} FROM "{table}" ORDER BY {newest}')
    key = dict(zip(keys, key_values, strict=True))
    after = one_bit_off(column, before)

    change = f'UPDATE "{table}" SET "{column.name}" = :value WHERE {where}'
    lasting.intruder.run(change, value=after, **key)
    found = lasting.broken()
    lasting.intruder.run(change, value=before, **(key | {column.name: after} if column.name in keys else key))

    assert found.row == key[keys[0]]
    assert found.table == table or (table == "audit_subject" and found.table == "audit_event")
    assert lasting.verify().broken is None


@pytest.mark.parametrize("table", APPEND_ONLY)
def test_one_deleted_row_is_found_in_every_table(lasting: Scene, table: str) -> None:
    key = "sequence" if table.startswith("audit") else "id"
    columns = [column.name for column in Base.metadata.tables[table].columns]
    names = ", ".join(f'"{name}"' for name in columns)
    newest = f"{key} = (SELECT max({key}) FROM {table})"
    (row, *_) = deleted = lasting.intruder.ask(f"SELECT {names} FROM {table} WHERE {newest}")
    lasting.intruder.run(f"DELETE FROM {table} WHERE {newest}")
    found = lasting.broken()
    insert = f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{name}' for name in columns)})"
    for one in deleted:
        lasting.intruder.run(insert, **dict(zip(columns, one, strict=True)))

    assert found.row == row[columns.index(key)]
    assert found.table in ({table, "audit_event"} if table == "audit_subject" else {table})
    assert lasting.verify().broken is None


@pytest.mark.parametrize("table", [row.__tablename__ for row in AUDITED])
def test_a_row_that_was_inserted_past_hilum_is_found(lasting: Scene, table: str) -> None:
    columns = [column for column in Base.metadata.tables[table].columns if not column.primary_key]
    unique = {"study_instance_uid", "series_instance_uid", "sop_instance_uid", "uid", "label"}
    names = ", ".join(f'"{column.name}"' for column in columns)
    values = ", ".join("'forged'" if column.name in unique else f'"{column.name}"' for column in columns)
    copied = f'SELECT 999, {values} FROM "{table}" WHERE id = (SELECT min(id) FROM "{table}")'
    lasting.intruder.run(f'INSERT INTO "{table}" (id, {names}) {copied}')
    found = lasting.broken()
    lasting.intruder.run(f'DELETE FROM "{table}" WHERE id = 999')

    assert found == audit.Break(table, 999, "has no audit event: it did not come through Hilum")
    assert lasting.verify().broken is None


def test_two_rows_that_changed_places_are_found(fresh: Scene) -> None:
    fresh.intruder.run(
        "UPDATE finding SET id = -1 WHERE id = 1",
        "UPDATE finding SET id = 1 WHERE id = 2",
        "UPDATE finding SET id = 2 WHERE id = -1",
    )
    assert fresh.broken().table == "finding"
    assert fresh.broken().row == 1


def test_two_events_that_changed_places_are_found(fresh: Scene) -> None:
    for table in ("audit_event", "audit_subject"):
        fresh.intruder.run(
            f"UPDATE {table} SET sequence = -1 WHERE sequence = 2",
            f"UPDATE {table} SET sequence = 2 WHERE sequence = 3",
            f"UPDATE {table} SET sequence = 3 WHERE sequence = -1",
        )
    assert (fresh.broken().table, fresh.broken().row) == ("audit_event", 2)


def test_a_cut_tail_is_found_though_what_is_left_is_whole(fresh: Scene) -> None:
    last = fresh.verify().events
    cut(fresh, after=last - 2)
    assert (fresh.broken().table, fresh.broken().row) == ("audit_event", last - 1)
    with fresh.sessions() as session:
        assert audit.verify(session, None).broken is None  # only the checkpoint can know


def test_new_events_after_a_cut_tail_do_not_heal_it(fresh: Scene, caplog: pytest.LogCaptureFixture) -> None:
    last = fresh.verify().events
    known = fresh.checkpoint.head()
    cut(fresh, after=last - 2)
    for uid in ("1.2.5", "1.2.6"):
        fill(fresh.sessions, clock(), uid=uid)  # more events than were cut
    assert fresh.checkpoint.head() == known
    assert (fresh.broken().table, fresh.broken().row) == ("audit_event", last)
    assert "run `hilum audit verify`" in caplog.text


def test_a_chain_that_was_recomputed_after_a_forged_row_is_found(fresh: Scene) -> None:
    fresh.intruder.run("UPDATE finding SET probability = 0.01 WHERE id = 1")
    rewrite(fresh)
    with fresh.sessions() as session:
        assert audit.verify(session, None).broken is None  # the forger knows the rules
    found = fresh.broken()
    assert (found.table, found.row) == ("audit_event", fresh.verify().events + 1)
    assert "checkpoint" in found.what


def test_an_old_copy_of_the_checkpoint_finds_a_rewritten_past(fresh: Scene, tmp_path: Path) -> None:
    copy = Checkpoint(tmp_path / "copy.json")
    shutil.copy(fresh.checkpoint.path, copy.path)
    fill(fresh.sessions, clock(), uid="1.2.5")
    fresh.intruder.run("UPDATE study SET patient_id = 'X' WHERE id = 1")
    rewrite(fresh)
    ((hash_now,),) = fresh.intruder.ask("SELECT hash FROM audit_event ORDER BY sequence DESC LIMIT 1")
    head = fresh.checkpoint.head()
    assert head
    fresh.checkpoint.path.write_text(
        json.dumps({"sequence": head.sequence, "hash": hash_now})
    )  # the forger is thorough
    assert fresh.verify().broken is None
    with fresh.sessions() as session:
        assert audit.verify(session, copy).broken is not None


def test_a_missing_checkpoint_is_no_proof_of_wholeness(fresh: Scene) -> None:
    fresh.checkpoint.path.unlink()
    assert fresh.broken().table == "checkpoint"


def test_an_event_without_its_row_leaves_subjects_that_are_found(fresh: Scene) -> None:
    last = fresh.verify().events
    fresh.intruder.run("DELETE FROM audit_event WHERE sequence = :last", last=last)
    with fresh.sessions() as session:
        found = audit.verify(session, None).broken
    assert found == audit.Break("audit_subject", last, "names rows of an event that is not there")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_true_that_became_another_true_is_found(fresh: Scene) -> None:
    fresh.intruder.run("UPDATE finding SET positive = 3 WHERE id = 2")
    assert fresh.broken() == audit.Break("finding", 2, "has changed since audit event 2 named it")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_bytes_that_are_no_text_are_named_as_unreadable(fresh: Scene) -> None:
    fresh.intruder.run("UPDATE finding SET label = CAST(x'ff' AS TEXT) WHERE id = 2")
    assert fresh.broken() == audit.Break("finding", 2, "cannot be read")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("statement", "table", "row"),
    [
        ("UPDATE audit_event SET at = 'infinity' WHERE sequence = 2", "audit_event", 2),
        ("UPDATE study SET received_at = '-infinity' WHERE id = 1", "study", 1),
        ("UPDATE finding SET logit = 'NaN' WHERE id = 2", "finding", 2),
    ],
)
def test_values_that_python_cannot_hold_are_named_as_unreadable(
    fresh: Scene, statement: str, table: str, row: int
) -> None:
    fresh.intruder.run(statement)
    assert fresh.broken() == audit.Break(table, row, "cannot be read")


def cut(fresh: Scene, *, after: int) -> None:
    """Take the newest events away with every row that only they name, in an order that keeps the rest whole."""
    for table in reversed(APPEND_ONLY):
        if not table.startswith("audit"):
            fresh.intruder.run(
                f"DELETE FROM {table} WHERE id NOT IN "
                f"(SELECT row_id FROM audit_subject WHERE table_name = '{table}' AND sequence <= {after})"
            )
    fresh.intruder.run(
        f"DELETE FROM audit_subject WHERE sequence > {after}", f"DELETE FROM audit_event WHERE sequence > {after}"
    )


def rewrite(fresh: Scene) -> None:
    """Give every row its new digest and every event its new hash, as somebody can who knows how they are made."""
    with fresh.sessions() as session:
        events = raw_rows(session, audit.EVENTS, key="sequence", keys=list(range(1, 100)))
        subjects = raw_rows(session, audit.SUBJECTS, key="sequence", keys=list(range(1, 100)), order="position")
        previous = audit.BEFORE_THE_FIRST
        for sequence in sorted(events):
            named = subjects.get(sequence) or []
            for subject in named:
                row_id = subject["row_id"]
                assert isinstance(row_id, int)
                table = audit.TABLES[str(subject["table_name"])]
                (row,) = raw_rows(session, table, key="id", keys=[row_id])[row_id] or []
                subject["sha256"] = row_digest(row)
                fresh.intruder.run(
                    "UPDATE audit_subject SET sha256 = :sha256 WHERE sequence = :sequence AND position = :position",
                    sha256=subject["sha256"],
                    sequence=sequence,
                    position=subject["position"],
                )
            (event,) = events[sequence] or []
            event["previous_hash"] = previous
            previous = audit.event_hash(event, named)
            fresh.intruder.run(
                "UPDATE audit_event SET previous_hash = :before, hash = :hash WHERE sequence = :sequence",
                before=event["previous_hash"],
                hash=previous,
                sequence=sequence,
            )
