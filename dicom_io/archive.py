"""What an archive is asked and what it answers, whichever protocol it speaks; `dimse` and `dicomweb` speak one each."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal, Protocol

from pydicom import Dataset
from pydicom.filereader import read_file_meta_info

from dicom_io.attributes import day, integer, raw, text
from dicom_io.errors import BadAttribute, PeerAnswerInvalid

Level = Literal["STUDY", "SERIES", "IMAGE"]

# What is asked for besides the keys (PS3.4 C.6.2.1, PS3.18 10.6.3.3).
ANSWERS: dict[Level, tuple[str, ...]] = {
    "STUDY": (
        "StudyInstanceUID",
        "PatientID",
        "IssuerOfPatientID",
        "PatientName",
        "PatientBirthDate",
        "StudyDate",
        "StudyDescription",
        "AccessionNumber",
        "ModalitiesInStudy",
        "NumberOfStudyRelatedInstances",
    ),
    "SERIES": (
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "Modality",
        "SeriesNumber",
        "SeriesDescription",
        "NumberOfSeriesRelatedInstances",
    ),
    "IMAGE": ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "InstanceNumber"),
}


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for. A key that is None matches everything; in texts `*` and `?` are wildcards (PS3.4 C.2.2.2)."""

    level: Level = "STUDY"
    patient_id: str | None = field(default=None, repr=False)
    patient_name: str | None = field(default=None, repr=False)
    accession_number: str | None = field(default=None, repr=False)
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    sop_instance_uid: str | None = None
    study_dates: tuple[date | None, date | None] = (None, None)  # first and last day; None leaves that side open
    modality: str | None = None

    def keys(self) -> Dataset:
        """The matching keys with their values, and an empty element for all else that is to be answered."""
        made = Dataset()
        for keyword in ANSWERS[self.level]:
            setattr(made, keyword, "")
        first, last = (day and f"{day:%Y%m%d}" for day in self.study_dates)
        values = {
            "PatientID": self.patient_id,
            "PatientName": self.patient_name,
            "AccessionNumber": self.accession_number,
            "StudyInstanceUID": self.study_instance_uid,
            "SeriesInstanceUID": self.series_instance_uid,
            "SOPInstanceUID": self.sop_instance_uid,
            "StudyDate": f"{first or ''}-{last or ''}" if first or last else None,
            "ModalitiesInStudy" if self.level == "STUDY" else "Modality": self.modality,
        }
        for keyword, value in values.items():
            if value is not None:
                setattr(made, keyword, value)
        return made


@dataclass(frozen=True, slots=True)
class Match:
    """One study, series or instance that an archive has. What it did not say is None."""

    study_instance_uid: str
    series_instance_uid: str | None
    sop_instance_uid: str | None
    sop_class_uid: str | None
    patient_id: str | None = field(repr=False)
    issuer_of_patient_id: str | None = field(repr=False)
    patient_name: str | None = field(repr=False)
    study_date: date | None
    accession_number: str | None = field(repr=False)
    description: str | None = field(repr=False)
    modalities: tuple[str, ...]
    number: int | None  # of the series or the instance
    instances: int | None  # how many the study or the series has


@dataclass(frozen=True, slots=True)
class Stored:
    """What an archive said to one file: nothing, a remark, or why it does not take it."""

    path: Path
    outcome: Literal["stored", "warning", "refused"]
    status: str


class Archive(Protocol):
    """Somebody who keeps DICOM instances and speaks of them."""

    def echo(self) -> None:
        """Nothing where it answers. Raises PeerUnreachable, PeerRefused."""

    def find(self, query: Query) -> Iterator[Match]:
        """What it has. Raises PeerUnreachable, PeerRefused, PeerAnswerInvalid."""

    def fetch(self, instances: Sequence[Match], folder: Path) -> Iterator[Path]:
        """Put these instances, matches of level IMAGE, into a folder, each under its SOP Instance UID; yields each.

        A name is there with all its bytes or not at all. What the archive does not give is left out. Raises
        PeerUnreachable, PeerRefused where it gives nothing of a series, PeerAnswerInvalid.
        """

    def store(self, paths: Sequence[Path]) -> Iterator[Stored]:
        """Send Part 10 files as they are; yields what is said to each. Raises PeerUnreachable, PeerRefused."""


