"""Find studies, series, instances and work items by the keys that DICOM matches on (PS3.4 C.2.2.2)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, Select, and_, exists, false, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session, contains_eager

from app.db.queries import visible_studies
from app.db.tables import Series, StoredInstance, Study
from app.db.work import WorkItem
from app.identity import Actor

Level = Literal["study", "series", "instance"]
Matching = Literal["code", "text", "name", "uid", "whole", "date", "time"]
Column = InstrumentedAttribute[Any]
T = TypeVar("T")


class BadKey(ValueError):
    """A value that its key cannot be matched with. The message does not repeat it: it may be a patient's name."""


@dataclass(frozen=True, slots=True)
class Key:
    """A column, and how it is matched."""

    column: Column
    matching: Matching


STUDY_KEYS: dict[str, Key] = {
    "StudyInstanceUID": Key(Study.study_instance_uid, "uid"),
    "StudyDate": Key(Study.study_date, "date"),
    "StudyTime": Key(Study.study_time, "time"),
    "StudyID": Key(Study.study_id, "text"),
    "StudyDescription": Key(Study.description, "text"),
    "AccessionNumber": Key(Study.accession_number, "text"),
    "PatientName": Key(Study.patient_name, "name"),
    "PatientID": Key(Study.patient_id, "text"),
    "PatientBirthDate": Key(Study.patient_birth_date, "date"),
    "PatientSex": Key(Study.patient_sex, "code"),
    "ReferringPhysicianName": Key(Study.referring_physician, "name"),
}
MODALITIES_IN_STUDY = "ModalitiesInStudy"
SERIES_KEYS: dict[str, Key] = {
    "SeriesInstanceUID": Key(Series.series_instance_uid, "uid"),
    "Modality": Key(Series.modality, "code"),
    "SeriesNumber": Key(Series.number, "whole"),
    "SeriesDescription": Key(Series.description, "text"),
    "BodyPartExamined": Key(Series.body_part, "code"),
}
INSTANCE_KEYS: dict[str, Key] = {
    "SOPInstanceUID": Key(StoredInstance.sop_instance_uid, "uid"),
    "SOPClassUID": Key(StoredInstance.sop_class_uid, "uid"),
    "InstanceNumber": Key(StoredInstance.instance_number, "whole"),
}
WORK_KEYS: dict[str, Key] = {
    "ProcedureStepState": Key(WorkItem.state, "code"),
    "SOPInstanceUID": Key(WorkItem.uid, "uid"),
    **{name: STUDY_KEYS[name] for name in ("StudyInstanceUID", "PatientName", "PatientID", "PatientBirthDate")},
    "ReferencedRequestSequence.AccessionNumber": STUDY_KEYS["AccessionNumber"],
    "InputInformationSequence.StudyInstanceUID": STUDY_KEYS["StudyInstanceUID"],
}


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some of what was found, and how much more there is after it."""

    found: list[T]
    more: int


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """A study with what is counted of it."""

    study: Study
    modalities: tuple[str, ...]  # sorted
    series: int
    instances: int


@dataclass(frozen=True, slots=True)
class FoundSeries:
    """A series, its study loaded, with the number of its instances."""

    series: Series
    instances: int


def keys_of(level: Level) -> dict[str, Key]:
    """The keys of a level and of those above it, without Modalities in Study."""
    below = {"study": {}, "series": SERIES_KEYS, "instance": SERIES_KEYS | INSTANCE_KEYS}
    return STUDY_KEYS | below[level]


def studies(session: Session, actor: Actor, keys: Mapping[str, str], *, limit: int, offset: int) -> Page[FoundStudy]:
    """The newest studies first. Raises BadKey."""
    wanted = visible_studies(actor).where(*_conditions("study", keys))
    page: Page[Study] = _page(session, wanted.order_by(Study.received_at.desc(), Study.id.desc()), limit, offset)
    ids = [study.id for study in page.found]
    modalities: dict[int, set[str]] = {}
    known = select(Series.study_id, Series.modality).where(Series.study_id.in_(ids), Series.modality.is_not(None))
    for study_id, modality in session.execute(known.distinct()):
        modalities.setdefault(study_id, set()).add(str(modality))
    counted = (
        select(Series.study_id, func.count(Series.id.distinct()), func.count(StoredInstance.id))
        .outerjoin(StoredInstance)
        .where(Series.study_id.in_(ids))
        .group_by(Series.study_id)
    )
    sizes = {study_id: (series, instances) for study_id, series, instances in session.execute(counted)}
    found = [
        FoundStudy(study, tuple(sorted(modalities.get(study.id, ()))), *sizes.get(study.id, (0, 0)))
        for study in page.found
    ]
    return Page(found, page.more)


def series(session: Session, actor: Actor, keys: Mapping[str, str], *, limit: int, offset: int) -> Page[FoundSeries]:
    """Series, those of the newest study first. Raises BadKey."""
    wanted = (
        select(Series).join(Study).options(contains_eager(Series.study)).where(Study.id.in_(_visible_ids(actor)))
    ).where(*_conditions("series", keys))
    ordered = wanted.order_by(Study.received_at.desc(), Study.id.desc(), Series.number, Series.id)
    page: Page[Series] = _page(session, ordered, limit, offset)
    counted = (
        select(StoredInstance.series_id, func.count())
        .where(StoredInstance.series_id.in_([one.id for one in page.found]))
        .group_by(StoredInstance.series_id)
    )
    sizes: dict[int, int] = {series_id: count for series_id, count in session.execute(counted)}  # noqa: C416
    return Page([FoundSeries(one, sizes.get(one.id, 0)) for one in page.found], page.more)


def instances(
    session: Session, actor: Actor, keys: Mapping[str, str], *, limit: int, offset: int
) -> Page[StoredInstance]:
    """Instances in reading order, series and study loaded. Raises BadKey."""
    loaded = contains_eager(StoredInstance.series).contains_eager(Series.study)
    wanted = (
        select(StoredInstance).join(Series).join(Study).options(loaded).where(Study.id.in_(_visible_ids(actor)))
    ).where(*_conditions("instance", keys))
    ordered = wanted.order_by(
        Study.received_at.desc(), Study.id.desc(), Series.number, Series.id, StoredInstance.instance_number
    )
    return _page(session, ordered.order_by(StoredInstance.id), limit, offset)


def work_items(session: Session, actor: Actor, keys: Mapping[str, str], *, limit: int, offset: int) -> Page[WorkItem]:
    """Work items, the oldest first, their studies loaded. Raises BadKey."""
    conditions = [_matches(WORK_KEYS[keyword], value) for keyword, value in keys.items() if value]
    wanted = select(WorkItem).join(Study).options(contains_eager(WorkItem.study)).where(*conditions)
    return _page(session, wanted.where(Study.id.in_(_visible_ids(actor))).order_by(WorkItem.id), limit, offset)


def _visible_ids(actor: Actor) -> Select[int]:
    return visible_studies(actor).with_only_columns(Study.id)


def _page(session: Session, wanted: Select[Any], limit: int, offset: int) -> Page[Any]:
    rows = list(session.scalars(wanted.limit(limit + 1).offset(offset)))
    if len(rows) <= limit:
        return Page(rows, 0)
    total = session.scalar(select(func.count()).select_from(wanted.order_by(None).subquery())) or 0
    return Page(rows[:limit], max(total - offset - limit, 1))


def _conditions(level: Level, keys: Mapping[str, str]) -> list[ColumnElement[bool]]:
    known = keys_of(level)
    conditions: list[ColumnElement[bool]] = []
    for keyword, value in keys.items():
        if not value:  # C.2.2.2.3: universal matching
            continue
        if keyword == MODALITIES_IN_STUDY:
            of_study = exists().where(Series.study_id == Study.id, _matches(SERIES_KEYS["Modality"], value))
            conditions.append(of_study.correlate(Study))
        else:
            conditions.append(_matches(known[keyword], value))
    return conditions


def _matches(key: Key, value: str) -> ColumnElement[bool]:
    column = key.column
    match key.matching:
        case "uid":
            return column.in_([uid for uid in re.split(r"[,\\]", value) if uid])
        case "whole":
            if not re.fullmatch(r"[+-]?[0-9]{1,9}", value.strip()):
                raise BadKey("a whole number is needed")
            return column == int(value)
        case "date":
            return _in_range(column, value, _day, _day)
        case "time":
            return _in_range(column, value, _earliest, _latest)
        case "name":
            # C.2.2.2.1: any of the component groups may match, and their case need not.
            return or_(*(_like(column, form) for form in (value, f"{value}=*", f"*={value}", f"*={value}=*")))
        case "code":
            return or_(false(), *(_like(column, one) for one in re.split(r"[,\\]", value) if one))
        case "text":
            # Case tells identifiers apart, and an index finds them whole.
            several = [one for one in value.split("\\") if one]
            return or_(false(), *(_like(column, one) if re.search(r"[*?]", one) else column == one for one in several))


def _like(column: Column, value: str) -> ColumnElement[bool]:
    """`*` is any text and `?` one character (C.2.2.2.4); without either, the text itself."""
    escaped = re.sub(r"([%_!])", r"!\1", value)
    return column.ilike(escaped.replace("*", "%").replace("?", "_"), escape="!")


def _in_range(column: Column, value: str, low_of: Any, high_of: Any) -> ColumnElement[bool]:
    """C.2.2.2.5: `from-to`, either of which may be left out, or one value."""
    low, dash, high = value.replace(" ", "").partition("-")
    conditions: Sequence[ColumnElement[bool]] = [column.is_not(None)]
    if low:
        conditions = [*conditions, column >= low_of(low)]
    if high or not dash:
        conditions = [*conditions, column <= high_of(high or low)]
    return and_(*conditions)


def _day(text: str) -> date:
    try:
        if not re.fullmatch(r"[0-9]{8}", text):
            raise ValueError("DA")
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError as exc:
        raise BadKey("a date is eight digits, YYYYMMDD, and a range is two of them with a hyphen") from exc


def _earliest(text: str) -> str:
    if not re.fullmatch(r"([0-9]{2}){1,3}(\.[0-9]{1,6})?", text):
        raise BadKey("a time is HHMMSS.FFFFFF or begins so, and a range is two of them with a hyphen")
    return text


def _latest(text: str) -> str:
    """10 is up to the end of that hour, 1030 up to the end of that minute."""
    return _earliest(text) + "995959.999999"[len(text) :]
