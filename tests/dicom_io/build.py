"""Write small Part 10 files whose every value a test chooses."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite

STUDY, SERIES = "1.2.826.0.1.3680043.10.1.1", "1.2.826.0.1.3680043.10.1.2"


def data_set(pixels: NDArray[Any], **attributes: Any) -> Dataset:
    """An image of (rows, columns), (frames, rows, columns) or (rows, columns, 3); attributes replace derived ones."""
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    shape = pixels.shape[:2] if colour else pixels.shape[-2:]
    bits = pixels.dtype.itemsize * 8
    made = Dataset()
    made.SOPClassUID = uid.SecondaryCaptureImageStorage
    made.SOPInstanceUID = "1.2.826.0.1.3680043.10.1.3"
    made.StudyInstanceUID, made.SeriesInstanceUID = STUDY, SERIES
    made.Modality = "OT"
    made.Rows, made.Columns = shape
    made.SamplesPerPixel = 3 if colour else 1
    made.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        made.PlanarConfiguration = 0
    made.BitsAllocated, made.BitsStored, made.HighBit = bits, bits, bits - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3 and not colour:
        made.NumberOfFrames = len(pixels)
    made.PixelData = _even(pixels.tobytes())
    made["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in attributes.items():
        if value is None:
            del made[keyword]
        else:
            setattr(made, keyword, value)
    return made


def part10(dataset: Dataset, *, transfer_syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    """The bytes of a Part 10 file; nothing is checked, so that broken values can be written too."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", "1.2")
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2")
    meta.TransferSyntaxUID = uid.UID(transfer_syntax)
    meta.ImplementationClassUID = uid.PYDICOM_IMPLEMENTATION_UID
    dataset.file_meta = meta
    dataset.preamble = bytes(128)
    written = io.BytesIO()
    dcmwrite(written, dataset, enforce_file_format=False)
    return written.getvalue()


def encapsulated(dataset: Dataset, frames: Sequence[bytes], *, transfer_syntax: str) -> bytes:
    """A Part 10 file with compressed frames."""
    dataset.PixelData = encapsulate(list(frames))
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return part10(dataset, transfer_syntax=transfer_syntax)


def write(folder: Path, content: bytes, name: str = "image.dcm") -> Path:
    """A file in a folder."""
    path = folder / name
    path.write_bytes(content)
    return path


def functional_group(**sequences: Dataset) -> Dataset:
    """One item of the shared or the per-frame functional groups."""
    group = Dataset()
    for keyword, item in sequences.items():
        setattr(group, keyword, [item])
    return group


def item(**attributes: Any) -> Dataset:
    """One sequence item."""
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """One element in explicit VR little endian, its value as it is."""
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return struct.pack("<HH2sHI", group, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def _even(content: bytes) -> bytes:
    return content + b"\0" * (len(content) % 2)
