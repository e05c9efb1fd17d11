"""QIDO-RS (PS3.18 10.6): search for studies, series and instances."""

from collections.abc import Sequence

from fastapi import APIRouter, Depends, Request, Response

from app.db import audit, search
from app.db.search import MODALITIES_IN_STUDY, BadKey, FoundSeries, FoundStudy, Level
from app.db.tables import Series, StoredInstance, Study
from app.identity import Actor
from app.web.api import Using
from app.web.dicomweb.model import DataSet, data_set
from app.web.dicomweb.query import Query, query_of
from app.web.dicomweb.request import At, Reader, Service, Target, dicom_json, require_json, warned
from app.web.errors import RequestInvalid
from app.wiring import Services

routes = APIRouter(dependencies=[Depends(require_json)])


@routes.get("/studies")
def studies(request: Request, services: Using, actor: Reader, service: Service) -> Response:
    """Studies, the newest first."""
    return _search("study", request, Target(), services=services, actor=actor, service=service)


@routes.get("/series")
@routes.get("/studies/{study}/series")
def series(request: Request, services: Using, actor: Reader, at: At, service: Service) -> Response:
    """Series, of one study or of all."""
    return _search("series", request, at, services=services, actor=actor, service=service)


@routes.get("/instances")
@routes.get("/studies/{study}/instances")
@routes.get("/studies/{study}/series/{series}/instances")
def instances(request: Request, services: Using, actor: Reader, at: At, service: Service) -> Response:
    """Instances, of one series, of one study or of all."""
    return _search("instance", request, at, services=services, actor=actor, service=service)


def _search(level: Level, request: Request, at: Target, *, services: Services, actor: Actor, service: str) -> Response:
    query = query_of(request, [*search.keys_of(level), MODALITIES_IN_STUDY])
    path = {"StudyInstanceUID": at.study, "SeriesInstanceUID": at.series}
    keys = query.keys | {keyword: uid for keyword, uid in path.items() if uid is not None}
    try:
        with services.sessions() as session:
            if level == "study":
                studies = search.studies(session, actor, keys, limit=query.limit, offset=query.offset)
                said, more = [_study_found(one, service) for one in studies.found], studies.more
            elif level == "series":
                found = search.series(session, actor, keys, limit=query.limit, offset=query.offset)
                said, more = [_series_found(one, service) for one in found.found], found.more
            else:
                images = search.instances(session, actor, keys, limit=query.limit, offset=query.offset)
                said, more = [_instance_found(one, service) for one in images.found], images.more
    except BadKey as exc:
        raise RequestInvalid(str(exc)) from exc
    return answered(said, query, more=more, level=level, services=services, actor=actor, service=service)


def answered(
    said: Sequence[DataSet], query: Query, *, more: int, level: str, services: Services, actor: Actor, service: str
) -> Response:
    """The answer to a search. Who was told something of patients is audited, with the keys and never their values."""
    warnings = list(query.warnings)
    if more:
        warnings.append(f"There are {more} additional results that can be requested")
    if not said:
        return warned(Response(status_code=204), warnings, service=service)
    detail = {"level": level, "keys": sorted(query.keys), "results": len(said)}
    with services.sessions.begin() as session:
        audit.append(session, actor=actor, action="search", detail=detail, now=services.now)
    return dicom_json(said, warnings=warnings, service=service)


def _of_study(study: Study, service: str) -> dict[str, object]:
    """Table 10.6.3-3, as far as one row says it."""
    return {
        "SpecificCharacterSet": "ISO_IR 192",
        "StudyDate": study.study_date,
        "StudyTime": study.study_time,
        "AccessionNumber": study.accession_number,
        "InstanceAvailability": "ONLINE",
        "ReferringPhysicianName": study.referring_physician,
        "StudyDescription": study.description,
        "PatientName": study.patient_name,
        "PatientID": study.patient_id,
        "PatientBirthDate": study.patient_birth_date,
        "PatientSex": study.patient_sex,
        "StudyInstanceUID": study.study_instance_uid,
        "StudyID": study.study_id,
        "RetrieveURL": f"{service}/studies/{study.study_instance_uid}",
    }


def _study_found(one: FoundStudy, service: str) -> DataSet:
    counted = {
        "ModalitiesInStudy": one.modalities,
        "NumberOfStudyRelatedSeries": one.series,
        "NumberOfStudyRelatedInstances": one.instances,
    }
    return data_set(_of_study(one.study, service) | counted)


def _of_series(series: Series, service: str) -> dict[str, object]:
    """Table 10.6.3-4."""
    of_study = _of_study(series.study, service)
    return of_study | {
        "Modality": series.modality,
        "SeriesDescription": series.description,
        "BodyPartExamined": series.body_part,
        "SeriesInstanceUID": series.series_instance_uid,
        "SeriesNumber": series.number,
        "RetrieveURL": f"{of_study['RetrieveURL']}/series/{series.series_instance_uid}",
    }


def _series_found(one: FoundSeries, service: str) -> DataSet:
    return data_set(_of_series(one.series, service) | {"NumberOfSeriesRelatedInstances": one.instances})


def _instance_found(one: StoredInstance, service: str) -> DataSet:
    """Table 10.6.3-5."""
    of_series = _of_series(one.series, service)
    return data_set(
        of_series
        | {
            "SOPClassUID": one.sop_class_uid,
            "SOPInstanceUID": one.sop_instance_uid,
            "InstanceNumber": one.instance_number,
            "AvailableTransferSyntaxUID": one.transfer_syntax_uid,
            "Rows": one.rows,
            "Columns": one.columns,
            "NumberOfFrames": one.number_of_frames or None,
            "RetrieveURL": f"{of_series['RetrieveURL']}/instances/{one.sop_instance_uid}",
        }
    )