def match(found: Dataset, level: Level) -> Match:
    """What a C-FIND identifier or a QIDO-RS result says. Raises PeerAnswerInvalid without the UID of its level."""
    uids = {name: text(found, name) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
    needed = {"STUDY": 1, "SERIES": 2, "IMAGE": 3}[level]
    for keyword, value in [*uids.items()][:needed]:
        if value is None or not re.fullmatch(r"[0-9.]{1,64}", value):
            raise PeerAnswerInvalid(f"an answer has no usable {keyword}")
    return Match(
        study_instance_uid=uids["StudyInstanceUID"] or "",
        series_instance_uid=uids["SeriesInstanceUID"],
        sop_instance_uid=uids["SOPInstanceUID"],
        sop_class_uid=text(found, "SOPClassUID"),
        patient_id=text(found, "PatientID"),
        issuer_of_patient_id=text(found, "IssuerOfPatientID"),
        patient_name=text(found, "PatientName"),
        study_date=day(found, "StudyDate"),
        accession_number=text(found, "AccessionNumber"),
        description=text(found, "StudyDescription") or text(found, "SeriesDescription"),
        modalities=_modalities(found),
        number=_number(found, "InstanceNumber" if level == "IMAGE" else "SeriesNumber"),
        instances=_number(found, f"NumberOf{level.title()}RelatedInstances"),
    )


def priors(archive: Archive, study: Match, *, most: int) -> list[Match]:
    """The newest earlier studies of the same patient: the same ID, and no other issuer of it. Raises as `find` does."""
    if not study.patient_id or study.study_date is None:
        return []
    earlier = [
        other
        for other in archive.find(Query(patient_id=study.patient_id, study_dates=(None, study.study_date)))
        if other.patient_id == study.patient_id  # some archives match as if there were a wildcard
        and other.study_instance_uid != study.study_instance_uid
        and other.study_date is not None
        and (other.issuer_of_patient_id or study.issuer_of_patient_id) == study.issuer_of_patient_id
    ]
    return sorted(earlier, key=lambda other: other.study_date or date.min, reverse=True)[:most]


def instances(
    archive: Archive, study: str, *, series: str | None = None, instance: str | None = None
) -> Iterator[Match]:
    """The instances of a study, or of one series of it. Raises as `find` does."""
    # PS3.4 C.4.1.2.1 has a query name the UIDs of all levels above its own.
    for one in archive.find(Query("SERIES", study_instance_uid=study, series_instance_uid=series)):
        yield from archive.find(
            Query(
                "IMAGE",
                study_instance_uid=study,
                series_instance_uid=one.series_instance_uid,
                sop_instance_uid=instance,
            )
        )


def keep(chunks: Iterable[bytes], folder: Path, *, named: str | None) -> Path:
    """Write a Part 10 file durably under the SOP Instance UID that its meta information states.

    Raises PeerAnswerInvalid when it is no Part 10 file, or another instance than the one `named`.
    """
    part = folder / f".{named or 'instance'}.{os.getpid()}.part"
    try:
        with part.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        try:
            uid = str(read_file_meta_info(part).MediaStorageSOPInstanceUID)
        except Exception as exc:  # whatever pydicom makes of bytes from elsewhere
            raise PeerAnswerInvalid(f"what came is no DICOM file ({type(exc).__name__})") from exc
        if not re.fullmatch(r"[0-9.]{1,64}", uid) or uid.strip(".") == "":
            raise PeerAnswerInvalid("what came has no usable SOP Instance UID")
        if named is not None and uid != named:
            raise PeerAnswerInvalid(f"{named} was asked for, and another instance came")
        part.replace(kept := kept_as(folder, uid))
    finally:
        part.unlink(missing_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return kept


def kept_as(folder: Path, sop_instance_uid: str) -> Path:
    """Where `fetch` puts an instance."""
    return folder / f"{sop_instance_uid}.dcm"


def _modalities(found: Dataset) -> tuple[str, ...]:
    with suppress(BadAttribute):
        value = raw(found, "ModalitiesInStudy") or raw(found, "Modality") or ()
        return (value,) if isinstance(value, str) else tuple(str(one) for one in value)
    return ()


def _number(found: Dataset, keyword: str) -> int | None:
    with suppress(BadAttribute):
        return integer(found, keyword)
    return None
