"""UPS-RS (PS3.18 chapter 11): the worklist, of which another application may take studies instead of our worker."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session, contains_eager

from app import worklist
from app.db import audit, queries, search
from app.db.search import BadKey
from app.db.tables import Series, StoredInstance
from app.db.work import WorkItem
from app.errors import AlreadyEnded, NotClaimed, TransactionMissing, TransactionWrong, WorklistError
from app.web.api import Using, problem
from app.web.dicomweb.model import DataSet, data_set, first, parsed, tag_of
from app.web.dicomweb.multipart import content_type
from app.web.dicomweb.qido import answered
from app.web.dicomweb.query import query_of
from app.web.dicomweb.request import DICOM_JSON, At, Reader, Service, dicom_json, is_uid, require_json, warned
from app.web.errors import MediaNotTaken, NotOffered, RequestInvalid, UploadTooLarge

UNIFIED_PROCEDURE_STEP = "1.2.840.10008.5.1.4.34.6.1"  # Push SOP Class, by which PS3.4 CC.3.1.2 names all instances
BODY_BYTES_MOST = 1 << 20
ENDS: dict[str | None, Literal["COMPLETED", "CANCELED"]] = {"COMPLETED": "COMPLETED", "CANCELED": "CANCELED"}
DIAGNOSIS = {"CodeValue": "110003", "CodingSchemeDesignator": "DCM", "CodeMeaning": "Computer Aided Diagnosis"}
PROGRESS, INPUT = "ProcedureStepProgressInformationSequence", "InputInformationSequence"
# What the holder of a work item may say of it; its other attributes are ours.
TOLD = frozenset({tag_of(PROGRESS), worklist.PERFORMED_PROCEDURE})
INCONSISTENT = "The submitted request is inconsistent with the state of the UPS Instance."
# The words of 11.6.3.2 and 11.7.3.2.
CONFLICTS: dict[type[WorklistError], str] = {
    TransactionMissing: "The Transaction UID is missing.",
    TransactionWrong: "The Transaction UID is incorrect.",
    NotClaimed: "The target URI did not reference a claimed Workitem.",
}

routes = APIRouter()


async def _body(request: Request) -> bytes:
    if content_type(request.headers.get("content-type", "")).media_type not in (DICOM_JSON, "application/json"):
        raise MediaNotTaken(f"the body comes as {DICOM_JSON}")
    return await _short(request)


async def _short(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MOST:
            raise UploadTooLarge(f"the body has more than {BODY_BYTES_MOST} bytes")
    return body


Body = Annotated[bytes, Depends(_body)]


@routes.get("/workitems", dependencies=[Depends(require_json)])
def search_workitems(request: Request, services: Using, actor: Reader, service: Service) -> Response:
    """Search (11.9), the oldest first. The inputs are told where `includefield` asks for them."""
    query = query_of(request, search.WORK_KEYS)
    inputs = bool(query.include & {INPUT, "all"})
    with services.sessions() as session:
        try:
            page = search.work_items(session, actor, query.keys, limit=query.limit, offset=query.offset)
        except BadKey as exc:
            raise RequestInvalid(str(exc)) from exc
        said = [_workitem(session, item, service, inputs=inputs) for item in page.found]
    return answered(said, query, more=page.more, level="work item", services=services, actor=actor, service=service)


@routes.get("/workitems/{workitem}", dependencies=[Depends(require_json)])
def retrieve_workitem(services: Using, actor: Reader, at: At, service: Service) -> Response:
    """Retrieve (11.5), without the transaction UID, which is the lock."""
    with services.sessions.begin() as session:
        item = queries.work_item(session, actor, _uid(at.workitem))
        audit.append(
            session,
            actor=actor,
            action="view",
            subjects=[item.study],
            detail={"work_item": item.uid},
            now=services.now,
        )
        return dicom_json([_workitem(session, item, service, inputs=True)])


@routes.put("/workitems/{workitem}/state")
def change_state(request: Request, body: Body, services: Using, actor: Reader, at: At, service: Service) -> Response:
    """Change Workitem State (11.7): claim, complete or cancel."""
    said = parsed(body)
    uid, transaction_uid, state = _uid(at.workitem), _transaction(said), first(said, "ProcedureStepState")
    warnings: list[str] = []
    try:
        if transaction_uid is None:
            raise TransactionMissing
        if state == "IN PROGRESS":
            worklist.take(
                services.sessions,
                uid,
                transaction_uid=transaction_uid,
                performer=actor,
                hold_seconds=services.settings.pacs.outside_hold_seconds,
                now=services.now,
            )
        elif state in ENDS:
            changed = worklist.finish(
                services.sessions,
                uid,
                transaction_uid=transaction_uid,
                state=ENDS[state],
                performer=actor,
                now=services.now,
            )
            warnings = [] if changed else [f"The UPS is already in the requested state of {state}."]
        else:
            raise RequestInvalid("(0074,1000) ProcedureStepState becomes IN PROGRESS, COMPLETED or CANCELED")
    except WorklistError as error:
        return _conflict(request, error, service=service)
    return warned(Response(status_code=200), warnings, service=service)


@routes.post("/workitems/{workitem}/cancelrequest", dependencies=[Depends(_short)])
def request_cancellation(request: Request, services: Using, actor: Reader, at: At, service: Service) -> Response:
    """Request Cancellation (11.8). A reason may come with it, and is not kept."""
    try:
        changed = worklist.request_cancellation(services.sessions, _uid(at.workitem), requester=actor, now=services.now)
    except WorklistError as error:
        return _conflict(request, error, service=service)
    warnings = [] if changed else ["The UPS is already in the requested state of CANCELED."]
    return warned(Response(status_code=202), warnings, service=service)


@routes.post("/workitems/{workitem}")
def update(request: Request, body: Body, services: Using, actor: Reader, at: At, service: Service) -> Response:
    """Update (11.6): progress, and what was performed with references to its results."""
    said = parsed(body)
    if tag_of("ProcedureStepState") in said:
        raise RequestInvalid("(0074,1000) ProcedureStepState is changed at /state")
    try:
        worklist.report(
            services.sessions,
            _uid(at.workitem),
            transaction_uid=_transaction_parameter(request),
            said={tag: attribute for tag, attribute in said.items() if tag in TOLD},
            performer=actor,
            hold_seconds=services.settings.pacs.outside_hold_seconds,
            now=services.now,
        )
    except WorklistError as error:
        answer = _conflict(request, error, service=service)
        answer.status_code = 400 if isinstance(error, AlreadyEnded) else answer.status_code  # 11.6.2
        return answer
    rejected = said.keys() - TOLD - {tag_of("SpecificCharacterSet"), tag_of("TransactionUID")}
    warnings = ["Requested optional Attributes are not supported."] if rejected else []
    return warned(Response(status_code=200), warnings, service=service)


@routes.post("/workitems")
@routes.post("/workitems/{workitem}/subscribers/{_ae_title}")
@routes.delete("/workitems/{workitem}/subscribers/{_ae_title}")
@routes.post("/workitems/{workitem}/subscribers/{_ae_title}/suspend")
@routes.get("/subscribers/{_ae_title}")
def not_offered(_ae_title: str = "") -> Response:
    """Work items are made of the studies that come in, and events are not sent."""
    raise NotOffered("work items cannot be created or subscribed to here; search for them")


def _conflict(request: Request, error: WorklistError, *, service: str) -> Response:
    return warned(problem(request, error), [CONFLICTS.get(type(error), INCONSISTENT)], service=service)


def _uid(workitem: str | None) -> str:
    assert workitem is not None  # every route that asks has it
    return workitem


def _transaction(said: DataSet) -> str | None:
    uid = first(said, "TransactionUID")
    if uid is not None and not is_uid(uid):
        raise RequestInvalid("(0008,1195) TransactionUID is no UID (PS3.5 9.1)")
    return uid


def _transaction_parameter(request: Request) -> str | None:
    """`?transaction-uid=1.2.3`, or the UID alone, as the standard's syntax may be read too."""
    named = request.query_params.get("transaction-uid")
    alone = request.url.query if is_uid(request.url.query) else None
    return named or alone


