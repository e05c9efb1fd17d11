"""Turn a parsed data set into an `Instance`. Runs in the decoding process only."""

import re
import warnings
from datetime import date

from pydicom.charset import convert_encodings, decode_bytes, default_encoding
from pydicom.dataset import Dataset
from pydicom.valuerep import PN_DELIMS

from dicom_io.attributes import day, group_item, holder, integer, named, numbers, raw, text
from dicom_io.errors import BadAttribute, BadUid, IsDirectory, MissingUid
from dicom_io.part10 import Part10
from dicom_io.types import Instance, InstanceRef, Patient
from dicom_io.uids import IMAGE_SOP_CLASSES, MEDIA_STORAGE_DIRECTORY

_META_KEYWORDS = {"SOPClassUID": "MediaStorageSOPClassUID", "SOPInstanceUID": "MediaStorageSOPInstanceUID"}
_DAYS_PER_YEAR = 365.25


def instance(part10: Part10) -> Instance:
    """What the header says; values that do not matter for identity or pixels become None when they are broken.

    Raises IsDirectory, MissingUid, BadUid, and BadAttribute for a Number of Frames that is no number.
    """
    dataset, notes = part10.dataset, list(part10.warnings)
    if MEDIA_STORAGE_DIRECTORY in (text(part10.meta, "MediaStorageSOPClassUID"), text(dataset, "SOPClassUID")) or (
        "DirectoryRecordSequence" in dataset
    ):
        raise IsDirectory("this is a DICOMDIR: it lists images and holds none; open its folder instead")
    ref = InstanceRef(
        sop_class_uid=_uid(part10, "SOPClassUID", notes),
        sop_instance_uid=_uid(part10, "SOPInstanceUID", notes),
        study_instance_uid=_uid(part10, "StudyInstanceUID", notes),
        series_instance_uid=_uid(part10, "SeriesInstanceUID", notes),
    )
    frame_count = number_of_frames(part10)
    if frame_count and ref.sop_class_uid not in IMAGE_SOP_CLASSES:
        notes.append("the SOP class is not one of the image storage classes that this reader knows")
    study_date = day(dataset, "StudyDate")
    notes += _character_set_notes(part10)
    return Instance(
        ref=ref,
        path=part10.path,
        transfer_syntax_uid=part10.syntax.uid,
        patient=_patient(dataset, study_date),
        modality=text(dataset, "Modality"),
        body_part=_body_part(dataset),
        view_position=text(dataset, "ViewPosition"),
        laterality=text(dataset, "ImageLaterality") or text(dataset, "Laterality"),
        photometric_interpretation=text(dataset, "PhotometricInterpretation"),
        rows=_lenient_integer(dataset, "Rows"),
        columns=_lenient_integer(dataset, "Columns"),
        number_of_frames=frame_count,
        instance_number=_lenient_integer(dataset, "InstanceNumber"),
        position_mm=_position(dataset),
        orientation=_orientation(dataset),
        study_date=study_date,
        study_description=text(dataset, "StudyDescription"),
        accession_number=text(dataset, "AccessionNumber"),
        series_number=_lenient_integer(dataset, "SeriesNumber"),
        series_description=text(dataset, "SeriesDescription"),
        manufacturer=text(dataset, "Manufacturer"),
        warnings=tuple(notes),
        study_time=text(dataset, "StudyTime"),
        study_id=text(dataset, "StudyID"),
        referring_physician=text(dataset, "ReferringPhysicianName"),
        instances_of_study=_lenient_integer(dataset, "NumberOfStudyRelatedInstances"),
    )


def number_of_frames(part10: Part10) -> int:
    """How many frames the pixels hold; 0 without pixels. Raises BadAttribute when the number is none or under 1."""
    if part10.pixels is None or part10.pixels.length == 0:
        return 0
    count = integer(part10.dataset, "NumberOfFrames")
    if count is None:
        return 1
    if not 1 <= count <= 2**31 - 1:
        raise BadAttribute(f"{named('NumberOfFrames')} is {count}; at least 1 is needed")
    return count


