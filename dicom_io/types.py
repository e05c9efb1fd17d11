"""The values that reading a DICOM file yields: Study -> Series -> Instance -> Frame."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

VoiFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


@dataclass(frozen=True, slots=True)
class InstanceRef:
    """The four UIDs that name one SOP instance; the thread that runs from the file to the report."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str


@dataclass(frozen=True, slots=True)
class Patient:
    """Who was imaged. No field shows in a repr, so that a log line cannot leak it."""

    name: str | None = field(repr=False)
    patient_id: str | None = field(repr=False)
    birth_date: date | None = field(repr=False)
    sex: str | None = field(repr=False)
    age_years: float | None = field(repr=False)  # PatientAge, else from birth date and study date


@dataclass(frozen=True, slots=True)
class Window:
    """A VOI window in the units of `Frame.pixels` (PS3.3 C.11.2.1.2)."""

    centre: float
    width: float
    function: VoiFunction = "LINEAR"
    explanation: str | None = None


@dataclass(frozen=True, slots=True)
class VoiLut:
    """One item of the VOI LUT Sequence (PS3.3 C.11.2.1.1), turned with the pixels for MONOCHROME1.

    Entry i belongs to the pixel value `first_mapped + i`; values below and above take the end entries.
    """

    first_mapped: float
    entries: NDArray[np.float32] = field(repr=False)  # (n,), scaled to 0..1, larger is brighter
    explanation: str | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """One image plane; larger always means brighter.

    Grey planes are in modality units. MONOCHROME1 is turned about the range that the stored values can take.
    Padding pixels hold the smallest valid value, so that they neither shine nor widen a window.
    """

    ref: InstanceRef
    number: int  # 1-based, as DICOM counts frames
    pixels: NDArray[np.float32] = field(repr=False)  # (rows, columns), or (rows, columns, 3) RGB in 0..255
    spacing_mm: tuple[float, float] | None  # (row, column); None if absent, never a made-up 1.0
    windows: tuple[Window, ...]
    voi_luts: tuple[VoiLut, ...]
    decoder: str  # name and version of what decoded the pixels, for the audited record
    warnings: tuple[str, ...] = ()
    turned_about: float | None = None  # a value v of the file is shown as turned_about - v; None where it is not turned


@dataclass(frozen=True, slots=True)
class Instance:
    """What the header of one Part 10 file says; its frames are decoded on demand."""

    ref: InstanceRef
    path: Path
    transfer_syntax_uid: str
    patient: Patient
    modality: str | None
    body_part: str | None
    view_position: str | None
    laterality: str | None
    photometric_interpretation: str | None
    rows: int | None
    columns: int | None
    number_of_frames: int  # 0 when the object carries no pixels
    instance_number: int | None
    position_mm: tuple[float, float, float] | None  # Image Position (Patient) of the first frame
    orientation: tuple[float, ...] | None  # six direction cosines
    study_date: date | None
    study_description: str | None
    accession_number: str | None
    series_number: int | None
    series_description: str | None
    manufacturer: str | None
    warnings: tuple[str, ...] = ()
    study_time: str | None = None  # TM as it was written (PS3.5 6.2)
    study_id: str | None = field(default=None, repr=False)
    referring_physician: str | None = field(default=None, repr=False)
    instances_of_study: int | None = None  # (0020,1208), which few senders state


@dataclass(frozen=True, slots=True)
class Series:
    """Instances of one series in reading order: by position along the normal, else by instance number."""

    series_instance_uid: str
    modality: str | None
    body_part: str | None
    number: int | None
    description: str | None
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class Study:
    """One study of one patient."""

    study_instance_uid: str
    patient: Patient
    study_date: date | None
    description: str | None
    accession_number: str | None
    series: tuple[Series, ...]


# What a report repeats of patient and study (PS3.3 C.7.1.1, C.7.2).
IDENTITY = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
)
EVIDENCE_FRAMES_MAX = 100_000  # planes that one header may state


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept (PS3.3 8)."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Plane:
    """Where one frame lies in the patient (PS3.3 C.7.6.2)."""

    position_mm: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    spacing_mm: tuple[float, float]  # (row, column)
    thickness_mm: float | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a report must know of an image instance: whose it is, how it is named, where its planes lie."""

    ref: InstanceRef
    identity: Mapping[str, str] = field(repr=False)  # keyword -> value, of patient and study; absent where not stated
    modality: str | None
    rows: int | None
    columns: int | None
    number_of_frames: int
    frame_of_reference_uid: str | None
    planes: tuple[Plane | None, ...] = field(repr=False)  # one a frame; None where the header does not place it
    spacing_mm: tuple[float, float] | None  # (row, column) in the patient: Pixel Spacing, never that at the detector
    laterality: str | None  # R, L or B
    patient_orientation: tuple[str, str] | None
    body_part: str | None
    anatomic_region: Code | None
    procedures: tuple[Code, ...]
    burned_in: str | None  # YES or NO, as (0028,0301) states
    lossy: bool
    lossy_ratios: tuple[float, ...]
    lossy_methods: tuple[str, ...]
    timezone_offset: str | None  # (0008,0201), such as +0100
