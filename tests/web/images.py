"""Real images that the pydicom package carries, and files made from them."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, ImageFilter
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

HEAD_CT = "J2K_pixelrep_mismatch.dcm"
ABDOMINAL_MR = "examples_overlay.dcm"
ULTRASOUND = "examples_ybr_color.dcm"
SMALL_CT = "CT_small.dcm"
SMALL_MR = "MR_small.dcm"

# Shepp & Logan 1974, ten ellipses: intensity, half axes and centre in units of half the picture, turn in degrees.
ELLIPSES = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0),
)


def packaged(name: str) -> Path:
    """The file that the installed package carries under this name."""
    found = get_testdata_file(name, download=False)
    assert isinstance(found, str)
    return Path(found)


def chest_film(*, age: str | None = None, name: str = "Test^Film") -> bytes:
    """A small film that says it is a frontal chest radiograph; its pixels are those of a packaged MR slice."""
    dataset = pydicom.dcmread(packaged(SMALL_MR))
    dataset.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "PA"
    dataset.StudyDescription, dataset.PatientName = "Chest", name
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    _name(dataset)
    for keyword in ("PatientAge", "PatientBirthDate"):
        if keyword in dataset:
            delattr(dataset, keyword)
    if age is not None:
        dataset.PatientAge = age
    return _bytes(dataset)


def brain_phantom() -> bytes:
    """The Shepp-Logan phantom with a little texture and noise, as one slice of a brain MRI: a picture of nobody."""
    side, rng = 256, np.random.default_rng(0)
    y, x = np.mgrid[1 : -1 : side * 1j, -1 : 1 : side * 1j] / 0.85
    picture = np.zeros((side, side))
    for intensity, across, along, x0, y0, degrees in ELLIPSES:
        turn = np.deg2rad(degrees)
        u = (x - x0) * np.cos(turn) + (y - y0) * np.sin(turn)
        v = (y - y0) * np.cos(turn) - (x - x0) * np.sin(turn)
        picture[(u / across) ** 2 + (v / along) ** 2 <= 1] += 2.5 * intensity
    coarse = rng.normal(128, 60, (side // 8, side // 8)).clip(0, 255).astype(np.uint8)
    texture = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)) / 128 - 1
    grey = np.where(picture > 0.1, picture + 0.1 * texture, picture).clip(0, 1) * 255
    smooth = np.asarray(Image.fromarray(grey.astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.2))) / 255
    dataset = pydicom.dcmread(packaged(SMALL_MR))
    stored = ((smooth + rng.normal(0, 0.01, smooth.shape)).clip(0, 1) * 1000).astype(np.int16)
    dataset.PixelData, dataset.Rows, dataset.Columns = stored.tobytes(), side, side
    dataset.BodyPartExamined, dataset.PatientName = "BRAIN", "Phantom^Shepp-Logan"
    dataset.PatientID, dataset.StudyDescription = "PHANTOM", "Head phantom, made by code"
    dataset.WindowCenter, dataset.WindowWidth = 500, 1000
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    _name(dataset)
    return _bytes(dataset)


def series_zip(slices: int) -> bytes:
    """A zip with a folder of slices of one series, each with its own number and position."""
    archive = io.BytesIO()
    dataset = pydicom.dcmread(packaged(SMALL_MR))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.BodyPartExamined = "BRAIN"
    with zipfile.ZipFile(archive, "w") as packed:
        for number in range(1, slices + 1):
            _name(dataset)
            dataset.InstanceNumber = number
            dataset.ImagePositionPatient = [0, 0, 5 * number]
            packed.writestr(f"series/{number:03d}.dcm", _bytes(dataset))
    return archive.getvalue()


def _name(dataset: pydicom.Dataset) -> None:
    dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def _bytes(dataset: pydicom.Dataset) -> bytes:
    written = io.BytesIO()
    dataset.save_as(written, enforce_file_format=True)
    return written.getvalue()
