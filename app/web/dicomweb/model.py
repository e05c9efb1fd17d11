"""Say rows in the DICOM JSON model (PS3.18 Annex F), and read what others say in it."""

import json
import re
from collections.abc import Mapping
from datetime import date, datetime
from functools import cache
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword

from app.db.canonical import canonical
from app.errors import UnstorableValue
from app.web.errors import RequestInvalid

Attribute = dict[str, Any]
DataSet = dict[str, Attribute]

TAG = re.compile(r"[0-9A-F]{8}")
_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


@cache
def tag_of(keyword: str) -> str:
    """`PatientID` -> `00100020`."""
    tag = tag_for_keyword(keyword)
    assert tag is not None  # the keywords are ours
    return f"{tag:08X}"


def data_set(values: Mapping[str, object]) -> DataSet:
    """Keywords and values -> the JSON model, in the order of the tags; None and empty: without value."""
    said = {tag_of(keyword): _attribute(dictionary_VR(tag_of(keyword)), value) for keyword, value in values.items()}
    return dict(sorted(said.items()))


def parsed(body: bytes) -> DataSet:
    """The one data set of a request's body, also where it comes in a list. Raises RequestInvalid."""
    try:
        found = json.loads(body)
        if isinstance(found, list):
            (found,) = found
        _check(found)
        canonical(found)  # a number that JSON cannot hold, which Python reads all the same, could not be kept
    except (RecursionError, TypeError, UnstorableValue, ValueError) as exc:
        raise RequestInvalid("the body is not one data set in the DICOM JSON model (PS3.18 Annex F)") from exc
    known: DataSet = found
    return known


def first(said: DataSet, keyword: str) -> str | None:
    """The first value of a text attribute; None where it is absent or empty."""
    values = said.get(tag_of(keyword), {}).get("Value") or [None]
    return str(values[0]).strip() or None if values[0] is not None else None


def _attribute(vr: str, value: object) -> Attribute:
    values = [one for one in (value if isinstance(value, list | tuple) else [value]) if one not in (None, "")]
    if not values:
        return {"vr": vr}
    return {"vr": vr, "Value": [_value(vr, one) for one in values]}


def _value(vr: str, value: object) -> object:
    if vr == "PN":
        groups = zip(_NAME_GROUPS, str(value).split("="), strict=False)
        return {name: group for name, group in groups if group}
    if vr == "SQ":
        assert isinstance(value, Mapping)
        return data_set(value)
    if isinstance(value, datetime):
        return value.strftime("%Y%m%d%H%M%S.%f%z")
    if isinstance(value, date):
        return value.strftime("%Y%m%d")
    return value


def _check(said: Any) -> None:
    """The shape that F.2 gives a data set; raises ValueError or TypeError."""
    if not isinstance(said, dict):
        raise TypeError("data set")
    for tag, attribute in said.items():
        if not TAG.fullmatch(tag) or not isinstance(attribute, dict) or not isinstance(attribute.get("vr"), str):
            raise ValueError("attribute")
        values = attribute.get("Value", [])
        if not isinstance(values, list):
            raise TypeError("values")
        for value in values if attribute["vr"] == "SQ" else ():
            _check(value)
