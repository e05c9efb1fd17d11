"""From settings to working parts: the only place that picks concrete classes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine

import vision_model
from app import scratch
from app.config import Settings, Storage
from app.db import migrate
from app.db.session import Sessions, engine, sessions
from app.spool import Spool
from dicom_io.sandbox import Sandbox
from vision_model.runtime import Model


@dataclass(frozen=True, slots=True)
class Readers:
    """What reading and predicting need; nothing here keeps anything."""

    settings: Settings
    sandbox: Sandbox
    model: Model
    now: Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Services(Readers):
    """Everything, with the database and the spool."""

    engine: Engine
    sessions: Sessions
    spool: Spool
    scratch: Path  # root of the folders for passing files, on the spool's disk


@contextmanager
def readers(settings: Settings) -> Iterator[Readers]:
    """The model and the decoding processes. Raises VisionModelError."""
    chosen = settings.model
    model = vision_model.load(
        chosen.path,
        provider=chosen.provider,
        precision=chosen.precision,
        threads=chosen.threads,
        engine_cache=chosen.engine_cache,
        warm_up=settings.diagnose.batch_size if chosen.warm_up else 0,
    )
    with Sandbox(workers=settings.reading.workers, limits=settings.reading.limits) as sandbox:
        yield Readers(settings, sandbox, model, utc_now)


@contextmanager
def services(settings: Settings, *, upgrade: bool = False) -> Iterator[Services]:
    """All parts, closed at the end. An empty database gets its tables; `upgrade` also brings an older one up to date.

    Raises VisionModelError, SpoolError, and DatabaseError (SchemaMismatch for a database of another version).
    """
    with readers(settings) as parts:
        storage = settings.storage
        database = engine(storage.database_url)
        try:
            if upgrade or migrate.current(database) is None:
                migrate.upgrade(database)
            migrate.require_current(database)
            spool = Spool(storage.spool, keep_free_bytes=storage.keep_free_bytes)
            passing = storage.spool / "scratch"
            scratch.sweep(passing)
            yield Services(
                settings=settings,
                sandbox=parts.sandbox,
                model=parts.model,
                now=parts.now,
                engine=database,
                sessions=sessions(database, checkpoint=storage.checkpoint),
                spool=spool,
                scratch=passing,
            )
        finally:
            database.dispose()


@contextmanager
def records(storage: Storage) -> Iterator[Sessions]:
    """The database alone, closed at the end. Raises DatabaseError (SchemaMismatch for one of another version)."""
    database = engine(storage.database_url)
    try:
        migrate.require_current(database)
        yield sessions(database, checkpoint=storage.checkpoint)
    finally:
        database.dispose()


def utc_now() -> datetime:
    """The clock of the records."""
    return datetime.now(UTC)
