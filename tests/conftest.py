"""Fixtures that every test may ask for: databases of both kinds, and a clock."""

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.db import migrate
from app.db.session import Sessions
from app.db.session import engine as open_engine
from app.db.session import sessions as open_sessions
from tests import services


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is long begins first, servers that are killed and a training: else one process is busy last, alone."""
    items.sort(key=lambda item: not {"web", "vision_model"} & set(item.path.parts))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[services.PostgreSQL]:
    """A PostgreSQL server for the whole run."""
    with services.postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql: services.PostgreSQL) -> str:
    """The name of a migrated database, to be copied."""
    url = postgresql.create()
    engine = open_engine(url)
    migrate.upgrade(engine)
    engine.dispose()
    return url.rpartition("/")[2]


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database file, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "hilum.db"
    engine = open_engine(f"sqlite:///{path}")
    migrate.upgrade(engine)
    engine.dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh migrated database, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_sqlite"), tmp_path / "hilum.db")
        yield f"sqlite:///{tmp_path}/hilum.db"
    else:
        server: services.PostgreSQL = request.getfixturevalue("postgresql")
        url = server.create(template=request.getfixturevalue("migrated_postgresql"))
        yield url
        server.drop(url)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """The fresh database's engine."""
    made = open_engine(database_url)
    yield made
    made.dispose()


@pytest.fixture
def checkpoint_path(tmp_path: Path) -> Path:
    """Where the audit trail's outside head is kept."""
    return tmp_path / "audit-checkpoint.json"


@pytest.fixture
def sessions(engine: Engine, checkpoint_path: Path) -> Sessions:
    """Sessions on the fresh database."""
    return open_sessions(engine, checkpoint=checkpoint_path)


@pytest.fixture
def now() -> Callable[[], datetime]:
    """A clock that goes on by a second whenever it is read."""
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

    def read() -> datetime:
        nonlocal at
        at += timedelta(seconds=1)
        return at

    return read
