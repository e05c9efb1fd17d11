"""Whether the slices of a series make one regular volume, and if they do not, why."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import NotAVolume
from dicom_io.types import Evidence, Series

# Scanners write positions rounded to between 0.001 and 0.1 mm, and cosines to six digits or fewer.
SAME_PLACE_MM = 0.01
UNEVEN_MM = 0.15
UNEVEN_SHARE = 0.02  # of the distance between slices
SAME_DIRECTION = 1e-2  # largest difference of a direction cosine
SMALLEST_TILT_DEGREES = 0.5


@dataclass(frozen=True, slots=True)
class Slice:
    """One plane as the header places it in the patient (PS3.3 C.7.6.2.1); None where it does not."""

    position_mm: tuple[float, float, float] | None
    orientation: tuple[float, ...] | None  # six direction cosines
    rows: int | None
    columns: int | None


@dataclass(frozen=True, slots=True)
class Volume:
    """Slices of one size and direction at even distances, each straight above the one before."""

    slices: int
    spacing_mm: float  # between the centres of neighbouring slices, along the normal
    normal: tuple[float, float, float]


def slices_of(series: Series) -> list[Slice]:
    """The first plane of every instance of a series, in reading order: all its planes, unless one is multi-frame."""
    return [Slice(i.position_mm, i.orientation, i.rows, i.columns) for i in series.instances]


def slices_in(evidence: Evidence) -> list[Slice]:
    """Every plane of a multi-frame instance, in the order of its frames."""
    size = evidence.rows, evidence.columns
    return [Slice(p.position_mm, p.orientation, *size) if p else Slice(None, None, *size) for p in evidence.planes]


def volume(slices: Sequence[Slice]) -> Volume:
    """The regular volume that the slices make, in whatever order they come.

    Raises NotAVolume with the first reason found: too few, not placed, of several sizes or directions, two at one
    place, one missing, unevenly spaced, or a tilted gantry, whose slices are sheared against each other
    (PS3.3 C.8.2.1.1.2).
    """
    if len(slices) < 2:
        raise NotAVolume("there is only one slice")
    if unplaced := sum(s.position_mm is None or s.orientation is None for s in slices):
        raise NotAVolume(f"{unplaced} of {len(slices)} slices do not say where they lie in the patient")
    if len(sizes := {(s.rows, s.columns) for s in slices}) > 1:
        raise NotAVolume(f"the slices have {len(sizes)} different sizes")
    cosines = np.array([s.orientation for s in slices], dtype=np.float64)
    if (directions := _directions(cosines)) > 1:
        raise NotAVolume(f"the slices lie in {directions} different directions")
    normal = np.cross(cosines[0, :3], cosines[0, 3:])
    if not math.isclose(float(np.linalg.norm(normal)), 1.0, abs_tol=SAME_DIRECTION):
        raise NotAVolume("the direction of rows and that of columns are not at right angles")
    positions = np.array([s.position_mm for s in slices], dtype=np.float64)
    positions = positions[np.argsort(positions @ normal, kind="stable")]
    steps = np.diff(positions, axis=0)
    gaps = steps @ normal
    _check_gaps(gaps)
    sideways = positions[-1] - positions[0] - (gaps.sum() * normal)
    tilt = math.degrees(math.atan2(float(np.linalg.norm(sideways)), float(gaps.sum())))
    if tilt > SMALLEST_TILT_DEGREES:
        raise NotAVolume(f"the gantry was tilted: each slice is shifted against the one before, by {tilt:.1f} degrees")
    shifts = np.linalg.norm(steps - gaps[:, None] * normal, axis=1)
    if (worst := float(shifts.max())) > UNEVEN_MM:
        raise NotAVolume(f"slice {int(shifts.argmax()) + 2} is shifted sideways by {worst:.1f} mm")
    x, y, z = normal.tolist()
    return Volume(len(slices), float(gaps.mean()), (x, y, z))


def _directions(cosines: NDArray[np.float64]) -> int:
    """How many directions there are, one and another being the same when no cosine differs by more than rounding."""
    found: list[NDArray[np.float64]] = []
    for one in cosines:
        if not any(np.abs(one - other).max() <= SAME_DIRECTION for other in found):
            found.append(one)
    return len(found)


def _check_gaps(gaps: NDArray[np.float64]) -> None:
    """`gaps` are distances between neighbours in mm, in order along the normal."""
    if doubled := int((gaps < SAME_PLACE_MM).sum()):
        raise NotAVolume(f"{doubled} slices lie where another one lies already (phases, echoes, or sent twice)")
    usual = float(np.median(gaps))
    uneven = np.abs(gaps - usual) > max(UNEVEN_MM, UNEVEN_SHARE * usual)
    if not uneven.any():
        return
    missing = np.rint(gaps[uneven] / usual) - 1
    whole = np.abs(gaps[uneven] - (missing + 1) * usual) <= max(UNEVEN_MM, UNEVEN_SHARE * usual) * (missing + 1)
    if (whole & (missing >= 1)).all():
        after = ", ".join(str(i + 1) for i in np.flatnonzero(uneven)[:5])
        raise NotAVolume(f"{int(missing.sum())} slices are missing, after slice {after} of those that came")
    raise NotAVolume(f"the distance between slices varies from {gaps.min():.2f} to {gaps.max():.2f} mm")
