"""What is reported: the values that every output of one study is made from."""

import hashlib
import hmac
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import EvidenceMissing, EvidenceMixed, NothingToReport
from dicom_io.types import Code, Evidence

NOTICE = "Research use only, not for diagnostic use"


@dataclass(frozen=True)
class Installation:
    """One place where Hilum runs, and the key from which its UIDs are derived.

    The key must stay the same for as long as findings are to be followed over a patient's studies. Without it nobody
    can tell from a UID whose it is, not even by trying every patient id.
    """

    key: bytes = field(repr=False)

    def uid(self, *parts: str) -> str:
        """A UID that is always the same for the same parts, as a UUID under 2.25 (PS3.5 B.2)."""
        # Lengths, so that ("a", "bc") and ("ab", "c") differ.
        name = b"".join(len(part.encode()).to_bytes(8, "big") + part.encode() for part in parts)
        digest = hmac.digest(self.key, name, hashlib.sha256)
        # Version 5 is the one for names; ITU-T X.667 knows none for names under a keyed digest.
        return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"

    @cached_property
    def serial_number(self) -> str:
        """What tells this installation from others (Device Serial Number is Type 1 in enhanced equipment)."""
        return hmac.digest(self.key, b"serial number", hashlib.sha256)[:8].hex()


@dataclass(frozen=True, slots=True)
class Device:
    """The software that observed, and the model that it observed with."""

    name: str
    version: str
    manufacturer: str
    model_name: str
    model_version: str
    graph_sha256: str
    threshold_set: str  # digest of the set of operating points


@dataclass(frozen=True, slots=True)
class LabelFinding:
    """What the model says of one label of a task in one frame."""

    label: str
    display: str
    code: Code | None  # None: a code of our own scheme is used
    normal: bool  # a normal label never counts as a positive finding
    probability: float  # calibrated
    threshold: float  # operating point: the lowest probability that counts as positive
    positive: bool
    in_prediction_set: bool


@dataclass(frozen=True, slots=True)
class TaskFindings:
    """One task's answer for one frame."""

    task: str
    display: str
    labels: tuple[LabelFinding, ...]
    ood_score: float
    ood_threshold: float
    coverage: float | None = None  # share of cases whose prediction set holds the true label, 0..1


@dataclass(frozen=True, slots=True)
class NotAnswered:
    """A task that was withheld, or all of them where `task` is None, with the reason in plain words."""

    task: str | None
    code: str
    reason: str
    ood_score: float | None = None
    ood_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class ImageFindings:
    """All that is said of one frame of one image."""

    sop_instance_uid: str
    frame_number: int  # 1-based
    answered: tuple[TaskFindings, ...]
    withheld: tuple[NotAnswered, ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """What each place of a frame adds to a label's logit over its task's other labels.

    `values` is (grid rows, grid columns) float32. It lies evenly over the whole frame, or over `box`: (first row,
    first column, rows, columns) in pixels of the frame.
    """

    sop_instance_uid: str
    frame_number: int  # 1-based
    task: str
    label: str
    values: NDArray[np.float32] = field(repr=False)
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class StudyFindings:
    """Everything that one work item says of one study.

    Raises EvidenceMixed where the evidence is not of one study of one patient, EvidenceMissing where a finding speaks
    of an image or a frame that the evidence lacks, NothingToReport where nothing is said.
    """

    work_item: str  # names the work; the UIDs of all outputs follow from it
    at: datetime  # when the findings were made, with its offset from UTC
    device: Device
    installation: Installation
    evidence: tuple[Evidence, ...]  # every image that was looked at
    images: tuple[ImageFindings, ...]

    def __post_init__(self) -> None:
        if self.at.tzinfo is None:
            raise ValueError("the time of the findings has no offset from UTC")
        if not any(image.answered or image.withheld for image in self.images):
            raise NothingToReport("the work item holds neither an answer nor a reason for giving none")
        if not self.evidence:
            raise EvidenceMissing("no image is given as evidence")
        if len({(e.ref.study_instance_uid, e.identity.get("PatientID")) for e in self.evidence}) > 1:
            raise EvidenceMixed("the evidence is of more than one study or patient; each study has its own report")
        for image in self.images:
            self.frame_of(image.sop_instance_uid, image.frame_number)

    @cached_property
    def by_uid(self) -> dict[str, Evidence]:
        """The evidence by SOP Instance UID."""
        return {one.ref.sop_instance_uid: one for one in self.evidence}

    def frame_of(self, sop_instance_uid: str, frame_number: int) -> Evidence:
        """The evidence that holds a frame; raises EvidenceMissing."""
        found = self.by_uid.get(sop_instance_uid)
        if found is None:
            raise EvidenceMissing("a finding speaks of an image that is not among the evidence")
        if not 1 <= frame_number <= found.number_of_frames:
            raise EvidenceMissing(
                f"a finding speaks of frame {frame_number}; its image has {found.number_of_frames} frames"
            )
        return found

    def positives(self) -> Iterator[tuple[ImageFindings, TaskFindings, LabelFinding]]:
        """Every finding at or above its operating point, in the order of the images."""
        for image in self.images:
            for answer in image.answered:
                yield from ((image, answer, label) for label in answer.labels if label.positive)

    def finding_of(self, heat_map: HeatMap) -> tuple[ImageFindings, TaskFindings, LabelFinding]:
        """The finding that a heat map explains; raises EvidenceMissing."""
        for image in self.images:
            if (image.sop_instance_uid, image.frame_number) == (heat_map.sop_instance_uid, heat_map.frame_number):
                for answer in image.answered:
                    for label in answer.labels:
                        if (answer.task, label.label) == (heat_map.task, heat_map.label):
                            return image, answer, label
        raise EvidenceMissing(f"a heat map is given for {heat_map.task}/{heat_map.label}, of which nothing is said")

    def tracking_uid(self, task: str, label: str | None) -> str:
        """One UID for one finding of one patient, in this study and all later ones (PS3.16 TID 4108).

        Without a Patient ID nobody can say that two studies are one patient's, so it then holds for the study alone.
        """
        identity = self.evidence[0].identity
        patient = identity.get("PatientID")
        whose = (
            ("study", self.evidence[0].ref.study_instance_uid)
            if patient is None
            else ("patient", identity.get("IssuerOfPatientID", ""), patient)
        )
        return self.installation.uid("tracking", *whose, task, label or "")

    def series_uid(self, kind: str) -> str:
        """The series that holds this work item's objects of one kind."""
        return self.installation.uid("series", self.work_item, kind)

    def instance_uid(self, kind: str, *parts: str) -> str:
        """The object of one kind, told from others of its kind by `parts`."""
        return self.installation.uid("instance", self.work_item, kind, *parts)
