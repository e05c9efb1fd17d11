"""The working rows: what is still to be done. Their states change; what was done is in the audit trail."""

import uuid
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.columns import Words
from app.db.tables import Base, Study

__all__ = ["AwaitedStudy", "Base", "Commitment", "Publication", "PublicationState", "WorkItem", "WorkItemState"]

# PS3.4 Table CC.1.1-1.
WorkItemState = Literal["SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED"]
PublicationState = Literal["PENDING", "SENT", "FAILED"]


def new_uid() -> str:
    """A UID of our own, PS3.5 B.2."""
    return f"2.25.{uuid.uuid4().int}"


class AwaitedStudy(Base):
    """A study of which images came over the network that no work item covers yet; gone once one does."""

    __tablename__ = "awaited_study"

    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), primary_key=True, autoincrement=False)
    last_instance_at: Mapped[datetime] = mapped_column(index=True)
    requested_by: Mapped[str]  # AE title

    study: Mapped[Study] = relationship()


class WorkItem(Base):
    """One study to be diagnosed, in the words of the Unified Procedure Step (PS3.4 Annex CC)."""

    __tablename__ = "work_item"
    __table_args__ = (Index(None, "state", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True, default=new_uid)  # SOP Instance UID of the procedure step
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    state: Mapped[WorkItemState] = mapped_column(Words, default="SCHEDULED")
    requested_by: Mapped[str]
    scheduled_at: Mapped[datetime]
    transaction_uid: Mapped[str | None]  # of whoever holds it
    claimed_by: Mapped[str | None]
    lease_until: Mapped[datetime | None]  # a holder that died is followed by another after this
    attempts: Mapped[int] = mapped_column(default=0)
    ended_at: Mapped[datetime | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    outside: Mapped[bool | None]  # held by another application, over UPS-RS, and not by a worker of ours
    performed: Mapped[dict[str, Any] | None]  # what that application says of it, in the DICOM JSON model

    study: Mapped[Study] = relationship()


class Publication(Base):
    """One result on its way to one destination: the outbox."""

    __tablename__ = "publication"
    __table_args__ = (UniqueConstraint("destination", "sop_instance_uid"), Index(None, "state", "next_attempt_at"))

    id: Mapped[int] = mapped_column(primary_key=True)  # the order in which a destination is sent to
    work_item_id: Mapped[int] = mapped_column(ForeignKey("work_item.id"), index=True)
    destination: Mapped[str]  # name of a peer in the settings
    kind: Mapped[str]
    sop_instance_uid: Mapped[str]  # follows from the work item, so that nothing is sent twice under two names
    sha256: Mapped[str]  # where the spool keeps it
    state: Mapped[PublicationState] = mapped_column(Words, default="PENDING")
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime]
    sent_at: Mapped[datetime | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]

    work_item: Mapped[WorkItem] = relationship()


class Commitment(Base):
    """A sender's question whether its instances are safe here, until it is answered (PS3.4 Annex J)."""

    __tablename__ = "commitment"
    __table_args__ = (UniqueConstraint("ae_title", "transaction_uid"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    ae_title: Mapped[str]
    transaction_uid: Mapped[str]
    instances: Mapped[dict[str, Any]]  # SOP Instance UID -> SOP Class UID
    requested_at: Mapped[datetime]
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime] = mapped_column(index=True)
    answered_at: Mapped[datetime | None]
