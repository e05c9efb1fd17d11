"""Say studies and predictions in the page's JSON."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Select, case, func, select
from sqlalchemy.orm import Session, selectinload

from app.db.queries import visible_studies
from app.db.tables import (
    AuditEvent,
    AuditSubject,
    FindingRow,
    PredictionRow,
    Series,
    StoredInstance,
    Study,
    WithheldRow,
)
from app.errors import NotFound
from app.gate import age_range
from app.identity import Actor
from app.web.errors import RequestInvalid
from vision_model.manifest import Manifest

Row = TypeVar("Row", FindingRow, WithheldRow)

LISTED_STUDIES = 500  # the newest; the search field looks through these


def model_json(manifest: Manifest, provider: str) -> dict[str, Any]:
    """What the page needs to know of the model to word its answers."""
    return {
        "name": manifest.name,
        "version": manifest.version,
        "sha256": manifest.graph_sha256,
        "provider": provider,
        "tasks": [
            {
                "name": task.name,
                "display": task.display,
                "population": f"{task.population.description}; {age_range(task.population)}",
                "conformal_alpha": task.conformal_alpha,
            }
            for task in manifest.tasks
        ],
    }


def studies_json(session: Session, actor: Actor) -> list[dict[str, Any]]:
    """The newest studies that the actor may see, each with what its newest predictions came to."""
    newest = visible_studies(actor).order_by(Study.received_at.desc(), Study.id.desc()).limit(LISTED_STUDIES)
    studies = session.scalars(newest.options(selectinload(Study.series))).all()
    ids = [study.id for study in studies]
    images = dict(
        session.execute(
            select(Series.study_id, func.sum(StoredInstance.number_of_frames))
            .join(StoredInstance)
            .where(Series.study_id.in_(ids))
            .group_by(Series.study_id)
        ).tuples()
    )
    latest = _latest().where(Series.study_id.in_(ids))
    answered = {
        study_id: "positive" if positives else "negative" if findings else "withheld"
        for study_id, findings, positives in session.execute(
            select(
                Series.study_id,
                func.count(FindingRow.id),
                func.coalesce(func.sum(case((FindingRow.positive, 1), else_=0)), 0),
            )
            .join(StoredInstance, StoredInstance.series_id == Series.id)
            .join(PredictionRow, PredictionRow.instance_id == StoredInstance.id)
            .outerjoin(FindingRow, FindingRow.prediction_id == PredictionRow.id)
            .where(Series.study_id.in_(ids), PredictionRow.id.in_(latest))
            .group_by(Series.study_id)
        )
    }
    return [
        {
            **_study_head(study),
            "modalities": sorted({series.modality for series in study.series if series.modality}),
            "images": int(images.get(study.id) or 0),
            "state": answered.get(study.id, "unread"),
        }
        for study in studies
    ]


def study_of(session: Session, actor: Actor, uid: str) -> Study:
    """One study by its UID. Raises NotFound where the actor may not see it either."""
    study = session.scalar(visible_studies(actor).where(Study.study_instance_uid == uid))
    if study is None:
        raise NotFound("study", uid)
    return study


def instance_of(session: Session, actor: Actor, uid: str) -> StoredInstance:
    """One stored instance by its SOP Instance UID. Raises NotFound as `study_of` does."""
    visible = visible_studies(actor).with_only_columns(Study.id)
    row = session.scalar(
        select(StoredInstance).join(Series).where(StoredInstance.sop_instance_uid == uid, Series.study_id.in_(visible))
    )
    if row is None:
        raise NotFound("image", uid)
    return row


def prediction_of(session: Session, actor: Actor, uid: str) -> PredictionRow:
    """One prediction with its instance. Raises NotFound as `study_of` does."""
    visible = visible_studies(actor).with_only_columns(Study.id)
    row = session.scalar(
        select(PredictionRow)
        .join(StoredInstance, StoredInstance.id == PredictionRow.instance_id)
        .join(Series)
        .where(PredictionRow.uid == uid, Series.study_id.in_(visible))
        .options(selectinload(PredictionRow.instance))
    )
    if row is None:
        raise NotFound("prediction", uid)
    return row


def study_json(session: Session, study: Study) -> dict[str, Any]:
    """A study with its series, their images in reading order, and the newest prediction of each image."""
    series_rows = session.scalars(
        select(Series)
        .where(Series.study_id == study.id)
        .order_by(Series.number, Series.id)
        .options(selectinload(Series.instances))
    ).all()
    latest = _latest().where(Series.study_id == study.id)
    predictions = predictions_json(
        session, session.scalars(select(PredictionRow).where(PredictionRow.id.in_(latest))).all()
    )
    return {
        **_study_head(study),
        "series": [
            {
                "series_instance_uid": series.series_instance_uid,
                "modality": series.modality,
                "body_part": series.body_part,
                "number": series.number,
                "description": series.description,
                "images": [
                    {
                        "sop_instance_uid": instance.sop_instance_uid,
                        "frame": number,
                        "prediction": predictions.get((instance.id, number)),
                    }
                    for instance in series.instances
                    for number in range(1, instance.number_of_frames + 1)
                ],
            }
            for series in series_rows
        ],
    }


def predictions_json(session: Session, rows: Sequence[PredictionRow]) -> dict[tuple[int, int], dict[str, Any]]:
    """Predictions by instance row and frame number, each with its audit event."""
    ids = [row.id for row in rows]
    findings = _by_prediction(session.scalars(select(FindingRow).where(FindingRow.prediction_id.in_(ids))))
    withheld = _by_prediction(session.scalars(select(WithheldRow).where(WithheldRow.prediction_id.in_(ids))))
    events = {
        row_id: {"sequence": sequence, "hash": digest}
        for row_id, sequence, digest in session.execute(
            select(AuditSubject.row_id, AuditEvent.sequence, AuditEvent.hash)
            .join(AuditEvent, AuditEvent.sequence == AuditSubject.sequence)
            .where(
                AuditSubject.table_name == "prediction", AuditSubject.row_id.in_(ids), AuditEvent.action == "predict"
            )
        )
    }
    return {
        (row.instance_id, row.frame_number): _prediction_json(
            row, findings.get(row.id, []), withheld.get(row.id, []), events.get(row.id)
        )
        for row in rows
    }


def stated_age(text: str | None) -> float | None:
    """The age that the user typed, in years. Raises RequestInvalid."""
    if text is None:
        return None
    try:
        years = float(text)
    except ValueError as exc:
        raise RequestInvalid("age is not a number of years") from exc
    if not 0 <= years < 130:
        raise RequestInvalid("age is not between 0 and 130 years")
    return years


def _study_head(study: Study) -> dict[str, Any]:
    return {
        "study_instance_uid": study.study_instance_uid,
        "patient_name": study.patient_name,
        "patient_id": study.patient_id,
        "patient_birth_date": study.patient_birth_date and study.patient_birth_date.isoformat(),
        "patient_sex": study.patient_sex,
        "study_date": study.study_date and study.study_date.isoformat(),
        "description": study.description,
        "accession_number": study.accession_number,
        "received_at": study.received_at.isoformat(),
    }


def _prediction_json(
    row: PredictionRow, findings: list[FindingRow], withheld: list[WithheldRow], event: dict[str, Any] | None
) -> dict[str, Any]:
    sets: dict[str, list[str]] = {finding.task: [] for finding in findings}
    for finding in findings:
        if finding.in_prediction_set:
            sets[finding.task].append(finding.label)
    distances = [one for one in withheld if one.ood_score is not None]
    return {
        "prediction_id": row.uid,
        "created_at": row.created_at.isoformat(),
        "model": {"name": row.model_name, "version": row.model_version, "sha256": row.model_sha256},
        "findings": [
            {
                "task": finding.task,
                "label": finding.label,
                "display": finding.display,
                "normal": finding.normal,
                "probability": finding.probability,
                "threshold": finding.threshold,
                "positive": finding.positive,
            }
            for finding in findings
        ],
        "prediction_sets": sets,
        "withheld": [{"task": one.task, "code": one.code, "reason": one.reason} for one in withheld],
        "abstained": row.abstained_code and {"code": row.abstained_code, "reason": row.abstained_reason},
        "asks_age": any(one.code == "gate.age-unknown" for one in withheld),
        "ood": {"score": distances[0].ood_score, "threshold": distances[0].ood_threshold} if distances else None,
        "warnings": row.warnings,
        "route": row.route,
        "route_probability": row.route_probability,
        "stated_age_years": row.stated_age_years,
        "provider": row.provider,
        "precision": row.precision,
        "latency_ms": row.latency_ms,
        "input_sha256": row.input_sha256,
        "audit": event,
    }


def _latest() -> Select[tuple[int]]:
    """The newest prediction of each image."""
    return (
        select(func.max(PredictionRow.id))
        .join(StoredInstance, StoredInstance.id == PredictionRow.instance_id)
        .join(Series, Series.id == StoredInstance.series_id)
        .group_by(PredictionRow.instance_id, PredictionRow.frame_number)
    )


def _by_prediction(rows: Iterable[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row.prediction_id, []).append(row)
    return found
