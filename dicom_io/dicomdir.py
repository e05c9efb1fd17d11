"""Read which files a DICOMDIR names (PS3.3 F.3). Runs in the decoding process only."""

from dicom_io.attributes import items, raw
from dicom_io.errors import NotDicom, TooLarge
from dicom_io.limits import Limits
from dicom_io.part10 import Part10


def references(part10: Part10, *, limits: Limits) -> list[list[str]]:
    """The Referenced File IDs in the order of the records, each a list of components, not yet checked.

    Raises NotDicom when the file is no directory, and TooLarge.
    """
    if "DirectoryRecordSequence" not in part10.dataset:
        raise NotDicom("(0004,1220) DirectoryRecordSequence is absent; this is no DICOMDIR")
    found: list[list[str]] = []
    for record in items(part10.dataset, "DirectoryRecordSequence"):
        value = raw(record, "ReferencedFileID")
        if value is not None:
            found.append([value] if isinstance(value, str) else [str(part) for part in value])
        if len(found) > limits.archive_members:
            raise TooLarge(f"the DICOMDIR names more than {limits.archive_members} files")
    return found
