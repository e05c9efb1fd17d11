"""Take files in: each is in the spool and in the database, with its audit event, before it is acknowledged."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import worklist
from app.db import audit
from app.db.session import Sessions
from app.db.tables import Base, Outcome, Reception, Series, StoredInstance, Study
from app.errors import (
    AnotherInstance,
    AnotherStudy,
    ConflictingInstance,
    ConflictingSeries,
    FileChanged,
    ReceiveError,
    SpoolError,
)
from app.identity import Actor
from app.scratch import scratch_folder
from app.spool import Spool
from dicom_io.errors import DicomError, FileUnreadable
from dicom_io.limits import Limits
from dicom_io.read import Refused, Source, expand, read_instance
from dicom_io.sandbox import Sandbox
from dicom_io.types import Instance, InstanceRef


@dataclass(frozen=True, slots=True)
class Received:
    """A file that is safe with us; `instance.path` lies in the spool, or is the user's file where nothing is stored."""

    name: str  # as the sender named it: it may hold a patient's name, so it is shown to the sender and kept nowhere
    outcome: Literal["stored", "duplicate"]
    instance: Instance
    sha256: str
    instance_id: int | None  # row of the instance table; None where nothing is stored
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NotReceived:
    """A file that was not taken in, and why."""

    name: str
    outcome: Literal["refused", "quarantined"]
    code: str
    message: str
    ref: InstanceRef | None = None  # None where the header could not be read


def receive(
    paths: Iterable[Path],
    *,
    spool: Spool,
    sandbox: Sandbox,
    sessions: Sessions,
    limits: Limits,
    scratch: Path,
    actor: Actor,
    now: Callable[[], datetime],
    announced_uid: str | None = None,
    announced_study_uid: str | None = None,
    sent: bool = False,
) -> Iterator[Received | NotReceived]:
    """Take in files, folders, zips and DICOMDIRs, one file at a time, and yield each when it is committed.

    Bytes that are already stored are a duplicate; other bytes under a known SOP Instance UID are quarantined, and the
    first ones stay. Of a file that cannot be read only digest, size and reason are kept. A full disk refuses its file
    and the next one is tried; a database that fails raises. Passing files lie under `scratch` and are gone at the end.
    A file that is not the SOP instance, or not of the study, that its sender announced is refused. Images that an
    application sent are awaited until their study is complete: `app.worklist` has it diagnosed. `sent` says that the
    files came in such messages, one object each, so that nothing is unpacked.
    """
    with scratch_folder(scratch) as folder:
        for path in paths:
            for found in [Source(path.name, path)] if sent else expand(path, limits=limits, scratch=folder):
                arrival = _Arrival(found.name, awaited=sent or actor.kind == "ae")
                try:
                    instance = _read(found, arrival, sandbox=sandbox)
                    _check_announced(instance.ref, uid=announced_uid, study_uid=announced_study_uid)
                    instance = _keep_bytes(instance, arrival, spool=spool)
                    outcome: Received | NotReceived = _store(arrival, instance, sessions=sessions, actor=actor, now=now)
                except (DicomError, SpoolError, ReceiveError) as error:
                    outcome = _refuse(arrival, error, sessions=sessions, actor=actor, now=now)
                if isinstance(found, Source) and found.path.is_relative_to(folder):
                    found.path.unlink(missing_ok=True)  # one member of a zip at a time, not all of it
                yield outcome


def look(paths: Iterable[Path], *, sandbox: Sandbox, limits: Limits, scratch: Path) -> Iterator[Received | NotReceived]:
    """Read the same files and keep nothing. Members of a zip stay under `scratch` until the caller removes it."""
    for path in paths:
        for found in expand(path, limits=limits, scratch=scratch):
            try:
                if isinstance(found, Refused):
                    raise found.error
                sha256, _ = digest(found.path)
                instance = read_instance(found.path, sandbox=sandbox)
            except DicomError as error:
                yield NotReceived(found.name, "refused", error.code, str(error))
                continue
            yield Received(found.name, "stored", instance, sha256, instance_id=None)


def reopen(row: StoredInstance, *, spool: Spool, sandbox: Sandbox) -> Received:
    """A stored instance as it was when it was received, to be diagnosed again. Raises NotInSpool, DicomError."""
    instance = read_instance(spool.path(row.sha256), sandbox=sandbox)
    return Received(row.sop_instance_uid, "duplicate", instance, row.sha256, instance_id=row.id)


def digest(path: Path) -> tuple[str, int]:
    """SHA-256 and size in bytes of a file. Raises FileUnreadable."""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return sha256, file.tell()
    except OSError as exc:
        raise FileUnreadable(f"the file cannot be read: {exc.strerror}") from exc


@dataclass(slots=True)
class _Arrival:
    """What is known so far of one file that is coming in."""

    name: str
    awaited: bool
    sha256: str | None = None
    size_bytes: int | None = None
    ref: InstanceRef | None = None

    def row(self, outcome: Outcome, *, actor: Actor, at: datetime) -> Reception:
        return Reception(
            at=at,
            actor=actor.name,
            outcome=outcome,
            source_name_sha256=hashlib.sha256(self.name.encode("utf-8", "surrogateescape")).hexdigest(),
            sha256=self.sha256,
            size_bytes=self.size_bytes,
            sop_instance_uid=self.ref.sop_instance_uid if self.ref else None,
        )


def _read(found: Source | Refused, arrival: _Arrival, *, sandbox: Sandbox) -> Instance:
    """Read the header where the file lies: what cannot be read is not kept."""
    if isinstance(found, Refused):
        raise found.error
    arrival.sha256, arrival.size_bytes = digest(found.path)
    instance = read_instance(found.path, sandbox=sandbox)
    arrival.ref = instance.ref
    return instance


