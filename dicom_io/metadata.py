"""Say a data set in the DICOM JSON model (PS3.18 Annex F), and give out the values left out of it.

Runs in the decoding process only.
"""

import base64
import json
import math
import warnings
from typing import Any

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from dicom_io.errors import Malformed, NoSuchValue, Truncated
from dicom_io.part10 import Part10

INLINE_BYTES_MAX = 1024
_WORD_BYTES = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
_BULK_VRS = frozenset({"OB", "UN", *_WORD_BYTES})
_SPECIFIC_CHARACTER_SET, _TRAILING_PADDING = 0x00080005, 0xFFFCFFFC
_DEEPEST_PLACE = 64

Json = dict[str, Any]


def metadata(part10: Part10, *, bulk_url: str) -> bytes:
    """The data set as UTF-8 text. Binary values over 1 KiB and the pixels are URIs: `bulk_url`, a slash, their place.

    A value that its VR does not allow, which JSON could not say, comes as bytes of VR UN, so that nothing is lost.
    """
    said = _said(part10.dataset, part10, url=bulk_url)
    if part10.pixels is not None:
        tag = {"PixelData": "7FE00010", "FloatPixelData": "7FE00008", "DoubleFloatPixelData": "7FE00009"}
        place = tag[part10.pixels.keyword]
        said[place] = {"vr": _pixel_vr(part10), "BulkDataURI": f"{bulk_url}/{place}"}
    return json.dumps(said, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def bulk_value(part10: Part10, place: str) -> bytes:
    """The bytes under a place such as `00281201`, or `54000100/0/54001010` inside a sequence, in little endian.

    Raises NoSuchValue where there is none, Truncated, Malformed.
    """
    dataset = part10.dataset
    *above, last = place.split("/")
    try:
        if len(above) > _DEEPEST_PLACE or len(above) % 2:
            raise ValueError("place")
        for sequence, number in zip(above[::2], above[1::2], strict=True):
            dataset = dataset[int(sequence, 16)].value[int(number)]
        tag = Tag(int(last, 16))
        _load(dataset, tag, part10)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            element = dataset[tag]
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as exc:
        raise NoSuchValue("the file has no bulk data at this place") from exc
    content = element.value
    if element.VR not in _BULK_VRS or not isinstance(content, bytes):
        raise NoSuchValue("the file has no bulk data at this place")
    width = _WORD_BYTES.get(element.VR, 1)
    if part10.syntax.little_endian or width == 1:
        return content
    if len(content) % width:
        raise Malformed(f"({tag.group:04X},{tag.element:04X}) does not hold whole words")
    return b"".join(content[at : at + width][::-1] for at in range(0, len(content), width))


def _said(dataset: Dataset, part10: Part10, *, url: str) -> Json:
    said: Json = {}
    for tag in sorted(dataset.keys()):
        if tag.element == 0 or tag.group == 0xFFFE or tag in (_TRAILING_PADDING, _SPECIFIC_CHARACTER_SET):
            continue
        said[f"{tag:08X}"] = _element(dataset, tag, part10, url=f"{url}/{tag:08X}")
    if _SPECIFIC_CHARACTER_SET in dataset:
        said["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}  # F.2: JSON is UTF-8 whatever the file was
    return said


def _element(dataset: Dataset, tag: BaseTag, part10: Part10, *, url: str) -> Json:
    _load(dataset, tag, part10)
    raw = dataset.get_item(tag)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            element = dataset[tag]
            if element.VR == "SQ":
                return _sequence(element, part10, url=url)
            if element.VR in _BULK_VRS and len(element.value or b"") > INLINE_BYTES_MAX:
                return {"vr": str(element.VR), "BulkDataURI": url}
            return _finite(element.to_json_dict(None, INLINE_BYTES_MAX))
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001 (a broken value raises anything, and the rest of the data set is still good)
        content = raw.value if raw is not None and isinstance(raw.value, bytes) else b""
        return {"vr": "UN", "InlineBinary": base64.b64encode(content).decode("ascii")}


def _sequence(element: DataElement, part10: Part10, *, url: str) -> Json:
    items = [_said(item, part10, url=f"{url}/{number}") for number, item in enumerate(element.value)]
    return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}


def _finite(said: Json) -> Json:
    """F.2.3: what is no finite number is said in words. Raises ValueError for a text where a number should be."""
    for n, value in enumerate(said.get("Value") or ()):
        if said["vr"] in ("DS", "IS") and isinstance(value, str):
            float(value)
        if isinstance(value, float) and not math.isfinite(value):
            said["Value"][n] = "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return said


def _load(dataset: Dataset, tag: BaseTag, part10: Part10) -> None:
    """Read a large value that parsing has left in the file."""
    raw = dataset.get_item(tag, keep_deferred=True)
    if isinstance(raw, RawDataElement) and raw.value is None and raw.length:
        part10.stream.seek(raw.value_tell)
        content = part10.stream.read(raw.length)
        if len(content) < raw.length:
            raise Truncated(f"the file ends inside ({tag.group:04X},{tag.element:04X})")
        dataset[tag] = raw._replace(value=content)


def _pixel_vr(part10: Part10) -> str:
    assert part10.pixels is not None
    if part10.pixels.keyword != "PixelData":
        return "OF" if part10.pixels.keyword == "FloatPixelData" else "OD"
    if part10.pixels.vr in ("OB", "OW"):
        return str(part10.pixels.vr)
    return "OW"  # PS3.5 A.1: in implicit VR, Pixel Data is OW
