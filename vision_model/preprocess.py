"""Turn one image plane into the model's input: the only preprocessing there is, for training and serving alike."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_model.errors import ImageInvalid
from vision_model.manifest import InputSpec


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What the graph takes, and how it came from the frame."""

    tensor: NDArray[np.float32] = field(repr=False)  # (3, S, S)
    frame_shape: tuple[int, int]  # (rows, columns); the square input is the whole frame, stretched
    black: (
        float | None
    )  # the values shown as black and white; None for 8-bit and colour images, which are taken as they are
    white: float | None

    @property
    def sha256(self) -> str:
        """Digest of the tensor's bytes, for the audited record."""
        return hashlib.sha256(self.tensor.tobytes()).hexdigest()


def prepare(
    pixels: NDArray[np.generic],
    *,
    spec: InputSpec,
    window: tuple[float, float] | None = None,
) -> ModelInput:
    """Window, stretch to the square, and normalise one plane.

    `pixels` is (rows, columns) grey or (rows, columns, 3) RGB. 8-bit arrays and RGB arrays hold 0..255 and are taken as
    they are. Other grey arrays are in modality units: `window` (centre, width) says what is black and white, else the
    percentiles of `spec` do. The whole frame is kept: nothing is cropped, the aspect ratio is not.

    Raises ImageInvalid for an array that is no image.
    """
    unit, black, white = _unit_range(pixels, window=window, spec=spec)
    return ModelInput(
        tensor=normalise(square(unit, size=spec.size), spec=spec),
        frame_shape=(pixels.shape[0], pixels.shape[1]),
        black=black,
        white=white,
    )


def square(unit: NDArray[np.float32], *, size: int) -> NDArray[np.float32]:
    """(rows, columns, 1 or 3) in 0..1 -> (size, size, 3) in 0..1, resampled with an antialiased bilinear filter."""
    channels = [
        np.asarray(Image.fromarray(np.ascontiguousarray(unit[..., c])).resize((size, size), Image.Resampling.BILINEAR))
        for c in range(unit.shape[2])
    ]
    return np.stack(channels * (3 // len(channels)), axis=-1)


def normalise(unit_square: NDArray[np.float32], *, spec: InputSpec) -> NDArray[np.float32]:
    """(S, S, 3) in 0..1 -> (3, S, S) with the mean and deviation that the weights were made with."""
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    return np.ascontiguousarray(((unit_square - mean) / std).transpose(2, 0, 1))


def _unit_range(
    pixels: NDArray[np.generic], *, window: tuple[float, float] | None, spec: InputSpec
) -> tuple[NDArray[np.float32], float | None, float | None]:
    """(rows, columns, 1 or 3) in 0..1, and what was taken as black and white."""
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or min(pixels.shape[:2]) < 2:
        raise ImageInvalid(
            f"an image is (rows, columns) or (rows, columns, 3) with at least 2x2 pixels, not {pixels.shape}"
        )
    values = pixels.astype(np.float32)
    if not np.isfinite(values).all():
        raise ImageInvalid("the image holds values that are not finite; replace NaN and infinities before")
    if pixels.ndim == 3 or pixels.dtype == np.uint8:
        return (values / np.float32(255)).clip(0, 1).reshape(*pixels.shape[:2], -1), None, None
    if window is not None:
        # PS3.3 C.11.2.1.2.1: the half-unit offsets matter for narrow windows; at width 1 the window is a step.
        centre, width = window
        black, white = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    else:
        low, high = np.percentile(values, spec.percentiles)
        black, white = float(low), float(high)
    span = max(white - black, 1e-6)  # a flat image comes out black, not as a division by zero
    return ((values - np.float32(black)) / np.float32(span)).clip(0, 1)[..., None], black, white
