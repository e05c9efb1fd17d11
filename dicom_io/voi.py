"""Turn modality units into display values: VOI windows and VOI LUTs (PS3.3 C.11.2.1)."""

import numpy as np
from numpy.typing import NDArray

from dicom_io.types import Frame, VoiFunction, VoiLut, Window


def window(
    values: NDArray[np.float32], centre: float, width: float, function: VoiFunction = "LINEAR"
) -> NDArray[np.float32]:
    """Map values of any shape to 0..1 by one window; larger stays brighter.

    Raises ValueError for a width that the function does not allow (PS3.3 C.11.2.1.2: LINEAR at least 1, else over 0).
    """
    if not (width >= 1 if function == "LINEAR" else width > 0):
        raise ValueError(f"window width {width} is not allowed for {function}")
    x = np.asarray(values, dtype=np.float32)
    if function == "SIGMOID":
        # The exponent is held where float32 still tells 0 and 1 apart, so that nothing overflows.
        exponent = np.clip((x - np.float32(centre)) * np.float32(-4.0 / width), -80.0, 80.0)
        return np.asarray(1.0 / (1.0 + np.exp(exponent)), dtype=np.float32)
    if function == "LINEAR_EXACT":
        low, span = centre - width / 2, width
    else:
        # C.11.2.1.2.1: the half-unit offsets matter; at width 1 the window is a step.
        low, span = centre - 0.5 - (width - 1) / 2, width - 1
    if span == 0:
        return np.asarray(x > np.float32(low), dtype=np.float32)
    # A span near zero may overflow to infinity, which clips to the right end.
    with np.errstate(over="ignore"):
        return np.asarray(np.clip((x - np.float32(low)) / np.float32(span), 0.0, 1.0), dtype=np.float32)


def apply_lut(values: NDArray[np.float32], lut: VoiLut) -> NDArray[np.float32]:
    """Map values of any shape to 0..1 by a VOI LUT; values between two entries take the lower one's."""
    index = np.clip(np.floor(values - np.float32(lut.first_mapped)), 0, len(lut.entries) - 1).astype(np.intp)
    return np.asarray(lut.entries[index], dtype=np.float32)


def full_range(values: NDArray[np.float32]) -> Window:
    """The window from the smallest to the largest value, for an image that comes without one."""
    low, high = float(values.min()), float(values.max())
    return Window(
        centre=(low + high) / 2, width=max(high - low, 1e-6), function="LINEAR_EXACT", explanation="full range"
    )


def first_voi(frame: Frame) -> Window | VoiLut:
    """What the file wants to be shown with: its first window, else its first VOI LUT, else the full range."""
    if frame.windows:
        return frame.windows[0]
    if frame.voi_luts:
        return frame.voi_luts[0]
    return full_range(frame.pixels)


def apply_voi(frame: Frame, voi: Window | VoiLut | None = None) -> NDArray[np.float32]:
    """Display values 0..1 of a frame: (rows, columns), or (rows, columns, 3) for colour, which takes no window."""
    if frame.pixels.ndim == 3:
        return np.asarray(frame.pixels / np.float32(255.0), dtype=np.float32)
    chosen = first_voi(frame) if voi is None else voi
    if isinstance(chosen, VoiLut):
        return apply_lut(frame.pixels, chosen)
    return window(frame.pixels, chosen.centre, chosen.width, chosen.function)
