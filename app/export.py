"""Give kept studies to research: de-identified copies, and beside them a table of what was found in each image."""

import csv
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from pathlib import Path

from pydicom import Dataset, dcmread
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from app.db import audit
from app.db.session import Sessions
from app.db.tables import PredictionRow, Series, StoredInstance, Study
from app.errors import NotFound
from app.identity import Actor
from dicom_io.deidentify.header import Deidentifier

COLUMNS = (
    "patient",
    "study_instance_uid",
    "sop_instance_uid",
    "frame",
    "model",
    "version",
    "graph_sha256",
    "task",
    "label",
    "code",
    "probability",
    "threshold",
    "positive",
    "in_prediction_set",
    "withheld",
)


def chosen(
    session: Session, *, studies: Sequence[str], since: date | None, until: date | None, modality: str | None
) -> list[StoredInstance]:
    """The kept instances of these studies, or of all whose date and modality fit. Raises NotFound for a strange UID."""
    for uid in studies:
        if session.scalar(select(Study.id).where(Study.study_instance_uid == uid)) is None:
            raise NotFound("study", uid)
    wanted = select(StoredInstance).join(Series).join(Study).order_by(Study.id, StoredInstance.id)
    if studies:
        wanted = wanted.where(Study.study_instance_uid.in_(studies))
    if since is not None:
        wanted = wanted.where(Study.study_date >= since)
    if until is not None:
        wanted = wanted.where(Study.study_date <= until)
    if modality is not None:
        wanted = wanted.where(Series.modality == modality)
    return list(session.scalars(wanted.options(selectinload(StoredInstance.series).selectinload(Series.study))))


def note(sessions: Sessions, instances: Iterable[StoredInstance], *, actor: Actor, now: Callable[[], datetime]) -> None:
    """Audit which studies are about to leave: before the first file does."""
    ids = sorted({instance.series.study_id for instance in instances})
    with sessions.begin() as session:
        named = [session.get_one(Study, study_id) for study_id in ids]
        audit.append(session, actor=actor, action="export", subjects=named, detail={"studies": len(named)}, now=now)


def write_findings(
    path: Path,
    instances: Sequence[StoredInstance],
    copies: Iterable[Path],
    *,
    session: Session,
    deidentifier: Deidentifier,
) -> int:
    """A row for each answer, and for each that was withheld, of the newest prediction of every copied frame.

    Nothing but the copies' own identifiers, numbers and codes stands in it. Returns the number of rows.
    """
    patients = {header.SOPInstanceUID: (header.PatientID, header.StudyInstanceUID) for header in map(_header, copies)}
    rows = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for instance in instances:
            uid = deidentifier.uid(instance.sop_instance_uid)
            if uid not in patients:
                continue
            for prediction in _newest(session, instance):
                model = (prediction.model_name, prediction.model_version, prediction.model_sha256)
                head = (*patients[uid], uid, prediction.frame_number, *model)
                for found in prediction.findings:
                    code = f"{found.code_scheme}:{found.code_value}" if found.code_value else ""
                    said = (found.probability, found.threshold, found.positive, found.in_prediction_set)
                    table.writerow((*head, found.task, found.label, code, *said, ""))
                for withheld in prediction.withheld:
                    table.writerow((*head, withheld.task or "", "", "", "", "", "", "", withheld.code))
                rows += len(prediction.findings) + len(prediction.withheld)
    return rows


def _newest(session: Session, instance: StoredInstance) -> list[PredictionRow]:
    """Of each frame and model."""
    found = session.scalars(
        select(PredictionRow)
        .where(PredictionRow.instance_id == instance.id)
        .order_by(PredictionRow.frame_number, PredictionRow.id)
        .options(selectinload(PredictionRow.findings), selectinload(PredictionRow.withheld))
    )
    return list({(row.frame_number, row.model_sha256): row for row in found}.values())


def _header(path: Path) -> Dataset:
    return dcmread(path, specific_tags=["SOPInstanceUID", "StudyInstanceUID", "PatientID"])
