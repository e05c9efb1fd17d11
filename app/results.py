"""What diagnosing yields for one image, and how the command line's contract says it in JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.gate import Verdict
from app.receive import NotReceived, Received
from dicom_io.errors import NoPixels
from vision_model.manifest import Manifest
from vision_model.runtime import Prediction, TaskResult


@dataclass(frozen=True, slots=True)
class ReadImage:
    """One frame that was decoded and prepared, and all that the record keeps of how."""

    received: Received
    frame_number: int  # 1-based
    decoder: str
    preprocessing: Mapping[str, Any]
    warnings: tuple[str, ...]
    started_at: datetime
    latency_ms: Mapping[str, float]  # decode, prepare


@dataclass(frozen=True, slots=True)
class Trace:
    """Where the database holds what was done: the prediction's uid, if there is one, and the audit event."""

    prediction_id: str | None
    audit_sequence: int
    audit_hash: str


@dataclass(frozen=True, slots=True)
class Diagnosed:
    """What may be said of one image. `trace` is None where nothing is kept."""

    image: ReadImage
    prediction: Prediction
    verdict: Verdict
    warnings: tuple[str, ...]
    latency_ms: Mapping[str, float]  # decode, prepare, inference and record; the last two are a batch's, shared evenly
    trace: Trace | None = None


@dataclass(frozen=True, slots=True)
class NotDiagnosed:
    """A received file, or one frame of it, that no prediction was made for."""

    received: Received
    frame_number: int | None
    code: str
    message: str
    trace: Trace | None = None

    @property
    def has_no_image(self) -> bool:
        """A report, a plan or the like: nothing went wrong, there is just nothing to look at."""
        return self.code == NoPixels.code


def nearest_result(diagnosed: Diagnosed, manifest: Manifest) -> TaskResult | None:
    """The answering task's result, else the one that this image came nearest to; None where no task is served."""
    on_route = {task.name for task in manifest.tasks if task.route == diagnosed.prediction.route}
    results = diagnosed.prediction.results
    candidates = diagnosed.verdict.allowed or [r for r in results if r.task in on_route] or results
    return min(candidates, key=lambda result: result.ood_score - result.ood_threshold, default=None)


def as_json(result: Diagnosed | NotDiagnosed | NotReceived, *, manifest: Manifest) -> dict[str, Any]:
    """One line of `hilum diagnose --json`; the keys are the contract of ARCHITECTURE.md."""
    match result:
        case Diagnosed():
            return _diagnosed_json(result, manifest)
        case NotDiagnosed() if result.has_no_image:
            abstained = {"code": result.code, "reason": result.message}
            return {
                **_head(result.received, manifest),
                "findings": [],
                "prediction_sets": {},
                "abstained": abstained,
                "ood": None,
                "warnings": list(result.received.warnings),
                "provider": None,
                **_trace_json(result.trace),
            }
        case NotDiagnosed():
            return {"path": result.received.name, "error": {"code": result.code, "message": result.message}}
        case NotReceived():
            return {"path": result.name, "error": {"code": result.code, "message": result.message}}


def _diagnosed_json(result: Diagnosed, manifest: Manifest) -> dict[str, Any]:
    abstention = result.verdict.abstention
    nearest = nearest_result(result, manifest)
    return {
        **_head(result.image.received, manifest),
        "findings": [
            {
                "task": finding.task,
                "label": finding.label,
                "code": finding.code
                and {"scheme": finding.code.scheme, "value": finding.code.value, "meaning": finding.code.meaning},
                "probability": finding.probability,
                "threshold": finding.threshold,
                "positive": finding.positive,
            }
            for answer in result.verdict.allowed
            for finding in answer.findings
        ],
        "prediction_sets": {answer.task: list(answer.prediction_set) for answer in result.verdict.allowed},
        "abstained": abstention and {"code": abstention.code, "reason": abstention.reason},
        "ood": nearest and {"score": nearest.ood_score, "threshold": nearest.ood_threshold},
        # The contract has no key for a task withheld beside one that answers; it must not go unsaid.
        "warnings": [
            *result.warnings,
            *(f"Not answered: {w.reason}" for w in result.verdict.withheld if w != abstention),
        ],
        "provider": result.prediction.provider,
        **_trace_json(result.trace),
    }


def _head(received: Received, manifest: Manifest) -> dict[str, Any]:
    ref = received.instance.ref
    return {
        "study_instance_uid": ref.study_instance_uid,
        "series_instance_uid": ref.series_instance_uid,
        "sop_instance_uid": ref.sop_instance_uid,
        "modality": received.instance.modality,
        "model": {"name": manifest.name, "version": manifest.version, "sha256": manifest.graph_sha256},
    }


def _trace_json(trace: Trace | None) -> dict[str, Any]:
    return {
        "prediction_id": trace and trace.prediction_id,
        "audit": trace and {"sequence": trace.audit_sequence, "hash": trace.audit_hash},
    }
