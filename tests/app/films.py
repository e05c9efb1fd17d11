"""Small DICOM files whose header says what a test wants it to say."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid

from tests.dicom_io import build

ROOT = "1.2.826.0.1.3680043.10.7"
DX_IMAGE, CT_IMAGE, MR_IMAGE, US_IMAGE = (
    uid.DigitalXRayImageStorageForPresentation,
    uid.CTImageStorage,
    uid.MRImageStorage,
    uid.UltrasoundImageStorage,
)


def gradient(rows: int = 24, columns: int = 32, *, start: int = 0) -> NDArray[np.uint16]:
    """Values that differ from pixel to pixel."""
    return (np.arange(rows * columns, dtype=np.uint16) + start).reshape(rows, columns)


def film(
    folder: Path,
    number: int = 1,
    *,
    study: int = 1,
    series: int = 1,
    pixels: NDArray[Any] | None = None,
    **attributes: Any,
) -> Path:
    """A frontal chest film without an age, written as `folder/film-<number>.dcm`; attributes replace its own."""
    dataset = build.data_set(gradient(start=number) if pixels is None else pixels)
    header: Mapping[str, Any] = {
        "SOPClassUID": DX_IMAGE,
        "SOPInstanceUID": f"{ROOT}.{study}.{series}.{number}",
        "StudyInstanceUID": f"{ROOT}.{study}",
        "SeriesInstanceUID": f"{ROOT}.{study}.{series}",
        "Modality": "DX",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PatientID": "P-17",
        "PatientName": "Canary^Carla",
        "InstanceNumber": number,
        **attributes,
    }
    for keyword, value in header.items():
        if value is not None:
            setattr(dataset, keyword, value)
    folder.mkdir(parents=True, exist_ok=True)
    return build.write(folder, build.part10(dataset), f"film-{number}.dcm")


def ct(folder: Path, number: int = 1, **attributes: Any) -> Path:
    """One CT slice in Hounsfield units from -1024, without a body part unless one is given."""
    header = {
        "SOPClassUID": CT_IMAGE,
        "Modality": "CT",
        "BodyPartExamined": None,
        "ViewPosition": None,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "ImagePositionPatient": [0, 0, float(number)],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        **attributes,
    }
    return film(folder, number, **header)


def report(folder: Path) -> Path:
    """An object that carries no pixels."""
    dataset = build.data_set(
        gradient(), SOPClassUID=uid.BasicTextSRStorage, Modality="SR", SOPInstanceUID=f"{ROOT}.9.9.9"
    )
    del dataset.PixelData
    folder.mkdir(parents=True, exist_ok=True)
    return build.write(folder, build.part10(dataset), "report.dcm")


def zipped(archive: Path, *members: Path) -> Path:
    """The members in a zip, by their bare names."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        for member in members:
            made.write(member, member.name)
    return archive
