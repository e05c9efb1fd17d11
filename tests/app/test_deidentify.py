"""Files go out de-identified, or their study is held for a person."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom import dcmread
from pydicom.data import get_testdata_file

from app.cli import main
from app.deidentify import Held, deidentify, project_key
from app.errors import ConfigInvalid
from dicom_io.deidentify.header import Deidentifier
from dicom_io.deidentify.pixels import Rectangle
from dicom_io.deidentify.project import Project
from dicom_io.limits import Limits
from dicom_io.sandbox import Sandbox
from tests import services
from tests.app.films import ROOT, film

KEY = b"0123456789abcdef"


def lettered() -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """A smooth picture with a name in its upper left."""
    picture = Image.new("L", (512, 400))
    ImageDraw.Draw(picture).text((9, 13), "DOE JANE 12.03.1961", fill=255, font=ImageFont.load_default(24))
    smooth = np.linspace(0, 900, 400 * 512).reshape(400, 512)
    return np.where(np.asarray(picture) > 127, 1000, smooth).astype(np.uint16)


def outcomes(
    folder: Path, out: Path, *, released: str = "", rectangles: tuple[Rectangle, ...] = ()
) -> list[Path | Held]:
    limits = Limits()
    with Sandbox(workers=1, limits=limits) as sandbox:
        return list(
            deidentify(
                [folder],
                out=out,
                report=out.parent / "report.json",
                deidentifier=Deidentifier(Project(KEY)),
                sandbox=sandbox,
                limits=limits,
                scratch=out.parent,
                released=frozenset({released}),
                rectangles=rectangles,
            )
        )


def test_a_study_goes_out_without_its_patient(tmp_path: Path) -> None:
    for number in (1, 2):
        film(tmp_path / "in", number)
    made = outcomes(tmp_path / "in", tmp_path / "out")
    copies = [dcmread(path) for path in made if isinstance(path, Path)]
    assert len(copies) == 2
    assert len({str(copy.StudyInstanceUID) for copy in copies}) == 1
    assert all(copy.PatientID != "P-17" and copy.PatientIdentityRemoved == "YES" for copy in copies)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(f"{c.SOPInstanceUID}.dcm" for c in copies)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["written"] == 2
    assert report["changed"]["(0010,0010) PatientName Z"] == 2
    assert "Canary" not in (tmp_path / "report.json").read_text()


def test_letters_in_one_image_hold_the_whole_study_until_a_person_has_looked(tmp_path: Path) -> None:
    film(tmp_path / "in", 1)
    film(tmp_path / "in", 2, pixels=lettered())
    film(tmp_path / "in", 3, study=2)
    made = outcomes(tmp_path / "in", tmp_path / "out")
    [held] = [one for one in made if isinstance(one, Held)]
    assert (held.study_instance_uid, held.sop_instance_uid) == (f"{ROOT}.1", f"{ROOT}.1.1.2")
    assert held.reason.startswith("frame 1 may hold letters")
    assert len([one for one in made if isinstance(one, Path)]) == 1
    assert len(outcomes(tmp_path / "in", tmp_path / "again", released=f"{ROOT}.1")) == 3


def test_letters_that_are_blanked_do_not_hold(tmp_path: Path) -> None:
    film(tmp_path / "in", pixels=lettered())
    [path] = outcomes(tmp_path / "in", tmp_path / "out", rectangles=(Rectangle(0, 0, 50, 512),))
    assert isinstance(path, Path)
    pixels = dcmread(path).pixel_array
    assert (pixels[:50] == lettered().min()).all()
    assert np.array_equal(pixels[50:], lettered()[50:])


def test_compressed_pixels_are_held_rather_than_left_unblanked(tmp_path: Path) -> None:
    source = Path(str(get_testdata_file("JPEG2000.dcm", download=False)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(source.read_bytes())
    made = outcomes(tmp_path / "in", tmp_path / "out", rectangles=(Rectangle(0, 0, 9, 9),))
    assert any(isinstance(one, Held) and "compressed" in one.reason for one in made)
    assert not any(isinstance(one, Path) for one in made)


def test_ultrasound_is_held_whatever_its_pixels(tmp_path: Path) -> None:
    film(tmp_path / "in", Modality="US")
    [held] = outcomes(tmp_path / "in", tmp_path / "out")
    assert isinstance(held, Held)
    assert "US" in held.reason


def test_a_key_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    key = project_key(tmp_path / "project" / "key")
    assert len(key) == 32
    assert project_key(tmp_path / "project" / "key") == key
    assert (tmp_path / "project" / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "short").write_bytes(b"short")
    with pytest.raises(ConfigInvalid, match="too few for a key"):
        project_key(tmp_path / "short")


def test_an_archive_gives_and_takes_de_identified_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    film(tmp_path / "in", study=5)
    with services.orthanc() as server:
        for key, value in {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": str(server.port)}.items():
            monkeypatch.setenv(f"HILUM__PACS__PEERS__PACS__{key.upper()}", value)
        words = ["--deidentify", "--option", "clean-descriptors", "--option", "retain-modified-dates"]
        assert main(["archive", "send", "pacs", str(tmp_path / "in"), *words]) == 1
        assert "--deidentify needs --key FILE" in capsys.readouterr().err
        words += ["--key", str(tmp_path / "key")]
        assert main(["archive", "send", "pacs", str(tmp_path / "in"), *words]) == 0
        [sent] = server.instances()
        assert sent.startswith("2.25.")
        assert main(["archive", "send", "pacs", str(tmp_path / "in")]) == 0
        out = tmp_path / "out"
        assert main(["archive", "fetch", "pacs", "--study", f"{ROOT}.5", "--out", str(out), *words]) == 0
    # What was fetched and de-identified here is what was de-identified and sent: one key, one patient, one UID.
    assert [path.stem for path in out.iterdir()] == [sent]
    assert "Canary" not in capsys.readouterr().err
