"""UPS-RS (PS3.18 chapter 11): the worklist of studies to be diagnosed, for workers outside of this program.

An item that an outside worker claims is its own until it ends it, or until `CLAIM_HOURS` have gone by without a word.
Items are made here alone, so there is no N-CREATE, and nobody is notified: a worker asks.
"""

import json
import re
from datetime import timedelta

from fastapi import APIRouter, Request, Response
from pydicom import Dataset
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from app import worklist
from app.db.queries import visible_studies
from app.db.tables import Series, StoredInstance, Study
from app.db.work import WorkItem
from app.errors import NotFound
from app.identity import Actor
from app.web.dicomweb.answers import JSON, By, Uid, Using, accepts, address, day, dicom_json
from app.web.errors import RequestInvalid, WorkItemHeld

router = APIRouter()

UPS_PUSH = "1.2.840.10008.5.1.4.34.6.1"
CLAIM_HOURS = 24
PAGE = 100
BODY_MOST_BYTES = 1 << 20
STATES = ("SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED")


@router.get("/workitems")
def search(request: Request, services: Using, actor: By) -> Response:
    """Work items, oldest first, by state, patient or study."""
    accepts(request, JSON, "application/json")
    query = request.query_params
    chosen = select(WorkItem).join(Study).where(Study.id.in_(visible_studies(actor).with_only_columns(Study.id)))
    for name, column in (
        ("ProcedureStepState", WorkItem.state),
        ("PatientID", Study.patient_id),
        ("StudyInstanceUID", Study.study_instance_uid),
    ):
        tag = {"ProcedureStepState": "00741000", "PatientID": "00100020", "StudyInstanceUID": "0020000D"}[name]
        if value := query.get(name) or query.get(tag):
            chosen = chosen.where(column == value)
    limit, offset = (query.get(name, default) for name, default in (("limit", str(PAGE)), ("offset", "0")))
    if not re.fullmatch(r"[0-9]{1,9}", limit) or not re.fullmatch(r"[0-9]{1,9}", offset):
        raise RequestInvalid("limit and offset are whole numbers")
    with services.sessions() as session:
        rows = session.scalars(chosen.order_by(WorkItem.id).limit(min(int(limit), PAGE)).offset(int(offset))).all()
        said = [_said(request, session, row, whole=False) for row in rows]
    return dicom_json(said) if said else Response(status_code=204)


@router.get("/workitems/{uid}")
def retrieve(uid: Uid, request: Request, services: Using, actor: By) -> Response:
    """One work item with its inputs and outputs."""
    accepts(request, JSON, "application/json")
    with services.sessions() as session:
        return dicom_json([_said(request, session, _item(session, actor, uid), whole=True)])


@router.post("/workitems/{uid}")
async def update(uid: Uid, request: Request, services: Using, actor: By) -> Response:
    """Note the results of an item that the caller holds (its Transaction UID is the query's `transaction-uid`)."""
    body = await _body(request)
    transaction = request.query_params.get("transaction-uid") or _text(body, "TransactionUID")
    outputs = {
        str(one.ReferencedSOPInstanceUID): str(one.ReferencedSOPClassUID)
        for performed in body.get("UnifiedProcedureStepPerformedProcedureSequence") or ()
        for output in performed.get("OutputInformationSequence") or ()
        for one in output.get("ReferencedSOPSequence") or ()
    }
    with services.sessions.begin() as session:
        row = _held(session, actor, uid, transaction)
        missing = [known for known in outputs if not _stored(session, known)]
        if missing:
            raise RequestInvalid(f"{len(missing)} of the referenced results are not stored here; store them first")
        worklist.note_outputs(session, row, {**(row.outputs or {}), **outputs}, actor=actor, now=services.now)
    return Response(status_code=200)


@router.put("/workitems/{uid}/state")
@router.put("/workitems/{uid}/state/{requester}")
async def change_state(uid: Uid, request: Request, services: Using, actor: By, requester: str = "") -> Response:
    """Claim an item (IN PROGRESS, with a Transaction UID of the caller's own), or end it (COMPLETED, CANCELED)."""
    body = await _body(request)
    state, transaction = _text(body, "ProcedureStepState"), _text(body, "TransactionUID")
    if state not in STATES or state == "SCHEDULED":
        raise RequestInvalid(f"a work item becomes IN PROGRESS, COMPLETED or CANCELED, not {state!r}")
    if transaction is None or not re.fullmatch(r"[0-9.]{1,64}", transaction):
        raise RequestInvalid("(0008,1195) TransactionUID is needed")
    with services.sessions.begin() as session:
        if state == "IN PROGRESS":
            row = _item(session, actor, uid)
            if row.state != "SCHEDULED":
                raise WorkItemHeld(f"the UPS is already {row.state}")
            lease = services.now() + timedelta(hours=CLAIM_HOURS)
            worklist.hold(
                session,
                row,
                transaction_uid=transaction,
                holder=requester or actor.name,
                until=lease,
                actor=actor,
                now=services.now,
            )
            return Response(status_code=200)
        row = _item(session, actor, uid)
        if row.state == state and row.transaction_uid == transaction:
            warning = f"The UPS is already in the requested state of {state}"
            return Response(status_code=200, headers={"Warning": f'299 hilum "{warning}"'})
        row = _held(session, actor, uid, transaction)
        if state == "COMPLETED":
            worklist.complete(session, row, actor=actor, now=services.now)
        else:
            reason = "ended by the outside worker that held it"
            worklist.cancel(session, row, code="work.canceled", message=reason, actor=actor, now=services.now)
    return Response(status_code=200)


