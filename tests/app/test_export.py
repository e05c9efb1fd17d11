"""Kept studies go to research without their patients, with what was found in them, and the export is on record."""

import csv
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlalchemy import select

from app.cli import main
from app.db import audit
from app.db.session import engine, sessions
from app.db.tables import AuditEvent, PredictionRow, StoredInstance
from tests.app.films import ROOT, film
from tests.app.test_deidentify import lettered


@pytest.fixture
def home(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HILUM__MODEL__PATH", str(model_folder))
    return tmp_path


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "findings.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_studies_are_exported_without_their_patient_and_with_their_findings(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film(home / "in", 1, PatientAge="043Y", PatientName="Canary^Jane", PatientID="CANARY-1", StudyDate="20260105")
    film(home / "in", 2, PatientAge="043Y", PatientName="Canary^Jane", PatientID="CANARY-1", StudyDate="20260105")
    film(home / "in" / "two", study=2, PatientID="CANARY-2", StudyDate="20240105")
    assert main(["diagnose", str(home / "in")]) == 0
    words = ["export", "--out", str(home / "out"), "--key", str(home / "key")]
    assert main([*words, "--since", "2026-01-01"]) == 0
    copies = [dcmread(path) for path in sorted((home / "out").glob("*.dcm"))]
    assert len(copies) == 2
    assert len({copy.PatientID for copy in copies}) == 1
    everything = b"".join(path.read_bytes() for path in (home / "out").iterdir())
    assert b"anary" not in everything
    assert b"CANARY" not in everything
    assert ROOT.encode() not in everything
    rows = table(home / "out")
    assert {row["sop_instance_uid"] for row in rows} == {str(copy.SOPInstanceUID) for copy in copies}
    assert {row["patient"] for row in rows} == {str(copies[0].PatientID)}
    with sessions(engine(f"sqlite:///{home}/var/hilum.db"), checkpoint=None)() as session:
        predictions = session.scalars(
            select(PredictionRow).join(StoredInstance).where(StoredInstance.sop_instance_uid.startswith(f"{ROOT}.1."))
        ).all()
        said = {(f.label, f.probability) for p in predictions for f in p.findings}
        assert said
        assert {(row["label"], float(row["probability"])) for row in rows if row["label"]} == said
        assert sum(len(p.findings) + len(p.withheld) for p in predictions) == len(rows)
        (event,) = session.scalars(select(AuditEvent).where(AuditEvent.action == "export"))
        assert [subject.table_name for subject in event.subjects] == ["study"]
        assert audit.verify(session, None).broken is None
    # The same key gives the same names again, and another export the other study.
    assert main([*words[:2], str(home / "again"), *words[3:], "--study", f"{ROOT}.1"]) == 0
    assert {p.name for p in (home / "again").iterdir()} == {p.name for p in (home / "out").iterdir()}
    assert main([*words, "--modality", "CT"]) == 0
    assert "no kept study fits" in capsys.readouterr().err


def test_a_study_with_letters_is_held_and_a_strange_one_is_named(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film(home / "in", 1)
    film(home / "in" / "two", study=2, pixels=lettered())
    assert main(["diagnose", str(home / "in")]) == 0
    words = ["export", "--out", str(home / "out"), "--key", str(home / "key")]
    assert main(words) == 1
    assert f"held: {ROOT}.2.1.1" in capsys.readouterr().out
    assert len({row["study_instance_uid"] for row in table(home / "out")}) == 1
    assert main([*words, "--release", f"{ROOT}.2", "--option", "retain-uids"]) == 0
    assert {row["study_instance_uid"] for row in table(home / "out")} == {f"{ROOT}.1", f"{ROOT}.2"}
    assert main([*words, "--study", "1.2.3"]) == 1
    assert "record.not-found" in capsys.readouterr().err
