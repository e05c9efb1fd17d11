"""Fixtures of the use cases: one warm decoding process, a tiny real model, and a desk where files come in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

import vision_model
from app.config import Settings
from app.db.session import Sessions
from app.diagnose import diagnose
from app.identity import LOCAL_USER
from app.receive import NotReceived, Received, receive
from app.results import Diagnosed, NotDiagnosed
from app.spool import Spool
from app.wiring import Services
from dicom_io.limits import Limits
from dicom_io.sandbox import Sandbox
from tests.vision_model.tiny import tiny_model
from vision_model.runtime import Model

# What the two databases have no part in is shown on one.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """One decoding process, warm for the whole run."""
    with Sandbox(workers=1, limits=Limits()) as made:
        yield made


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model whose router says DX-CHEST of everything."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Model:
    """The same, loaded."""
    return vision_model.load(model_folder)


@dataclass(frozen=True)
class Desk:
    """The use cases with their collaborators filled in."""

    spool: Spool
    sandbox: Sandbox
    sessions: Sessions
    scratch: Path
    model: Model
    now: Callable[[], datetime]

    def receive(self, *paths: Path, limits: Limits | None = None) -> list[Received | NotReceived]:
        arrivals = receive(
            paths,
            spool=self.spool,
            sandbox=self.sandbox,
            sessions=self.sessions,
            limits=limits or Limits(),
            scratch=self.scratch,
            actor=LOCAL_USER,
            now=self.now,
        )
        return list(arrivals)

    def received(self, *paths: Path) -> list[Received]:
        """What came in of these, all of which must."""
        arrivals = self.receive(*paths)
        assert all(isinstance(arrival, Received) for arrival in arrivals), arrivals
        return [arrival for arrival in arrivals if isinstance(arrival, Received)]

    def results(
        self,
        *received: Received,
        age: float | None = None,
        batch_size: int = 4,
        frames_per_series: int = 64,
        model: Model | None = None,
        dry_run: bool = False,
    ) -> Iterator[Diagnosed | NotDiagnosed]:
        return diagnose(
            received,
            model=model or self.model,
            sandbox=self.sandbox,
            sessions=None if dry_run else self.sessions,
            actor=LOCAL_USER,
            now=self.now,
            batch_size=batch_size,
            frames_per_series=frames_per_series,
            stated_age_years=age,
        )

    def diagnosed(self, *paths: Path, age: float | None = None, model: Model | None = None) -> list[Diagnosed]:
        """The diagnoses of these, all of which must get one."""
        results = list(self.results(*self.received(*paths), age=age, model=model))
        assert all(isinstance(result, Diagnosed) for result in results), results
        return [result for result in results if isinstance(result, Diagnosed)]


def services_of(desk: Desk, settings: Settings) -> Services:
    """The application's parts on a desk's database and spool."""
    return Services(
        settings=settings,
        sandbox=desk.sandbox,
        model=desk.model,
        now=desk.now,
        engine=desk.sessions.kw["bind"],
        sessions=desk.sessions,
        spool=desk.spool,
        scratch=desk.scratch,
    )


@pytest.fixture
def desk(tmp_path: Path, sandbox: Sandbox, sessions: Sessions, model: Model, now: Callable[[], datetime]) -> Desk:
    """A desk over a fresh database (both kinds) and an empty spool."""
    return Desk(Spool(tmp_path / "spool"), sandbox, sessions, tmp_path / "scratch", model, now)
