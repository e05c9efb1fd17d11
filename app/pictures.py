"""Read a researcher's images, DICOM and ordinary pictures alike, as the model's inputs. Nothing is kept."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.diagnose import plan
from app.receive import NotReceived, Received, look
from app.window import choose, present
from dicom_io.errors import DicomError
from dicom_io.limits import Limits
from dicom_io.read import frames
from dicom_io.sandbox import Sandbox
from vision_model.errors import ImageInvalid
from vision_model.preprocess import ModelInput, prepare
from vision_model.runtime import Model

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an image came from."""

    path: Path  # the file that was named, or that lies in the folder that was
    name: str  # the path, and inside a zip the member
    frame: int  # 1-based
    patient_id: str | None = field(repr=False)  # of a DICOM file that states one


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that gave no image, and why."""

    name: str
    code: str
    message: str


def files(paths: Iterable[Path]) -> list[Path]:
    """Every file that the paths stand for: themselves, or all below a folder, sorted; hidden ones are left out."""
    found = []
    for path in paths:
        below = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        found += [p for p in below if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    return found


def read(
    path: Path, *, model: Model, sandbox: Sandbox, limits: Limits, scratch: Path, frames_per_series: int
) -> Iterator[tuple[Origin, ModelInput] | Unreadable]:
    """The images of one file. A DICOM file is shown to the model as `hilum diagnose` shows it."""
    if path.suffix.lower() in PICTURES:
        try:
            yield Origin(path, str(path), 1, None), prepare(picture(path), spec=model.manifest.input)
        except ImageInvalid as error:
            yield Unreadable(str(path), error.code, str(error))
        return
    arrivals = list(look([path], sandbox=sandbox, limits=limits, scratch=scratch))

    def named(member: str) -> str:
        return str(path) if member == path.name else f"{path}/{member}"

    yield from (Unreadable(named(a.name), a.code, a.message) for a in arrivals if isinstance(a, NotReceived))
    received = [a for a in arrivals if isinstance(a, Received)]
    for each, numbers, _ in plan(received, frames_per_series=frames_per_series):
        instance = each.instance
        try:
            for frame in frames(instance, sandbox=sandbox, numbers=numbers):
                presentation = choose(frame, instance, manifest=model.manifest)
                model_input = present(frame, presentation, spec=model.manifest.input)
                yield Origin(path, named(each.name), frame.number, instance.patient.patient_id), model_input
        except (DicomError, ImageInvalid) as error:
            yield Unreadable(named(each.name), error.code, str(error))


def picture(path: Path) -> NDArray[np.generic]:
    """Pixels of a picture file: (H, W) of 8 bits or as they are, or (H, W, 3). Raises ImageInvalid."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # 16 or 32 bits: black and white come from the percentiles
                return np.asarray(image, dtype=np.float32)
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except Exception as exc:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and their own
        raise ImageInvalid(f"the picture cannot be read ({type(exc).__name__}: {exc}); save it again") from exc
