"""Choose what counts as black and white when the model looks at a frame, in a way that the record can repeat."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dicom_io.types import Frame, Instance
from dicom_io.voi import eight_bits
from vision_model.manifest import InputSpec, Manifest
from vision_model.preprocess import ModelInput, prepare

# Their objects hold display values of 8 bits (PS3.3 C.8.5.6.1.4 for ultrasound, C.8.12.1 for visible light).
DISPLAY_MODALITIES = frozenset({"DMS", "ES", "GM", "OP", "SM", "US", "XC"})

Source = Literal["training-window", "file-window", "file-voi", "eight-bit", "colour", "percentiles"]


@dataclass(frozen=True, slots=True)
class Presentation:
    """Where black and white come from; a window's centre and width in modality units."""

    source: Source
    centre: float | None = None
    width: float | None = None


def choose(frame: Frame, instance: Instance, *, manifest: Manifest, route: str | None = None) -> Presentation:
    """The window that the training images were made with, else what the file asks for, else the percentiles.

    `route` is what the router saw, for a file that does not name its body part.
    """
    if frame.pixels.ndim == 3:
        return Presentation("colour")
    rule = manifest.input.window(instance.modality, _body_part(instance, manifest=manifest, route=route))
    if rule is not None:
        return Presentation("training-window", *rule)
    if frame.windows and frame.windows[0].function == "LINEAR":
        return Presentation("file-window", frame.windows[0].centre, frame.windows[0].width)
    if frame.windows or frame.voi_luts:
        return Presentation("file-voi")
    low, high = float(frame.pixels.min()), float(frame.pixels.max())
    if instance.modality in DISPLAY_MODALITIES and low >= 0 and high <= 255:
        return Presentation("eight-bit")
    return Presentation("percentiles")


def needs_route(instance: Instance, *, manifest: Manifest) -> bool:
    """Whether the training window depends on a body part that the file does not name."""
    return instance.body_part is None and any(rule.modality == instance.modality for rule in manifest.input.windows)


def present(frame: Frame, presentation: Presentation, *, spec: InputSpec) -> ModelInput:
    """The model's input from a frame, shown as chosen. Raises ImageInvalid."""
    match presentation.source:
        case "training-window" | "file-window":
            assert presentation.centre is not None
            assert presentation.width is not None
            return prepare(frame.pixels, spec=spec, window=(presentation.centre, presentation.width))
        case "file-voi":
            return prepare(eight_bits(frame), spec=spec)
        case "eight-bit":
            return prepare(frame.pixels.astype(np.uint8), spec=spec)
        case "colour" | "percentiles":
            return prepare(frame.pixels, spec=spec)


def as_record(presentation: Presentation, model_input: ModelInput, instance: Instance) -> dict[str, Any]:
    """What the record keeps of the preprocessing: enough to repeat it, and what it came to."""
    rows, columns = model_input.frame_shape
    return {
        "source": presentation.source,
        "centre": presentation.centre,
        "width": presentation.width,
        "black": model_input.black,
        "white": model_input.white,
        "photometric_interpretation": instance.photometric_interpretation,
        "rows": rows,
        "columns": columns,
        "input_size": model_input.tensor.shape[-1],
    }


def from_record(preprocessing: dict[str, Any]) -> Presentation:
    """The presentation that a record was made with."""
    return Presentation(preprocessing["source"], preprocessing["centre"], preprocessing["width"])


def _body_part(instance: Instance, *, manifest: Manifest, route: str | None) -> str | None:
    """The body part in the manifest's own word, by the file's word or else by the router."""
    for known in manifest.routes:
        if instance.modality in known.modalities and (
            known.name == route if instance.body_part is None else instance.body_part.upper() in known.body_parts
        ):
            return known.body_parts[0]
    return None
