"""Findings to report, of any image: one task with a coded and an uncoded label, and one that is not answered."""

import subprocess
from collections.abc import Iterable
from dataclasses import astuple
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from dicom_io.report import (
    Device,
    HeatMap,
    ImageFindings,
    Installation,
    LabelFinding,
    NotAnswered,
    StudyFindings,
    TaskFindings,
    part10_bytes,
)
from dicom_io.types import Code, Evidence, Frame
from tests.services import require

DEVICE = Device(
    name="Hilum",
    version="0.1.0",
    manufacturer="Hilum",
    model_name="hilum-vits14",
    model_version="0.1.1",
    graph_sha256="0c93" * 16,
    threshold_set="6245" * 16,
)
INSTALLATION = Installation(key=b"0123456789abcdef0123456789abcdef")
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
# No number has a short decimal, so that only an exact copy is equal.
PROBABILITY, THRESHOLD, OOD, OOD_LIMIT = 0.9712345678901234, 0.5712288503343088, 1.3 / 7, 2.2662999629974365
REASON = "The patient is 7 years old; this task was made for adults of 18 to 120 years."


def image_findings(evidence: Evidence, number: int = 1, *, positive: bool = True) -> ImageFindings:
    covid = Code("SCT", "840539006", "Disease caused by severe acute respiratory syndrome coronavirus 2")
    probability = PROBABILITY if positive else 1 - PROBABILITY
    labels = (
        LabelFinding(
            label="not-covid",
            display="No COVID-19 pattern",
            code=None,
            normal=True,
            probability=1 - probability,
            threshold=0.7,
            positive=False,
            in_prediction_set=not positive,
        ),
        LabelFinding(
            label="covid",
            display="COVID-19 pattern",
            code=covid,
            normal=False,
            probability=probability,
            threshold=THRESHOLD,
            positive=positive,
            in_prediction_set=positive,
        ),
    )
    answer = TaskFindings("ct-covid", "Chest CT: COVID-19", labels, OOD, OOD_LIMIT, coverage=0.9)
    withheld = NotAnswered("cxr-pneumonia-adult", "gate.age-outside", REASON, 3.25, OOD_LIMIT)
    return ImageFindings(evidence.ref.sop_instance_uid, number, (answer,), (withheld,))


def study_findings(
    *evidence: Evidence, images: Iterable[ImageFindings] | None = None, work_item: str = "work item 1"
) -> StudyFindings:
    said = tuple(image_findings(one) for one in evidence) if images is None else tuple(images)
    return StudyFindings(
        work_item=work_item, at=AT, device=DEVICE, installation=INSTALLATION, evidence=evidence, images=said
    )


def heat_map(evidence: Evidence, number: int = 1, *, grid: int = 12) -> HeatMap:
    """Strongest in the lower right quarter, and against the label in the upper left."""
    rows, columns = np.mgrid[0:grid, 0:grid] / grid
    towards = np.exp(-((rows - 0.7) ** 2 + (columns - 0.7) ** 2) * 12)
    against = np.exp(-((rows - 0.2) ** 2 + (columns - 0.2) ** 2) * 20)
    values = (0.03 * (towards - against / 2)).astype(np.float32)
    return HeatMap(evidence.ref.sop_instance_uid, number, "ct-covid", "covid", values)


def blank_frame(evidence: Evidence, number: int = 1) -> Frame:
    """A frame of the size that the header states, without decoding it."""
    assert evidence.rows
    assert evidence.columns
    ramp = np.linspace(0, 255, evidence.rows * evidence.columns, dtype=np.float32)
    return Frame(
        ref=evidence.ref,
        number=number,
        pixels=ramp.reshape(evidence.rows, evidence.columns),
        spacing_mm=evidence.spacing_mm,
        windows=(),
        voi_luts=(),
        decoder="none",
    )


def written(made: Dataset, folder: Path, name: str = "made.dcm") -> Path:
    path = folder / name
    path.write_bytes(part10_bytes(made))
    return path


def faults(path: Path, *, source: Evidence | None = None) -> list[str]:
    """What dciodvfy calls an error, apart from UIDs of the source that are wrong and must be repeated all the same."""
    done = subprocess.run([require("dciodvfy"), path], capture_output=True, text=True, errors="replace", check=False)
    said = (done.stdout + done.stderr).splitlines()
    assert any(line and not line.startswith(("Error", "Warning")) for line in said), "dciodvfy knows the object's IOD"
    theirs = [] if source is None else [*astuple(source.ref), source.frame_of_reference_uid or "-"]
    return [line for line in said if line.startswith("Error") and not any(uid in line for uid in theirs)]
