"""Files go out de-identified, or their study is held for a person."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file

from app.cli import main
from app.deidentify import Held, deidentify, project_key
from app.errors import ConfigInvalid
from dicom_io.deidentify.header import Deidentifier
from dicom_io.deidentify.pixels import Rectangle, without_unused_bits
from dicom_io.deidentify.profile import Action
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


def test_an_overlay_in_unused_bits_of_the_pixels_does_not_go_out(tmp_path: Path) -> None:
    """As group 6000 with Overlay Bits Allocated 16 and Overlay Bit Position 12 had it until 2004."""
    smooth = np.linspace(0, 900, 400 * 512).reshape(400, 512).astype(np.uint16)
    hidden = smooth | np.where(lettered() == 1000, 1 << 12, 0).astype(np.uint16)
    film(tmp_path / "in", pixels=hidden, BitsStored=12, HighBit=11)
    [path] = outcomes(tmp_path / "in", tmp_path / "out")
    assert isinstance(path, Path)
    assert np.array_equal(np.frombuffer(dcmread(path).PixelData, np.uint16).reshape(400, 512), smooth)


def test_signed_values_keep_their_sign_and_bits_that_are_not_there_are_refused() -> None:
    values = np.array([-2048, -1, 0, 2047], np.int16)
    stored = (values.view(np.uint16) & np.uint16(0x0FFF)) | np.uint16(0x5000)
    for order in "<>":
        cleaned = without_unused_bits(stored.astype(f"{order}u2"), bits_stored=12, high_bit=11, signed=True)
        assert cleaned.dtype == np.dtype(f"{order}u2")
        assert cleaned.view(f"{order}i2").tolist() == values.tolist()
    shifted = without_unused_bits(np.array([0xFFFF], np.uint16), bits_stored=12, high_bit=15, signed=False)
    assert shifted.tolist() == [0xFFF0]
    with pytest.raises(ValueError, match="do not lie in 8"):
        without_unused_bits(np.zeros(1, np.uint8), bits_stored=12, high_bit=11, signed=False)


def test_a_study_of_which_one_file_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        film(tmp_path / "in", number)
    clean, seen = Deidentifier.clean, []

    def failing(self: Deidentifier, dataset: Dataset) -> tuple[Dataset, Counter[tuple[str, Action]]]:
        seen.append(1)
        if len(seen) == 2:
            raise ValueError("broken")
        return clean(self, dataset)

    monkeypatch.setattr(Deidentifier, "clean", failing)
    [held] = outcomes(tmp_path / "in", tmp_path / "out")
    assert isinstance(held, Held)
    assert "cannot be written" in held.reason
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr(Deidentifier, "clean", clean)
    monkeypatch.setattr("app.deidentify.os.fsync", lambda _file: (_ for _ in ()).throw(OSError("disk")))
    assert [type(one) for one in outcomes(tmp_path / "in", tmp_path / "out")] == [Held]
    assert list((tmp_path / "out").iterdir()) == []


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
