"""Carry out the profile on a data set, item after item, and count what was done."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from pydicom import DataElement, Dataset
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID

from dicom_io.deidentify.codestreams import without_comments
from dicom_io.deidentify.profile import (
    BASIC_PROFILE,
    Action,
    Option,
    Options,
    content_items,
    rule_of,
    safe_private,
    safe_words,
)
from dicom_io.deidentify.project import Project, shifted_day
from dicom_io.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, TRANSFER_SYNTAXES

# What stands where a value has to be, by VR.
DUMMIES: dict[str, object] = {
    "AE": "ANONYMOUS",
    "AS": "000Y",
    "CS": "ANONYMOUS",
    "DA": "19000101",
    "DS": "0",
    "DT": "19000101000000",
    "IS": "0",
    "LO": "ANONYMOUS",
    "LT": "ANONYMOUS",
    "OB": b"\0\0",
    "OW": b"\0\0",
    "PN": "ANONYMOUS",
    "SH": "ANONYMOUS",
    "ST": "ANONYMOUS",
    "TM": "000000",
    "UC": "ANONYMOUS",
    "UN": b"\0\0",
    "UR": "urn:anonymous",
    "US": 0,
    "UT": "ANONYMOUS",
}
TEXTS = frozenset({"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UN", "UR", "UT"})
DAYS = frozenset({"DA", "DT"})
WORDS = frozenset({"LO", "LT", "SH", "ST", "UC", "UT"})
CLEANED = DAYS | WORDS | {"SQ", "TM"}
PATIENT = frozenset({0x00100010, 0x00100020})  # Patient's Name, Patient ID
CONTENT_SEQUENCE = 0x0040A730
# Where one content item keeps its value (PS3.3 Table C.17.3-5).
CONTENT_VALUES = {
    "TEXT": "TextValue",
    "PNAME": "PersonName",
    "DATE": "Date",
    "TIME": "Time",
    "DATETIME": "DateTime",
    "UIDREF": "UID",
}


@dataclass(frozen=True, slots=True)
class Deidentifier:
    """The Basic Application Level Confidentiality Profile with these options, for one project."""

    project: Project
    options: Options = frozenset()

    def clean(self, original: Dataset) -> tuple[Dataset, Counter[tuple[str, Action]]]:
        """A de-identified copy, and how often what was done: (`(0010,0010) PatientName`, action) -> count.

        Pixels are copied as they are (see `pixels`), without the comments of compressed ones. Attributes that no row of
        Table E.1-1 names stay, but for names of persons, values of unknown kind, instance UIDs, and dates, which are
        treated as the table treats such.
        """
        # A patient without an ID is known by the study only: two such patients must not become one.
        patient = f"{original.get('IssuerOfPatientID') or ''}\0{original.get('PatientID') or original.StudyInstanceUID}"
        walk = _Walk(self.project, self.options, patient, self.project.shift(patient))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, of values that a real file holds against the standard
            cleaned = walk.dataset(original)
        self._state(cleaned, had_dates=walk.had_dates)
        syntax = TRANSFER_SYNTAXES.get(str(original.file_meta.TransferSyntaxUID))
        if "PixelData" in cleaned and syntax is not None and syntax.encapsulated:
            cleaned.PixelData = without_comments(cleaned.PixelData)
            cleaned["PixelData"].is_undefined_length = True
        cleaned.preamble = bytes(128)
        cleaned.file_meta = self._meta(original)
        return cleaned, walk.done

    def uid(self, original: str) -> str:
        """What an instance, a series or a study is called in the copies."""
        return original if Option.RETAIN_UIDS in self.options else self.project.uid(original)

    def _state(self, cleaned: Dataset, *, had_dates: bool) -> None:
        """Say that and how it was de-identified (PS3.3 C.7.1.1, C.12.1)."""
        cleaned.PatientIdentityRemoved = "YES"
        cleaned.DeidentificationMethod = "Hilum: PS3.15 Annex E, see the codes"
        codes = [BASIC_PROFILE, *((o.code, o.meaning) for o in Option if o in self.options)]
        cleaned.DeidentificationMethodCodeSequence = [_coded(*code) for code in codes]
        temporal = "REMOVED"
        if Option.RETAIN_FULL_DATES in self.options:
            temporal = "UNMODIFIED"
        elif Option.RETAIN_MODIFIED_DATES in self.options and had_dates:
            temporal = "MODIFIED"
        cleaned.LongitudinalTemporalInformationModified = temporal

    def _meta(self, original: Dataset) -> FileMetaDataset:
        """Group 2 anew: only what describes the file, for it may name its sender (PS3.10 7.1)."""
        meta = FileMetaDataset()
        instance = str(original.file_meta.get("MediaStorageSOPInstanceUID") or original.get("SOPInstanceUID") or "")
        keep = Option.RETAIN_UIDS in self.options
        meta.FileMetaInformationVersion = b"\0\1"
        meta.MediaStorageSOPClassUID = original.file_meta.get("MediaStorageSOPClassUID") or original.get("SOPClassUID")
        meta.MediaStorageSOPInstanceUID = UID(instance if keep else self.project.uid(instance))
        meta.TransferSyntaxUID = original.file_meta.TransferSyntaxUID
        meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
        meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
        return meta


@dataclass(slots=True)
class _Walk:
    """One data set on its way through the profile."""

    project: Project
    options: Options
    patient: str
    shift: timedelta
    done: Counter[tuple[str, Action]] = field(default_factory=Counter)
    had_dates: bool = False

    def dataset(self, dataset: Dataset, *, dummy: bool = False) -> Dataset:
        """A cleaned copy; with `dummy` no text of it stays, as in an item that stands for a person."""
        cleaned = Dataset()
        for tag in dataset.keys():  # noqa: SIM118  # iterating would convert, and so could fail on, every value
            if tag.group in {0, 2, 0xFFFE} or tag.element == 0:  # of messages, files and items, and group lengths
                continue
            try:
                element = dataset[tag]
            except Exception:  # noqa: BLE001  # pydicom's, of a broken value: unread, it is not known to be clean
                self.done[f"({tag.group:04X},{tag.element:04X}) unreadable", "X"] += 1
                continue
            action = self._action(element, dataset, dummy=dummy)
            kept = self._carried_out(action, element, dummy=dummy)
            if action != "K":
                self.done[named(element), action] += 1
            if kept is not None:
                cleaned.add(kept)
        return cleaned

    def _action(self, element: DataElement, dataset: Dataset, *, dummy: bool) -> Action:
        tag = element.tag
        if tag.is_private:
            return "K" if self._safe_private(element, dataset) else "X"
        rule = rule_of(tag)
        if rule is not None:
            action = rule.action(self.options)
            # What cannot be cleaned is treated as without the option.
            return rule.action(frozenset()) if action == "C" and element.VR not in CLEANED else action
        if element.VR == "UI":
            return "K" if Option.RETAIN_UIDS in self.options else "U"
        if element.VR == "UN":
            return "X"
        if element.VR in DAYS:
            return self._action_of_dates()
        if element.VR == "PN" or (dummy and element.VR in TEXTS):
            return "D"
        return "K"

    def _action_of_dates(self) -> Action:
        if Option.RETAIN_FULL_DATES in self.options:
            return "K"
        return "C" if Option.RETAIN_MODIFIED_DATES in self.options else "D"

    def _safe_private(self, element: DataElement, dataset: Dataset) -> bool:
        if Option.RETAIN_SAFE_PRIVATE not in self.options:
            return False
        group, number = element.tag.group, element.tag.element
        if element.tag.is_private_creator:
            creator = str(element.value).strip()
            return any((group, creator) == (g, c) for g, c, _ in safe_private())
        creator = str(dataset.get((group, number >> 8), DataElement(element.tag, "LO", "")).value).strip()
        return element.VR != "UN" and (group, creator, number & 0xFF) in safe_private()

    def _carried_out(self, action: Action, element: DataElement, *, dummy: bool) -> DataElement | None:
        tag, vr = element.tag, element.VR
        if action == "X":
            return None
        if vr == "SQ":
            return self._sequence(action, element, dummy=dummy)
        if tag in PATIENT and action != "K":
            return DataElement(tag, vr, self.project.pseudonym(self.patient))
        if action == "K":
            return element
        if action == "Z":
            return DataElement(tag, vr, None)
        if action == "U" or (action == "D" and vr == "UI"):
            return DataElement(tag, vr, _each(element.value, self.project.uid))
        if action == "C":
            return self._cleaned(element)
        return DataElement(tag, vr, DUMMIES.get(vr))

    def _sequence(self, action: Action, element: DataElement, *, dummy: bool) -> DataElement:
        items: Sequence[Dataset] = element.value or []
        if action == "Z":
            items = []
        elif element.tag == CONTENT_SEQUENCE:
            items = [item for one in items if (item := self._content_item(one)) is not None]
        else:
            items = [self.dataset(one, dummy=dummy or action == "D") for one in items]
        return DataElement(element.tag, "SQ", Items(items))

    def _cleaned(self, element: DataElement) -> DataElement:
        """C: dates move, times stay, and of texts only safe words stay."""
        change: Callable[[str], str] = without_unsafe_words
        if element.VR in DAYS:
            self.had_dates = True
            change = self._moved
        return element if element.VR == "TM" else DataElement(element.tag, element.VR, _each(element.value, change))

    def _moved(self, day: str) -> str:
        return shifted_day(day, self.shift) or ""

    def _content_item(self, item: Dataset) -> Dataset | None:
        """An SR content item (PS3.3 C.17.3), by Table E.3.4-1; None where it goes.

        Without the Clean Structured Content option every text and name in it becomes a dummy, as action D has it.
        """
        concept = (item.get("ConceptNameCodeSequence") or [Dataset()])[0]
        value_type = str(item.get("ValueType"))
        rule = content_items().get(
            (str(concept.get("CodingSchemeDesignator")), str(concept.get("CodeValue")), value_type)
        )
        structured = Option.CLEAN_STRUCTURED_CONTENT in self.options
        action: Action | None = rule.action(self.options) if rule is not None and structured else None
        if action == "X":
            self.done[f"content item {concept.get('CodeMeaning')}", "X"] += 1
            return None
        cleaned = self.dataset(item)
        keyword = CONTENT_VALUES.get(value_type)
        if keyword is None or keyword not in item or action == "K":
            if action == "K" and keyword is not None and keyword in item:
                cleaned[keyword] = item[keyword]
            return cleaned
        value = item[keyword]
        if keyword == "UID":
            kept = Option.RETAIN_UIDS in self.options
            cleaned[keyword] = value if kept else DataElement(value.tag, "UI", self.project.uid(str(value.value)))
        elif keyword in {"Date", "DateTime", "Time"} and self._action_of_dates() == "K":
            cleaned[keyword] = value
        elif keyword in {"Date", "DateTime", "Time"} and self._action_of_dates() == "C":
            cleaned[keyword] = self._cleaned(value)
        elif keyword == "TextValue" and structured and action != "D":
            words = without_unsafe_words(str(value.value))
            cleaned[keyword] = DataElement(value.tag, value.VR, words or DUMMIES["UT"])
        else:
            cleaned[keyword] = DataElement(value.tag, value.VR, DUMMIES[value.VR])
        return cleaned


def without_unsafe_words(text: str) -> str:
    """A descriptor with only the words that say nothing of a person (PS3.15 E.3.5)."""
    words = re.findall(r"[^\s,;:/()\[\]^=_]+", text)
    return " ".join(w for w in words if w.lower() in safe_words() or re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,2})?(mm)?", w))


def named(element: DataElement) -> str:
    """How a report names an attribute; of a private one the number only, for a creator may be named after a person."""
    tag = element.tag
    keyword = "private" if tag.is_private else keyword_for_tag(tag) or "unknown"
    return f"({tag.group:04X},{tag.element:04X}) {keyword}"


def _each(value: object, change: Callable[[str], str]) -> object:
    if value is None or isinstance(value, str):
        return change(str(value or ""))
    if isinstance(value, Sequence):
        return [change(str(one)) for one in value]
    return change(str(value))


def _coded(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
