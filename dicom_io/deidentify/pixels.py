"""Tell when letters may stand in the pixels, so that a person looks before such an image leaves; blank what they mark.

Nothing here proves that an image is clean. It holds what is known to carry annotations, and what looks like lettering:
strokes of one brightness with hard edges, standing in a line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

# Devices that write into their pictures, and ways of making a picture of something already printed (PS3.15 E.3.1).
ANNOTATED_MODALITIES = frozenset({"US", "IVUS", "ES", "OT", "SC", "DOC", "RF", "XC", "GM"})
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

# Of lettering, in pixels, once the frame is made small enough for its letters to be about a dozen pixels high.
SCALES = (1, 2, 4)
WINDOW_ROWS, WINDOW_COLUMNS = 12, 32
STEP = 4  # between windows
EDGE = 0.25  # of the frame's range, between neighbours: letters have hard edges, anatomy rarely
EDGES_A_ROW = 6  # in one row of a window: three strokes
ROWS_WITH_EDGES = 4
EDGES_DOWN = 16  # in a window, from row to row: a comb of lines has none
BETWEEN = (0.2, 0.8)  # of a window's range: neither stroke nor what lies behind it
BETWEEN_MOST = 0.4  # share of the window


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Pixels to blank: the first row and column, and how many of each."""

    row: int
    column: int
    rows: int
    columns: int


def header_suspicions(dataset: Dataset) -> Iterator[str]:
    """Why what the header says of an image lets one expect letters in it."""
    if str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        yield "(0028,0301) BurnedInAnnotation is YES"
    if str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "NO":
        return
    modality = str(dataset.get("Modality") or "").strip().upper()
    if modality in ANNOTATED_MODALITIES:
        yield f"images of modality {modality} usually carry annotations"
    elif str(dataset.get("SOPClassUID") or "").startswith(SECONDARY_CAPTURE):
        yield "it is a secondary capture"
    words = {str(word).strip().upper() for word in dataset.get("ImageType") or ()}
    if words & {"SECONDARY", "SCREEN SAVE", "SCREENSAVE", "DERIVED_SCREEN"} and "DERIVED" in words:
        yield "(0008,0008) ImageType says that it was made from something else"


def lettering(pixels: NDArray[np.float32]) -> Rectangle | None:
    """The first region of a frame, (rows, columns) or (rows, columns, 3), that looks like a line of letters."""
    plane = pixels.mean(axis=2) if pixels.ndim == 3 else pixels
    low, high = float(plane.min()), float(plane.max())
    if high <= low:
        return None
    unit = ((plane - low) / (high - low)).astype(np.float32)
    for scale in SCALES:
        found = _first_line(_smaller(unit, scale))
        if found is not None:
            row, column = found
            return Rectangle(row * scale, column * scale, WINDOW_ROWS * scale, WINDOW_COLUMNS * scale)
    return None


def _first_line(unit: NDArray[np.float32]) -> tuple[int, int] | None:
    """Upper left corner of the first window that holds enough strokes."""
    if unit.shape[0] <= WINDOW_ROWS or unit.shape[1] <= WINDOW_COLUMNS:
        return None
    across = np.zeros(unit.shape, np.int32)
    across[:, 1:] = np.abs(np.diff(unit, axis=1)) > EDGE
    down = np.zeros(unit.shape, np.int32)
    down[1:] = np.abs(np.diff(unit, axis=0)) > EDGE
    in_row = _sums(across, 1, WINDOW_COLUMNS)[:, ::STEP] >= EDGES_A_ROW
    rows = _sums(in_row.astype(np.int32), WINDOW_ROWS, 1)[::STEP]
    hard = _sums(_sums(down, 1, WINDOW_COLUMNS)[:, ::STEP], WINDOW_ROWS, 1)[::STEP]
    found = (rows >= ROWS_WITH_EDGES) & (hard >= EDGES_DOWN)
    for row, column in (np.argwhere(found) * STEP).tolist():
        window = unit[row : row + WINDOW_ROWS, column : column + WINDOW_COLUMNS]
        level = (window - window.min()) / (window.max() - window.min())
        if ((level > BETWEEN[0]) & (level < BETWEEN[1])).mean() <= BETWEEN_MOST:
            return row, column
    return None


def _sums(counts: NDArray[np.int32], rows: int, columns: int) -> NDArray[np.int32]:
    """Sum over every window of this size, by differences of running sums."""
    running = np.pad(counts, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    sums: NDArray[np.int32] = (
        running[rows:, columns:] - running[:-rows, columns:] - running[rows:, :-columns] + running[:-rows, :-columns]
    )
    return sums


def _smaller(unit: NDArray[np.float32], scale: int) -> NDArray[np.float32]:
    """Mean of each square of `scale` by `scale`."""
    rows, columns = (side // scale for side in unit.shape)
    whole = unit[: rows * scale, : columns * scale].reshape(rows, scale, columns, scale)
    made: NDArray[np.float32] = whole.mean(axis=(1, 3))
    return made


def blank(stored: NDArray[np.generic], rectangles: Sequence[Rectangle]) -> NDArray[np.generic]:
    """(frames, rows, columns[, samples]) with the smallest value in every rectangle, on every frame."""
    blanked = stored.copy()
    for one in rectangles:
        blanked[:, one.row : one.row + one.rows, one.column : one.column + one.columns] = stored.min()
    return blanked


def without_unused_bits(
    stored: NDArray[np.unsignedinteger[Any]], *, bits_stored: int, high_bit: int, signed: bool
) -> NDArray[np.unsignedinteger[Any]]:
    """The same values with nothing in the bits that are no part of them.

    Older files keep overlays there (PS3.5 8.1.2, PS3.3 C.9.2 of 2004), and so letters that no viewer shows. Bits above
    a signed value repeat its sign, as many writers have it. Raises ValueError for bits that are not there.
    """
    allocated = stored.dtype.itemsize * 8
    lowest = high_bit + 1 - bits_stored
    if not 0 <= lowest <= high_bit < allocated:
        raise ValueError(f"{bits_stored} bits up to bit {high_bit} do not lie in {allocated}")
    kept = ((1 << bits_stored) - 1) << lowest
    cleaned = stored & stored.dtype.type(kept)
    if signed:
        above = (1 << allocated) - (1 << (high_bit + 1))
        cleaned |= np.where(stored & stored.dtype.type(1 << high_bit), stored.dtype.type(above), stored.dtype.type(0))
    return cleaned.astype(stored.dtype, copy=False)  # of its own byte order
