"""What becomes of files that come in: kept before they are acknowledged, once, and with their trace."""

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, text

from app.db import audit
from app.db.checkpoint import Checkpoint
from app.db.session import Sessions
from app.db.tables import AuditEvent, Reception, Series, StoredInstance, Study
from app.receive import NotReceived, Received, digest, look, reopen
from app.spool import Spool
from dicom_io.limits import Limits
from dicom_io.sandbox import Sandbox
from tests.app.conftest import Desk, on_sqlite
from tests.app.films import ROOT, film, report, zipped


def outcomes(sessions: Sessions) -> list[str]:
    with sessions() as session:
        return list(session.scalars(select(Reception.outcome).order_by(Reception.id)))


def refusals(arrivals: list[Received | NotReceived]) -> dict[str, str]:
    return {arrival.name: arrival.code for arrival in arrivals if isinstance(arrival, NotReceived)}


def test_a_file_is_in_spool_and_database_with_its_audit_event(desk: Desk, tmp_path: Path) -> None:
    path = film(tmp_path / "in", PatientAge="045Y", StudyDescription="Chest")
    (arrival,) = desk.received(path)
    assert arrival.outcome == "stored"
    assert arrival.sha256 == digest(path)[0]
    assert arrival.instance.path == desk.spool.path(arrival.sha256)
    assert arrival.instance.path.read_bytes() == path.read_bytes()
    with desk.sessions() as session:
        row = session.get_one(StoredInstance, arrival.instance_id)
        assert (row.sop_instance_uid, row.sha256, row.size_bytes) == (
            f"{ROOT}.1.1.1",
            arrival.sha256,
            path.stat().st_size,
        )
        assert (row.patient_age_years, row.view_position, row.number_of_frames) == (45.0, "PA", 1)
        assert (row.series.modality, row.series.body_part) == ("DX", "CHEST")
        assert (row.series.study.patient_id, row.series.study.description) == ("P-17", "Chest")
        event = session.scalars(select(AuditEvent)).one()
        assert (event.action, event.detail) == ("receive", {"outcome": "stored"})
        assert {subject.table_name for subject in event.subjects} == {"study", "series", "instance", "reception"}


def test_the_same_bytes_are_stored_once_and_both_arrivals_are_on_record(desk: Desk, tmp_path: Path) -> None:
    path = film(tmp_path / "in")
    first, again = desk.received(path, path)
    assert (first.outcome, again.outcome) == ("stored", "duplicate")
    assert again.instance_id == first.instance_id
    assert outcomes(desk.sessions) == ["stored", "duplicate"]


def test_other_bytes_under_a_known_uid_are_quarantined_and_the_first_stay(desk: Desk, tmp_path: Path) -> None:
    first = film(tmp_path / "one")
    other = film(tmp_path / "two", PatientAge="003Y")
    kept, quarantined = desk.receive(first, other)
    assert isinstance(kept, Received)
    assert isinstance(quarantined, NotReceived)
    assert (quarantined.outcome, quarantined.code) == ("quarantined", "receive.conflicting-instance")
    with desk.sessions() as session:
        assert session.scalars(select(StoredInstance.sha256)).all() == [kept.sha256]
        row = session.scalars(select(Reception).where(Reception.outcome == "quarantined")).one()
        assert row.instance_id == kept.instance_id
        assert row.sha256 == digest(other)[0]
    assert desk.spool.path(digest(other)[0]).read_bytes() == other.read_bytes()


def test_a_series_that_belongs_to_another_study_is_quarantined(desk: Desk, tmp_path: Path) -> None:
    here = film(tmp_path / "one", 1)
    there = film(tmp_path / "two", 2, StudyInstanceUID=f"{ROOT}.77")
    arrivals = desk.receive(here, there)
    assert refusals(arrivals) == {"film-2.dcm": "receive.conflicting-series"}
    with desk.sessions() as session:
        assert session.scalars(select(Study.study_instance_uid)).all() == [f"{ROOT}.1"]


def test_instances_of_one_series_share_its_rows(desk: Desk, tmp_path: Path) -> None:
    desk.received(*(film(tmp_path / "in", number) for number in (1, 2, 3)))
    with desk.sessions() as session:
        assert len(session.scalars(select(Study)).all()) == 1
        assert len(session.scalars(select(Series)).all()) == 1
        assert len(session.scalars(select(StoredInstance)).all()) == 3


@on_sqlite
def test_another_patient_in_a_known_study_is_told(desk: Desk, tmp_path: Path) -> None:
    first, second = desk.received(film(tmp_path / "in", 1), film(tmp_path / "in", 2, PatientID="P-18"))
    assert first.warnings == ()
    assert "another Patient ID" in second.warnings[0]