def _workitem(session: Session, item: WorkItem, service: str, *, inputs: bool) -> DataSet:
    """Table CC.2.5-3, as far as it is known; what the holder said of its work stands as it said it."""
    study = item.study
    values: dict[str, object] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": UNIFIED_PROCEDURE_STEP,
        "SOPInstanceUID": item.uid,
        "StudyInstanceUID": study.study_instance_uid,
        "PatientName": study.patient_name,
        "PatientID": study.patient_id,
        "PatientBirthDate": study.patient_birth_date,
        "PatientSex": study.patient_sex,
        "ReferencedRequestSequence": [
            {"StudyInstanceUID": study.study_instance_uid, "AccessionNumber": study.accession_number}
        ],
        "ProcedureStepState": item.state,
        "ScheduledProcedureStepPriority": "MEDIUM",
        "ProcedureStepLabel": "Computer aided diagnosis",
        "WorklistLabel": "Hilum",
        "ScheduledProcedureStepStartDateTime": item.scheduled_at,
        "ScheduledProcedureStepModificationDateTime": item.ended_at or item.scheduled_at,
        "ScheduledWorkitemCodeSequence": [DIAGNOSIS],
        "ScheduledStationNameCodeSequence": None,
        "ScheduledHumanPerformersSequence": None,
        "InputReadinessState": "READY",
        PROGRESS: [{"ProcedureStepCancellationDateTime": item.ended_at}] if item.state == "CANCELED" else None,
        "UnifiedProcedureStepPerformedProcedureSequence": None,
    }
    if inputs:
        values[INPUT] = _inputs(session, item, service)
    return dict(sorted((data_set(values) | (item.performed or {})).items()))


def _inputs(session: Session, item: WorkItem, service: str) -> list[dict[str, object]]:
    """The images of the study by series, and where they are retrieved (PS3.3 Table 10-3b)."""
    of_study = f"{service}/studies/{item.study.study_instance_uid}"
    wanted = (
        select(StoredInstance)
        .join(Series)
        .options(contains_eager(StoredInstance.series))
        .where(Series.study_id == item.study_id, StoredInstance.number_of_frames > 0)
        .order_by(Series.number, Series.id, StoredInstance.instance_number, StoredInstance.id)
    )
    by_series: dict[str, list[dict[str, object]]] = {}
    for row in session.scalars(wanted):
        referenced = {"ReferencedSOPClassUID": row.sop_class_uid, "ReferencedSOPInstanceUID": row.sop_instance_uid}
        by_series.setdefault(row.series.series_instance_uid, []).append(dict(referenced))
    return [
        {
            "TypeOfInstances": "DICOM",
            "StudyInstanceUID": item.study.study_instance_uid,
            "SeriesInstanceUID": uid,
            "ReferencedSOPSequence": referenced,
            "WADORSRetrievalSequence": [{"RetrieveURL": f"{of_study}/series/{uid}"}],
        }
        for uid, referenced in by_series.items()
    ]
