"""What PS3.15 Table E.1-1 says to do with each attribute, given the options that are chosen.

The tables beside this file are those of the standard. Where an action depends on the attribute's Type in its IOD (X/Z,
X/D, Z/D, X/Z/D, X/Z/U*), the one is taken that leaves a valid object whatever the Type: an empty value, a dummy, or
new UIDs.
Of several options that speak of one attribute, K goes before C.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.resources import files
from typing import Literal

Action = Literal["D", "Z", "X", "K", "C", "U"]
Options = frozenset["Option"]

_RESOLVED: dict[str, Action] = {
    "D": "D",
    "Z": "Z",
    "X": "X",
    "U": "U",
    "X/Z": "Z",
    "X/D": "D",
    "Z/D": "D",
    "X/Z/D": "D",
    "X/Z/U*": "U",
}


class Option(Enum):
    """The options of Annex E that can be chosen: code of CID 7050, its meaning, and the column of Table E.1-1."""

    CLEAN_PIXEL_DATA = ("113101", "Clean Pixel Data Option", None)
    CLEAN_STRUCTURED_CONTENT = ("113104", "Clean Structured Content Option", "clean_structured_content")
    CLEAN_DESCRIPTORS = ("113105", "Clean Descriptors Option", "clean_descriptors")
    RETAIN_FULL_DATES = (
        "113106",
        "Retain Longitudinal Temporal Information Full Dates Option",
        "retain_longitudinal_full_dates",
    )
    RETAIN_MODIFIED_DATES = (
        "113107",
        "Retain Longitudinal Temporal Information Modified Dates Option",
        "retain_longitudinal_modified_dates",
    )
    RETAIN_PATIENT_CHARACTERISTICS = (
        "113108",
        "Retain Patient Characteristics Option",
        "retain_patient_characteristics",
    )
    RETAIN_DEVICE_IDENTITY = ("113109", "Retain Device Identity Option", "retain_device_identity")
    RETAIN_UIDS = ("113110", "Retain UIDs Option", "retain_uids")
    RETAIN_SAFE_PRIVATE = ("113111", "Retain Safe Private Option", "retain_safe_private")
    RETAIN_INSTITUTION_IDENTITY = ("113112", "Retain Institution Identity Option", "retain_institution_identity")

    def __init__(self, code: str, meaning: str, column: str | None) -> None:
        self.code = code
        self.meaning = meaning
        self.column = column

    @property
    def word(self) -> str:
        """As a command line has it: clean-descriptors."""
        return self.name.lower().replace("_", "-")


BASIC_PROFILE = ("113100", "Basic Application Confidentiality Profile")


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of a table: the basic profile's action, and what the options make of it."""

    name: str
    basic: str
    by_option: dict[Option, Action]

    def action(self, chosen: Options) -> Action:
        """What is done with the attribute, or the content item."""
        given = {self.by_option[option] for option in chosen if option in self.by_option}
        if "K" in given:
            return "K"
        return "C" if "C" in given else _RESOLVED[self.basic]


@cache
def attributes() -> dict[str, Rule]:
    """Table E.1-1 by tag, such as 00100010; repeating groups as 60xx3000, and `private`."""
    return {row["tag"]: _rule(row["name"], row) for row in _rows("table_e1_1.csv")}


@cache
def content_items() -> dict[tuple[str, str, str], Rule]:
    """Table E.3.4-1 by coding scheme and code of a content item's concept name, and its value type."""
    return {
        (row["scheme"], row["code"], row["value_type"]): _rule(row["meaning"], row) for row in _rows("table_e3_4_1.csv")
    }


@cache
def safe_private() -> frozenset[tuple[int, str, int]]:
    """Table E.3.10-1: (group, private creator, last two digits of the element)."""
    return frozenset(
        (int(row["group"], 16), row["private_creator"], int(row["element"], 16)) for row in _rows("table_e3_10_1.csv")
    )


@cache
def safe_words() -> frozenset[str]:
    """Words that say nothing of a person, which is what a cleaned descriptor may keep."""
    text = files("dicom_io.deidentify").joinpath("safe_words.txt").read_text(encoding="utf-8")
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())


def rule_of(tag: int) -> Rule | None:
    """The row for a tag of a standard attribute; repeating groups have one row for all of them."""
    exact = attributes().get(f"{tag:08X}")
    group = tag >> 16
    if exact is not None or group & 1:
        return exact
    if group & 0xFF00 == 0x5000:
        return attributes()["50xxxxxx"]
    if group & 0xFF00 == 0x6000:
        # Without its data an overlay plane's other attributes make no sense, so they share its row.
        return attributes()["60xx3000"]
    return None


def _rows(name: str) -> Iterator[dict[str, str]]:
    text = files("dicom_io.deidentify").joinpath(name).read_text(encoding="utf-8")
    yield from csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))


def _rule(name: str, row: dict[str, str]) -> Rule:
    by_option: dict[Option, Action] = {}
    for option in Option:
        code = row.get(option.column or "")
        if code == "K":
            by_option[option] = "K"
        elif code == "C":
            by_option[option] = "C"
    return Rule(name, row["basic"], by_option)
