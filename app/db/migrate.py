"""Bring the database up to the newest revision, and compare it with what this version works with."""

import logging
import threading
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

import app
from app.db.session import writing
from app.db.tables import APPEND_ONLY
from app.db.work import Base
from app.errors import DatabaseBusy, SchemaMismatch

logger = logging.getLogger(__name__)

UPGRADE_SECONDS = 600
TABLE_LOCK_SECONDS = 5.0
MIGRATION_LOCK = 0x48494C554D02  # PostgreSQL advisory lock, beside the writers' in app.db.session
ONE_AT_A_TIME = threading.Lock()  # Alembic's context is one for the whole process


def migrations_folder() -> Path:
    """`app/migrations` in an installed wheel, `migrations` beside `app` in a checkout."""
    inside = Path(app.__file__).parent / "migrations"
    return inside if inside.is_dir() else inside.parent.parent / "migrations"


def newest() -> str:
    """The revision that this version works with."""
    revision = _scripts().get_current_head()
    assert revision is not None  # there has been a first one from the beginning
    return revision


def current(engine: Engine) -> str | None:
    """The revision the database is at, None for an empty one."""
    with engine.connect() as connection:
        return _revision(connection)


def upgrade(engine: Engine, *, to: str = "head") -> tuple[str | None, str | None]:
    """Run the missing migrations in one transaction; the revisions before and after.

    Raises DatabaseBusy when the tables are locked for too long, SchemaMismatch when a newer version was here before.
    """
    sqlite = engine.dialect.name == "sqlite"
    # PostgreSQL has a lock of its own for migrations, so that writers go on meanwhile.
    with ONE_AT_A_TIME, (writing(engine) if sqlite else engine).connect() as connection:
        if sqlite:
            # Only outside a transaction; rebuilding a table drops it, which would run into its children.
            _outside_transaction(connection, "PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                if not sqlite:
                    _take_postgresql_locks(connection)
                before = _revision(connection)
                _refuse_newer(before)
                config = _config()
                config.attributes["connection"] = connection
                command.upgrade(config, to)
                after = _revision(connection)
        except OperationalError as exc:
            raise DatabaseBusy(
                f"the migration could not be done ({str(exc.orig).splitlines()[0]}); nothing was changed; where others "
                "hold locks, try again when they have finished"
            ) from exc
        finally:
            if sqlite:
                _outside_transaction(connection, "PRAGMA foreign_keys=ON")
    if before != after:
        logger.info("the database went from revision %s to %s", before or "nothing", after)
    return before, after


def differences(engine: Engine) -> list[str]:
    """What the database has that the tables of this version do not say, or the other way round; empty if they agree."""
    with engine.connect() as connection:
        revision = _revision(connection)
        if revision != newest():
            return [f"the database is at revision {revision or 'nothing'}, this version works with {newest()}"]
        compared = MigrationContext.configure(connection, opts={"compare_type": True, "target_metadata": Base.metadata})
        found = [_words(difference) for difference in compare_metadata(compared, Base.metadata)]
        missing = sorted(set(APPEND_ONLY) - _guarded(connection))
        return found + [f"the trigger that keeps {table} append-only is missing" for table in missing]


def require_current(engine: Engine) -> None:
    """Raise SchemaMismatch unless the database is at the revision that this version works with."""
    revision = current(engine)
    _refuse_newer(revision)
    if revision != newest():
        at = revision or "nothing"
        raise SchemaMismatch(
            f"the database is at revision {at} and this version works with {newest()}; run `hilum db upgrade`"
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(revision: str | None) -> None:
    known = {script.revision for script in _scripts().walk_revisions()}
    if revision is not None and revision not in known:
        raise SchemaMismatch(
            f"the database is at revision {revision}, which this version does not know; install the newer version of "
            "Hilum that made it"
        )


def _take_postgresql_locks(connection: Connection) -> None:
    # Another's whole upgrade may have to be waited for; a table's lock may not, since everybody behind waits too.
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{UPGRADE_SECONDS}s'")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{TABLE_LOCK_SECONDS}s'")
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{UPGRADE_SECONDS}s'")


def _outside_transaction(connection: Connection, statement: str) -> None:
    raw = connection.connection.dbapi_connection
    assert raw is not None
    raw.cursor().execute(statement)


def _guarded(connection: Connection) -> set[str]:
    """The tables that refuse UPDATE and DELETE."""
    if connection.dialect.name == "sqlite":
        triggers = connection.exec_driver_sql("SELECT tbl_name, name FROM sqlite_master WHERE type = 'trigger'")
        names = {(table, name) for table, name in triggers}
        return {
            table
            for table, _ in names
            if {(table, f"{table}_refuses_update"), (table, f"{table}_refuses_delete")} <= names
        }
    # tgenabled 'A': the trigger fires always, also for a session that plays a replica.
    enabled = connection.exec_driver_sql(
        "SELECT c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
        "WHERE t.tgname = c.relname || '_append_only' AND t.tgenabled = 'A' "
        "AND c.relnamespace = current_schema()::regnamespace"
    )
    return set(enabled.scalars())


def _words(difference: object) -> str:
    """One entry of Alembic's comparison in a line."""
    match difference:
        case (str(kind), *rest):
            return f"{kind.replace('_', ' ')}: {', '.join(str(part) for part in rest if part is not None)}"
        case [first, *_]:
            return _words(first)
        case _:
            return str(difference)
