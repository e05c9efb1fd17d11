"""Turn a parsed data set into the `Evidence` that a report refers to. Runs in the decoding process only.

What identifies patient and study is kept letter for letter, since
an archive files by it; of the rest only values that the standard allows are taken, because a report repeats them under
our name. Names that do not fit their declared character set are repeated as they are shown (`Instance.warnings` says).
"""

import re
from collections.abc import Callable

import numpy as np
from pydicom.dataset import Dataset

from dicom_io.attributes import day, group_item, holder, items, numbers, raw, text
from dicom_io.errors import BadAttribute
from dicom_io.header import instance
from dicom_io.part10 import Part10
from dicom_io.types import EVIDENCE_FRAMES_MAX, IDENTITY, Code, Evidence, Plane


def evidence(part10: Part10) -> Evidence:
    """What the header says. Raises what `header.instance` raises."""
    dataset, found = part10.dataset, instance(part10)
    frame_count = min(found.number_of_frames, EVIDENCE_FRAMES_MAX)
    lossy = text(dataset, "LossyImageCompression") == "01"
    return Evidence(
        ref=found.ref,
        identity=_identity(dataset),
        modality=_matching(r"[A-Z]{2,16}")(dataset, "Modality"),
        rows=found.rows,
        columns=found.columns,
        number_of_frames=found.number_of_frames,
        frame_of_reference_uid=_uid(dataset, "FrameOfReferenceUID"),
        planes=tuple(_plane(dataset, number) for number in range(1, frame_count + 1)),
        spacing_mm=_spacing(dataset, 1),
        laterality=_laterality(dataset),
        patient_orientation=_patient_orientation(dataset),
        body_part=found.body_part,
        anatomic_region=_code(_anatomy(dataset), "AnatomicRegionSequence"),
        procedures=_codes(dataset, "ProcedureCodeSequence"),
        burned_in=_matching("YES|NO")(dataset, "BurnedInAnnotation"),
        lossy=lossy,
        lossy_ratios=_numbers(dataset, "LossyImageCompressionRatio") if lossy else (),
        lossy_methods=_lossy_methods(dataset) if lossy else (),
        timezone_offset=_matching(r"[+-][01][0-9][0-5][0-9]")(dataset, "TimezoneOffsetFromUTC"),
    )


_Reader = Callable[[Dataset, str], str | None]


def _matching(pattern: str) -> _Reader:
    def read(dataset: Dataset, keyword: str) -> str | None:
        value = text(dataset, keyword)
        return value if value is not None and re.fullmatch(pattern, value) else None

    return read


def _date(dataset: Dataset, keyword: str) -> str | None:
    value = day(dataset, keyword)
    return None if value is None else value.strftime("%Y%m%d")


def _time(dataset: Dataset, keyword: str) -> str | None:
    """A TM value, also in the older form with colons (PS3.5 6.2)."""
    value = (text(dataset, keyword) or "").replace(":", "")
    pattern = r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9](\.[0-9]{1,6})?)?)?"
    return value if re.fullmatch(pattern, value) else None


def _long_string(dataset: Dataset, keyword: str) -> str | None:
    """A text that nothing is filed by, cut to what LO and SH in this table may hold."""
    value = text(dataset, keyword)
    return value and ("".join(c for c in value if c.isprintable()).strip()[:64] or None)


