"""A small study with predictions, every column filled, as the tests of the database use it."""

from collections.abc import Callable
from datetime import date, datetime

from app.db import audit
from app.db.session import Sessions
from app.db.tables import FindingRow, PredictionRow, Reception, Series, StoredInstance, Study, WithheldRow
from app.identity import LOCAL_USER

Clock = Callable[[], datetime]


def study(at: datetime, *, uid: str = "1.2.3", instances: int = 2) -> Study:
    return Study(
        study_instance_uid=uid,
        patient_name="Grün^Ada",
        patient_id="P-17",
        patient_birth_date=date(1961, 2, 3),
        patient_sex="F",
        study_date=date(2026, 1, 1),
        description="Chest PA",
        accession_number="A-4711",
        study_time="101112.5",
        study_id="S-1",
        referring_physician="Roe^Richard",
        received_at=at,
        series=[
            Series(
                series_instance_uid=f"{uid}.1",
                modality="DX",
                body_part="CHEST",
                number=1,
                description="PA",
                instances=[instance(at, uid=f"{uid}.1.{number}", number=number) for number in range(1, instances + 1)],
            )
        ],
    )


def instance(at: datetime, *, uid: str, number: int) -> StoredInstance:
    return StoredInstance(
        sop_instance_uid=uid,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.1.1",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        sha256=f"{number:064x}",
        size_bytes=123456,
        rows=2048,
        columns=2500,
        number_of_frames=1,
        instance_number=number,
        patient_age_years=64.91,
        view_position="PA",
        photometric_interpretation="MONOCHROME2",
        received_at=at,
        received_from="local",
    )


def reception(of: StoredInstance, at: datetime) -> Reception:
    return Reception(
        at=at,
        actor="local",
        outcome="quarantined",
        source_name_sha256="5" * 64,
        sha256="6" * 64,
        size_bytes=99,
        sop_instance_uid=of.sop_instance_uid,
        instance=of,
        error_code="receive.conflicting-instance",
        message="other bytes are already stored",
    )


def prediction(of: StoredInstance, at: datetime, *, frame: int = 1) -> PredictionRow:
    return PredictionRow(
        instance=of,
        frame_number=frame,
        started_at=at,
        created_at=at,
        actor="local",
        model_name="hilum-vit",
        model_version="0.1.0",
        model_sha256="7" * 64,
        threshold_set="8" * 64,
        provider="CPUExecutionProvider",
        precision="fp32",
        runtime_version="onnxruntime 1.31.1",
        hilum_version="0.1.0",
        file_sha256=of.sha256,
        transfer_syntax_uid=of.transfer_syntax_uid,
        decoder="pylibjpeg-openjpeg 2.5.0",
        preprocessing={"window": [40.0, 400.0], "photometric_interpretation": "MONOCHROME2"},
        input_sha256="9" * 64,
        stated_age_years=64.0,
        route="DX-CHEST",
        route_probability=0.9912345678901234,
        logits={"cxr-pneumonia-adult": {"normal": -1.25, "pneumonia": 1.25}},
        ood={"cxr-pneumonia-adult": {"score": 0.1, "threshold": 0.3}},
        embedding_sha256="a" * 64,
        latency_ms={"decode": 12.5, "prepare": 3.0, "inference": 101.0},
        warnings=["the header names no body part"],
        abstained_code="gate.age-unknown",
        abstained_reason="The header has no age.",
        findings=[
            FindingRow(
                task="cxr-pneumonia-adult",
                label=label,
                display=label.title(),
                code_scheme="SCT",
                code_value="233604007",
                code_meaning="Pneumonia",
                normal=label == "normal",
                logit=logit,
                probability=0.5 + logit / 4,
                threshold=0.4,
                positive=label != "normal",
                in_prediction_set=label != "normal",
            )
            for label, logit in (("normal", -1.25), ("pneumonia", 1.25))
        ],
        withheld=[
            WithheldRow(
                task="cxr-pneumonia-child",
                code="gate.age-outside",
                reason="This task was trained on children.",
                ood_score=0.1,
                ood_threshold=0.3,
            )
        ],
    )


def fill(sessions: Sessions, now: Clock, *, uid: str = "1.2.3", instances: int = 2) -> Study:
    """A received and diagnosed study with its events: one receive, one predict an instance, one view."""
    with sessions.begin() as session:
        kept = study(now(), uid=uid, instances=instances)
        images = kept.series[0].instances
        rows = [kept, *kept.series, *images, reception(images[0], now())]
        audit.append(session, actor=LOCAL_USER, action="receive", subjects=rows, detail={"outcome": "stored"}, now=now)
    for image in images:
        with sessions.begin() as session:
            session.add(image)
            row = prediction(image, now())
            audit.append(session, actor=LOCAL_USER, action="predict", subjects=[row], detail={"uid": row.uid}, now=now)
    with sessions.begin() as session:
        audit.append(session, actor=LOCAL_USER, action="view", subjects=[kept], now=now)
    return kept
