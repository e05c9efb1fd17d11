"""Every error's DIMSE status, for a C-STORE response (PS3.4 Table B.2-1, PS3.7 Annex C)."""

from sqlalchemy.exc import OperationalError

from app.errors import DatabaseUnavailable, HilumError
from dicom_io.errors import DicomError

SUCCESS = 0x0000
DUPLICATE_INSTANCE = 0x0111  # another object under a known UID; the first one stays
OUT_OF_RESOURCES = 0xA700  # "send it again later"
DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
BROKEN, NOT_READ, REFUSED = 0xC001, 0xC002, 0xC003  # Cxxx is ours to divide

# A row whose key ends in a dot holds for all codes that begin with it; the longest key wins.
STATUSES: dict[str, int] = {
    "dicom.": BROKEN,
    "dicom.file-unreadable": OUT_OF_RESOURCES,  # it lies on our own disk
    "dicom.too-large": REFUSED,
    "dicom.not-read": NOT_READ,
    "dicom.transfer-syntax-missing": NOT_READ,
    "dicom.transfer-syntax-not-read": NOT_READ,
    "dicom.pixels-not-read": NOT_READ,
    "dicom.sandbox-out-of-memory": REFUSED,
    "dicom.sandbox-timed-out": REFUSED,
    "dicom.sandbox-unavailable": OUT_OF_RESOURCES,
    "spool.": OUT_OF_RESOURCES,
    "database.": OUT_OF_RESOURCES,
    "audit.": OUT_OF_RESOURCES,
    "config.": OUT_OF_RESOURCES,
    "receive.conflicting-instance": DUPLICATE_INSTANCE,
    "receive.conflicting-series": DOES_NOT_MATCH,
    "receive.another-instance": DOES_NOT_MATCH,
    "receive.another-study": DOES_NOT_MATCH,
    "receive.file-changed": OUT_OF_RESOURCES,
}


def status_of(code: str) -> int:
    """The status of an error by its code; what is not in the table could not be understood."""
    keys = [key for key in STATUSES if code == key or (key.endswith(".") and code.startswith(key))]
    return STATUSES[max(keys, key=len)] if keys else CANNOT_UNDERSTAND


def status_of_error(error: Exception) -> int:
    """The status of what was raised: a database out of reach is ours to mend, and the sender tries again."""
    if isinstance(error, OperationalError):
        return status_of(DatabaseUnavailable.code)
    if isinstance(error, HilumError | DicomError):
        return status_of(error.code)
    return OUT_OF_RESOURCES
