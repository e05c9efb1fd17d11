"""QIDO-RS (PS3.18 10.6): find studies, series and instances."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydicom import Dataset
from pydicom.datadict import keyword_for_tag
from sqlalchemy import ColumnElement, Select, and_, exists, func, select
from sqlalchemy.orm import InstrumentedAttribute, selectinload

from app.db.queries import visible_studies
from app.db.tables import Series, StoredInstance, Study
from app.identity import Actor
from app.web.dicomweb.answers import JSON, By, Uid, Using, accepts, address, day, dicom_json
from app.web.errors import RequestInvalid
from app.wiring import Services

router = APIRouter()

PAGE = 100  # where no limit is asked for
PAGE_MOST = 1000
# Parameters that are no matching keys.
CONTROLS = frozenset(
    {"limit", "offset", "includefield", "fuzzymatching", "emptyvaluematching", "multiplevaluematching"}
)

Condition = Callable[[str], ColumnElement[bool]]


@router.get("/studies")
def studies(request: Request, services: Using, actor: By) -> Response:
    """Studies that match."""
    return _search(request, services, actor, level="study", within={})


@router.get("/series")
def all_series(request: Request, services: Using, actor: By) -> Response:
    """Series of any study that match."""
    return _search(request, services, actor, level="series", within={})


@router.get("/studies/{study}/series")
def series(study: Uid, request: Request, services: Using, actor: By) -> Response:
    """Series of a study that match."""
    return _search(request, services, actor, level="series", within={"StudyInstanceUID": study})


@router.get("/instances")
def all_instances(request: Request, services: Using, actor: By) -> Response:
    """Instances of any study that match."""
    return _search(request, services, actor, level="instance", within={})


@router.get("/studies/{study}/instances")
def instances_of_study(study: Uid, request: Request, services: Using, actor: By) -> Response:
    """Instances of a study that match."""
    return _search(request, services, actor, level="instance", within={"StudyInstanceUID": study})


@router.get("/studies/{study}/series/{series}/instances")
def instances(study: Uid, series: Uid, request: Request, services: Using, actor: By) -> Response:
    """Instances of a series that match."""
    within = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
    return _search(request, services, actor, level="instance", within=within)


def _uid(column: InstrumentedAttribute[str]) -> Condition:
    return lambda value: column.in_([one for one in re.split(r"[,\\]", value) if one])


def _text(column: InstrumentedAttribute[str | None]) -> Condition:
    """Without regard to case, `*` and `?` as wildcards (PS3.4 C.2.2.2.4); a text without them matches as a whole."""

    def condition(value: str) -> ColumnElement[bool]:
        pattern = re.sub(r"([%_!])", r"!\1", value.lower()).replace("*", "%").replace("?", "_")
        return func.lower(column).like(pattern, escape="!")

    return condition


def _whole(column: InstrumentedAttribute[int | None]) -> Condition:
    def condition(value: str) -> ColumnElement[bool]:
        if not re.fullmatch(r"-?[0-9]{1,9}", value):
            raise RequestInvalid(f"{value!r} is no whole number")
        return column == int(value)

    return condition


def _study_date(value: str) -> ColumnElement[bool]:
    """A day, or a range whose sides may be open (PS3.4 C.2.2.2.5)."""
    match = re.fullmatch(r"([0-9]{8})?(-)?([0-9]{8})?", value)
    if match is None or not (match[1] or match[3]):
        raise RequestInvalid(f"StudyDate is {value!r}; YYYYMMDD or YYYYMMDD-YYYYMMDD is needed")
    try:
        first, last = (
            datetime.strptime(d, "%Y%m%d").date() if d else None  # noqa: DTZ007  # a day has no time zone
            for d in (match[1], match[3] if match[2] else match[1])
        )
    except ValueError as exc:
        raise RequestInvalid(f"StudyDate is {value!r}, which is no day") from exc
    bounds = [Study.study_date >= first] if first else []
    return and_(*bounds, *([Study.study_date <= last] if last else []))


def _modalities(value: str) -> ColumnElement[bool]:
    wanted = [one for one in re.split(r"[,\\]", value) if one]
    return exists().where(Series.study_id == Study.id, Series.modality.in_(wanted))


KEYS: Mapping[str, Condition] = {
    "StudyInstanceUID": _uid(Study.study_instance_uid),
    "SeriesInstanceUID": _uid(Series.series_instance_uid),
    "SOPInstanceUID": _uid(StoredInstance.sop_instance_uid),
    "SOPClassUID": _uid(StoredInstance.sop_class_uid),
    "PatientID": _text(Study.patient_id),
    "PatientName": _text(Study.patient_name),
    "AccessionNumber": _text(Study.accession_number),
    "StudyDescription": _text(Study.description),
    "StudyDate": _study_date,
    "ModalitiesInStudy": _modalities,
    "Modality": _text(Series.modality),
    "SeriesDescription": _text(Series.description),
    "SeriesNumber": _whole(Series.number),
    "InstanceNumber": _whole(StoredInstance.instance_number),
}
OF_STUDY = frozenset(
    {
        "StudyInstanceUID",
        "PatientID",
        "PatientName",
        "AccessionNumber",
        "StudyDescription",
        "StudyDate",
        "ModalitiesInStudy",
    }
)
OF_SERIES = OF_STUDY | {"SeriesInstanceUID", "Modality", "SeriesDescription", "SeriesNumber"}
OF_LEVEL = {"study": OF_STUDY, "series": OF_SERIES, "instance": frozenset(KEYS)}


def _search(request: Request, services: Services, actor: Actor, *, level: str, within: Mapping[str, str]) -> Response:
    accepts(request, JSON, "application/json")
    keys, ignored = _keys(request, level)
    limit, offset = _number(request, "limit", PAGE), _number(request, "offset", 0)
    conditions = [KEYS[keyword](value) for keyword, value in {**keys, **within}.items()]
    with services.sessions() as session:
        if level == "study":
            chosen = visible_studies(actor).where(*conditions).order_by(Study.id.desc())
            found: Sequence[Any] = session.scalars(
                chosen.options(selectinload(Study.series).selectinload(Series.instances))
                .limit(min(limit, PAGE_MOST))
                .offset(offset)
            ).all()
            said = [_study(request, one) for one in found]
        elif level == "series":
            query = select(Series).join(Study).where(Study.id.in_(_ids(actor)), *conditions).order_by(Series.id)
            query = query.options(selectinload(Series.instances), selectinload(Series.study))
            found = session.scalars(query.limit(min(limit, PAGE_MOST)).offset(offset)).all()
            said = [_of_series(request, one) for one in found]
        else:
            rows = select(StoredInstance).join(Series).join(Study)
            rows = rows.where(Study.id.in_(_ids(actor)), *conditions).order_by(StoredInstance.id)
            rows = rows.options(selectinload(StoredInstance.series).selectinload(Series.study))
            found = session.scalars(rows.limit(min(limit, PAGE_MOST)).offset(offset)).all()
            said = [_of_instance(request, one) for one in found]
    if not said:
        return Response(status_code=204)
    warning = f"these parameters are not matched: {', '.join(ignored)}" if ignored else None
    return dicom_json(said, warning=warning)


def _ids(actor: Actor) -> Select[int]:
    return visible_studies(actor).with_only_columns(Study.id)


def _keys(request: Request, level: str) -> tuple[dict[str, str], list[str]]:
    """Matching keys by keyword, and what is not matched at this level. A key may be named by its tag."""
    keys: dict[str, str] = {}
    ignored: list[str] = []
    for name, value in request.query_params.multi_items():
        keyword = keyword_for_tag(int(name, 16)) if re.fullmatch(r"[0-9A-Fa-f]{8}", name) else name
        if keyword in OF_LEVEL[level]:
            if value and value != "*":
                keys[keyword] = value
        elif name not in CONTROLS or (name == "fuzzymatching" and value.lower() == "true"):
            ignored.append(re.sub(r"[^\w]", "", name)[:64])
    return keys, ignored


def _number(request: Request, name: str, default: int) -> int:
    value = request.query_params.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise RequestInvalid(f"{name} is {value!r}; a whole number is needed")
    return int(value)


def _study(request: Request, study: Study) -> Dataset:
    said = Dataset()
    said.SpecificCharacterSet = "ISO_IR 192"
    said.StudyInstanceUID = study.study_instance_uid
    said.StudyDate, said.StudyTime = day(study.study_date), ""
    said.AccessionNumber = study.accession_number or ""
    said.ReferringPhysicianName, said.StudyID = "", ""
    said.StudyDescription = study.description or ""
    said.ModalitiesInStudy = sorted({one.modality for one in study.series if one.modality})
    said.PatientName, said.PatientID = study.patient_name or "", study.patient_id or ""
    said.PatientBirthDate, said.PatientSex = day(study.patient_birth_date), study.patient_sex or ""
    said.NumberOfStudyRelatedSeries = len(study.series)
    said.NumberOfStudyRelatedInstances = sum(len(one.instances) for one in study.series)
    said.InstanceAvailability = "ONLINE"
    said.RetrieveURL = address(request, "studies", study.study_instance_uid)
    return said


def _of_series(request: Request, series: Series) -> Dataset:
    said = Dataset()
    said.SpecificCharacterSet = "ISO_IR 192"
    said.StudyInstanceUID = series.study.study_instance_uid
    said.SeriesInstanceUID = series.series_instance_uid
    said.Modality, said.SeriesNumber = series.modality or "", series.number
    said.SeriesDescription = series.description or ""
    said.BodyPartExamined = series.body_part or ""
    said.NumberOfSeriesRelatedInstances = len(series.instances)
    said.RetrieveURL = address(request, "studies", said.StudyInstanceUID, "series", said.SeriesInstanceUID)
    return said


def _of_instance(request: Request, instance: StoredInstance) -> Dataset:
    said = Dataset()
    said.SpecificCharacterSet = "ISO_IR 192"
    said.StudyInstanceUID = instance.series.study.study_instance_uid
    said.SeriesInstanceUID = instance.series.series_instance_uid
    said.SOPInstanceUID, said.SOPClassUID = instance.sop_instance_uid, instance.sop_class_uid
    said.InstanceNumber = instance.instance_number
    said.Rows, said.Columns = instance.rows, instance.columns
    said.NumberOfFrames = instance.number_of_frames or None
    said.AvailableTransferSyntaxUID = instance.transfer_syntax_uid
    said.InstanceAvailability = "ONLINE"
    parts = ("studies", said.StudyInstanceUID, "series", said.SeriesInstanceUID, "instances", said.SOPInstanceUID)
    said.RetrieveURL = address(request, *parts)
    return said