def _uid(dataset: Dataset, keyword: str) -> str | None:
    value = _matching(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")(dataset, keyword)
    return value if value is not None and len(value) <= 64 else None


_IDENTITY_READERS: dict[str, _Reader] = {
    "PatientName": text,
    "PatientID": text,
    "IssuerOfPatientID": text,
    "PatientBirthDate": _date,
    "PatientSex": _matching("[MFO]"),
    "PatientAge": _matching("[0-9]{3}[DWMY]"),
    "PatientIdentityRemoved": _matching("YES|NO"),
    "DeidentificationMethod": _long_string,
    "StudyDate": _date,
    "StudyTime": _time,
    "StudyID": text,
    "AccessionNumber": text,
    "ReferringPhysicianName": text,
    "StudyDescription": _long_string,
}


def _identity(dataset: Dataset) -> dict[str, str]:
    read = ((keyword, _IDENTITY_READERS[keyword](dataset, keyword)) for keyword in IDENTITY)
    stated = {keyword: value for keyword, value in read if value is not None}
    if "DeidentificationMethod" not in stated:
        # PS3.3 C.7.1.1: YES asks for the method, which a report that has none may not state.
        stated.pop("PatientIdentityRemoved", None)
    return stated


def _numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    try:
        return numbers(dataset, keyword)
    except BadAttribute:
        return ()


def _spacing(dataset: Dataset, number: int) -> tuple[float, float] | None:
    place = holder(dataset, number, "PixelMeasuresSequence", "PixelSpacing")
    values = _numbers(place, "PixelSpacing") if place is not None else ()
    return (values[0], values[1]) if len(values) == 2 and min(values) > 0 else None


def _plane(dataset: Dataset, number: int) -> Plane | None:
    at = holder(dataset, number, "PlanePositionSequence", "ImagePositionPatient")
    towards = holder(dataset, number, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _spacing(dataset, number)
    position = _numbers(at, "ImagePositionPatient") if at is not None else ()
    cosines = _numbers(towards, "ImageOrientationPatient") if towards is not None else ()
    if len(position) != 3 or len(cosines) != 6 or spacing is None or not _orthonormal(cosines):
        return None
    measures = holder(dataset, number, "PixelMeasuresSequence", "SliceThickness")
    thickness = _numbers(measures, "SliceThickness") if measures is not None else ()
    return Plane(
        position_mm=(position[0], position[1], position[2]),
        orientation=(cosines[0], cosines[1], cosines[2], cosines[3], cosines[4], cosines[5]),
        spacing_mm=spacing,
        thickness_mm=thickness[0] if thickness and thickness[0] > 0 else None,
    )


def _orthonormal(cosines: tuple[float, ...]) -> bool:
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    return bool(np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=1e-2))


def _laterality(dataset: Dataset) -> str | None:
    side = _matching("[RLB]")
    anatomy = group_item(dataset, 1, "FrameAnatomySequence")
    return (
        side(dataset, "ImageLaterality")
        or side(dataset, "Laterality")
        or (side(anatomy, "FrameLaterality") if anatomy is not None else None)
    )


def _texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """All values of a code string, of which `text` would take the first."""
    try:
        value = raw(dataset, keyword)
    except BadAttribute:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(one) for one in value or ())


def _lossy_methods(dataset: Dataset) -> tuple[str, ...]:
    found = _texts(dataset, "LossyImageCompressionMethod")
    return found if all(re.fullmatch(r"[A-Z0-9_ ]{1,16}", one) for one in found) else ()


def _patient_orientation(dataset: Dataset) -> tuple[str, str] | None:
    found = _texts(dataset, "PatientOrientation")
    if len(found) != 2 or not all(re.fullmatch("[APRLHF]{1,3}", one) for one in found):
        return None
    return found[0], found[1]


def _anatomy(dataset: Dataset) -> Dataset:
    anatomy = group_item(dataset, 1, "FrameAnatomySequence")
    return dataset if anatomy is None else anatomy


def _code(dataset: Dataset, sequence: str) -> Code | None:
    return next(iter(_codes(dataset, sequence)), None)


def _codes(dataset: Dataset, sequence: str) -> tuple[Code, ...]:
    """The complete items of a code sequence; the others would make our object invalid."""
    found = []
    for item in items(dataset, sequence)[:16]:
        value, scheme, meaning = (text(item, k) for k in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"))
        if value and scheme and meaning and len(value) <= 16 and len(scheme) <= 16:
            found.append(Code(scheme=scheme, value=value, meaning=meaning[:64]))
    return tuple(found)