def _uid(part10: Part10, keyword: str, notes: list[str]) -> str:
    """One of the four UIDs; from the file meta information where the data set leaves it out."""
    value = text(part10.dataset, keyword)
    if value is None and keyword in _META_KEYWORDS:
        value = text(part10.meta, _META_KEYWORDS[keyword])
        if value is not None:
            notes.append(f"{named(keyword)} is absent; taken from {named(_META_KEYWORDS[keyword])}")
    if value is None:
        raise MissingUid(f"{named(keyword)} is absent or empty; the instance cannot be told from others")
    if len(value) > 64:
        raise BadUid(f"{named(keyword)} has {len(value)} characters; 64 are allowed")
    if not re.fullmatch(r"[0-9.]+", value, re.ASCII) or not any(map(str.isdigit, value)):
        raise BadUid(f"{named(keyword)} holds something other than digits and dots")
    if not re.fullmatch(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*", value):
        notes.append(f"{named(keyword)} has an empty component or one with a leading zero (PS3.5 9.1)")
    return value


def _patient(dataset: Dataset, study_date: date | None) -> Patient:
    birth_date = day(dataset, "PatientBirthDate")
    return Patient(
        name=text(dataset, "PatientName"),
        patient_id=text(dataset, "PatientID"),
        birth_date=birth_date,
        sex=text(dataset, "PatientSex"),
        age_years=age_years(text(dataset, "PatientAge"), birth_date=birth_date, study_date=study_date),
    )


def age_years(patient_age: str | None, *, birth_date: date | None, study_date: date | None) -> float | None:
    """Age from an AS value such as `018M` (PS3.5 6.2), else from the dates of birth and of the study, else None."""
    match = re.fullmatch(r"([0-9]{1,3})([DWMY])", patient_age or "")
    if match is not None:
        days = {"D": 1.0, "W": 7.0, "M": _DAYS_PER_YEAR / 12, "Y": _DAYS_PER_YEAR}[match[2]]
        return int(match[1]) * days / _DAYS_PER_YEAR
    if birth_date is None or study_date is None or study_date < birth_date:
        return None
    return (study_date - birth_date).days / _DAYS_PER_YEAR


def _body_part(dataset: Dataset) -> str | None:
    stated = text(dataset, "BodyPartExamined")
    if stated is not None:
        return stated
    anatomy = group_item(dataset, 1, "FrameAnatomySequence")
    regions = raw(anatomy if anatomy is not None else dataset, "AnatomicRegionSequence")
    return text(regions[0], "CodeMeaning") if regions else None


def _lenient_integer(dataset: Dataset, keyword: str) -> int | None:
    try:
        value = integer(dataset, keyword)
    except BadAttribute:
        return None
    # Wider than any VR that these attributes may have.
    return value if value is not None and abs(value) < 2**31 else None


def _lenient_numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    try:
        return numbers(dataset, keyword)
    except BadAttribute:
        return ()


def _position(dataset: Dataset) -> tuple[float, float, float] | None:
    place = holder(dataset, 1, "PlanePositionSequence", "ImagePositionPatient")
    values = _lenient_numbers(place, "ImagePositionPatient") if place is not None else ()
    return (values[0], values[1], values[2]) if len(values) == 3 else None


def _orientation(dataset: Dataset) -> tuple[float, ...] | None:
    place = holder(dataset, 1, "PlaneOrientationSequence", "ImageOrientationPatient")
    values = _lenient_numbers(place, "ImageOrientationPatient") if place is not None else ()
    return values if len(values) == 6 else None


def _character_set_notes(part10: Part10) -> list[str]:
    """Name the texts that the declared character set does not explain, so that nobody trusts what they look like."""
    declared = raw(part10.dataset, "SpecificCharacterSet")
    with warnings.catch_warnings(record=True) as unknown:
        warnings.simplefilter("always")
        encodings = convert_encodings(declared if isinstance(declared, str) else [str(one) for one in declared or [""]])
    misspelt = [note for note in unknown if "using default encoding" in str(note.message)]
    return [
        f"{named(keyword)} does not fit the declared character set; it may be shown wrongly"
        for keyword, value in part10.texts.items()
        if not value.isascii() or b"\x1b" in value
        if misspelt or not all(_explained(part, encodings) for part in value.split(b"="))
    ]


def _explained(value: bytes, encodings: list[str]) -> bool:
    """Whether a text decodes without replacement, and without the high half of the default repertoire.

    Where nothing else is declared, ISO IR 6 ends at 0x7E (PS3.3 C.12.1.1.2); pydicom reads the rest as Latin-1.
    """
    if encodings[0] == default_encoding and not value.partition(b"\x1b")[0].isascii():
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return "\ufffd" not in decode_bytes(value, encodings, PN_DELIMS)
        except (UserWarning, UnicodeError, LookupError):
            return False
