"""Write a made data set as a Part 10 file: explicit VR little endian, UTF-8, our own implementation UID."""

import io

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID

from dicom_io.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME


def part10_bytes(dataset: Dataset) -> bytes:
    """The bytes of the file; the data set's own file meta information is left out of account."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = UID(EXPLICIT_VR_LITTLE_ENDIAN.uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    written = Dataset()
    written.update(dataset)
    written.file_meta = meta
    written.preamble = bytes(128)
    out = io.BytesIO()
    dcmwrite(out, written, enforce_file_format=True)
    return out.getvalue()
