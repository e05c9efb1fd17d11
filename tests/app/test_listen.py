"""What the DICOM network sends is kept before it is acknowledged, once, and diagnosed when its study is complete."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Self

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from sqlalchemy import func, select

from app import worker, worklist
from app.config import Diagnose, Pacs, Peer, Settings
from app.db import audit
from app.db.tables import AuditEvent, PredictionRow, Reception, StoredInstance
from app.db.work import AwaitedStudy, Commitment, WorkItem
from app.identity import SYSTEM
from app.pacs.listen import listener
from app.wiring import Services
from dicom_io.listener import Listener
from dicom_io.uids import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from tests import services as programs
from tests.app.conftest import Desk, on_sqlite, services_of
from tests.app.films import DX_IMAGE, ROOT, film


@pytest.fixture
def services(desk: Desk, tmp_path: Path) -> Services:
    pacs = Pacs(port=0, calling_ae_titles=("STORESCU",), quiet_seconds=5, idle_seconds=5)
    return services_of(desk, Settings(pacs=pacs))


@pytest.fixture
def started(services: Services) -> Iterator[Listener]:
    with listener(services) as running:
        yield running


def send(port: int, *files: Path, called: str = "HILUM", calling: str = "STORESCU") -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [
        programs.dcmtk("storescu"),
        "-v",
        "-aec",
        called,
        "-aet",
        calling,
        "127.0.0.1",
        str(port),
        *files,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_dcmtk_stores_and_the_file_is_in_spool_and_database(
    started: Listener, services: Services, tmp_path: Path
) -> None:
    sent = send(started.port, film(tmp_path / "in"), film(tmp_path / "in", 2))
    assert sent.returncode == 0, sent.stderr
    with services.sessions() as session:
        rows = session.scalars(select(StoredInstance).order_by(StoredInstance.id)).all()
        assert [row.received_from for row in rows] == ["STORESCU", "STORESCU"]
        for row in rows:
            services.spool.check(row.sha256)
        assert audit.verify(session, None).broken is None
    assert list(services.scratch.rglob("*.dcm")) == []


def test_the_same_bytes_are_stored_once_and_another_object_under_a_known_uid_is_set_aside(
    started: Listener, services: Services, tmp_path: Path
) -> None:
    first = film(tmp_path / "in")
    assert send(started.port, first).returncode == 0
    assert send(started.port, first).returncode == 0
    other = film(tmp_path / "other", PatientID="another")
    answered = send(started.port, other)
    assert "0x111" in answered.stderr  # PS3.7 C.5.6, which dcmtk has no name for
    with services.sessions() as session:
        assert session.scalar(select(func.count()).select_from(StoredInstance)) == 1
        outcomes = session.scalars(select(Reception.outcome).order_by(Reception.id)).all()
    assert outcomes == ["stored", "duplicate", "quarantined"]


def test_strangers_are_refused_by_either_title(started: Listener, services: Services, tmp_path: Path) -> None:
    one = film(tmp_path / "in")
    for titles, reason in (({"called": "WRONG"}, "Called AE Title"), ({"calling": "STRANGER"}, "Calling AE Title")):
        refused = send(started.port, one, **titles)
        assert refused.returncode != 0
        assert reason in refused.stderr
    with services.sessions() as session:
        assert session.scalar(select(func.count()).select_from(Reception)) == 0


@on_sqlite
def test_a_database_out_of_reach_is_answered_with_out_of_resources(
    started: Listener, services: Services, tmp_path: Path
) -> None:
    file = film(tmp_path / "in")
    with services.sessions.begin() as session:
        session.execute(select(1))
        services.engine.dispose()
    shutil.move(str(services.engine.url.database), tmp_path / "away.db")
    Path(str(services.engine.url.database)).mkdir()
    answered = send(started.port, file)
    assert "Refused: OutOfResources" in answered.stderr
    Path(str(services.engine.url.database)).rmdir()
    shutil.move(tmp_path / "away.db", str(services.engine.url.database))
    assert send(started.port, file).returncode == 0


@on_sqlite
def test_a_short_disk_is_answered_with_out_of_resources(started: Listener, services: Services, tmp_path: Path) -> None:
    services.spool.keep_free_bytes = 1 << 60
    answered = send(started.port, film(tmp_path / "in"))
    assert "Refused: OutOfResources" in answered.stderr
    with services.sessions() as session:
        assert session.scalar(select(func.count()).select_from(StoredInstance)) == 0


def test_a_study_is_diagnosed_once_it_is_quiet_and_again_when_more_comes(
    started: Listener, services: Services, tmp_path: Path
) -> None:
    assert send(started.port, film(tmp_path / "in")).returncode == 0
    assert not worker.once(services, holder="test").diagnosed
    later = Later(services, seconds=10)
    assert worker.once(later.services, holder="test").diagnosed == 1
    with services.sessions() as session:
        (item,) = session.scalars(select(WorkItem)).all()
        assert (item.state, item.requested_by, item.attempts) == ("COMPLETED", "STORESCU", 1)
        assert session.scalar(select(func.count()).select_from(PredictionRow)) == 1
        assert session.scalar(select(func.count()).select_from(AwaitedStudy)) == 0
    assert send(started.port, film(tmp_path / "in", 2)).returncode == 0
    assert worker.once(Later(services, seconds=20).services, holder="test").diagnosed == 1
    with services.sessions() as session:
        assert session.scalar(select(func.count()).select_from(PredictionRow)) == 2
        assert audit.verify(session, None).broken is None


def test_a_study_of_which_the_number_of_instances_is_known_does_not_wait_to_be_quiet(
    started: Listener, services: Services, tmp_path: Path
) -> None:
    files = [film(tmp_path / "in", number, NumberOfStudyRelatedInstances=2) for number in (1, 2, 3)]
    assert send(started.port, files[0]).returncode == 0
    assert not worker.once(services, holder="test")
    assert send(started.port, files[1]).returncode == 0
    assert worker.once(services, holder="test").diagnosed == 1
    # One more than was stated: now nobody knows how many there are.
    assert send(started.port, files[2]).returncode == 0
    assert not worker.once(services, holder="test")
    assert worker.once(Later(services, seconds=10).services, holder="test").diagnosed == 1
    with services.sessions() as session:
        assert session.scalar(select(func.count()).select_from(PredictionRow)) == 3
        assert session.scalars(select(WorkItem.state)).all() == ["COMPLETED"] * 2
        assert audit.verify(session, None).broken is None


def test_a_dead_workers_item_is_taken_over_and_its_late_end_changes_nothing(
    started: Listener, services: Services, tmp_path: Path
) -> None:
    assert send(started.port, film(tmp_path / "in")).returncode == 0
    later = Later(services, seconds=10).services
    worklist.schedule(services.sessions, quiet_seconds=5, now=later.now)
    dead = worklist.claim(services.sessions, actor=SYSTEM, holder="dead", lease_seconds=30, now=later.now)
    assert dead is not None
    assert worklist.claim(services.sessions, actor=SYSTEM, holder="two", lease_seconds=30, now=later.now) is None
    much_later = Later(services, seconds=60).services
    heir = worklist.claim(services.sessions, actor=SYSTEM, holder="two", lease_seconds=30, now=much_later.now)
    assert heir is not None
    assert heir.id == dead.id
    with services.sessions.begin() as session:
        assert not worklist.complete(session, dead, actor=SYSTEM, now=much_later.now)
    assert not worklist.renew(services.sessions, dead, lease_seconds=30, now=much_later.now)
    with services.sessions.begin() as session:
        assert worklist.complete(session, heir, actor=SYSTEM, now=much_later.now)


def test_an_image_that_the_spool_has_lost_does_not_cost_the_others_their_diagnosis(
    started: Listener, services: Services, tmp_path: Path
) -> None:
    assert send(started.port, film(tmp_path / "in"), film(tmp_path / "in", 2)).returncode == 0
    with services.sessions() as session:
        lost = session.scalars(select(StoredInstance)).first()
        assert lost is not None
    services.spool.path(lost.sha256).unlink()
    assert worker.once(Later(services, seconds=10).services, holder="test").diagnosed == 1
    with services.sessions() as session:
        assert session.scalars(select(WorkItem.state)).all() == ["COMPLETED"]
        (prediction,) = session.scalars(select(PredictionRow)).all()
        assert prediction.instance_id != lost.id
        details = session.scalars(select(AuditEvent.detail).where(AuditEvent.action == "predict")).all()
        assert {"error": "spool.missing", "frame": None} in details
        assert audit.verify(session, None).broken is None


def test_what_fails_is_tried_again_after_a_while_and_then_given_up(
    started: Listener, services: Services, tmp_path: Path
) -> None:
    assert send(started.port, film(tmp_path / "in")).returncode == 0
    with services.sessions() as session:
        services.spool.path(session.scalars(select(StoredInstance.sha256)).one()).unlink()
    tried = {
        seconds: worker.once(Later(services, seconds=seconds).services, holder="test").diagnosed
        for seconds in (100, 120, 140, 180, 210, 300)
    }
    assert tried == {100: 1, 120: 0, 140: 1, 180: 0, 210: 1, 300: 0}
    with services.sessions() as session:
        (item,) = session.scalars(select(WorkItem)).all()
    assert (item.state, item.attempts, item.error_code) == ("CANCELED", 3, "spool.missing")


def test_a_worker_that_is_stopped_gives_its_item_back_and_the_next_goes_on_at_once(
    started: Listener, services: Services, tmp_path: Path
) -> None:
    assert send(started.port, film(tmp_path / "in"), film(tmp_path / "in", 2)).returncode == 0
    one_by_one = Settings(pacs=services.settings.pacs, diagnose=Diagnose(batch_size=1))
    later = replace(Later(services, seconds=10).services, settings=one_by_one)
    stopped = threading.Event()
    stopped.set()
    worker.once(later, holder="stopped", stop=stopped)
    with services.sessions() as session:
        (item,) = session.scalars(select(WorkItem)).all()
        assert (item.state, item.attempts, item.claimed_by) == ("SCHEDULED", 0, None)
        assert session.scalar(select(func.count()).select_from(PredictionRow)) == 1
    assert worker.once(later, holder="next").diagnosed == 1
    with services.sessions() as session:
        assert session.scalars(select(WorkItem.state)).all() == ["COMPLETED"]
        assert session.scalar(select(func.count()).select_from(PredictionRow)) == 2


def test_two_workers_never_claim_one_item(started: Listener, services: Services, tmp_path: Path) -> None:
    for study in range(1, 4):
        assert send(started.port, film(tmp_path / str(study), study=study)).returncode == 0
    later = Later(services, seconds=10).services
    assert len(worklist.schedule(services.sessions, quiet_seconds=5, now=later.now)) == 3

    def claim(number: int) -> str | None:
        item = worklist.claim(services.sessions, actor=SYSTEM, holder=str(number), lease_seconds=30, now=later.now)
        return None if item is None else item.uid

    with ThreadPoolExecutor(6) as pool:
        claimed = [uid for uid in pool.map(claim, range(6)) if uid is not None]
    assert len(claimed) == len(set(claimed)) == 3


@on_sqlite
def test_storage_commitment_is_answered_after_a_restart_by_what_is_on_disk(services: Services, tmp_path: Path) -> None:
    with listener(services) as first:
        assert send(first.port, film(tmp_path / "in"), film(tmp_path / "in", 2)).returncode == 0
        stored = [f"{ROOT}.1.1.1", f"{ROOT}.1.1.2"]
        ask_for_commitment(first.port, [*stored, f"{ROOT}.9"])
    with services.sessions() as session:
        row = session.scalars(select(StoredInstance).where(StoredInstance.sop_instance_uid == stored[1])).one()
    services.spool.path(row.sha256).unlink()
    with Asker() as asker:
        peer = Peer(ae_title="STORESCU", host="127.0.0.1", port=asker.port)
        told = replace(
            services, settings=Settings(pacs=services.settings.pacs.model_copy(update={"peers": {"asker": peer}}))
        )
        assert worker.once(told, holder="test").answered == 1
        assert worker.once(told, holder="test").answered == 0
    ((event_type, information),) = asker.told
    assert event_type == 2
    assert [item.ReferencedSOPInstanceUID for item in information.ReferencedSOPSequence] == stored[:1]
    failed = {item.ReferencedSOPInstanceUID: item.FailureReason for item in information.FailedSOPSequence}
    assert failed == {stored[1]: 0x0112, f"{ROOT}.9": 0x0112}


@on_sqlite
def test_a_sender_out_of_reach_is_answered_later(services: Services, tmp_path: Path) -> None:
    with listener(services) as running:
        ask_for_commitment(running.port, [f"{ROOT}.9"])
    peer = Peer(ae_title="STORESCU", host="127.0.0.1", port=programs.free_port())
    pacs = services.settings.pacs.model_copy(update={"peers": {"asker": peer}})
    told = replace(services, settings=Settings(pacs=pacs))
    assert worker.once(told, holder="test").answered == 0
    with services.sessions() as session:
        question = session.scalars(select(Commitment)).one()
    assert question.answered_at is None
    assert question.attempts == 1
    assert question.next_attempt_at > services.now()


class Later:
    """The same services when the clock has gone on."""

    def __init__(self, services: Services, *, seconds: float) -> None:
        self.services = replace(services, now=lambda: services.now() + timedelta(seconds=seconds))


def ask_for_commitment(port: int, instances: list[str]) -> None:
    entity = AE(ae_title="STORESCU")
    entity.add_requested_context(STORAGE_COMMITMENT)
    association = entity.associate("127.0.0.1", port, ae_title="HILUM")
    assert association.is_established
    asked = Dataset()
    asked.TransactionUID = f"{ROOT}.77"
    asked.ReferencedSOPSequence = []
    for uid in instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = DX_IMAGE, uid
        asked.ReferencedSOPSequence.append(item)
    status, _ = association.send_n_action(asked, 1, UID(STORAGE_COMMITMENT), UID(STORAGE_COMMITMENT_INSTANCE))
    association.release()
    assert status.Status == 0


class Asker:
    """A modality that waits to be told what is safe."""

    def __init__(self) -> None:
        self.told: list[tuple[int | None, Dataset]] = []
        entity = AE(ae_title="STORESCU")
        entity.add_supported_context(STORAGE_COMMITMENT, scu_role=False, scp_role=True)
        self.port = programs.free_port()
        self._server = entity.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._hear)]
        )

    def _hear(self, event: evt.Event) -> tuple[int, None]:
        self.told.append((event.event_type, event.event_information))
        return 0, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
