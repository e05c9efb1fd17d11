"""`hilum diagnose` as a shell sees it: JSON lines, exit codes, and a film that gets the answer of its age or none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydicom.data import get_testdata_file

from app.cli import build_parser
from app.commands import diagnose
from app.config import load
from app.db.session import engine, sessions
from app.db.tables import PredictionRow, StoredInstance
from tests.app.films import film, report, zipped
from tests.app.test_diagnose import ADULT, CHILD, CONTRACT
from tests.vision_model.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data" / "dicom"


@pytest.fixture
def settings_file(tmp_path: Path, model_folder: Path) -> Path:
    """Settings whose state lies in the test's own folder."""
    path = tmp_path / "hilum.toml"
    path.write_text(
        f"""
[storage]
database_url = "sqlite:///{tmp_path}/state/hilum.db"
spool = "{tmp_path}/state/spool"
checkpoint = "{tmp_path}/state/checkpoint.json"
keep_free_bytes = 0
[model]
path = "{model_folder}"
[reading]
workers = 1
[diagnose]
frames_per_series = 2
"""
    )
    return path


def run(settings_file: Path, *words: str | Path) -> int:
    """The command in this process."""
    argv = ["diagnose", *map(str, words), "--config", str(settings_file)]
    return diagnose.run(build_parser(argv).parse_args(argv))


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def kept(settings_file: Path, table: type[StoredInstance | PredictionRow]) -> int:
    made = engine(load(settings_file).storage.database_url)
    with sessions(made, checkpoint=None)() as session:
        count = session.query(table).count()
    made.dispose()
    return count


@pytest.mark.parametrize(
    ("header_age", "stated", "expected"),
    [
        ("045Y", [], {ADULT}),
        ("045Y", ["--age", "3"], {ADULT}),
        ("003Y", [], {CHILD}),
        (None, [], set()),
        (None, ["--age", "3"], {CHILD}),
        (None, ["--age", "45"], {ADULT}),
    ],
)
def test_a_film_gets_the_answer_of_its_age_or_none(
    settings_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    header_age: str | None,
    stated: list[str],
    expected: set[str],
) -> None:
    path = film(tmp_path / "in", PatientAge=header_age)
    assert run(settings_file, path, "--json", *stated) == 0
    (said,) = lines(capsys)
    assert {finding["task"] for finding in said["findings"]} == expected
    if not expected:
        assert said["abstained"]["code"] == "gate.age-unknown"


def test_a_zip_gives_a_line_for_each_image_and_each_bad_file(
    settings_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junk = tmp_path / "junk.dcm"
    junk.write_bytes(b"no picture")
    members = [film(tmp_path / "in", 1, PatientAge="045Y"), junk, report(tmp_path / "in")]
    assert run(settings_file, zipped(tmp_path / "study.zip", *members), tmp_path / "missing", "--json") == 1
    said = lines(capsys)
    errors = [one for one in said if "error" in one]
    images = [one for one in said if "error" not in one]
    assert [error["error"]["code"] for error in errors] == ["dicom.not-dicom", "dicom.file-unreadable"]
    assert errors[1]["path"] == "missing"
    assert all(image.keys() == CONTRACT for image in images)
    assert sorted((image["abstained"] or {}).get("code", "") for image in images) == ["", "dicom.no-pixels"]
    assert kept(settings_file, StoredInstance) == 2
    assert kept(settings_file, PredictionRow) == 1


def test_the_same_file_again_is_stored_once_and_predicted_again(
    settings_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = film(tmp_path / "in", PatientAge="045Y")
    assert [run(settings_file, path, "--json"), run(settings_file, path, "--json")] == [0, 0]
    first, second = lines(capsys)
    assert first["findings"] == second["findings"]
    assert first["prediction_id"] != second["prediction_id"]
    assert (kept(settings_file, StoredInstance), kept(settings_file, PredictionRow)) == (1, 2)


def test_a_dry_run_says_the_same_and_leaves_nothing(
    settings_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = film(tmp_path / "in", PatientAge="045Y")
    archive = zipped(tmp_path / "study.zip", path)
    before = sorted(tmp_path.rglob("*"))
    assert run(settings_file, archive, "--json", "--dry-run") == 0
    assert sorted(tmp_path.rglob("*")) == before
    (dry,) = lines(capsys)
    assert (dry["prediction_id"], dry["audit"]) == (None, None)
    assert run(settings_file, path, "--json") == 0
    (real,) = lines(capsys)
    assert dry["findings"] == real["findings"]


def test_for_a_person_the_answers_and_the_reasons_are_in_words(
    settings_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(settings_file, film(tmp_path / "in", PatientAge="045Y")) == 0
    printed = capsys.readouterr()
    assert "Chest X-ray, adult: pneumonia" in printed.out
    assert "not answered: Chest X-ray, child: pneumonia" in printed.out
    assert "prediction set" in printed.out
    assert printed.out.endswith("Research use only, not for diagnostic use.\n")
    assert "decode" in printed.err
    assert "record" in printed.err


@pytest.mark.parametrize("age", ["-1", "130", "nan", "inf", "old"])
def test_an_age_that_is_none_is_a_wrong_usage(age: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        build_parser(["diagnose"]).parse_args(["diagnose", "x.dcm", f"--age={age}"])
    assert stopped.value.code == 2
    assert "no age in years" in capsys.readouterr().err


def test_the_shell_gets_json_alone_on_stdout_and_the_reason_on_stderr(settings_file: Path, tmp_path: Path) -> None:
    good = film(tmp_path / "in", PatientAge="003Y")
    command = [sys.executable, "-c", "import sys; from app.cli import main; sys.exit(main())", "diagnose", "--json"]
    done = subprocess.run(
        [*command, tmp_path / "Canary.dcm", good, "--config", settings_file],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    error, image = (json.loads(line) for line in done.stdout.splitlines())
    assert error["error"]["code"] == "dicom.file-unreadable"
    assert {finding["task"] for finding in image["findings"]} == {CHILD}
    assert "dicom.file-unreadable: " in done.stderr
    assert "Canary" not in done.stderr


def test_a_model_that_was_changed_is_not_run(settings_file: Path, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "changed")
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\0")
    settings_file.write_text(settings_file.read_text().replace(str(load(settings_file).model.path), str(folder)))
    with pytest.raises(Exception, match="SHA-256") as stopped:
        run(settings_file, film(tmp_path / "in"))
    assert getattr(stopped.value, "code", None) == "model.digest-mismatch"


def assert_every_line_keeps_the_contract(said: list[dict[str, Any]]) -> None:
    for one in said:
        if "error" in one:
            assert one.keys() == {"path", "error"}
            assert one["error"].keys() == {"code", "message"}
        else:
            assert one.keys() == CONTRACT
            assert (one["abstained"] is None) == bool(one["findings"])


def test_every_file_that_pydicom_carries_is_answered_abstained_or_refused(
    settings_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carried = get_testdata_file("CT_small.dcm", download=False)
    assert isinstance(carried, str)
    run(settings_file, Path(carried).parent, "--json", "--dry-run")
    said = lines(capsys)
    assert len(said) > 70
    assert_every_line_keeps_the_contract(said)


def test_every_shared_file_is_answered_abstained_or_refused(
    settings_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not SHARED.is_dir():
        pytest.skip("the shared DICOM files are not beside this checkout")
    run(settings_file, SHARED, "--json")
    said = lines(capsys)
    assert len(said) > 140  # 162 files, some of them slices of series that are sampled
    assert_every_line_keeps_the_contract(said)
