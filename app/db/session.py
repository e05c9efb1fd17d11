"""Open the database, and give out sessions that read and sessions that write one after the other."""

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import Session, sessionmaker

from app import durable
from app.db.checkpoint import Checkpoint, Head
from app.db.tables import AUDITED
from app.errors import AuditUnbound, ConfigInvalid, DatabaseBusy, DatabaseUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

WAIT_SECONDS = 30  # for another writer, on both engines
WRITES = "hilum_writes"  # the execution option of connections whose transactions take the writers' lock
WRITERS_LOCK = 0x48494C554D01  # PostgreSQL advisory lock; the number only has to be ours ("HILUM", 1)


def engine(url: str) -> Engine:
    """A connection pool for sqlite:///file or postgresql://user@host/database; the first connection makes the file.

    Parameters never show in error messages, since they hold patient data.
    Raises ConfigInvalid for an unusable URL, DatabaseUnavailable where the driver is not installed.
    """
    parsed = _supported(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    arguments: dict[str, Any] = {"timeout": WAIT_SECONDS}
    if not sqlite:
        arguments = {"connect_timeout": 10, "application_name": "hilum"}
    try:
        made = create_engine(parsed, connect_args=arguments, hide_parameters=True, pool_pre_ping=not sqlite)
    except ModuleNotFoundError as exc:
        raise DatabaseUnavailable(f"{exc.name} is not installed; pip install 'hilum[postgresql]'") from exc
    if sqlite:
        event.listen(made, "do_connect", _make_folder)
        event.listen(made, "connect", _prepare_sqlite)
    event.listen(made, "begin", _begin)
    return made


def writing(made: Engine) -> Engine:
    """The same pool, whose transactions begin by taking the writers' lock."""
    return made.execution_options(**{WRITES: True})


class Sessions(sessionmaker[Session]):
    """`sessions()` reads; `with sessions.begin() as session` writes, and commits at the end of the block.

    Writers follow each other on both engines: SQLite's one write lock, an advisory lock on PostgreSQL. So a row that
    was looked for and not found can be inserted, and the audit trail cannot fork. Keep slow work out of the block.
    """

    def __init__(self, made: Engine, *, checkpoint: Checkpoint | None) -> None:
        super().__init__(bind=made, info={"checkpoint": checkpoint}, expire_on_commit=False)
        self._writing = writing(made)
        self._turn = threading.Lock()
        self._waiting: deque[tuple[Callable[[Session], Any], Future[Any]]] = deque()
        event.listen(self, "after_flush", _remember_new_rows)
        event.listen(self, "before_commit", _refuse_unbound_rows)
        event.listen(self, "after_commit", _keep_head)
        event.listen(self, "after_soft_rollback", _forget)

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A session whose transaction holds the writers' lock from its first statement to its end.

        Raises AuditUnbound at the end of the block when rows were added that no audit event names, and DatabaseBusy.
        """
        # SQLite lets a second writer sleep and look again, ever more seldom: threads that take turns here lose no time.
        if not self._turn.acquire(timeout=WAIT_SECONDS):
            raise DatabaseBusy("another part of this process has been writing for too long; nothing was changed")
        try:
            with self(bind=self._writing) as session, session.begin():
                yield session
        finally:
            self._turn.release()

    def together(self, work: Callable[[Session], T]) -> T:
        """What `work` makes of a session as `begin` gives it, in a transaction that other threads' work may share.

        The thread that writes next does the work of all that wait, and what a commit waits for the disk is paid once.
        Where one of them raises, all is undone and each is done by itself: so `work` may be called twice, and must
        change nothing but the session. Raises what `work` does, AuditUnbound and DatabaseBusy.
        """
        done: Future[T] = Future()
        waiting = (work, done)
        self._waiting.append(waiting)
        if not self._turn.acquire(timeout=WAIT_SECONDS):
            try:
                self._waiting.remove(waiting)
            except ValueError:  # the one that writes now has it in hand
                return done.result()
            raise DatabaseBusy("another part of this process has been writing for too long; nothing was changed")
        try:
            if not done.done():
                self._write([self._waiting.popleft() for _ in range(len(self._waiting))])
        finally:
            self._turn.release()
        return done.result()

    def _write(self, batch: Sequence[tuple[Callable[[Session], Any], Future[Any]]]) -> None:
        made = []
        try:
            with self(bind=self._writing) as session, session.begin():
                for work, _ in batch:
                    made.append(work(session))
                    _refuse_unbound_rows(session)  # the next one's audit event would name them
        except BaseException as problem:
            if len(batch) > 1 and isinstance(problem, Exception):
                for one in batch:
                    self._write([one])
                return
            for _, done in batch:
                done.set_exception(problem)
            if not isinstance(problem, Exception):
                raise
        else:
            for (_, done), result in zip(batch, made, strict=True):
                done.set_result(result)


def sessions(made: Engine, *, checkpoint: Path | None) -> Sessions:
    """Sessions on an engine; `checkpoint` is the file that follows the head of the audit trail."""
    return Sessions(made, checkpoint=Checkpoint(checkpoint) if checkpoint else None)


def holds_writers_lock(session: Session) -> bool:
    """Whether the session came from `Sessions.begin()`."""
    return bool(session.connection().get_execution_options().get(WRITES))


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite database, None for a server's. Raises ConfigInvalid for an unusable URL."""
    parsed = _supported(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None


def without_password(url: str) -> str:
    """The URL as it may be shown. Raises ConfigInvalid for an unusable one."""
    parsed = _supported(url)
    return parsed.difference_update_query(["password", "sslpassword"]).render_as_string(hide_password=True)


def _supported(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError) as exc:
        raise ConfigInvalid("storage.database_url is no database URL; write for example sqlite:///hilum.db") from exc
    if backend not in {"sqlite", "postgresql"}:
        raise ConfigInvalid(f"storage.database_url names {backend}; Hilum works with sqlite and postgresql")
    if backend == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise ConfigInvalid("storage.database_url names no file; a database in memory would lose every prediction")
    return parsed.set(drivername="sqlite" if backend == "sqlite" else "postgresql+psycopg")


def _make_folder(_dialect: object, _record: object, arguments: list[str], _keywords: object) -> None:
    durable.make_folder(Path(arguments[0]).absolute().parent)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver's own transaction control begins too late for a stable read and never begins IMMEDIATE.
    connection.isolation_level = None
    _enter_wal(connection)
    for pragma in (
        "synchronous=FULL",  # NORMAL may lose committed rows on power loss in WAL mode
        "foreign_keys=ON",
        "recursive_triggers=ON",  # so that INSERT OR REPLACE runs into the triggers that refuse DELETE
    ):
        connection.execute(f"PRAGMA {pragma}")


def _enter_wal(connection: sqlite3.Connection) -> None:
    """SQLite refuses at once, whatever the busy timeout, while another process turns the same new file to WAL."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES)
    if connection.dialect.name == "sqlite":
        # A deferred transaction that reads and then writes fails at once when another has written in between.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
    elif writes:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{WAIT_SECONDS}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})")


def _remember_new_rows(session: Session, _context: object) -> None:
    session.info.setdefault("unbound", []).extend(row for row in session.new if isinstance(row, AUDITED))


def _refuse_unbound_rows(session: Session) -> None:
    session.flush()  # this hook runs before the commit's own flush
    if session.info.get("unbound"):
        raise AuditUnbound(sorted({row.__tablename__ for row in session.info["unbound"]}))


def _keep_head(session: Session) -> None:
    head: Head | None = session.info.pop("head", None)
    checkpoint: Checkpoint | None = session.info["checkpoint"]
    if head is None or checkpoint is None:
        return
    try:
        checkpoint.advance(head)
    except OSError as error:
        # The commit stands and must not look failed; the next event tries again.
        logger.error("the audit checkpoint %s could not be written: %s", checkpoint.path, error.strerror)


def _forget(session: Session, _previous: object) -> None:
    session.info.pop("head", None)
    session.info.pop("unbound", None)
