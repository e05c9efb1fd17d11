"""Give a diagnosed study's results back: make objects and messages, keep them, and send them until they have arrived.

The results of a work item have UIDs that follow from it, and lie in the spool before the outbox names them. So a crash
loses none, wherever it comes, and what is made or sent a second time is the same one.
"""

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path

from pydicom.dataset import Dataset
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from app import durable
from app.config import Pacs
from app.db import audit
from app.db.session import Sessions
from app.db.tables import FindingRow, PredictionRow, Series, StoredInstance
from app.db.work import Publication, WorkItem
from app.errors import HilumError, NotFound
from app.evidence import evidence as heat_map_of
from app.identity import SYSTEM, Actor
from app.peers import destination
from app.spool import Spool
from dicom_io.errors import DicomError, NothingToReport, PeerUnreachable
from dicom_io.read import frames, read_instance
from dicom_io.report.capture import secondary_capture
from dicom_io.report.findings import (
    Device,
    HeatMap,
    ImageFindings,
    Installation,
    LabelFinding,
    NotAnswered,
    StudyFindings,
    TaskFindings,
)
from dicom_io.report.key_objects import key_object_note
from dicom_io.report.measurements import measurement_report
from dicom_io.report.parametric_map import can_be_mapped, parametric_maps
from dicom_io.report.part10 import part10_bytes
from dicom_io.sandbox import Sandbox
from dicom_io.types import Code
from vision_model.manifest import Manifest
from vision_model.runtime import Model

logger = logging.getLogger(__name__)

KEY_BYTES = 32
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 2.0, 600.0
HEAT_MAPS_MOST = 8  # of one study, the most probable first: a CT of 200 slices would otherwise send 200 pictures


def installation(root: Path) -> Installation:
    """The key of this installation's UIDs, made once beside the spool's files."""
    path = root / "installation-key"
    if not path.is_file():
        durable.make_folder(root)
        temporary = root / f"installation-key.{secrets.token_hex(4)}"
        temporary.write_bytes(secrets.token_bytes(KEY_BYTES))
        temporary.chmod(0o440)
        with suppress(FileExistsError):  # of two processes that start together, one wins
            path.hardlink_to(temporary)
        temporary.unlink()
        durable.sync_folder(root)
    return Installation(path.read_bytes())


@dataclass(frozen=True, slots=True)
class Result:
    """One result for one destination, kept in the spool."""

    destination: str
    kind: str
    uid: str  # follows from the work item
    sha256: str


def results(
    item: WorkItem, *, pacs: Pacs, sessions: Sessions, spool: Spool, sandbox: Sandbox, model: Model
) -> list[Result]:
    """What a work item has for each peer that wants some of it. Raises DicomError and SpoolError."""
    wanted = {name: peer.deliver for peers in (pacs.peers, pacs.web_peers) for name, peer in peers.items()}
    kinds = {kind for of_peer in wanted.values() for kind in of_peer}
    if not kinds and not pacs.hl7_peers and not pacs.fhir_peers:
        return []
    with sessions() as session:
        predictions = _predictions(session, item, model_sha256=model.manifest.graph_sha256)
    if not predictions:
        return []
    findings = _findings(item, predictions, spool=spool, sandbox=sandbox, manifest=model.manifest)
    objects = [
        (kind, str(dataset.SOPInstanceUID), spool.put(part10_bytes(dataset)).sha256)
        for kind in ("sr", "key-objects", "parametric-map", "secondary-capture")
        if kind in kinds
        for dataset in _made(kind, findings, predictions, spool=spool, sandbox=sandbox, model=model)
    ]
    return [
        *(Result(name, *one) for name, of_peer in wanted.items() for one in objects if one[0] in of_peer),
        *_messages(findings, pacs=pacs, spool=spool),
    ]


def _messages(findings: StudyFindings, *, pacs: Pacs, spool: Spool) -> Iterator[Result]:
    """The same findings for systems that know no DICOM. Their libraries are extras: the settings ask for them."""
    if pacs.hl7_peers:
        from app.report_hl7 import oru_r01

        for name, peer in pacs.hl7_peers.items():
            message = oru_r01(
                findings,
                sending_facility=peer.sending_facility,
                receiving_application=peer.receiving_application,
            )
            yield Result(name, "hl7", findings.instance_uid("hl7"), spool.put(message).sha256)
    if pacs.fhir_peers:
        from app.report_fhir import report_bundle

        bundle = spool.put(report_bundle(findings)).sha256
        for name in pacs.fhir_peers:
            yield Result(name, "fhir", findings.instance_uid("fhir"), bundle)


