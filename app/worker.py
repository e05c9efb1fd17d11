"""The worker: has studies that came over the network diagnosed, sends results out, and answers what was asked."""

import logging
import os
import socket
import threading
from dataclasses import dataclass

from sqlalchemy import exists, select
from sqlalchemy.exc import SQLAlchemyError

from app import publish, worklist
from app.db import audit
from app.db.tables import PredictionRow, Series, StoredInstance
from app.db.work import WorkItem
from app.diagnose import diagnose
from app.errors import HilumError, SpoolError
from app.identity import SYSTEM
from app.pacs import commitment
from app.receive import Received, reopen
from app.results import NotDiagnosed
from app.wiring import Services
from dicom_io.errors import DicomError
from vision_model.errors import VisionModelError

logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.5  # between two looks at an empty worklist
LEASE_SECONDS = 120.0  # renewed after every batch; a worker that died is followed by another after it
ATTEMPTS_MOST = 3
RETRY_SECONDS = 30.0  # after the first failure; twice as long after the second


@dataclass(frozen=True, slots=True)
class Done:
    """What one pass of the worker did."""

    scheduled: int = 0
    diagnosed: int = 0
    answered: int = 0
    sent: int = 0

    def __bool__(self) -> bool:
        return bool(self.scheduled or self.diagnosed or self.answered or self.sent)


def run(services: Services, stop: threading.Event) -> None:
    """Work until `stop` is set. A pass that fails is logged, and the next one tries again: nobody else would."""
    holder = f"{socket.gethostname()}:{os.getpid()}"
    while not stop.is_set():
        try:
            if once(services, holder=holder, stop=stop):
                continue
        except Exception as error:  # noqa: BLE001 (a worker that ended here would leave studies undone, and say nothing)
            # Not the message: a database's may hold a patient's values.
            logger.error("a pass of the worker failed: %s", getattr(error, "code", type(error).__name__))
        stop.wait(IDLE_SECONDS)


def once(services: Services, *, holder: str, stop: threading.Event | None = None) -> Done:
    """One pass: schedule what is complete, diagnose one study, send results and answer what is due."""
    pacs = services.settings.pacs
    scheduled = worklist.schedule(services.sessions, quiet_seconds=pacs.quiet_seconds, now=services.now)
    item = worklist.claim(
        services.sessions,
        actor=SYSTEM,
        holder=holder,
        lease_seconds=LEASE_SECONDS,
        head_start_seconds=pacs.head_start_seconds,
        now=services.now,
    )
    if item is not None:
        _diagnose(services, item, stop=stop or threading.Event())
    answered = commitment.answer(pacs=pacs, sessions=services.sessions, spool=services.spool, now=services.now)
    sent = publish.send(pacs=pacs, sessions=services.sessions, spool=services.spool, now=services.now)
    return Done(len(scheduled), int(item is not None), answered, sent)


def _diagnose(services: Services, item: WorkItem, *, stop: threading.Event) -> None:
    """Diagnose a claimed study to its end; a failure of ours puts it back, and the third one gives it up."""
    try:
        _predict(services, item, stop=stop)
    except SQLAlchemyError:
        raise  # nothing can be written now; the lease runs out, and the next holder goes on where this one was
    except (HilumError, DicomError, VisionModelError) as error:
        if item.attempts < ATTEMPTS_MOST:
            logger.warning("work item %s is put back: %s", item.uid, error.code)
            worklist.put_off(
                services.sessions,
                item,
                code=error.code,
                message=str(error),
                wait_seconds=RETRY_SECONDS * item.attempts,
                actor=SYSTEM,
                now=services.now,
            )
            return
        logger.error("work item %s was given up: %s", item.uid, error.code)
        with services.sessions.begin() as session:
            worklist.cancel(session, item, code=error.code, message=str(error), actor=SYSTEM, now=services.now)


def _predict(services: Services, item: WorkItem, *, stop: threading.Event) -> None:
    settings = services.settings.diagnose
    results = diagnose(
        _undiagnosed(services, item),
        model=services.model,
        sandbox=services.sandbox,
        sessions=services.sessions,
        actor=SYSTEM,
        now=services.now,
        batch_size=settings.batch_size,
        frames_per_series=settings.frames_per_series,
    )
    for number, result in enumerate(results, start=1):
        if isinstance(result, NotDiagnosed) and not result.has_no_image:
            logger.warning("an image of work item %s was not diagnosed: %s", item.uid, result.code)
        if number % settings.batch_size:
            continue
        # What is recorded stays, and the next holder does the rest.
        if stop.is_set():
            worklist.give_back(services.sessions, item, actor=SYSTEM, now=services.now)
            return
        if not worklist.renew(services.sessions, item, lease_seconds=LEASE_SECONDS, now=services.now):
            return
    made = publish.results(
        item,
        pacs=services.settings.pacs,
        sessions=services.sessions,
        spool=services.spool,
        sandbox=services.sandbox,
        model=services.model,
    )
    with services.sessions.begin() as session:
        if worklist.complete(session, item, actor=SYSTEM, now=services.now):
            publish.enqueue(session, item, made, at=services.now())


def _undiagnosed(services: Services, item: WorkItem) -> list[Received]:
    """The study's images that the model in use has not read yet: a work item done twice predicts nothing twice.

    One whose bytes are gone or damaged is audited and left out. Raises SpoolError or DicomError where all are.
    """
    mine = exists().where(
        PredictionRow.instance_id == StoredInstance.id,
        PredictionRow.model_sha256 == services.model.manifest.graph_sha256,
    )
    wanted = (
        select(StoredInstance)
        .join(Series)
        .where(Series.study_id == item.study_id, StoredInstance.number_of_frames > 0, ~mine)
        .order_by(StoredInstance.id)
    )
    with services.sessions() as session:
        rows = session.scalars(wanted).all()
    opened: list[Received] = []
    problems: dict[int, SpoolError | DicomError] = {}
    for row in rows:
        try:
            opened.append(reopen(row, spool=services.spool, sandbox=services.sandbox))
        except (SpoolError, DicomError) as error:
            problems[row.id] = error
    if problems and not opened:
        raise next(iter(problems.values()))
    for row_id, problem in problems.items():
        logger.error("an image of work item %s is not diagnosed: %s", item.uid, problem.code)
        with services.sessions.begin() as session:
            image = session.get_one(StoredInstance, row_id)
            detail = {"error": problem.code, "frame": None}
            audit.append(session, actor=SYSTEM, action="predict", subjects=[image], detail=detail, now=services.now)
    return opened
