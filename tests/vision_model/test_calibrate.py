"""Temperatures, thresholds and prediction sets, against cases worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_model.calibrate import (
    conformal_quantile,
    expected_calibration_error,
    operating_point,
    perfect_calibration_error,
    temperature,
    with_mistakes,
)
from vision_model.runtime import softmax


def test_temperature_recovers_the_scale_that_labels_were_drawn_with() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 3)).astype(np.float32)
    labels = np.array([rng.choice(3, p=p) for p in softmax(logits / 2.5)])
    assert temperature(logits, labels) == pytest.approx(2.5, rel=0.05)


def test_a_few_images_that_are_told_apart_do_not_prove_certainty() -> None:
    logits = np.array([[4.0, -4.0], [-4.0, 4.0]] * 10)
    labels = np.array([0, 1] * 10)
    confidence = softmax(logits / temperature(logits, labels)).max()
    assert confidence == pytest.approx(21 / 22, abs=1e-3)


@pytest.mark.parametrize(("mistakes", "rounds"), [(0, 3), (4, 3), (5, 1), (50, 1)])
def test_changed_views_are_calibrated_on_where_hardly_an_image_is_told_wrongly(mistakes: int, rounds: int) -> None:
    labels = np.repeat([0, 1], 50)
    logits = np.eye(2)[np.where(np.arange(100) < mistakes, 1 - labels, labels)]
    views = np.concatenate([logits, np.full((200, 2), 0.5)])
    shown, shown_labels = with_mistakes(logits, views, labels)
    np.testing.assert_array_equal(shown, views[: 100 * rounds])
    np.testing.assert_array_equal(shown_labels, np.tile(labels, rounds))


def test_quantile_is_the_rank_that_the_theorem_names() -> None:
    # n = 9, alpha = .1: rank ceil(10 * .9) = 9, the largest score; n = 8 promises nothing.
    scores = np.linspace(0.1, 0.9, 9)
    probabilities = np.stack([1 - scores, scores], axis=1)
    labels = np.zeros(9, np.int64)
    assert conformal_quantile(probabilities, labels, alpha=0.1) == pytest.approx(0.9)
    assert conformal_quantile(probabilities[:8], labels[:8], alpha=0.1) == 1.0


def test_sets_cover_new_images_as_promised() -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet((1, 1, 1), 8000)
    labels = np.array([rng.choice(3, p=p) for p in probabilities])
    quantile = conformal_quantile(probabilities[:4000], labels[:4000], alpha=0.1)
    covered = 1 - probabilities[4000:][np.arange(4000), labels[4000:]] <= quantile
    assert covered.mean() == pytest.approx(0.9, abs=0.02)


def test_threshold_lies_in_the_middle_of_the_gap_that_parts_the_labels() -> None:
    point = operating_point(np.array([0.1, 0.2, 0.6, 0.9]), np.array([False, False, True, True]))
    assert point.threshold == pytest.approx(0.4)
    assert (point.sensitivity, point.specificity) == (1, 1)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=4).filter(lambda x: len({b for _, b in x}) == 2))
def test_threshold_gives_the_rates_it_states(scored: list[tuple[float, bool]]) -> None:
    probability, positive = np.array([p for p, _ in scored]), np.array([b for _, b in scored])
    point = operating_point(probability, positive)
    said = probability >= point.threshold
    assert said[positive].mean() == pytest.approx(point.sensitivity)
    assert (~said[~positive]).mean() == pytest.approx(point.specificity)


def test_calibration_error_of_a_confident_coin_is_the_gap() -> None:
    probabilities = np.tile([0.9, 0.1], (100, 1))
    labels = np.array([0, 1] * 50)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.4)


def test_true_probabilities_show_the_error_of_chance_and_no_other() -> None:
    rng = np.random.default_rng(7)
    probabilities = rng.dirichlet((1, 1), 60)
    errors = [
        expected_calibration_error(probabilities, (rng.random(60) >= probabilities[:, 0]).astype(np.int64))
        for _ in range(300)
    ]
    assert perfect_calibration_error(probabilities, rng=rng) == pytest.approx(np.mean(errors), abs=0.01)
    many = rng.dirichlet((1, 1), 100_000)
    assert perfect_calibration_error(many, rng=rng) < 0.01 < np.mean(errors)
