"""VOI windows against the formulas of PS3.3 C.11.2.1.2, worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import floats, lists, sampled_from

from dicom_io.types import Frame, InstanceRef, VoiFunction, VoiLut, Window
from dicom_io.voi import apply_lut, apply_voi, eight_bits, first_voi, full_range, window

FUNCTIONS: tuple[VoiFunction, ...] = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
values_strategy = lists(floats(-2000, 4000, width=32), min_size=2, max_size=50)


def frame(pixels: np.ndarray, *, windows: tuple[Window, ...] = (), luts: tuple[VoiLut, ...] = ()) -> Frame:
    return Frame(
        ref=InstanceRef("1", "2", "3", "4"),
        number=1,
        pixels=np.asarray(pixels, dtype=np.float32),
        spacing_mm=None,
        windows=windows,
        voi_luts=luts,
        decoder="none",
    )


@given(centre=floats(-1000, 1000), width=floats(1, 4000), values=values_strategy, function=sampled_from(FUNCTIONS))
def test_window_keeps_the_order_of_pixels(
    centre: float, width: float, values: list[float], function: VoiFunction
) -> None:
    ordered = np.sort(np.array(values, dtype=np.float32))
    assert np.all(np.diff(window(ordered, centre, width, function)) >= 0)


@given(centre=floats(-1000, 1000), width=floats(1, 4000), values=values_strategy, function=sampled_from(FUNCTIONS))
def test_window_stays_between_zero_and_one(
    centre: float, width: float, values: list[float], function: VoiFunction
) -> None:
    shown = window(np.array(values, dtype=np.float32), centre, width, function)
    assert shown.dtype == np.float32
    assert np.all((shown >= 0) & (shown <= 1))


@given(centre=floats(-500, 500), width=floats(2, 2000), function=sampled_from(FUNCTIONS), value=floats(-3000, 3000))
def test_turning_pixels_and_centre_turns_the_picture(
    centre: float, width: float, function: VoiFunction, value: float
) -> None:
    both_ends = 0.0
    turned_centre = both_ends - centre + (1.0 if function == "LINEAR" else 0.0)
    straight = window(np.array([value], dtype=np.float32), centre, width, function)
    turned = window(np.array([both_ends - value], dtype=np.float32), turned_centre, width, function)
    assert turned[0] == pytest.approx(1 - straight[0], abs=2e-3)


def test_linear_window_of_the_standards_example() -> None:
    # C.11.2.1.2.1: centre 2048, width 4096 maps 0 to the minimum and 4095 to the maximum.
    shown = window(np.array([-1, 0, 1, 2047.5, 4094, 4095, 4096], dtype=np.float32), 2048, 4096)
    assert shown.tolist() == pytest.approx([0, 0, 1 / 4095, 0.5, 4094 / 4095, 1, 1])


def test_linear_window_of_width_one_is_a_step_half_a_unit_below_the_centre() -> None:
    shown = window(np.array([99, 99.5, 99.6, 100], dtype=np.float32), 100, 1)
    assert shown.tolist() == [0, 0, 1, 1]


def test_exact_window_reaches_its_ends_at_half_its_width() -> None:
    shown = window(np.array([-1, 0, 25, 50, 75, 100, 101], dtype=np.float32), 50, 100, "LINEAR_EXACT")
    assert shown.tolist() == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1])


def test_sigmoid_is_half_at_its_centre_and_follows_the_formula() -> None:
    shown = window(np.array([50, 75], dtype=np.float32), 50, 100, "SIGMOID")
    assert shown.tolist() == pytest.approx([0.5, 1 / (1 + np.exp(-1))])


@pytest.mark.parametrize(("width", "function"), [(0.5, "LINEAR"), (0, "LINEAR_EXACT"), (-1, "SIGMOID")])
def test_widths_that_the_standard_forbids_are_refused(width: float, function: VoiFunction) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        window(np.zeros(1, dtype=np.float32), 0, width, function)


def test_lut_gives_its_end_entries_beyond_its_ends() -> None:
    lut = VoiLut(first_mapped=10, entries=np.array([0.1, 0.5, 0.9], dtype=np.float32))
    shown = apply_lut(np.array([0, 10, 11, 12, 99], dtype=np.float32), lut)
    assert shown.tolist() == pytest.approx([0.1, 0.1, 0.5, 0.9, 0.9])


def test_the_files_first_window_is_shown_before_its_luts() -> None:
    first, lut = Window(1, 2), VoiLut(0, np.array([0, 1], dtype=np.float32))
    pixels = np.array([[0, 1], [2, 3]])
    assert first_voi(frame(pixels, windows=(first, Window(3, 4)), luts=(lut,))) is first
    assert first_voi(frame(pixels, luts=(lut,))) is lut


def test_without_window_and_lut_the_whole_range_is_shown() -> None:
    shown = apply_voi(frame(np.array([[-5, 0], [5, 15]])))
    assert shown.ravel().tolist() == pytest.approx([0, 0.25, 0.5, 1])


def test_a_constant_image_has_a_window_too() -> None:
    chosen = full_range(np.full((2, 2), 7, dtype=np.float32))
    assert chosen.width > 0


def test_colour_takes_no_window() -> None:
    shown = apply_voi(frame(np.full((1, 1, 3), 51.0), windows=(Window(0, 1),)))
    assert shown.ravel().tolist() == pytest.approx([0.2, 0.2, 0.2])


def test_levels_are_cut_to_whole_numbers() -> None:
    """y = ((x - (c - 0.5)) / (w - 1) + 0.5) * 255 with c = 2 and w = 4: 0, 85, 170 and 255, and halves between."""
    shown = eight_bits(frame(np.array([[-9, 0, 0.75, 1, 2, 2.99, 3, 9]])), Window(2, 4))
    assert shown.dtype == np.uint8
    assert shown.tolist() == [[0, 0, 63, 85, 170, 254, 255, 255]]


def test_levels_of_a_lut_are_the_upper_bits_of_its_entries() -> None:
    entries = np.array([0, 0x00FF, 0x0100, 0x7FFF, 0x8000, 0xFEFF, 0xFF00, 0xFFFF])
    lut = VoiLut(first_mapped=-2, entries=(entries / 0xFFFF).astype(np.float32))
    shown = eight_bits(frame(np.arange(-3, 7)[None, :]), lut)
    assert shown.tolist() == [[0, 0, 0, 1, 0x7F, 0x80, 0xFE, 0xFF, 0xFF, 0xFF]]


@given(centre=floats(-1000, 1000), width=floats(2, 4000), values=values_strategy, function=sampled_from(FUNCTIONS))
def test_levels_are_those_of_the_display_values(
    centre: float, width: float, values: list[float], function: VoiFunction
) -> None:
    shown = frame(np.array([values]), windows=(Window(centre, width, function),))
    levels = 255 * apply_voi(shown).astype(np.float64)
    # The display values are float32: a span of 1 and values of thousands cost a tenth of a level.
    assert (levels - eight_bits(shown)).min() > -0.2
    assert (levels - eight_bits(shown)).max() < 1.2
