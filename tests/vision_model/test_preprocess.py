"""prepare() gives the same tensor for the same picture, however it was stored."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vision_model.manifest import InputSpec
from vision_model.preprocess import normalise, prepare, square

SPEC = InputSpec(
    size=28,
    patch=14,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    windows=(),
    percentiles=(0.5, 99.5),
)


def test_mean_grey_becomes_zero() -> None:
    unit = np.broadcast_to(np.array(SPEC.mean, np.float32), (28, 28, 3))
    np.testing.assert_allclose(normalise(unit, spec=SPEC), 0, atol=1e-6)


def test_window_sets_black_and_white_at_the_standards_half_units() -> None:
    # PS3.3 C.11.2.1.2.1, its own example: centre 2048, width 4096 maps 0 to black and 4095 to white.
    pixels = np.tile(np.array([0, 4095], np.float32), (8, 4))
    model_input = prepare(pixels, spec=SPEC, window=(2048, 4096))
    assert (model_input.black, model_input.white) == (0, 4095)


def test_eight_bit_picture_equals_its_windowed_twin() -> None:
    rng = np.random.default_rng(1)
    grey = rng.integers(0, 256, (50, 40), dtype=np.uint8)
    hounsfield = grey.astype(np.float32) * 4 - 1000
    twin = prepare(hounsfield, spec=SPEC, window=(-1000 + 510 + 0.5, 1021))
    np.testing.assert_allclose(twin.tensor, prepare(grey, spec=SPEC).tensor, atol=1e-5)


def test_turned_twins_agree_without_a_window() -> None:
    rng = np.random.default_rng(2)
    film = rng.normal(100, 30, (60, 60)).astype(np.float32)
    shifted = prepare(film + 1000, spec=SPEC)
    np.testing.assert_allclose(shifted.tensor, prepare(film, spec=SPEC).tensor, atol=1e-3)


def test_grey_is_the_same_in_all_channels_before_normalising() -> None:
    unit = np.random.default_rng(4).random((30, 44, 1), dtype=np.float32)
    out = square(unit, size=28)
    assert np.array_equal(out[..., 0], out[..., 1])
    assert np.array_equal(out[..., 1], out[..., 2])


def test_the_whole_frame_is_kept() -> None:
    pixels = np.zeros((20, 80), np.uint8)
    pixels[:, -4:] = 255
    model_input = prepare(pixels, spec=SPEC)
    assert model_input.frame_shape == (20, 80)
    assert model_input.tensor[0, :, -1].min() > model_input.tensor[0, :, 0].max()


def test_golden_tensor_has_not_changed() -> None:
    ramp = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)
    tensor = prepare(ramp, spec=SPEC).tensor
    quantised = np.rint(tensor * 1000).astype(np.int32)
    assert quantised[0, 0, :4].tolist() == GOLDEN_CORNER
    assert hashlib.sha256(quantised.tobytes()).hexdigest() == GOLDEN_DIGEST


def test_flat_film_is_black_not_a_division_by_zero() -> None:
    flat = prepare(np.full((16, 16), 7.0, np.float32), spec=SPEC)
    assert np.isfinite(flat.tensor).all()


@given(st.integers(2, 60), st.integers(2, 60), st.floats(-2000, 2000), st.floats(1, 5000))
def test_any_window_gives_finite_values_in_range(rows: int, columns: int, centre: float, width: float) -> None:
    pixels = np.linspace(-3000, 3000, rows * columns, dtype=np.float32).reshape(rows, columns)
    tensor = prepare(pixels, spec=SPEC, window=(centre, width)).tensor
    assert np.isfinite(tensor).all()
    assert tensor.min() >= -2.2
    assert tensor.max() <= 2.7


GOLDEN_CORNER = [-2095, -2068, -2038, -2009]
GOLDEN_DIGEST = "dc9638edce9f07329a607d88aead22e28e4e44b98445ddd35b2035ff7f5f7ada"
