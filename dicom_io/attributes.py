"""Take attribute values out of a parsed data set, whatever the file holds there. Runs in the decoding process only."""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from dicom_io.errors import BadAttribute, DicomError

# Longer than any text that a header shows; no file may fill an answer with one value.
_TEXT_MAX = 1024


def named(keyword: str) -> str:
    """An attribute as messages name it: `(0028,0010) Rows`."""
    tag = Tag(tag_for_keyword(keyword) or 0)
    return f"({tag.group:04X},{tag.element:04X}) {keyword}"


def raw(dataset: Dataset, keyword: str) -> Any:
    """The value as pydicom gives it, None when absent or empty; raises BadAttribute when it cannot be converted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = dataset.get(keyword)
    except (DicomError, MemoryError, RecursionError):
        raise
    except Exception as exc:
        raise BadAttribute(f"{named(keyword)} has a value that is not allowed ({type(exc).__name__})") from exc
    if value is None or (isinstance(value, (str, bytes, MultiValue)) and len(value) == 0):
        return None
    return value


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (MultiValue, list, tuple)) else value


def integer(dataset: Dataset, keyword: str) -> int | None:
    """A whole number; the first one where there are several. Raises BadAttribute when it is none."""
    value = _first(raw(dataset, keyword))
    if value is None:
        return None
    if isinstance(value, bytes):
        # Explicit VR UN, or an ambiguous VR that nothing settles.
        raise BadAttribute(f"{named(keyword)} has no number as its value")
    try:
        number = float(value)
    except (TypeError, ValueError) as exc:
        raise BadAttribute(f"{named(keyword)} has no number as its value") from exc
    if not math.isfinite(number) or number != int(number):
        raise BadAttribute(f"{named(keyword)} is {number}; a whole number is needed")
    return int(number)


def required_integer(dataset: Dataset, keyword: str) -> int:
    """A whole number without which the pixels cannot be read; raises BadAttribute when absent."""
    value = integer(dataset, keyword)
    if value is None:
        raise BadAttribute(f"{named(keyword)} is absent or empty; the pixels cannot be read without it")
    return value


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """All finite numbers of an attribute, empty when absent; raises BadAttribute when one is none."""
    value = raw(dataset, keyword)
    if value is None:
        return ()
    several = value if isinstance(value, (MultiValue, list, tuple)) else [value]
    try:
        found = tuple(float(one) for one in several)
    except (TypeError, ValueError) as exc:
        raise BadAttribute(f"{named(keyword)} has no number as its value") from exc
    if not all(math.isfinite(one) for one in found):
        raise BadAttribute(f"{named(keyword)} holds a number that is not finite")
    return found


def text(dataset: Dataset, keyword: str) -> str | None:
    """Text without padding; None when absent, empty or not text. The first value where there are several."""
    try:
        value = _first(raw(dataset, keyword))
    except BadAttribute:
        return None
    if value is None or isinstance(value, (bytes, Dataset)):
        return None
    # Lone surrogates, which some decoders leave, could be neither stored nor shown.
    return str(value).replace("\0", "").encode(errors="replace").decode().strip()[:_TEXT_MAX] or None


def day(dataset: Dataset, keyword: str) -> date | None:
    """A DA value, also in the older form with dots (PS3.5 6.2); None when it is no date."""
    value = text(dataset, keyword)
    match = re.fullmatch(r"([0-9]{4})[.-]?([0-9]{2})[.-]?([0-9]{2})", value or "")
    if match is None:
        return None
    try:
        return date(*(int(part) for part in match.groups()))
    except ValueError:
        return None


def items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    """The items of a sequence, empty when it is absent or is none."""
    value = raw(dataset, keyword)
    if value is None or isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return ()
    return [item for item in value if isinstance(item, Dataset)]


def groups_of_frame(dataset: Dataset, number: int) -> Iterator[Dataset]:
    """The functional groups that hold for a frame: its own before the shared ones (PS3.3 C.7.6.16)."""
    own = raw(dataset, "PerFrameFunctionalGroupsSequence")
    if own is not None and not isinstance(own, (str, bytes)) and number <= len(own):
        yield own[number - 1]
    yield from items(dataset, "SharedFunctionalGroupsSequence")[:1]


def group_item(dataset: Dataset, number: int, sequence: str) -> Dataset | None:
    """The item of one functional group macro for a frame, None when no group has it."""
    for group in groups_of_frame(dataset, number):
        for item in items(group, sequence)[:1]:
            return item
    return None


def holder(dataset: Dataset, number: int, sequence: str, *keywords: str) -> Dataset | None:
    """Where a frame's attributes stand: its functional group if that has one of them, else the data set itself."""
    item = group_item(dataset, number, sequence)
    for candidate in (item, dataset):
        if candidate is not None and any(keyword in candidate for keyword in keywords):
            return candidate
    return None
