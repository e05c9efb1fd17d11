"""Say studies and predictions in the page's JSON."""

from typing import Any

from sqlalchemy.orm import Session

from app.db.queries import Traced, latest_predictions, study_lines
from app.db.tables import Study
from app.gate import age_range
from app.identity import Actor
from app.web.errors import RequestInvalid
from vision_model.manifest import Manifest

LISTED_STUDIES = 500  # the newest; the search field looks through these
OLDEST_YEARS = 130


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
    return [
        {
            **_head(line.study),
            "modalities": line.modalities,
            "images": line.images,
            "state": line.state,
            "road": line.road,
            "hindrance": line.hindrance,
        }
        for line in study_lines(session, actor, limit=LISTED_STUDIES)
    ]


def study_json(session: Session, study: Study) -> dict[str, Any]:
    """A study with its series, their images in reading order, and the newest prediction of each image."""
    predictions = latest_predictions(session, [instance for series in study.series for instance in series.instances])
    return {
        **_head(study),
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
                        "prediction": prediction_json(traced)
                        if (traced := predictions.get((instance.id, number)))
                        else None,
                    }
                    for instance in series.instances
                    for number in range(1, instance.number_of_frames + 1)
                ],
            }
            for series in study.series
        ],
    }


def prediction_json(traced: Traced) -> dict[str, Any]:
    """One recorded prediction: what it answered, what it withheld and why, and how it was made."""
    row, event = traced.row, traced.event
    distance = next((one for one in row.withheld if one.ood_score is not None), None)
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
            for finding in row.findings
        ],
        "prediction_sets": {
            task: [one.label for one in row.findings if one.task == task and one.in_prediction_set]
            for task in dict.fromkeys(finding.task for finding in row.findings)
        },
        "withheld": [{"task": one.task, "code": one.code, "reason": one.reason} for one in row.withheld],
        "abstained": row.abstained_code and {"code": row.abstained_code, "reason": row.abstained_reason},
        "asks_age": any(one.code == "gate.age-unknown" for one in row.withheld),
        "ood": distance and {"score": distance.ood_score, "threshold": distance.ood_threshold},
        "warnings": row.warnings,
        "route": row.route,
        "route_probability": row.route_probability,
        "stated_age_years": row.stated_age_years,
        "provider": row.provider,
        "precision": row.precision,
        "latency_ms": row.latency_ms,
        "input_sha256": row.input_sha256,
        "audit": event and {"sequence": event.sequence, "hash": event.hash},
    }


def stated_age(text: str | None) -> float | None:
    """The age that the user typed, in years. Raises RequestInvalid."""
    if text is None:
        return None
    try:
        years = float(text)
    except ValueError as exc:
        raise RequestInvalid("age is not a number of years") from exc
    if not 0 <= years < OLDEST_YEARS:
        raise RequestInvalid(f"age is not between 0 and {OLDEST_YEARS} years")
    return years


def _head(study: Study) -> dict[str, Any]:
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
