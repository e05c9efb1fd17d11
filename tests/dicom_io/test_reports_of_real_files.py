"""Of every real image at hand, every object that we make passes dciodvfy."""

import csv
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from dicom_io.read import Sandbox
from dicom_io.report import (
    can_be_mapped,
    key_object_note,
    measurement_report,
    parametric_maps,
    secondary_capture,
)
from dicom_io.types import Evidence
from tests.dicom_io.conftest import packaged
from tests.dicom_io.reports import blank_frame, faults, heat_map, image_findings, study_findings, written

PACKAGED = [
    "CT_small.dcm",
    "MR_small.dcm",
    "JPEG2000.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "examples_palette.dcm",
    "examples_ybr_color.dcm",
    "rtdose.dcm",
    "liver_1frame.dcm",
]
_TABLE = Path(__file__).with_name("outcomes.csv")


def made_of(evidence: Evidence) -> dict[str, Dataset]:
    last = evidence.number_of_frames
    findings = study_findings(evidence, images=[image_findings(evidence, number) for number in sorted({1, last})])
    made = {
        "report": measurement_report(findings),
        "note": key_object_note(findings),
        "capture": secondary_capture(findings, heat_map(evidence, last), blank_frame(evidence, last)),
    }
    if can_be_mapped(evidence, 1) and can_be_mapped(evidence, last):
        maps = [heat_map(evidence, number) for number in sorted({1, last})]
        made |= {f"map {n}": one for n, one in enumerate(parametric_maps(findings, maps))}
    return made


@pytest.mark.parametrize("name", PACKAGED)
def test_of_a_packaged_file(sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    evidence = sandbox.evidence(packaged(name))
    for kind, made in made_of(evidence).items():
        assert not faults(written(made, tmp_path), source=evidence), kind


def images() -> list[str]:
    """Every third of the shared images, without the slices and transfer syntaxes of which one header speaks for all."""
    with _TABLE.open(newline="") as stream:
        named = [row["file"] for row in csv.DictReader(stream) if row["outcome"] == "frames"]
    return [name for name in named if "/volume/" not in name and "_CTImage" not in name][::3]


@pytest.mark.parametrize("name", images())
def test_of_a_shared_file(shared: Path, sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    evidence = sandbox.evidence(shared / name)
    for kind, made in made_of(evidence).items():
        assert not faults(written(made, tmp_path), source=evidence), kind
