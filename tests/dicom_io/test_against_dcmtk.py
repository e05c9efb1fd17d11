"""Displayed pixels against dcmtk's renderer, on every real file of which this reader gives frames.

`dcmtk.csv` names each file and how the two pictures compare, with what was seen where they are not equal:

- `equal`: bit for bit;
- `ties`: bit for bit but where a level comes to a whole number, which dcmtk's sum of float64 misses by its last bit;
- `whole`: bit for bit once modality values are cut to whole numbers, as dcmtk keeps them after a fractional slope;
- a number: two decoders of a lossy codestream, or two equations for colour, at most so many grey levels apart;
- `other`: dcmtk draws something else, for the reason that is given;
- `refused`: dcmtk does not draw it.
"""

import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_io.read import Sandbox, frames, read_instance
from dicom_io.types import Frame, Instance, Window
from dicom_io.voi import eight_bits
from tests.dicom_io import build
from tests.dicom_io.conftest import packaged
from tests.dicom_io.test_shared_files import OUTCOMES, rows_of
from tests.services import require

Picture = NDArray[np.uint8]

TABLE = {row["file"]: row for row in rows_of(Path(__file__).with_name("dcmtk.csv"))}
PACKAGED = [
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "rtdose.dcm",
    "SC_rgb_rle.dcm",
]
PACKAGED += ["SC_rgb_small_odd.dcm", "SC_rgb_rle_16bit.dcm", "ExplVR_BigEnd.dcm", "examples_palette.dcm"]
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")


def rendered(path: Path, *options: str, transfer_syntax: str = "", number: int = 1) -> Picture:
    """What dcmtk draws of a frame, from its binary PGM or PPM; raises CalledProcessError where it draws nothing."""
    program = require("dcml2pnm" if transfer_syntax in JPEG_LS else "dcmj2pnm")
    command: list[str | Path] = [program, "--no-overlays", "--frame", str(number), *options, "--write-raw-pnm", path]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    kind, size, top, pixels = _fields(output)
    columns, rows = map(int, size)
    assert top == 255
    shape = (rows, columns, 3) if kind == b"P6" else (rows, columns)
    return np.frombuffer(pixels, np.uint8, count=int(np.prod(shape))).reshape(shape)


def _fields(output: bytes) -> tuple[bytes, list[bytes], int, bytes]:
    lines: list[bytes] = []
    while len(lines) < 3:
        line, _, output = output.partition(b"\n")
        if not line.startswith(b"#"):
            lines.append(line)
    return lines[0].strip(), lines[1].split(), int(lines[2]), output


def one_frame(path: Path, sandbox: Sandbox, *, last: bool = False) -> tuple[Instance, Frame]:
    instance = read_instance(path, sandbox=sandbox)
    number = instance.number_of_frames if last else 1
    return instance, next(frames(instance, sandbox=sandbox, numbers=[number]))


def shown(instance: Instance, frame: Frame) -> tuple[Frame, list[str]]:
    """The frame with the window that it is compared under, and the options that make dcmtk choose the same one."""
    if frame.pixels.ndim == 3:
        # A JFIF marker means YCbCr whatever the header says; by itself dcmtk believes the header.
        return frame, ["--conv-guess-lossy"]
    if frame.voi_luts and not frame.windows:
        return frame, ["--use-voi-lut", "1"]
    turned = instance.photometric_interpretation == "MONOCHROME1"
    if frame.windows:
        window, options = frame.windows[0], ["--use-window", "1"]
    else:
        low, high = float(frame.pixels.min()), float(frame.pixels.max())
        # dcmtk's window over all values is a LINEAR one that ends half a unit beyond them.
        window, options = Window(centre=(low + high + 1) / 2, width=high - low + 1), ["--min-max-window"]
    if not turned:
        # Given so, dcmtk needs no window at the top of the data set and counts no padding as the lowest value.
        options = ["--set-window", repr(window.centre), repr(window.width)]
    return replace(frame, windows=(window,)), options


def levels_of_the_standard(frame: Frame) -> NDArray[Any]:
    """The levels that the standard's equation gives, as exact fractions (C.11.2.1.2.1)."""
    window, known = frame.windows[0], {}
    for value in np.unique(frame.pixels):
        place = (Fraction(float(value)) - Fraction(window.centre) + Fraction(1, 2)) / (Fraction(window.width) - 1)
        known[value] = min(max((place + Fraction(1, 2)) * 255, Fraction(0)), Fraction(255))
    return np.array([known[value] for value in frame.pixels.ravel()], dtype=object).reshape(frame.pixels.shape)


def named(*comparisons: str) -> list[str]:
    return [name for name, row in TABLE.items() if row["drawn"] in comparisons]


def both(path: Path, sandbox: Sandbox, *, last: bool = False, whole: bool = False) -> tuple[Frame, Picture, Picture]:
    """A frame, our picture of it and dcmtk's."""
    instance, frame = one_frame(path, sandbox, last=last)
    frame, options = shown(instance, frame)
    theirs = rendered(path, *options, transfer_syntax=instance.transfer_syntax_uid, number=frame.number)
    ours = eight_bits(replace(frame, pixels=np.trunc(frame.pixels)) if whole else frame)
    assert ours.shape == theirs.shape
    return frame, ours, theirs


