"""Pack a frame, or a heat map over one, for the canvas in `assets/viewport.js`: length, JSON, samples.

Grey frames are sent once as 16 bits and windowed in the browser, so that a slider answers within one display frame.
"""

import base64
import json
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.types import Frame
from dicom_io.voi import eight_bit_entries, eight_bits

MEDIA_TYPE = "application/octet-stream"
HIGHEST_STORED = 65535
HEAT_LONG_SIDE = 384  # finer than that shows nothing of a map of a few dozen patches a side


def pack_frame(frame: Frame) -> bytes:
    """A grey frame as uint16, `value = stored * slope + intercept` in modality units; colour as 8-bit RGB."""
    rows, columns = frame.pixels.shape[:2]
    header: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "spacing_mm": frame.spacing_mm,
        "windows": [asdict(window) for window in frame.windows],
        "voi_luts": [
            {
                "first_mapped": lut.first_mapped,
                "explanation": lut.explanation,
                "entries": base64.b64encode(eight_bit_entries(lut).tobytes()).decode("ascii"),
            }
            for lut in frame.voi_luts
        ],
    }
    if frame.pixels.ndim == 3:
        scale = {"kind": "rgb8", "slope": 1.0, "intercept": 0.0, "minimum": 0.0, "maximum": 255.0, "highest": 255}
        return _packed({**header, **scale}, eight_bits(frame))
    low, high = float(frame.pixels.min()), float(frame.pixels.max())
    slope = 1.0
    if high - low > HIGHEST_STORED or not np.array_equal(frame.pixels, np.rint(frame.pixels)):
        slope = (high - low) / HIGHEST_STORED or 1.0
    stored = np.rint((frame.pixels.astype(np.float64) - low) / slope).astype("<u2")
    scale = {"kind": "grey16", "slope": slope, "intercept": low, "minimum": low, "maximum": high}
    return _packed({**header, **scale, "highest": int(stored.max())}, stored)


def pack_heat(evidence: NDArray[np.float32]) -> bytes:
    """A map of contributions to a logit, with the value that takes the strongest colour."""
    rows, columns = evidence.shape
    scale = float(np.abs(evidence).max()) or 1.0
    return _packed({"rows": rows, "columns": columns, "scale": scale}, evidence.astype("<f4"))


def heat_shape(rows: int, columns: int) -> tuple[int, int]:
    """The size at which a heat map over a frame is sent: its shape, with the long side cut to `HEAT_LONG_SIDE`."""
    share = min(1.0, HEAT_LONG_SIDE / max(rows, columns))
    return max(1, round(rows * share)), max(1, round(columns * share))


def _packed(header: dict[str, Any], samples: NDArray[Any]) -> bytes:
    text = json.dumps(header, allow_nan=False).encode("ascii")
    text += b" " * (-len(text) % 4)  # typed arrays in the browser start at multiples of their size
    return len(text).to_bytes(4, "little") + text + samples.tobytes()
