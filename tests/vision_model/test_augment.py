"""Changed images stay images of the same thing, and a seed fixes them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from vision_model.data.augment import MIRRORED, TURNED, Augmentation, brightness, compressed, geometry, smoothed

SIZE = 42
SEEDS = range(40)


@pytest.fixture(scope="module")
def colour() -> NDArray[np.uint8]:
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    return np.stack([x * 6, y * 6, 255 - x * 3], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def grey(colour: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(colour[..., :1], 3, axis=2)


@pytest.mark.parametrize("modality", ["DX", "MR", "SM"])
def test_the_same_seed_gives_the_same_image_and_another_seed_another(
    colour: NDArray[np.uint8], grey: NDArray[np.uint8], modality: str
) -> None:
    for image in (colour, grey):
        one = [Augmentation()(image, modality=modality, seed=s) for s in SEEDS]
        augmentation = Augmentation()
        again = [augmentation(image, modality=modality, seed=s) for s in reversed(SEEDS)][::-1]
        for a, b in zip(one, again, strict=True):
            np.testing.assert_array_equal(a, b)
        assert len({a.tobytes() for a in one}) == len(SEEDS)


def test_images_keep_shape_type_and_range_and_grey_ones_stay_grey(
    colour: NDArray[np.uint8], grey: NDArray[np.uint8]
) -> None:
    for image in (colour, grey):
        for seed in SEEDS:
            changed = Augmentation()(image, modality="DMS", seed=seed)
            assert changed.shape == image.shape
            assert changed.dtype == np.float32
            assert changed.min() >= 0
            assert changed.max() <= 1
            if image is grey:
                np.testing.assert_array_equal(changed[..., 0], changed[..., 2])


def test_the_image_given_is_not_written_to(colour: NDArray[np.uint8]) -> None:
    before = colour.copy()
    for seed in SEEDS:
        Augmentation()(colour, modality="US", seed=seed)
    np.testing.assert_array_equal(colour, before)


def handedness(modality: str) -> set[int]:
    """Signs of the determinants: -1 is a mirrored image."""
    matrices = [geometry(np.random.default_rng(s), modality=modality, size=SIZE) for s in SEEDS]
    return {int(np.sign(np.linalg.det(m))) for m in matrices if m is not None}


def test_left_and_right_of_a_chest_film_are_never_exchanged() -> None:
    assert handedness("DX") == {1}
    for modality in MIRRORED | TURNED:
        assert handedness(modality) == {1, -1}


def test_only_tissue_under_a_lens_is_turned_upside_down() -> None:
    def lowest(modality: str) -> float:
        matrices = [geometry(np.random.default_rng(s), modality=modality, size=SIZE) for s in SEEDS]
        return min(float(m[1, 1]) for m in matrices if m is not None)

    assert all(lowest(modality) > 0.6 for modality in ("DX", *sorted(MIRRORED)))
    assert all(lowest(modality) < -0.6 for modality in TURNED)


def test_the_centre_stays_within_a_small_shift_and_the_size_within_its_bounds() -> None:
    centre = np.array([SIZE / 2, SIZE / 2, 1])
    for seed in SEEDS:
        matrix = geometry(np.random.default_rng(seed), modality="DX", size=SIZE)
        if matrix is not None:
            assert np.abs((matrix @ centre - centre)[:2]).max() <= 0.12 * SIZE
            assert 0.7**2 * 0.99 <= np.linalg.det(matrix) <= 1.12**2 * 1.01


def test_brightness_never_turns_black_into_white() -> None:
    for seed in SEEDS:
        table = brightness(np.random.default_rng(seed), grey=True)
        assert (np.diff(table) >= 0).all()
        assert table[0] <= 0.1
        assert table[-1] >= 0.7


def test_compression_and_smoothing_keep_a_flat_image_flat_and_blur_an_edge() -> None:
    for shape in ((SIZE, SIZE), (SIZE, SIZE, 3)):
        flat = np.full(shape, 0.4, np.float32)
        np.testing.assert_allclose(compressed(flat, quality=30), flat, atol=3 / 255)
        inner = smoothed(flat, sigma_px=[0.8, 0.8])[6:-6, 6:-6]
        np.testing.assert_allclose(inner, 0.4, atol=1e-3)
    edge = np.zeros((SIZE, SIZE), np.float32)
    edge[:, SIZE // 2 :] = 1
    across = smoothed(edge, sigma_px=[0.5, 1.2])[SIZE // 2]
    assert 0.2 < across[SIZE // 2] < 0.8
    assert np.abs(np.diff(across)).max() < 0.5
