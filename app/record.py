"""Keep what was diagnosed: prediction, findings, withheld answers and audit event, all in one transaction or none."""

import hashlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version

from sqlalchemy.orm import Session

from app.db import audit
from app.db.session import Sessions
from app.db.tables import FindingRow, PredictionRow, StoredInstance, WithheldRow
from app.errors import NotFound
from app.identity import Actor
from app.receive import Received
from app.results import Diagnosed, NotDiagnosed, Trace
from vision_model.manifest import Manifest
from vision_model.runtime import RUNTIME_VERSION


def record(
    results: Sequence[Diagnosed | NotDiagnosed],
    *,
    sessions: Sessions,
    manifest: Manifest,
    actor: Actor,
    now: Callable[[], datetime],
    stated_age_years: float | None,
) -> list[Diagnosed | NotDiagnosed]:
    """Commit a batch, one audit event a result, and return it with its traces.

    A result without a prediction is audited as well. Raises NotFound where the instance is not stored.
    """
    traced: list[Diagnosed | NotDiagnosed] = []
    with sessions.begin() as session:
        for result in results:
            if isinstance(result, Diagnosed):
                row = prediction_row(
                    result,
                    instance=_instance(session, result.image.received),
                    manifest=manifest,
                    actor=actor,
                    at=now(),
                    stated_age_years=stated_age_years,
                )
                detail = {"prediction_id": row.uid, "abstained": row.abstained_code}
                event = audit.append(
                    session,
                    actor=actor,
                    action="predict",
                    subjects=[row, *row.findings, *row.withheld],
                    detail=detail,
                    now=now,
                )
                traced.append(replace(result, trace=Trace(row.uid, event.sequence, event.hash)))
            else:
                instance = _instance(session, result.received)
                failure = {"error": result.code, "frame": result.frame_number}
                event = audit.append(
                    session, actor=actor, action="predict", subjects=[instance], detail=failure, now=now
                )
                traced.append(replace(result, trace=Trace(None, event.sequence, event.hash)))
    return traced


def prediction_row(
    result: Diagnosed,
    *,
    instance: StoredInstance,
    manifest: Manifest,
    actor: Actor,
    at: datetime,
    stated_age_years: float | None,
) -> PredictionRow:
    """The rows of one result, as they are kept."""
    image, prediction, verdict = result.image, result.prediction, result.verdict
    abstention = verdict.abstention
    answers = prediction.results
    return PredictionRow(
        uid=uuid.uuid4().hex,
        instance_id=instance.id,
        frame_number=image.frame_number,
        started_at=image.started_at,
        created_at=at,
        actor=actor.name,
        model_name=manifest.name,
        model_version=manifest.version,
        model_sha256=prediction.model_sha256,
        threshold_set=manifest.threshold_set,
        provider=prediction.provider,
        precision=prediction.precision,
        runtime_version=f"onnxruntime {RUNTIME_VERSION}",
        hilum_version=version("hilum"),
        file_sha256=image.received.sha256,
        transfer_syntax_uid=image.received.instance.transfer_syntax_uid,
        decoder=image.decoder,
        preprocessing=dict(image.preprocessing),
        input_sha256=prediction.input_sha256,
        stated_age_years=stated_age_years,
        route=prediction.route,
        route_probability=prediction.route_probability,
        logits={answer.task: {finding.label: finding.logit for finding in answer.findings} for answer in answers},
        ood={answer.task: {"score": answer.ood_score, "threshold": answer.ood_threshold} for answer in answers},
        embedding_sha256=hashlib.sha256(prediction.embedding.tobytes()).hexdigest(),
        latency_ms=dict(result.latency_ms),
        warnings=list(result.warnings),
        abstained_code=abstention and abstention.code,
        abstained_reason=abstention and abstention.reason,
        findings=[
            FindingRow(
                task=finding.task,
                label=finding.label,
                display=finding.display,
                code_scheme=finding.code and finding.code.scheme,
                code_value=finding.code and finding.code.value,
                code_meaning=finding.code and finding.code.meaning,
                normal=finding.normal,
                logit=finding.logit,
                probability=finding.probability,
                threshold=finding.threshold,
                positive=finding.positive,
                in_prediction_set=finding.label in answer.prediction_set,
            )
            for answer in verdict.allowed
            for finding in answer.findings
        ],
        withheld=[
            WithheldRow(
                task=withheld.task,
                code=withheld.code,
                reason=withheld.reason,
                ood_score=withheld.ood_score,
                ood_threshold=withheld.ood_threshold,
            )
            for withheld in verdict.withheld
        ],
    )


def _instance(session: Session, received: Received) -> StoredInstance:
    row = session.get(StoredInstance, received.instance_id)
    if row is None:
        raise NotFound("stored instance", received.instance.ref.sop_instance_uid)
    return row
