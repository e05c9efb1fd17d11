"""Migrations build what the models say, on both engines, once, and say plainly when they cannot."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, text

import app
from app.db import migrate
from app.db.session import engine as open_engine
from app.db.tables import APPEND_ONLY
from app.errors import ConfigInvalid, DatabaseBusy, SchemaMismatch
from tests import services

NEWEST = "0003_dicomweb"


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that no migration has seen."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/deep/er/hilum.db"
    else:
        server: services.PostgreSQL = request.getfixturevalue("postgresql")
        url = server.create()
        yield url
        server.drop(url)


@pytest.fixture
def empty(empty_url: str) -> Iterator[Engine]:
    made = open_engine(empty_url)
    yield made
    made.dispose()


def test_upgrading_an_empty_database_gives_what_the_models_say(empty: Engine) -> None:
    assert migrate.current(empty) is None
    assert migrate.upgrade(empty) == (None, NEWEST)
    assert migrate.differences(empty) == []
    migrate.require_current(empty)


def test_rows_outlive_the_next_migration_and_its_undoing(empty: Engine) -> None:
    migrate.upgrade(empty, to="0001_initial")
    with empty.begin() as connection:
        connection.execute(
            text("INSERT INTO study (id, study_instance_uid, received_at) VALUES (1, '1.2', '2026-01-01T00:00:00Z')")
        )
    assert migrate.upgrade(empty) == ("0001_initial", NEWEST)
    assert migrate.differences(empty) == []
    with empty.connect() as connection:
        assert connection.execute(text("SELECT study_instance_uid FROM study")).scalar() == "1.2"


def test_upgrading_again_changes_nothing(engine: Engine) -> None:
    assert migrate.upgrade(engine) == (NEWEST, NEWEST)
    assert migrate.differences(engine) == []


def test_an_empty_database_differs_and_is_not_current(empty: Engine) -> None:
    assert migrate.differences(empty) == ["the database is at revision nothing, this version works with " + NEWEST]
    with pytest.raises(SchemaMismatch, match="hilum db upgrade"):
        migrate.require_current(empty)


def test_processes_that_start_together_upgrade_once(empty_url: str, empty: Engine) -> None:
    program = f"from app.db import migrate, session; print(migrate.upgrade(session.engine({empty_url!r})))"
    command = [sys.executable, "-c", program]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate()[0].strip() for process in started)
    assert said == [f"('{NEWEST}', '{NEWEST}')", f"(None, '{NEWEST}')"]
    assert migrate.differences(empty) == []


def test_threads_that_upgrade_together_do_it_once(empty: Engine) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(migrate.upgrade, [empty] * 4))
    assert done.count((None, NEWEST)) == 1
    assert done.count((NEWEST, NEWEST)) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("ALTER TABLE study ADD COLUMN nickname TEXT", "nickname"),
        ("DROP INDEX ix_study_received_at", "ix_study_received_at"),
        ("CREATE TABLE mine (id INTEGER)", "mine"),
    ],
)
def test_what_differs_is_named(engine: Engine, change: str, named: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(change))
    (difference,) = migrate.differences(engine)
    assert named in difference


def test_triggers_that_were_taken_away_are_named(engine: Engine) -> None:
    for table in APPEND_ONLY:
        if engine.dialect.name == "sqlite":
            change = f"DROP TRIGGER {table}_refuses_delete"
        else:
            change = f"ALTER TABLE {table} DISABLE TRIGGER {table}_append_only"
        with engine.begin() as connection:
            connection.execute(text(change))
    named = [f"the trigger that keeps {table} append-only is missing" for table in sorted(APPEND_ONLY)]
    assert migrate.differences(engine) == named


def test_a_database_of_a_newer_version_is_left_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0999_future'"))
    with pytest.raises(SchemaMismatch, match="newer version"):
        migrate.upgrade(engine)
    with pytest.raises(SchemaMismatch, match="0999_future"):
        migrate.require_current(engine)


@pytest.mark.parametrize("empty_url", ["postgresql"], indirect=True)
def test_a_migration_does_not_wait_long_for_a_locked_table(empty: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "TABLE_LOCK_SECONDS", 0.2)
    with empty.connect() as other, other.begin():
        other.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))  # holds its name
        with pytest.raises(DatabaseBusy, match="nothing was changed"):
            migrate.upgrade(empty)
    with empty.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]


def test_migrations_are_found_in_an_installed_wheel(tmp_path: Path) -> None:
    # The wheel's layout, as pyproject.toml's force-include makes it.
    package = Path(app.__file__).parent
    shutil.copytree(package, tmp_path / "app", ignore=shutil.ignore_patterns("web", "__pycache__"))
    shutil.copytree(package.parent / "migrations", tmp_path / "app" / "migrations")
    program = (
        "from app.db import migrate; from app.db.session import engine; "
        "e = engine('sqlite:///hilum.db'); migrate.upgrade(e); "
        "print(migrate.migrations_folder(), migrate.differences(e))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{tmp_path}/app/migrations []"


@pytest.mark.parametrize(
    "url", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "mysql://host/database", "oracle+cx://x"]
)
def test_a_url_that_cannot_keep_predictions_is_refused(url: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"storage\.database_url"):
        open_engine(url)
