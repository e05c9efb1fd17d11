"""`hilum archive` against a real Orthanc, as its user types it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli import main
from tests import services
from tests.app.films import ROOT, film

STUDY = f"{ROOT}.81"


@pytest.fixture(scope="module")
def orthanc() -> Iterator[services.Orthanc]:
    with services.orthanc() as server:
        yield server


@pytest.fixture(autouse=True, params=["peers", "web_peers"])
def settings(
    request: pytest.FixtureRequest, orthanc: services.Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A peer named pacs in the settings, of either kind."""
    keys = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": str(orthanc.port)}
    if request.param == "web_peers":
        keys = {"url": f"{orthanc.url}/dicom-web"}
    for key, value in keys.items():
        monkeypatch.setenv(f"HILUM__PACS__{request.param.upper()}__PACS__{key.upper()}", value)
    monkeypatch.setattr("tempfile.tempdir", None)
    return str(request.param)


def hilum(*words: str | Path) -> int:
    return main(["archive", *map(str, words)])


def test_a_study_goes_there_is_found_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        film(tmp_path / "in", number, study=81, StudyDate="20260301")
    assert hilum("echo", "pacs") == 0
    assert hilum("send", "pacs", tmp_path / "in") == 0
    said = capsys.readouterr()
    assert said.out == "pacs answers\n"
    assert "2 of 2 files stored" in said.err

    assert hilum("find", "pacs", "--patient-id", "P-17", "--since", "2026-03-01", "--json") == 0
    [study] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (study["study_instance_uid"], study["study_date"], study["instances"]) == (STUDY, "2026-03-01", 2)
    assert hilum("find", "pacs", "--level", "image", "--study", STUDY, "--series", f"{STUDY}.1") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [f"{STUDY}.1.1", f"{STUDY}.1.2"]

    out = tmp_path / "out"
    assert hilum("fetch", "pacs", "--study", STUDY, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == [f"{STUDY}.1.1.dcm", f"{STUDY}.1.2.dcm"]
    assert "2 fetched, 0 were there already" in capsys.readouterr().err
    (out / f"{STUDY}.1.2.dcm").unlink()
    assert hilum("fetch", "pacs", "--study", STUDY, "--out", out, "--json") == 0
    said = capsys.readouterr()
    assert "1 fetched, 1 were there already" in said.err
    assert json.loads(said.out)["sop_instance_uid"] == f"{STUDY}.1.2"
    assert "Canary" not in said.err


@pytest.mark.parametrize("listened", [False, True])
def test_priors_come_with_a_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, listened: bool
) -> None:
    monkeypatch.setattr("pynetdicom._config.STORE_RECV_CHUNKED_DATASET", listened)  # as a listener in the process does
    for study, day in ((83, "20240101"), (84, "20250101"), (85, "20260101")):
        film(tmp_path / str(study), study=study, StudyDate=day, PatientID="P-83")
    assert hilum("send", "pacs", *(tmp_path / str(study) for study in (83, 84, 85))) == 0
    assert hilum("fetch", "pacs", "--study", f"{ROOT}.85", "--priors", "1", "--out", tmp_path / "out") == 0
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == [f"{ROOT}.84.1.1", f"{ROOT}.85.1.1"]
    assert "2 fetched" in capsys.readouterr().err


def test_what_is_not_there_is_a_domain_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hilum("fetch", "pacs", "--study", "1.2.3", "--out", tmp_path / "out") == 1
    assert capsys.readouterr().err.startswith("dicom.peer-has-not: pacs has no instance that matches")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_dicom_is_named_and_the_rest_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film(tmp_path / "in", study=82)
    (tmp_path / "in" / "notes.txt").write_text("not DICOM")
    assert hilum("send", "pacs", tmp_path / "in", tmp_path / "absent.dcm") == 1
    said = capsys.readouterr()
    assert "notes.txt: refused: no DICOM Part 10 file" in said.out
    assert "absent.dcm: refused: cannot be read: No such file or directory" in said.out
    assert "1 of 3 files stored" in said.err


def test_an_unknown_peer_names_those_that_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert hilum("echo", "elsewhere") == 1
    assert "no peer is named elsewhere" in (said := capsys.readouterr().err)
    assert said.rstrip().endswith("named there: pacs")


def test_a_day_that_is_none_is_wrong_usage() -> None:
    with pytest.raises(SystemExit) as wrong:
        hilum("find", "pacs", "--since", "yesterday")
    assert wrong.value.code == 2


def test_a_web_peer_s_token_is_not_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HILUM__PACS__WEB_PEERS__CLOUD__URL", "https://archive.example.org/dicom-web")
    monkeypatch.setenv("HILUM__PACS__WEB_PEERS__CLOUD__TOKEN", "secret-token")
    assert main(["config", "show"]) == 0
    said = capsys.readouterr().out
    assert "archive.example.org" in said
    assert "secret-token" not in said
