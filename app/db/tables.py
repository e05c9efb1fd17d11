"""The tables: what was received, what the model said about it, and who did what when.

Every table is append-only: triggers refuse UPDATE and DELETE, the first value to arrive stays, a correction is a new
row. Every row is bound to the audit event that brought it (`app.db.audit`) by the SHA-256 of its canonical JSON, in
which absent values are left out: a later migration may add a nullable column, and may not rename or drop one.
"""

import uuid
from datetime import date, datetime
from typing import Any, ClassVar, Literal

from sqlalchemy import ForeignKey, Index, MetaData, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from app.db.columns import CanonicalJson, Real, UtcTime, Whole, Words
from app.identity import ActorKind

Outcome = Literal["stored", "duplicate", "refused", "quarantined"]


class Base(DeclarativeBase):
    """Names every constraint, so that migrations can speak of it on both engines."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Words,
        Outcome: Words,
        ActorKind: Words,
        int: Whole,
        float: Real,
        datetime: UtcTime,
        dict[str, Any]: CanonicalJson,
        list[str]: CanonicalJson,
    }

    def __repr__(self) -> str:
        """Only the key: a row in a log line must not show a patient."""
        return f"<{self.__tablename__} {getattr(self, 'id', None)}>"


class Study(Base):
    """One study of one patient, as the header of its first received file says."""

    __tablename__ = "study"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(unique=True)
    patient_name: Mapped[str | None]
    patient_id: Mapped[str | None] = mapped_column(index=True)
    patient_birth_date: Mapped[date | None]
    patient_sex: Mapped[str | None]
    study_date: Mapped[date | None] = mapped_column(index=True)
    description: Mapped[str | None]
    accession_number: Mapped[str | None] = mapped_column(index=True)
    received_at: Mapped[datetime] = mapped_column(index=True)
    study_time: Mapped[str | None]  # TM as it was written
    study_id: Mapped[str | None]
    referring_physician: Mapped[str | None]

    series: Mapped[list["Series"]] = relationship(back_populates="study", order_by="Series.number, Series.id")


class Series(Base):
    """One series of a study, as the header of its first received file says."""

    __tablename__ = "series"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    series_instance_uid: Mapped[str] = mapped_column(unique=True)
    modality: Mapped[str | None]
    body_part: Mapped[str | None]
    number: Mapped[int | None]
    description: Mapped[str | None]

    study: Mapped[Study] = relationship(back_populates="series")
    instances: Mapped[list["StoredInstance"]] = relationship(
        back_populates="series", order_by="StoredInstance.instance_number, StoredInstance.id"
    )


class StoredInstance(Base):
    """One received Part 10 file; its bytes lie in the spool under `sha256`."""

    __tablename__ = "instance"

    id: Mapped[int] = mapped_column(primary_key=True)
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    sop_instance_uid: Mapped[str] = mapped_column(unique=True)
    sop_class_uid: Mapped[str]
    transfer_syntax_uid: Mapped[str]
    sha256: Mapped[str] = mapped_column(index=True)
    size_bytes: Mapped[int]
    rows: Mapped[int | None]
    columns: Mapped[int | None]
    number_of_frames: Mapped[int]  # 0 when the object carries no pixels
    instance_number: Mapped[int | None]
    patient_age_years: Mapped[float | None]  # at the time of the study
    view_position: Mapped[str | None]
    photometric_interpretation: Mapped[str | None]
    received_at: Mapped[datetime]
    received_from: Mapped[str]  # the actor's name

    series: Mapped[Series] = relationship(back_populates="instances")
    predictions: Mapped[list["PredictionRow"]] = relationship(
        back_populates="instance", order_by="PredictionRow.id.desc()"
    )


class Reception(Base):
    """What became of one file that somebody sent, kept also when the file was not."""

    __tablename__ = "reception"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str]
    outcome: Mapped[Outcome]
    source_name_sha256: Mapped[str | None]  # a file's name often holds the patient's, so only its digest is kept
    sha256: Mapped[str | None]  # of the bytes; None when they were refused before they were all read
    size_bytes: Mapped[int | None]
    sop_instance_uid: Mapped[str | None]
    instance_id: Mapped[int | None] = mapped_column(
        ForeignKey("instance.id"), index=True
    )  # the one stored under that UID
    error_code: Mapped[str | None]
    message: Mapped[str | None]

    instance: Mapped[StoredInstance | None] = relationship()


class PredictionRow(Base):
    """What one model said about one frame, and all that is needed to repeat it."""

    __tablename__ = "prediction"
    __table_args__ = (Index(None, "instance_id", "frame_number", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True, default=lambda: uuid.uuid4().hex)  # the prediction_id that people see
    instance_id: Mapped[int] = mapped_column(ForeignKey("instance.id"))
    frame_number: Mapped[int]  # 1-based
    started_at: Mapped[datetime]
    created_at: Mapped[datetime]
    actor: Mapped[str]

    model_name: Mapped[str]
    model_version: Mapped[str]
    model_sha256: Mapped[str]
    threshold_set: Mapped[str]
    provider: Mapped[str]  # the one actually used
    precision: Mapped[str]
    runtime_version: Mapped[str]
    hilum_version: Mapped[str]

    file_sha256: Mapped[str]
    transfer_syntax_uid: Mapped[str]
    decoder: Mapped[str]
    preprocessing: Mapped[
        dict[str, Any]
    ]  # the window actually applied, photometric interpretation and what else was chosen
    input_sha256: Mapped[str]

    stated_age_years: Mapped[float | None]  # entered by the user where the header has none
    route: Mapped[str | None]  # None: the router was unsure
    route_probability: Mapped[float | None]
    logits: Mapped[dict[str, Any]]  # task -> label -> logit, before calibration, every task of the model
    ood: Mapped[dict[str, Any]]  # task -> {"score", "threshold"}
    embedding_sha256: Mapped[str | None]

    latency_ms: Mapped[dict[str, Any]]  # stage -> milliseconds: decode, prepare, inference
    warnings: Mapped[list[str]]
    abstained_code: Mapped[str | None]  # set when nothing at all was answered
    abstained_reason: Mapped[str | None]

    instance: Mapped[StoredInstance] = relationship(back_populates="predictions")
    findings: Mapped[list["FindingRow"]] = relationship(back_populates="prediction", order_by="FindingRow.id")
    withheld: Mapped[list["WithheldRow"]] = relationship(back_populates="prediction", order_by="WithheldRow.id")


class FindingRow(Base):
    """One label's calibrated probability in a prediction that was let through the gate."""

    __tablename__ = "finding"
    __table_args__ = (UniqueConstraint("prediction_id", "task", "label"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    prediction_id: Mapped[int] = mapped_column(ForeignKey("prediction.id"))
    task: Mapped[str]
    label: Mapped[str]
    display: Mapped[str]
    code_scheme: Mapped[str | None]
    code_value: Mapped[str | None]
    code_meaning: Mapped[str | None]
    normal: Mapped[bool]  # a normal label never counts as a positive finding
    logit: Mapped[float]
    probability: Mapped[float]
    threshold: Mapped[float]
    positive: Mapped[bool]
    in_prediction_set: Mapped[bool]

    prediction: Mapped[PredictionRow] = relationship(back_populates="findings")


class WithheldRow(Base):
    """A task that was not answered, or the whole image where `task` is None, with the reason in plain words."""

    __tablename__ = "withheld"

    id: Mapped[int] = mapped_column(primary_key=True)
    prediction_id: Mapped[int] = mapped_column(ForeignKey("prediction.id"), index=True)
    task: Mapped[str | None]
    code: Mapped[str]
    reason: Mapped[str]
    ood_score: Mapped[float | None]
    ood_threshold: Mapped[float | None]

    prediction: Mapped[PredictionRow] = relationship(back_populates="withheld")


class AuditEvent(Base):
    """One act. Its hash covers the hash before it, every other column and its subjects."""

    __tablename__ = "audit_event"
    __table_args__ = (Index(None, "action", "sequence"),)

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # 1, 2, 3, ... without a gap
    at: Mapped[datetime]
    actor: Mapped[str]
    actor_kind: Mapped[ActorKind]
    action: Mapped[str]
    detail: Mapped[dict[str, Any]]
    previous_hash: Mapped[str]
    hash: Mapped[str]

    subjects: Mapped[list["AuditSubject"]] = relationship(back_populates="event", order_by="AuditSubject.position")


class AuditSubject(Base):
    """A row that an event brought or touched, with the digest that the row had then and must have for ever."""

    __tablename__ = "audit_subject"
    __table_args__ = (Index(None, "table_name", "row_id"),)

    sequence: Mapped[int] = mapped_column(ForeignKey("audit_event.sequence"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # 0, 1, 2, ... within the event
    table_name: Mapped[str]
    row_id: Mapped[int]
    sha256: Mapped[str]

    event: Mapped[AuditEvent] = relationship(back_populates="subjects")


AUDITED: tuple[type[Base], ...] = (Study, Series, StoredInstance, Reception, PredictionRow, FindingRow, WithheldRow)
# The working rows of app.db.work are not among them: their states change, and each change is an audit event.
APPEND_ONLY: tuple[str, ...] = tuple(table.name for table in Base.metadata.sorted_tables)