def enqueue(session: Session, item: WorkItem, made: Sequence[Result], *, at: datetime) -> None:
    """Put results into the outbox, in the caller's transaction, which ends the work item.

    What is there already stays as it is.
    """
    for result in made:
        known = select(Publication).where(
            Publication.destination == result.destination, Publication.sop_instance_uid == result.uid
        )
        if session.scalar(known) is None:
            session.add(
                Publication(
                    work_item_id=item.id,
                    destination=result.destination,
                    kind=result.kind,
                    sop_instance_uid=result.uid,
                    sha256=result.sha256,
                    next_attempt_at=at,
                )
            )


def send(*, pacs: Pacs, sessions: Sessions, spool: Spool, now: Callable[[], datetime]) -> int:
    """Send what is due, to each destination in the order it was made; how many results arrived.

    A destination that does not answer is tried again, ever more seldom, and nothing overtakes what waits for it. What
    it refuses, or the spool has lost, is set aside, and the next is sent. Raises ConfigInvalid.
    """
    names = [*pacs.peers, *pacs.web_peers, *pacs.hl7_peers, *pacs.fhir_peers]
    return sum(_send_to(name, pacs=pacs, sessions=sessions, spool=spool, now=now) for name in names)


def outbox(sessions: Sessions, *, arrived: bool) -> list[Publication]:
    """The results that have not arrived, or all, in the order they were made."""
    wanted = select(Publication).order_by(Publication.id)
    with sessions() as session:
        return list(session.scalars(wanted if arrived else wanted.where(Publication.state != "SENT")))


def retry(
    sessions: Sessions,
    *,
    numbers: Sequence[int],
    destination: str | None,
    actor: Actor,
    now: Callable[[], datetime],
) -> int:
    """Put refused results back among those that wait: these, or all of one destination; how many.

    Raises NotFound for a number that no refused result has.
    """
    with sessions.begin() as session:
        refused = select(Publication).where(Publication.state == "FAILED").order_by(Publication.id)
        rows = session.scalars(refused).all()
        if missing := set(numbers) - {row.id for row in rows}:
            raise NotFound("refused result", str(min(missing)))
        chosen = [row for row in rows if row.id in numbers or row.destination == destination]
        for row in chosen:
            row.state, row.next_attempt_at = "PENDING", now()
            _audit(session, row, actor=actor, now=now)
    return len(chosen)


def _send_to(name: str, *, pacs: Pacs, sessions: Sessions, spool: Spool, now: Callable[[], datetime]) -> int:
    deliver = destination(name, pacs)
    waiting = (
        select(Publication)
        .where(Publication.destination == name, Publication.state == "PENDING")
        .order_by(Publication.id)
        .limit(1)
    )
    sent = 0
    while True:
        with sessions() as session:
            first = session.scalar(waiting)
        if first is None or first.next_attempt_at > now():
            return sent
        error: DicomError | HilumError | None = None
        try:
            deliver(spool.path(first.sha256))
            sent += 1
        except (DicomError, HilumError) as failure:  # HilumError: the file is gone from the spool
            error = failure
        _note(first, error, sessions=sessions, now=now)
        if isinstance(error, PeerUnreachable):
            return sent


def _note(
    publication: Publication,
    error: DicomError | HilumError | None,
    *,
    sessions: Sessions,
    now: Callable[[], datetime],
) -> None:
    with sessions.begin() as session:
        row = session.get(Publication, publication.id)
        assert row is not None  # these rows are never removed
        row.attempts += 1
        row.error_code, row.error_message = (None, None) if error is None else (error.code, str(error))
        if error is None:
            row.state, row.sent_at = "SENT", now()
        elif not isinstance(error, PeerUnreachable):
            row.state = "FAILED"
            logger.error("a result for %s was set aside: %s", row.destination, error.code)
        else:
            wait = min(FIRST_WAIT_SECONDS * 2 ** (row.attempts - 1), LONGEST_WAIT_SECONDS)
            row.next_attempt_at = now() + timedelta(seconds=wait)
            logger.warning("%s does not answer; its results wait %.0f s", row.destination, wait)
        _audit(session, row, actor=SYSTEM, now=now)


def _audit(session: Session, row: Publication, *, actor: Actor, now: Callable[[], datetime]) -> None:
    detail = {"destination": row.destination, "sop_instance_uid": row.sop_instance_uid, "state": row.state}
    audit.append(session, actor=actor, action="publish", detail={**detail, "error": row.error_code}, now=now)


