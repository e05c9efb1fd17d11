"""The sample images: real files that the pydicom package carries inside its wheel, so that nothing is fetched."""

from dataclasses import dataclass
from pathlib import Path

from pydicom.data import get_testdata_file

from app.web.errors import SampleMissing


@dataclass(frozen=True, slots=True)
class Sample:
    """One packaged file and what it shows."""

    name: str
    title: str
    detail: str


SAMPLES = (
    Sample("J2K_pixelrep_mismatch.dcm", "Head CT", "One slice of a head CT, 512 × 512, JPEG 2000"),
    Sample("examples_overlay.dcm", "Abdominal MR", "One slice of an abdominal MRI, 484 × 300"),
    Sample("examples_ybr_color.dcm", "Ultrasound", "A colour ultrasound loop of 30 frames, 320 × 240"),
)


def sample_path(name: str) -> Path:
    """Where the installed pydicom keeps a sample. Raises SampleMissing; no other file can be named."""
    if name not in {sample.name for sample in SAMPLES}:
        raise SampleMissing(f"there is no sample {name!r}")
    found = get_testdata_file(name, download=False)
    if not isinstance(found, str) or not Path(found).is_file():
        raise SampleMissing(f"the installed pydicom does not carry {name}")
    return Path(found)
