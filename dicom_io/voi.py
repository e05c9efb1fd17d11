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
    return np.asarray(lut.entries[_entry_numbers(values, lut)], dtype=np.float32)


def _entry_numbers(values: NDArray[np.float32], lut: VoiLut) -> NDArray[np.intp]:
    numbers: NDArray[np.intp] = np.clip(
        np.floor(values - np.float32(lut.first_mapped)), 0, len(lut.entries) - 1
    ).astype(np.intp)
    return numbers


def full_range(values: NDArray[np.float32]) -> Window:
    """The window from the smallest to the largest value, for an image that comes without one."""
    low, high = float(values.min()), float(values.max())
    return Window(
        centre=(low + high) / 2, width=max(high - low, 1e-6), function="LINEAR_EXACT", explanation="full range"
    )


def turned_window(one: Window, both_ends: float) -> Window:
    """The window that shows `both_ends - values` as the given one shows the values, black for white."""
    # LINEAR is centred half a unit below its centre (C.11.2.1.2.1), so its turned centre lies one unit higher.
    centre = both_ends - one.centre + (1.0 if one.function == "LINEAR" else 0.0)
    return Window(centre=centre, width=one.width, function=one.function, explanation=one.explanation)


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


def _window_levels(values: NDArray[np.float32], shown: Window) -> NDArray[np.float64]:
    """Grey levels 0..255 of values under a window, before they are cut to whole numbers."""
    x, centre, width = values.astype(np.float64), shown.centre, shown.width
    if shown.function == "SIGMOID":
        return np.asarray(255.0 / (1.0 + np.exp(np.clip((x - centre) * (-4.0 / width), -80.0, 80.0))))
    exact = shown.function == "LINEAR_EXACT"
    middle, span = (centre, width) if exact else (centre - 0.5, width - 1)
    low, high = middle - span / 2, middle + span / 2
    # C.11.2.1.2.1 as one line over the values, in dcmtk's order of operations: where a level comes to a whole number,
    # the last bit of a float64 decides what it is cut to.
    slope = 255.0 / span if span else 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        levels = 255.0 - (middle / span + 0.5 if span else 0.0) * 255.0 + x * slope
    return np.asarray(np.where(x <= low, 0.0, np.where(x > high, 255.0, levels)))


def eight_bits(frame: Frame, voi: Window | VoiLut | None = None) -> NDArray[np.uint8]:
    """The picture as a screen of 8 bits shows it: (rows, columns), or (rows, columns, 3) for colour.

    The standard leaves open how an output value becomes a whole number. Levels are cut as dcmtk cuts them, so that both
    show the same picture bit for bit; `assets/window.js` does the same in the browser.
    """
    if frame.pixels.ndim == 3:
        return np.clip(frame.pixels, 0.0, 255.0).astype(np.uint8)
    chosen = first_voi(frame) if voi is None else voi
    if isinstance(chosen, VoiLut):
        return eight_bit_entries(chosen)[_entry_numbers(frame.pixels, chosen)]
    return np.clip(_window_levels(frame.pixels, chosen), 0.0, 255.0).astype(np.uint8)


def eight_bit_entries(lut: VoiLut) -> NDArray[np.uint8]:
    """The entries of a VOI LUT as grey levels: the upper 8 bits of what the file holds."""
    levels: NDArray[np.uint8] = np.minimum(lut.entries * np.float32(256.0), 255.0).astype(np.uint8)
    return levels