@router.post("/workitems/{uid}/cancelrequest")
@router.post("/workitems/{uid}/cancelrequest/{requester}")
def request_cancellation(uid: Uid, services: Using, actor: By, requester: str = "") -> Response:
    """Give up an item that nobody holds yet; who holds one is not to be reached from here."""
    with services.sessions.begin() as session:
        row = _item(session, actor, uid)
        if row.state != "SCHEDULED":
            raise WorkItemHeld(f"the UPS is already {row.state}; its performer cannot be contacted")
        worklist.withdraw(session, row, by=requester or actor.name, actor=actor, now=services.now)
    return Response(status_code=202)


async def _body(request: Request) -> Dataset:
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > BODY_MOST_BYTES:
            raise RequestInvalid("the body is too long")
    try:
        found = json.loads(content)
        return Dataset.from_json(found[0] if isinstance(found, list) else found)
    except Exception as exc:  # whatever pydicom makes of JSON from elsewhere
        raise RequestInvalid("the body is no data set in DICOM JSON") from exc


def _text(body: Dataset, keyword: str) -> str | None:
    value = body.get(keyword)
    return None if value is None or str(value) == "" else str(value)


def _item(session: Session, actor: Actor, uid: str) -> WorkItem:
    visible = visible_studies(actor).with_only_columns(Study.id)
    row = session.scalar(select(WorkItem).where(WorkItem.uid == uid, WorkItem.study_id.in_(visible)))
    if row is None:
        raise NotFound("work item", uid)
    return row


def _held(session: Session, actor: Actor, uid: str, transaction: str | None) -> WorkItem:
    row = _item(session, actor, uid)
    if row.state == "SCHEDULED":
        raise WorkItemHeld("the UPS is not yet IN PROGRESS")
    if row.state != "IN PROGRESS":
        raise WorkItemHeld(f"the UPS is already {row.state} and may no longer be updated")
    if transaction is None or row.transaction_uid != transaction:
        raise WorkItemHeld("the correct Transaction UID was not provided")
    return row


def _stored(session: Session, sop_instance_uid: str) -> bool:
    known = select(StoredInstance.id).where(StoredInstance.sop_instance_uid == sop_instance_uid)
    return session.scalar(known) is not None


def _said(request: Request, session: Session, row: WorkItem, *, whole: bool) -> Dataset:
    """The attributes of PS3.4 Table CC.2.5-3 that are known here. The Transaction UID is its holder's secret."""
    study = row.study
    said = Dataset()
    said.SpecificCharacterSet = "ISO_IR 192"
    said.SOPClassUID, said.SOPInstanceUID = UPS_PUSH, row.uid
    said.ProcedureStepState = row.state
    said.ScheduledProcedureStepPriority = "MEDIUM"
    said.ProcedureStepLabel, said.WorklistLabel = "AI diagnosis (research use only)", "Hilum"
    said.ScheduledProcedureStepStartDateTime = f"{row.scheduled_at:%Y%m%d%H%M%S}"
    said.InputReadinessState = "READY"
    said.ScheduledWorkitemCodeSequence = [_code("110003", "Computer Aided Diagnosis")]
    said.StudyInstanceUID, said.AccessionNumber = study.study_instance_uid, study.accession_number or ""
    said.PatientName, said.PatientID = study.patient_name or "", study.patient_id or ""
    said.PatientBirthDate, said.PatientSex = day(study.patient_birth_date), study.patient_sex or ""
    if row.claimed_by:
        progress = Dataset()
        progress.ProcedureStepProgressDescription = f"held by {row.claimed_by}"
        said.ProcedureStepProgressInformationSequence = [progress]
    if not whole:
        return said
    loaded = select(Series).where(Series.study_id == study.id).options(selectinload(Series.instances))
    said.InputInformationSequence = [_input(request, study, one) for one in session.scalars(loaded)]
    if row.outputs:
        performed, output = Dataset(), Dataset()
        output.ReferencedSOPSequence = [_reference(sop_class, uid) for uid, sop_class in row.outputs.items()]
        performed.OutputInformationSequence = [output]
        said.UnifiedProcedureStepPerformedProcedureSequence = [performed]
    return said


def _input(request: Request, study: Study, series: Series) -> Dataset:
    said = Dataset()
    said.TypeOfInstances = "DICOM"
    said.StudyInstanceUID, said.SeriesInstanceUID = study.study_instance_uid, series.series_instance_uid
    said.ReferencedSOPSequence = [_reference(one.sop_class_uid, one.sop_instance_uid) for one in series.instances]
    where = Dataset()
    where.RetrieveURL = address(request, "studies", study.study_instance_uid, "series", series.series_instance_uid)
    said.WADORSRetrievalSequence = [where]
    return said


def _reference(sop_class: str, uid: str) -> Dataset:
    said = Dataset()
    said.ReferencedSOPClassUID, said.ReferencedSOPInstanceUID = sop_class, uid
    return said


def _code(value: str, meaning: str) -> Dataset:
    said = Dataset()
    said.CodeValue, said.CodingSchemeDesignator, said.CodeMeaning = value, "DCM", meaning
    return said
