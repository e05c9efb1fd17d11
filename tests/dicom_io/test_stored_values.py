"""Stored values against the bytes that dcmtk extracts, for every real file whose pixels are lossless."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_io.header import number_of_frames
from dicom_io.layout import Layout, layout
from dicom_io.part10 import open_part10
from dicom_io.read import Limits
from dicom_io.samples import decode
from dicom_io.uids import TRANSFER_SYNTAXES
from tests.dicom_io.conftest import packaged
from tests.dicom_io.test_against_dcmtk import JPEG_LS, TABLE
from tests.services import require

# What makes a file of native pixels in little endian out of one of each decoder.
EXPANDERS = {"native": "dcmconv", "libjpeg": "dcmdjpeg", "rle": "dcmdrle"}


def stored(path: Path, limits: Limits) -> tuple[list[NDArray[np.int64]], Layout, str]:
    """Our stored values of every frame, the layout, and the transfer syntax."""
    part10 = open_part10(path, limits=limits)
    try:
        form, count = layout(part10, limits=limits), number_of_frames(part10)
        values = [decode(part10, form, n, frame_count=count, limits=limits).samples for n in range(count)]
        return [one.astype(np.int64) for one in values], form, part10.syntax.uid
    finally:
        part10.close()


def extracted(path: Path, syntax: str, folder: Path) -> tuple[bytes, bool]:
    """The bytes of Pixel Data, expanded and written to a file of their own by dcmtk, and whether they lie by plane."""
    decoder = TRANSFER_SYNTAXES[syntax].decoder
    assert decoder is not None
    program = "dcmdjpls" if syntax in JPEG_LS else EXPANDERS[decoder]
    expanded = folder / "expanded.dcm"
    subprocess.run([require(program), "--write-xfer-little", path, expanded], check=True, capture_output=True)
    subprocess.run([require("dcmdump"), "-q", "+W", folder, expanded], check=True, capture_output=True)
    # An icon has pixels too; those of the image come last.
    *_, raw = sorted(folder.glob("*.raw"), key=lambda one: int(one.suffixes[-2].removeprefix(".")))
    by_plane = subprocess.run(
        [require("dcmdump"), "-q", "+P", "PlanarConfiguration", expanded], check=True, capture_output=True, text=True
    )
    return raw.read_bytes(), "US 1" in by_plane.stdout


def values_of(content: bytes, form: Layout, *, count: int, by_plane: bool) -> NDArray[np.uint64]:
    """The words of the extracted bytes, (frames, ...) in the order of pixels, with only their stored bits."""
    words: NDArray[Any]
    if form.bits_allocated == 1:
        words = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")
    else:
        words = np.frombuffer(content, f"<u{form.bits_allocated // 8}")
    words = words[: count * form.pixel_count * form.samples].astype(np.uint64)
    if by_plane:
        words = words.reshape(count, form.samples, -1).transpose(0, 2, 1)
    lowest = form.high_bit + 1 - form.bits_stored
    return (words.reshape(count, -1) >> np.uint64(lowest)) & np.uint64((1 << form.bits_stored) - 1)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row["drawn"] in ("equal", "ties", "whole")])
def test_stored_values_are_the_bytes_that_dcmtk_extracts(
    shared: Path, limits: Limits, tmp_path: Path, name: str
) -> None:
    ours, form, syntax = stored(shared / name, limits)
    content, by_plane = extracted(shared / name, syntax, tmp_path)
    theirs = values_of(content, form, count=len(ours), by_plane=by_plane and form.samples == 3)
    mask = (1 << form.bits_stored) - 1
    assert theirs.size == sum(one.size for one in ours)
    np.testing.assert_array_equal(np.stack([one.ravel() for one in ours]) & mask, theirs)


@pytest.mark.parametrize("twin", ["MR_small_jp2klossless.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm"])
def test_a_lossless_twin_has_the_values_of_the_native_file(limits: Limits, twin: str) -> None:
    """dcmtk decodes no JPEG 2000; the native file is what the twin was made of."""
    ours, _, _ = stored(packaged(twin), limits)
    native, _, _ = stored(packaged("MR_small.dcm"), limits)
    np.testing.assert_array_equal(ours, native)


def test_jpeg_2000_frames_have_the_values_of_their_native_twin(shared: Path, limits: Limits) -> None:
    folder = shared / "pydicom__pydicom-data"
    j2k, rle = (stored(next(folder.glob(f"*emri_small_{name}.dcm")), limits)[0] for name in ("jpeg_2k_lossless", "RLE"))
    assert len(j2k) == 10
    np.testing.assert_array_equal(j2k, rle)
