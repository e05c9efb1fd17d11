"""Damage is of the strength that ImageNet-C states, the same for every encoder, and grey stays grey."""

import numpy as np
import pytest

from vision_model.data.mixture import MASKED
from vision_model.evaluation import corruptions
from vision_model.evaluation.corruptions import CORRUPTIONS, corruption_loss, spread_sample
from vision_model.evaluation.encoders import Image8
from vision_model.evaluation.probes import Labelled, fit_probe
from vision_model.pretrain.heads import WHOLE


@pytest.fixture
def grey() -> Image8:
    rows = np.linspace(60, 180, 96)[:, None, None]
    stripes = 20 * np.sin(np.arange(80) / 2)[None, :, None]
    return np.repeat(rows + stripes, 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_damage_repeats_keeps_the_shape_and_changes_the_image(name: str, grey: Image8) -> None:
    damaged = CORRUPTIONS[name](grey, np.random.default_rng(3))
    assert damaged.shape == grey.shape
    assert damaged.dtype == np.uint8
    assert not np.array_equal(damaged, grey)
    np.testing.assert_array_equal(damaged, CORRUPTIONS[name](grey, np.random.default_rng(3)))


@pytest.mark.parametrize("name", [n for n in CORRUPTIONS if n != "JPEG"])
def test_a_grey_image_stays_grey(name: str, grey: Image8) -> None:
    damaged = CORRUPTIONS[name](grey, np.random.default_rng(3))
    assert (damaged == damaged[..., :1]).all()


def test_strengths_are_those_of_severity_three() -> None:
    rng = np.random.default_rng(0)
    flat = np.full((200, 200, 3), 128, np.uint8)
    assert corruptions.gaussian_noise(flat, rng)[..., 0].std() / 255 == pytest.approx(0.18, abs=0.01)
    struck = corruptions.impulse_noise(flat, rng)[..., 0]
    assert (struck != 128).mean() == pytest.approx(0.09, abs=0.01)
    assert set(np.unique(struck)) == {0, 128, 255}
    assert corruptions.brightness(flat, rng).mean() == pytest.approx(128 + 0.3 * 255, abs=1)
    halves = flat.copy()
    halves[:100] = 28
    low = corruptions.low_contrast(halves, rng).astype(float)
    assert low.mean() == pytest.approx(78, abs=1)
    assert np.ptp(low) == pytest.approx(20, abs=1)


def test_blurs_spread_a_point_and_keep_its_light() -> None:
    point = np.zeros((101, 101, 3), np.uint8)
    point[45:56, 45:56] = 255
    for blur in (corruptions.gaussian_blur, corruptions.motion_blur):
        damaged = blur(point, np.random.default_rng(1))
        assert damaged.max() < 255
        assert damaged.sum() == pytest.approx(point.sum(), rel=0.03)


def test_pixels_become_blocks_of_the_thumbnail() -> None:
    rng = np.random.default_rng(2)
    noise = np.repeat(rng.integers(0, 255, (100, 100, 1), dtype=np.uint8), 3, axis=2)
    blocks = corruptions.pixelate(noise, rng)
    assert len(np.unique(blocks.reshape(-1, 3), axis=0)) <= 40 * 40


def test_a_sample_lets_labels_take_turns() -> None:
    labels = np.array([0] * 50 + [1] * 3 + [MASKED] * 9)
    chosen = spread_sample(labels, most=10, rng=np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [7, 3]
    assert (np.diff(chosen) > 0).all()


def test_loss_is_the_area_that_damage_costs() -> None:
    rng = np.random.default_rng(4)
    y = np.arange(100) % 2
    x = rng.normal(size=(100, 2)).astype(np.float32)
    x[:, 0] += 6 * y
    data = Labelled(x, y, np.arange(100).astype(str))
    probe = fit_probe(data, data, parts=WHOLE, labels=2)
    found = corruption_loss(probe, y, x, damaged={"none": x, "total": np.zeros_like(x)})
    assert found["losses"]["none"] == 0
    assert found["losses"]["total"] == pytest.approx(found["clean_auroc"] - 0.5)
    assert found["mean_loss"] == pytest.approx((found["clean_auroc"] - 0.5) / 2)
