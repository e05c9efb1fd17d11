"""The unattended loop: storescu to Hilum, diagnosis, results in a real Orthanc, with nobody touching anything."""

import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlalchemy import select

from app import worker
from app.config import Pacs, Peer, Settings
from app.db import audit
from app.db.queries import study_lines
from app.db.work import Publication
from app.errors import ConfigInvalid
from app.identity import LOCAL_USER
from app.pacs.listen import listener
from app.publish import installation
from app.wiring import Services
from tests import services as programs
from tests.app.conftest import Desk, on_sqlite, services_of
from tests.app.films import ROOT, film

SR = "1.2.840.10008.5.1.4.1.1.88.34"


@pytest.fixture(scope="module")
def orthanc() -> Iterator[programs.Orthanc]:
    with programs.orthanc() as server:
        yield server


@pytest.fixture
def services(desk: Desk, orthanc: programs.Orthanc) -> Services:
    archive = Peer(
        ae_title=orthanc.ae_title,
        host="127.0.0.1",
        port=orthanc.port,
        deliver=("sr", "key-objects", "secondary-capture"),
    )
    pacs = Pacs(port=0, calling_ae_titles=("STORESCU",), quiet_seconds=5, peers={"archive": archive})
    return services_of(desk, Settings(pacs=pacs))


def later(services: Services, seconds: float) -> Services:
    return replace(services, now=lambda: services.now() + timedelta(seconds=seconds))


def road(services: Services) -> str | None:
    """What the list of studies says of the newest."""
    with services.sessions() as session:
        return study_lines(session, LOCAL_USER, limit=1)[0].road


def send(port: int, *files: Path) -> None:
    command: list[str | Path] = [programs.dcmtk("storescu"), "-aec", "HILUM", "127.0.0.1", str(port), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_study_that_is_sent_comes_back_as_a_report_in_the_archive(
    services: Services, orthanc: programs.Orthanc, tmp_path: Path
) -> None:
    before = set(orthanc.instances())
    with listener(services) as running:
        send(running.port, film(tmp_path / "in", study=11, PatientAge="043Y", PatientName="Müller^Jörg"))
    assert road(services) == "arriving"
    done = worker.once(later(services, 10), holder="test")
    assert road(services) == "results-sent"
    assert done.diagnosed == 1
    assert done.sent >= 1
    new = [content for uid, content in orthanc.instances().items() if uid not in before]
    assert len(new) == done.sent
    (report,) = [content for content in new if dcmread(BytesIO(content)).SOPClassUID == SR]
    assert dcmread(BytesIO(report)).PatientName == "Müller^Jörg"
    assert dcmread(BytesIO(report)).StudyInstanceUID == f"{ROOT}.11"
    (tmp_path / "sr.dcm").write_bytes(report)
    text = subprocess.run(
        [programs.dcmtk("dsrdump"), "+Pl", tmp_path / "sr.dcm"], capture_output=True, text=True, check=True
    ).stdout
    assert "Research use only, not for diagnostic use" in text
    with services.sessions() as session:
        states = session.scalars(select(Publication.state)).all()
        assert set(states) == {"SENT"}
        assert len(states) == done.sent
        assert audit.verify(session, None).broken is None


@on_sqlite
def test_with_the_archive_down_results_wait_and_then_arrive_once_and_in_order(
    services: Services, orthanc: programs.Orthanc, tmp_path: Path
) -> None:
    before = set(orthanc.instances())
    orthanc.stop()
    try:
        with listener(services) as running:
            for study in (21, 22, 23):
                send(running.port, film(tmp_path / str(study), study=study))
        away = later(services, 10)
        for _ in range(4):
            assert worker.once(away, holder="test").sent == 0
        with services.sessions() as session:
            waiting = session.scalars(select(Publication).order_by(Publication.id)).all()
        assert {row.state for row in waiting} == {"PENDING"}
        assert road(services) == "results-waiting"
        with services.sessions() as session:
            assert "archive: ORTHANC cannot be reached" in str(study_lines(session, LOCAL_USER, limit=3)[-1].hindrance)
        assert waiting[0].attempts >= 1
        assert waiting[0].error_code == "dicom.peer-unreachable"
        assert all(row.attempts == 0 for row in waiting[1:])  # nothing overtakes
    finally:
        orthanc.start()
    assert worker.once(later(services, 700), holder="test").sent == len(waiting)
    arrived = set(orthanc.instances()) - before
    assert {row.sop_instance_uid for row in waiting} == arrived
    with services.sessions() as session:
        sent = session.scalars(select(Publication).order_by(Publication.sent_at, Publication.id)).all()
    assert [row.id for row in sent] == [row.id for row in waiting]
    assert {row.state for row in sent} == {"SENT"}


@on_sqlite
def test_what_the_archive_refuses_is_set_aside_and_the_next_is_sent(
    services: Services, orthanc: programs.Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listener(services) as running:
        send(running.port, film(tmp_path / "in", study=31))
    with monkeypatch.context() as patched:
        patched.setattr("app.publish.send", lambda **_: 0)
        assert worker.once(later(services, 10), holder="test").diagnosed == 1
    with services.sessions.begin() as session:
        first = session.scalars(select(Publication).order_by(Publication.id)).first()
        assert first is not None
        first.sha256 = services.spool.put(film(tmp_path / "odd", SOPClassUID="1.2.3.4.5")).sha256
        total = len(session.scalars(select(Publication)).all())
    assert worker.once(later(services, 20), holder="test").sent == total - 1
    with services.sessions() as session:
        states = session.scalars(select(Publication.state).order_by(Publication.id)).all()
    assert road(services) == "results-refused"
    assert list(states) == ["FAILED", *["SENT"] * (total - 1)]


@on_sqlite
def test_a_result_that_the_spool_has_lost_does_not_hold_up_the_next(
    services: Services, orthanc: programs.Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listener(services) as running:
        send(running.port, film(tmp_path / "in", study=41))
    with monkeypatch.context() as patched:
        patched.setattr("app.publish.send", lambda **_: 0)
        assert worker.once(later(services, 10), holder="test").diagnosed == 1
    with services.sessions() as session:
        waiting = session.scalars(select(Publication).order_by(Publication.id)).all()
    services.spool.path(waiting[0].sha256).unlink()
    assert worker.once(later(services, 20), holder="test").sent == len(waiting) - 1
    with services.sessions() as session:
        rows = session.scalars(select(Publication).order_by(Publication.id)).all()
    assert [row.state for row in rows] == ["FAILED", *["SENT"] * (len(waiting) - 1)]
    assert rows[0].error_code == "spool.missing"


@on_sqlite
def test_a_worker_outlives_a_pass_that_fails(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, passes = threading.Event(), []

    def once(*_: object, **__: object) -> worker.Done:
        passes.append(1)
        if len(passes) == 1:
            raise ConfigInvalid("a certificate is gone")
        stop.set()
        return worker.Done()

    monkeypatch.setattr(worker, "once", once)
    worker.run(services, stop)
    assert len(passes) == 2


def test_the_installations_key_is_made_once_and_kept(tmp_path: Path) -> None:
    made = installation(tmp_path / "spool")
    assert installation(tmp_path / "spool").key == made.key
    assert installation(tmp_path / "other").key != made.key
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["installation-key"]