@on_sqlite
def test_of_an_unreadable_file_only_digest_size_and_reason_are_kept(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(b"Dear colleague, " * 20)
    (arrival,) = desk.receive(path)
    assert isinstance(arrival, NotReceived)
    assert (arrival.outcome, arrival.code) == ("refused", "dicom.not-dicom")
    with desk.sessions() as session:
        row = session.scalars(select(Reception)).one()
        assert (row.sha256, row.size_bytes, row.error_code) == (*digest(path), "dicom.not-dicom")
    assert [kept for kept in desk.spool.root.rglob("*") if kept.is_file()] == []


@on_sqlite
def test_a_path_that_is_not_there_is_refused_and_the_rest_goes_on(desk: Desk, tmp_path: Path) -> None:
    arrivals = desk.receive(tmp_path / "nothing.dcm", film(tmp_path / "in"))
    assert refusals(arrivals) == {"nothing.dcm": "dicom.file-unreadable"}
    assert outcomes(desk.sessions) == ["refused", "stored"]


@on_sqlite
def test_the_good_members_of_a_zip_come_in_and_the_bad_one_is_named(desk: Desk, tmp_path: Path) -> None:
    junk = tmp_path / "junk.dcm"
    junk.write_bytes(b"no picture")
    archive = zipped(tmp_path / "study.zip", film(tmp_path / "in", 1), junk, film(tmp_path / "in", 2))
    arrivals = desk.receive(archive)
    assert list(refusals(arrivals).values()) == ["dicom.not-dicom"]
    assert outcomes(desk.sessions) == ["stored", "refused", "stored"]


@on_sqlite
def test_a_zip_bomb_is_refused_without_loss_of_the_files_beside_it(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    film(folder, 1)
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("zeros.dcm", b"\0" * (8 << 20))
    arrivals = desk.receive(folder / "bomb.zip", folder / "film-1.dcm", limits=replace(Limits(), archive_bytes=1 << 20))
    assert refusals(arrivals) == {"bomb.zip": "dicom.zip-refused"}
    assert outcomes(desk.sessions) == ["refused", "stored"]


@on_sqlite
def test_an_object_without_pixels_is_stored_and_listed(desk: Desk, tmp_path: Path) -> None:
    (arrival,) = desk.received(report(tmp_path / "in"))
    assert arrival.outcome == "stored"
    assert arrival.instance.number_of_frames == 0


@on_sqlite
def test_a_full_disk_refuses_the_file_and_keeps_no_row_of_it(desk: Desk, tmp_path: Path) -> None:
    full = replace(desk, spool=Spool(desk.spool.root, keep_free_bytes=1 << 60))
    arrivals = full.receive(film(tmp_path / "in", 1), film(tmp_path / "in", 2))
    assert refusals(arrivals) == {"film-1.dcm": "spool.disk-short", "film-2.dcm": "spool.disk-short"}
    with desk.sessions() as session:
        assert session.scalars(select(StoredInstance)).all() == []


def test_nothing_is_yielded_before_it_is_committed(desk: Desk, tmp_path: Path) -> None:
    with desk.sessions.begin() as session:
        session.execute(text("ALTER TABLE audit_event RENAME TO elsewhere"))
    arrivals: list[object] = []
    with pytest.raises(Exception, match="audit_event"):
        arrivals += desk.receive(film(tmp_path / "in"))
    assert arrivals == []
    with desk.sessions() as session:
        assert session.scalars(select(StoredInstance)).all() == []


def test_neither_the_files_name_nor_the_patient_is_in_the_audit_trail_or_the_scratch_folder(
    desk: Desk, tmp_path: Path
) -> None:
    path = film(tmp_path / "in")
    named = path.rename(path.with_name("Canary Carla.dcm"))
    desk.receive(zipped(tmp_path / "study.zip", named), tmp_path / "Canary-missing.dcm")
    with desk.sessions() as session:
        kept = str(session.execute(text("SELECT detail, action, actor FROM audit_event")).all())
        kept += str(session.execute(text("SELECT * FROM reception")).all())
    assert "Canary" not in kept
    assert [left for left in desk.scratch.rglob("*") if left.name != ".lock"] == []


@on_sqlite
def test_a_stored_instance_is_opened_again_from_the_spool(desk: Desk, tmp_path: Path) -> None:
    (arrival,) = desk.received(film(tmp_path / "in"))
    with desk.sessions() as session:
        row = session.get_one(StoredInstance, arrival.instance_id)
    again = reopen(row, spool=desk.spool, sandbox=desk.sandbox)
    assert again.instance == arrival.instance
    assert (again.sha256, again.instance_id) == (arrival.sha256, arrival.instance_id)


def test_the_audit_trail_of_every_outcome_verifies(desk: Desk, tmp_path: Path, checkpoint_path: Path) -> None:
    path = film(tmp_path / "in")
    desk.receive(
        path, path, film(tmp_path / "other", PatientAge="003Y"), tmp_path / "missing.dcm", report(tmp_path / "in")
    )
    assert outcomes(desk.sessions) == ["stored", "duplicate", "quarantined", "refused", "stored"]
    with desk.sessions() as session:
        found = audit.verify(session, Checkpoint(checkpoint_path))
    assert (found.events, found.broken) == (5, None)


def test_looking_reads_the_same_files_and_keeps_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    junk = tmp_path / "junk.dcm"
    junk.write_bytes(b"no picture")
    archive = zipped(tmp_path / "study.zip", film(tmp_path / "in", 1), junk)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    good, bad = look([archive], sandbox=sandbox, limits=Limits(), scratch=scratch)
    assert isinstance(good, Received)
    assert good.instance_id is None
    assert isinstance(bad, NotReceived)
    assert bad.code == "dicom.not-dicom"