def _check_announced(ref: InstanceRef, *, uid: str | None, study_uid: str | None) -> None:
    if uid not in (None, ref.sop_instance_uid):
        raise AnotherInstance(str(uid), ref.sop_instance_uid)
    if study_uid not in (None, ref.study_instance_uid):
        raise AnotherStudy(str(study_uid), ref.study_instance_uid)


def _keep_bytes(instance: Instance, arrival: _Arrival, *, spool: Spool) -> Instance:
    kept_sha256, _, _ = spool.put(instance.path)
    if kept_sha256 != arrival.sha256:
        raise FileChanged
    return replace(instance, path=spool.path(kept_sha256))


def _store(
    arrival: _Arrival, instance: Instance, *, sessions: Sessions, actor: Actor, now: Callable[[], datetime]
) -> Received:
    """Keep the rows of one instance; raises ConflictingInstance or ConflictingSeries and then keeps none."""
    uid, sha256, size_bytes = instance.ref.sop_instance_uid, arrival.sha256, arrival.size_bytes
    assert sha256 is not None  # the bytes are in the spool
    assert size_bytes is not None

    def store(session: Session) -> tuple[Literal["stored", "duplicate"], int, tuple[str, ...]]:
        at = now()
        study: Study | None = None
        made: list[Base] = []
        warnings: tuple[str, ...] = ()
        outcome: Literal["stored", "duplicate"] = "duplicate"
        row = session.scalar(select(StoredInstance).where(StoredInstance.sop_instance_uid == uid))
        if row is None:
            outcome = "stored"
            row, study, made, warnings = _new_rows(
                session, instance, sha256=sha256, size_bytes=size_bytes, actor=actor, at=at
            )
        elif row.sha256 != sha256:
            raise ConflictingInstance(uid)
        reception = arrival.row(outcome, actor=actor, at=at)
        reception.instance = row
        subjects = [*made, reception]
        audit.append(session, actor=actor, action="receive", subjects=subjects, detail={"outcome": outcome}, now=now)
        if arrival.awaited and study is not None and row.number_of_frames:
            worklist.expect(session, study, requested_by=actor.name, instances=instance.instances_of_study, now=now)
        return outcome, row.id, warnings

    outcome, instance_id, warnings = sessions.together(store)
    return Received(arrival.name, outcome, instance, sha256, instance_id=instance_id, warnings=warnings)


def _new_rows(
    session: Session, instance: Instance, *, sha256: str, size_bytes: int, actor: Actor, at: datetime
) -> tuple[StoredInstance, Study, list[Base], tuple[str, ...]]:
    """The instance's row, its study's, and all that had to be made; the first header of a study or series stays."""
    ref, patient = instance.ref, instance.patient
    made: list[Base] = []
    warnings: tuple[str, ...] = ()
    study = session.scalar(select(Study).where(Study.study_instance_uid == ref.study_instance_uid))
    if study is None:
        study = Study(
            study_instance_uid=ref.study_instance_uid,
            patient_name=patient.name,
            patient_id=patient.patient_id,
            patient_birth_date=patient.birth_date,
            patient_sex=patient.sex,
            study_date=instance.study_date,
            description=instance.study_description,
            accession_number=instance.accession_number,
            received_at=at,
            study_time=instance.study_time,
            study_id=instance.study_id,
            referring_physician=instance.referring_physician,
        )
        made.append(study)
    elif study.patient_id != patient.patient_id:
        warnings = ("This file names another Patient ID than the files of the same study that are already stored.",)
    series = session.scalar(select(Series).where(Series.series_instance_uid == ref.series_instance_uid))
    if series is None:
        series = Series(
            study=study,
            series_instance_uid=ref.series_instance_uid,
            modality=instance.modality,
            body_part=instance.body_part,
            number=instance.series_number,
            description=instance.series_description,
        )
        made.append(series)
    elif series.study_id != study.id:
        raise ConflictingSeries(ref.series_instance_uid)
    row = StoredInstance(
        series=series,
        sop_instance_uid=ref.sop_instance_uid,
        sop_class_uid=ref.sop_class_uid,
        transfer_syntax_uid=instance.transfer_syntax_uid,
        sha256=sha256,
        size_bytes=size_bytes,
        rows=instance.rows,
        columns=instance.columns,
        number_of_frames=instance.number_of_frames,
        instance_number=instance.instance_number,
        patient_age_years=patient.age_years,
        view_position=instance.view_position,
        photometric_interpretation=instance.photometric_interpretation,
        received_at=at,
        received_from=actor.name,
    )
    made.append(row)
    return row, study, made, warnings


def _refuse(
    arrival: _Arrival,
    error: DicomError | SpoolError | ReceiveError,
    *,
    sessions: Sessions,
    actor: Actor,
    now: Callable[[], datetime],
) -> NotReceived:
    # The bytes of a conflicting file stay in the spool, where the digest in its row finds them.
    conflicts = isinstance(error, ConflictingInstance | ConflictingSeries)
    outcome: Literal["refused", "quarantined"] = "quarantined" if conflicts else "refused"
    with sessions.begin() as session:
        row = arrival.row(outcome, actor=actor, at=now())
        row.error_code, row.message = error.code, str(error)
        if arrival.ref is not None:
            known = select(StoredInstance).where(StoredInstance.sop_instance_uid == arrival.ref.sop_instance_uid)
            row.instance = session.scalar(known)
        session.add(row)
        detail = {"outcome": outcome, "error": error.code}
        audit.append(session, actor=actor, action="receive", subjects=[row], detail=detail, now=now)
    return NotReceived(arrival.name, outcome, error.code, str(error), arrival.ref)
