"""An image unlike a task's training images gets a larger score than those; the reference is fitted on made numbers."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

from vision_model.data.mixture import MASKED
from vision_model.errors import SourceInvalid
from vision_model.net import TAP_SIZE, WIDTH
from vision_model.pretrain.reference import Reference, Unlikeness, fit_reference, parts_of

TASKS = ("one", "other")
PARTS = 2

Labelled = tuple[NDArray[np.float32], NDArray[np.int64]]


def labelled(*, seed: int, each: int) -> Labelled:
    """Images of two tasks: clouds of their own shape around centres of their own."""
    rng = np.random.default_rng(seed)
    shapes = np.random.default_rng(0).gamma(1, 0.3, (len(TASKS), PARTS, WIDTH))
    parts = np.concatenate([rng.normal(task, shapes[task], (each, PARTS, WIDTH)) for task in range(len(TASKS))])
    targets = np.full((len(parts), 1 + len(TASKS)), MASKED)
    for task in range(len(TASKS)):
        targets[task * each : (task + 1) * each, [0, 1 + task]] = task
    return parts.astype(np.float32), targets


def score(reference: Reference, parts: NDArray[np.floating]) -> NDArray[np.float32]:
    with torch.inference_mode():
        scored: NDArray[np.float32] = Unlikeness(reference)(torch.from_numpy(parts.astype(np.float32))).numpy()
    return scored


@pytest.fixture(scope="module")
def val() -> Labelled:
    return labelled(seed=2, each=60)


@pytest.fixture(scope="module")
def reference(val: Labelled) -> Reference:
    return fit_reference(labelled(seed=1, each=200), val, tasks=TASKS, components=24)


def test_the_median_image_of_val_scores_one_and_images_of_another_task_more(
    reference: Reference, val: Labelled
) -> None:
    scores = score(reference, val[0])
    for task in range(len(TASKS)):
        own = val[1][:, 1 + task] != MASKED
        assert np.median(scores[own, task]) == pytest.approx(1, abs=1e-3)
        assert scores[~own, task].min() > scores[own, task].max()


def test_noise_that_no_task_has_seen_is_told_from_every_task(reference: Reference, val: Labelled) -> None:
    noise = np.random.default_rng(3).normal(0.5, 3, (20, PARTS, WIDTH))
    own = score(reference, val[0])
    for task in range(len(TASKS)):
        assert np.median(score(reference, noise)[:, task]) > np.median(own[val[1][:, 1 + task] != MASKED, task])


def test_score_is_the_mean_log_ratio_of_two_mahalanobis_distances(val: Labelled) -> None:
    # With all directions but one kept, nothing is left out: the distances are those of the whole covariance.
    train = labelled(seed=1, each=200)
    exact = fit_reference(train, val, tasks=TASKS, components=WIDTH)
    own = train[1][:, 1] != MASKED

    def distance(of_row: NDArray[np.bool_], part: int) -> NDArray[np.float64]:
        fitted = LedoitWolf().fit(train[0][of_row, part])
        away = val[0][:, part] - fitted.location_
        squared: NDArray[np.float64] = (away @ np.linalg.inv(fitted.covariance_) * away).sum(axis=1)
        return squared

    everything = np.ones_like(own)
    logarithm = np.mean([np.log(distance(own, p) / distance(everything, p)) for p in range(PARTS)], axis=0)
    expected = np.exp(logarithm - np.median(logarithm[val[1][:, 1] != MASKED]))
    np.testing.assert_allclose(score(exact, val[0])[:, 0], expected, rtol=5e-3)


def test_few_images_and_flat_features_give_finite_scores() -> None:
    train, val = labelled(seed=1, each=4), labelled(seed=2, each=3)
    train[0][:, 1] = 0.25  # a part that is the same in all images has no variance
    scores = score(fit_reference(train, val, tasks=TASKS, components=24), np.concatenate([train[0], val[0]]))
    assert np.isfinite(scores).all()


def test_a_task_without_images_is_named(val: Labelled) -> None:
    empty = labelled(seed=1, each=10)
    empty[1][:, 2] = MASKED
    with pytest.raises(SourceInvalid, match="train belong to task other"):
        fit_reference(empty, val, tasks=TASKS, components=4)


def test_parts_are_the_means_and_the_deviations_of_the_tokens_tap_by_tap() -> None:
    tokens = np.random.default_rng(5).normal(size=(2, 9, 2 * TAP_SIZE)).astype(np.float32)
    parts = parts_of(torch.from_numpy(tokens)).numpy()
    assert parts.shape == (2, 4, WIDTH)
    np.testing.assert_allclose(parts[:, 1], tokens.mean(axis=1)[:, TAP_SIZE : TAP_SIZE + WIDTH], atol=1e-6)
    np.testing.assert_allclose(parts[:, 2], tokens.std(axis=1)[:, :WIDTH], atol=1e-6)


def test_the_class_token_beside_the_patches_is_not_looked_at() -> None:
    tokens = np.random.default_rng(5).normal(size=(1, 9, TAP_SIZE)).astype(np.float32)
    changed = tokens.copy()
    changed[..., WIDTH:] += 1
    plain, other = (parts_of(torch.from_numpy(t)).numpy() for t in (tokens, changed))
    np.testing.assert_array_equal(plain, other)


class Scored(nn.Module):
    """The part of the served graph that follows the tokens."""

    def __init__(self, reference: Reference) -> None:
        super().__init__()
        self.unlikeness = Unlikeness(reference)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.unlikeness(parts_of(tokens))
        return scores


def test_onnx_runtime_gives_torchs_scores_near_and_far(reference: Reference, tmp_path: Path) -> None:
    scored = Scored(reference).eval()
    tokens = torch.from_numpy(np.random.default_rng(6).normal(0.5, 0.5, (3, 4, TAP_SIZE)).astype(np.float32))
    program = torch.onnx.export(
        scored,
        (tokens,),
        dynamo=True,
        opset_version=18,
        input_names=["tokens"],
        output_names=["ood"],
        dynamic_shapes={"tokens": {0: torch.export.Dim("batch", min=1, max=1024)}},
        verbose=False,
    )
    assert program is not None
    program.save(tmp_path / "ood.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "ood.onnx", providers=["CPUExecutionProvider"])
    for images in (tokens, tokens[:1], tokens * 20, torch.zeros_like(tokens)):
        with torch.inference_mode():
            expected = scored(images).numpy()
        np.testing.assert_allclose(session.run(["ood"], {"tokens": images.numpy()})[0], expected, atol=1e-4, rtol=1e-5)
