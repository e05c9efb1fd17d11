"""Real images that the pydicom package carries, and files made from them."""

import io
import zipfile
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

HEAD_CT = "J2K_pixelrep_mismatch.dcm"
ABDOMINAL_MR = "examples_overlay.dcm"
ULTRASOUND = "examples_ybr_color.dcm"
SMALL_CT = "CT_small.dcm"
SMALL_MR = "MR_small.dcm"


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
