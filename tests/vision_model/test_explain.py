"""What covering parts of an image says of a heat map."""

import numpy as np
import pytest
from scipy.stats import spearmanr

import vision_model
from tests.vision_model.tiny import PATCH, SIZE, tiny_model
from vision_model.errors import UnknownLabel
from vision_model.explain import contrast_map, covered_mean, occlusion_map, rank_correlation, verify_explanation
from vision_model.preprocess import ModelInput, prepare
from vision_model.runtime import Model

TASK, LABEL = "brain-mri-tumor", "glioma"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return vision_model.load(tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def model_input(model: Model) -> ModelInput:
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    for i, colour in enumerate([(250, 10, 40), (30, 200, 60), (90, 90, 240), (140, 30, 20)]):
        pixels[i // 2 * PATCH :, i % 2 * PATCH :] = colour
    return prepare(pixels, spec=model.manifest.input)


def test_covering_one_patch_takes_its_share_less_that_of_the_mean_colour(model: Model, model_input: ModelInput) -> None:
    # The tiny model is linear in each patch by itself, so the drop is known: its contrast less that of the mean colour.
    (prediction,) = model.predict_inputs([model_input])
    relevance = contrast_map(prediction, manifest=model.manifest, task=TASK, label=LABEL)
    drops = occlusion_map(model, model_input, task=TASK, label=LABEL, cover=1)
    np.testing.assert_allclose(drops, relevance - relevance.mean(), atol=1e-5)


def test_map_of_a_model_without_attention_is_verified(model: Model, model_input: ModelInput) -> None:
    found = verify_explanation(model, model_input, task=TASK, label=LABEL, cover=1)
    assert found.rank_correlation == pytest.approx(1)
    assert found.drop_at_strongest == pytest.approx(found.drops.max())
    assert found.weaker_elsewhere == 1


def test_a_cover_of_the_whole_image_tells_no_place_from_another(model: Model, model_input: ModelInput) -> None:
    found = verify_explanation(model, model_input, task=TASK, label=LABEL)
    assert (found.rank_correlation, found.weaker_elsewhere) == (0, 0)


def test_progress_is_told_until_all_is_done(model: Model, model_input: ModelInput) -> None:
    heard: list[tuple[int, int]] = []
    occlusion_map(model, model_input, task=TASK, label=LABEL, cover=1, batch=3, heard=lambda *done: heard.append(done))
    assert heard == [(3, 4), (4, 4)]


def test_a_label_that_is_not_there_and_a_cover_that_leaves_gaps_are_refused(
    model: Model, model_input: ModelInput
) -> None:
    with pytest.raises(UnknownLabel, match="glioma"):
        occlusion_map(model, model_input, task=TASK, label="flu")
    with pytest.raises(ValueError, match="1 to 1"):
        occlusion_map(model, model_input, task=TASK, label=LABEL, cover=1, stride=2)


def test_the_moving_mean_leaves_a_flat_map_flat_and_spreads_a_point_over_the_squares_that_hold_it() -> None:
    np.testing.assert_allclose(covered_mean(np.full((7, 7), 3, np.float32), cover=3, stride=2), 3)
    point = np.zeros((5, 5), np.float32)
    point[2, 2] = 9
    spread = covered_mean(point)
    assert spread[2, 2] == spread.max() == 1
    assert spread[0, 0] == 1  # the one square over the corner holds the point too


def test_rank_correlation_is_spearmans_with_ties() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 5, (6, 6)).astype(float), rng.integers(0, 5, (6, 6)).astype(float)
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one.ravel(), other.ravel()).statistic)
    assert rank_correlation(one, np.zeros((6, 6))) == 0
