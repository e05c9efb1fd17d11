"""Objects that tests send, each with UIDs of its own, and the messages that carry them."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

BOUNDARY = "a-boundary"
MULTIPART = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


def packaged(name: str) -> Path:
    """A test file that lies inside the pydicom package; never downloaded."""
    found = get_testdata_file(name, download=False)
    assert isinstance(found, str), f"{name} is not in the pydicom package"
    return Path(found)


def image(name: str = "MR_small.dcm", *, like: Dataset | None = None, **attributes: object) -> Dataset:
    """A packaged image in a study of its own, or in the series of another one."""
    dataset = pydicom.dcmread(packaged(name))
    dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.StudyInstanceUID = generate_uid() if like is None else like.StudyInstanceUID
    dataset.SeriesInstanceUID = generate_uid() if like is None else like.SeriesInstanceUID
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def part10(dataset: Dataset) -> bytes:
    """The file."""
    written = BytesIO()
    pydicom.dcmwrite(written, dataset)
    return written.getvalue()


def uids(dataset: Dataset) -> tuple[str, str, str]:
    """Of study, series and instance."""
    return str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID)


def path(dataset: Dataset) -> str:
    """Where the instance is under the service."""
    study, series, instance = uids(dataset)
    return f"/studies/{study}/series/{series}/instances/{instance}"


def message(*files: bytes, headers: str = "Content-Type: application/dicom") -> bytes:
    """A message of these parts."""
    parts = [f"--{BOUNDARY}\r\n{headers}\r\n\r\n".encode() + content + b"\r\n" for content in files]
    return b"".join([*parts, f"--{BOUNDARY}--".encode()])


def values(said: dict[str, dict[str, object]], tag: str) -> Sequence[object]:
    """The values of an attribute in the JSON model."""
    found = said[tag].get("Value", [])
    assert isinstance(found, list)
    return found