def _predictions(session: Session, item: WorkItem, *, model_sha256: str) -> list[PredictionRow]:
    """The newest prediction of each frame of the study by this model, in reading order."""
    rows = session.scalars(
        select(PredictionRow)
        .join(StoredInstance)
        .join(Series)
        .where(Series.study_id == item.study_id, PredictionRow.model_sha256 == model_sha256)
        .order_by(Series.number, Series.id, StoredInstance.instance_number, StoredInstance.id, PredictionRow.id)
        .options(
            selectinload(PredictionRow.instance),
            selectinload(PredictionRow.findings),
            selectinload(PredictionRow.withheld),
        )
    ).all()
    newest = {(row.instance_id, row.frame_number): row for row in rows}
    return list(newest.values())


def _findings(
    item: WorkItem, predictions: Sequence[PredictionRow], *, spool: Spool, sandbox: Sandbox, manifest: Manifest
) -> StudyFindings:
    digests = dict.fromkeys(prediction.instance.sha256 for prediction in predictions)
    return StudyFindings(
        work_item=item.uid,
        at=max(prediction.created_at for prediction in predictions),
        device=Device(
            name="Hilum",
            version=version("hilum"),
            manufacturer="Hilum project",
            model_name=manifest.name,
            model_version=manifest.version,
            graph_sha256=manifest.graph_sha256,
            threshold_set=manifest.threshold_set,
        ),
        installation=installation(spool.root),
        evidence=tuple(sandbox.evidence(spool.path(sha256)) for sha256 in digests),
        images=tuple(_image(prediction, manifest) for prediction in predictions),
    )


def _image(prediction: PredictionRow, manifest: Manifest) -> ImageFindings:
    by_task: dict[str, list[FindingRow]] = {}
    for finding in prediction.findings:
        by_task.setdefault(finding.task, []).append(finding)
    return ImageFindings(
        sop_instance_uid=prediction.instance.sop_instance_uid,
        frame_number=prediction.frame_number,
        answered=tuple(
            TaskFindings(
                task=task,
                display=manifest.task(task).display,
                labels=tuple(_label(row) for row in rows),
                ood_score=prediction.ood[task]["score"],
                ood_threshold=prediction.ood[task]["threshold"],
                coverage=1 - manifest.task(task).conformal_alpha,
            )
            for task, rows in by_task.items()
        ),
        withheld=tuple(
            NotAnswered(row.task, row.code, row.reason, row.ood_score, row.ood_threshold) for row in prediction.withheld
        ),
    )


def _label(row: FindingRow) -> LabelFinding:
    code = None
    if row.code_scheme is not None and row.code_value is not None:
        code = Code(row.code_scheme, row.code_value, row.code_meaning or row.display)
    return LabelFinding(
        label=row.label,
        display=row.display,
        code=code,
        normal=row.normal,
        probability=row.probability,
        threshold=row.threshold,
        positive=row.positive,
        in_prediction_set=row.in_prediction_set,
    )


def _made(
    kind: str,
    findings: StudyFindings,
    predictions: Sequence[PredictionRow],
    *,
    spool: Spool,
    sandbox: Sandbox,
    model: Model,
) -> Iterator[Dataset]:
    if kind == "sr":
        yield measurement_report(findings)
    elif kind == "key-objects":
        try:
            yield key_object_note(findings)
        except NothingToReport:
            return  # no positive finding, no image to point at
    else:
        maps = list(_heat_maps(findings, predictions, spool=spool, sandbox=sandbox, model=model))
        if kind == "parametric-map":
            placed = [m for m in maps if can_be_mapped(findings.by_uid[m.sop_instance_uid], m.frame_number)]
            yield from parametric_maps(findings, placed)
            return
        digests = {p.instance.sop_instance_uid: p.instance.sha256 for p in predictions}
        for number, heat_map in enumerate(maps, start=1):
            instance = read_instance(spool.path(digests[heat_map.sop_instance_uid]), sandbox=sandbox)
            (frame,) = frames(instance, sandbox=sandbox, numbers=[heat_map.frame_number])
            yield secondary_capture(findings, heat_map, frame, instance_number=number)


def _heat_maps(
    findings: StudyFindings,
    predictions: Sequence[PredictionRow],
    *,
    spool: Spool,
    sandbox: Sandbox,
    model: Model,
) -> Iterator[HeatMap]:
    """The maps of the most probable positive findings."""
    rows = {(p.instance.sop_instance_uid, p.frame_number): p for p in predictions}
    strongest = sorted(findings.positives(), key=lambda found: -found[2].probability)[:HEAT_MAPS_MOST]
    grid = model.manifest.input.grid
    for image, answer, label in strongest:
        prediction = rows[image.sop_instance_uid, image.frame_number]
        values = heat_map_of(
            prediction,
            task=answer.task,
            label=label.label,
            shape=(grid, grid),
            model=model,
            spool=spool,
            sandbox=sandbox,
        )
        yield HeatMap(image.sop_instance_uid, image.frame_number, answer.task, label.label, values)