def test_every_file_that_gives_frames_is_compared() -> None:
    assert set(TABLE) == {name for name, outcome in OUTCOMES.items() if outcome == "frames"}
    assert all(row["seen"] for row in TABLE.values() if row["drawn"] != "equal")


@pytest.mark.parametrize("name", named("equal"))
def test_a_picture_is_that_of_dcmtk_bit_for_bit(shared: Path, sandbox: Sandbox, name: str) -> None:
    frame, ours, theirs = both(shared / name, sandbox)
    np.testing.assert_array_equal(ours, theirs)
    if read_instance(shared / name, sandbox=sandbox).number_of_frames > frame.number:
        _, ours, theirs = both(shared / name, sandbox, last=True)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", named("ties"))
def test_levels_differ_only_where_they_come_to_a_whole_number(shared: Path, sandbox: Sandbox, name: str) -> None:
    frame, ours, theirs = both(shared / name, sandbox)
    differ = ours != theirs
    exact = levels_of_the_standard(frame)[differ]
    assert 0 < exact.size < ours.size / 100
    assert all(level.denominator == 1 for level in exact)
    np.testing.assert_array_equal(ours[differ], exact.astype(int))


@pytest.mark.parametrize("name", named("whole"))
def test_fractional_modality_values_are_cut_by_dcmtk(shared: Path, sandbox: Sandbox, name: str) -> None:
    _, ours, theirs = both(shared / name, sandbox, whole=True)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row["drawn"].isdigit()])
def test_lossy_pictures_are_as_near_as_two_decoders_are(shared: Path, sandbox: Sandbox, name: str) -> None:
    _, ours, theirs = both(shared / name, sandbox)
    apart = np.abs(ours.astype(int) - theirs)
    assert apart.max() <= int(TABLE[name]["drawn"])
    assert apart.mean() < 1


@pytest.mark.parametrize("name", named("other"))
def test_where_dcmtk_draws_something_else_its_own_twin_is_equal(shared: Path, sandbox: Sandbox, name: str) -> None:
    """The little endian twin of the big endian dose."""
    _, ours, theirs = both(shared / name, sandbox)
    assert (ours != theirs).any()
    (twin,) = shared.glob("pydicom__pydicom/*_rtdose.dcm")
    _, _, of_the_twin = both(twin, sandbox)
    np.testing.assert_array_equal(ours, of_the_twin)


@pytest.mark.parametrize("name", named("refused"))
def test_what_dcmtk_does_not_draw_is_read_all_the_same(shared: Path, sandbox: Sandbox, name: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        both(shared / name, sandbox)


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_images_look_as_dcmtk_draws_them(sandbox: Sandbox, name: str) -> None:
    _, ours, theirs = both(packaged(name), sandbox)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("centre", "width"), [(40, 400), (300, 1500), (1000, 1), (50.5, 801), (500, 511), (-0.25, 7)])
def test_any_window_is_applied_as_dcmtk_applies_it(sandbox: Sandbox, centre: float, width: float) -> None:
    path = packaged("CT_small.dcm")
    _, frame = one_frame(path, sandbox)
    theirs = rendered(path, "--set-window", str(centre), str(width))
    np.testing.assert_array_equal(eight_bits(frame, Window(centre, width)), theirs)


def test_sigmoid_windows_are_applied_as_dcmtk_applies_them(sandbox: Sandbox) -> None:
    path = packaged("CT_small.dcm")
    _, frame = one_frame(path, sandbox)
    theirs = rendered(path, "--set-window", "100", "800", "--sigmoid-function")
    np.testing.assert_array_equal(eight_bits(frame, Window(100, 800, "SIGMOID")), theirs)


@pytest.mark.parametrize("bits", [10, 16])
@pytest.mark.parametrize("inverted", [False, True])
def test_voi_luts_are_applied_as_dcmtk_applies_them(
    sandbox: Sandbox, tmp_path: Path, bits: int, inverted: bool
) -> None:
    entries = np.random.default_rng(5).integers(0, 1 << bits, 200).astype("<u2")
    table = build.item(LUTDescriptor=[200, 20, bits], LUTData=entries.tobytes())
    photometric = "MONOCHROME1" if inverted else "MONOCHROME2"
    made = build.data_set(
        np.arange(256, dtype=np.uint8).reshape(16, 16), VOILUTSequence=[table], PhotometricInterpretation=photometric
    )
    _, ours, theirs = both(build.write(tmp_path, build.part10(made)), sandbox)
    # Downwards dcmtk spreads the entries over 254 levels instead of 256, so its twins are one level apart.
    assert np.abs(ours.astype(int) - theirs).max() <= (1 if inverted else 0)


def test_sixteen_bit_colour_is_cut_as_dcmtk_cuts_it(sandbox: Sandbox, tmp_path: Path) -> None:
    pixels = np.random.default_rng(6).integers(0, 1 << 16, (20, 30, 3)).astype(np.uint16)
    _, ours, theirs = both(build.write(tmp_path, build.part10(build.data_set(pixels))), sandbox)
    np.testing.assert_array_equal(ours, theirs)
