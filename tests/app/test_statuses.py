"""Every error that storing can raise has a DIMSE status, and none of them reads as success."""

from collections.abc import Iterator

import pytest

from app.errors import DatabaseError as HilumDatabaseError
from app.errors import ReceiveError, SpoolError
from app.pacs.statuses import CANNOT_UNDERSTAND, STATUSES, status_of
from dicom_io.errors import DicomError


def leaves(error: type[Exception]) -> Iterator[type[Exception]]:
    children = error.__subclasses__()
    if not children:
        yield error
    for child in children:
        yield from leaves(child)


@pytest.mark.parametrize(
    "error", [leaf for tree in (DicomError, SpoolError, ReceiveError, HilumDatabaseError) for leaf in leaves(tree)]
)
def test_every_leaf_has_a_failure_status_of_the_storage_service(error: type[Exception]) -> None:
    code: str = error.code  # type: ignore[attr-defined]  # all three trees have one
    assert any(code == key or (key.endswith(".") and code.startswith(key)) for key in STATUSES)
    status = status_of(code)
    # PS3.4 Table B.2-1: refused A7xx, does not match A9xx, cannot understand Cxxx; and PS3.7's 0111.
    assert status == 0x0111 or status >> 8 in {0xA7, 0xA9} or status >> 12 == 0xC


def test_an_unknown_code_could_not_be_understood() -> None:
    assert status_of("something.else") == CANNOT_UNDERSTAND
