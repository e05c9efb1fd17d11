"""Fit the final linear heads and the out-of-distribution reference on embeddings."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from tqdm import tqdm

from vision_model.calibrate import temperature
from vision_model.data.mixture import MASKED
from vision_model.data.sources import Example, load_squares
from vision_model.data.tasks import Curriculum
from vision_model.manifest import InputSpec
from vision_model.net import HilumNet
from vision_model.preprocess import normalise
from vision_model.runtime import softmax

logger = logging.getLogger(__name__)

# Of features of about unit size; below it a distance would measure the rounding of fp32.
VARIANCE_FLOOR = 1e-4


@dataclass(frozen=True)
class Heads:
    """Linear heads on the embedding, all tasks side by side in the curriculum's order."""

    weight: NDArray[np.float32]  # (C, D)
    bias: NDArray[np.float32]  # (C,)


@dataclass(frozen=True)
class Reference:
    """A Gaussian of each task's training embeddings, kept as a mean, leading directions and what is left.

    The squared Mahalanobis distance under a Ledoit-Wolf covariance (Ledoit & Wolf 2004) is
    `inverse_rest · |x - mean|² - sum((directions · (x - mean))² · gains)`: shrinkage makes all small eigenvalues nearly
    one value, so the leading directions are enough.
    """

    mean: NDArray[np.float32]  # (G, D)
    directions: NDArray[np.float32]  # (G, K, D)
    gains: NDArray[np.float32]  # (G, K)
    inverse_rest: NDArray[np.float32]  # (G,)


def embed_examples(
    net: HilumNet, examples: Sequence[Example], *, spec: InputSpec, batch: int = 32
) -> NDArray[np.float32]:
    """(N, D) mean patch tokens of the examples, in their order."""
    squares = load_squares(examples, spec=spec)
    parts = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(examples), batch), desc="embed", unit="batch", mininterval=10):
            images = np.stack(
                [normalise(s.astype(np.float32) / np.float32(255), spec=spec) for s in squares[start : start + batch]]
            )
            parts.append(net.unit_features(torch.from_numpy(images)).mean(dim=1).numpy())
    return np.concatenate(parts)


def fit_heads(
    train: tuple[NDArray[np.float32], NDArray[np.int64]],
    val: tuple[NDArray[np.float32], NDArray[np.int64]],
    *,
    curriculum: Curriculum,
    strengths: Sequence[float],
) -> Heads:
    """L2-regularised logistic regression for the route and each task, its strength chosen on `val`.

    Chosen by log loss once a temperature is fitted, since one will be: how sure a head is can be mended, its order not.
    `train` and `val` are (embeddings, targets); a target of MASKED leaves an image out of that task.
    """
    centre, scale = train[0].mean(axis=0), train[0].std(axis=0) + 1e-6
    weights, biases = [], []
    names = ["route", *(t.name for t in curriculum.tasks)]
    classes = [len(curriculum.routes), *(len(t.labels) for t in curriculum.tasks)]
    for column, (name, count) in enumerate(zip(names, classes, strict=True)):
        x, y = _labelled(train, column)
        x_val, y_val = _labelled(val, column)
        candidates = []
        for strength in strengths:
            fitted = LogisticRegression(C=strength, max_iter=1000).fit((x - centre) / scale, y)
            log_probabilities = fitted.predict_log_proba((x_val - centre) / scale)
            calibrated = softmax(log_probabilities / temperature(log_probabilities, y_val))
            candidates.append((log_loss(y_val, calibrated, labels=fitted.classes_), strength, fitted))
        loss, strength, best = min(candidates, key=lambda c: (c[0], c[1]))
        logger.info("%s: C %s, log loss %.4f on %s images of val", name, strength, loss, len(y_val))
        coefficients, intercept = best.coef_, best.intercept_
        if count == 2:  # one row stands for two opposite ones; the softmax of ±z/2 is the sigmoid of z
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            intercept = np.concatenate([-intercept, intercept]) / 2
        weights.append(coefficients / scale)
        biases.append(intercept - weights[-1] @ centre)
    return Heads(np.concatenate(weights).astype(np.float32), np.concatenate(biases).astype(np.float32))


def fit_reference(
    train: tuple[NDArray[np.float32], NDArray[np.int64]], *, curriculum: Curriculum, components: int
) -> Reference:
    """The Gaussian of each task's own training images."""
    means, directions, gains, rests = [], [], [], []
    for column in range(1, 1 + len(curriculum.tasks)):
        x, _ = _labelled(train, column)
        covariance = LedoitWolf().fit(x)
        values, vectors = np.linalg.eigh(covariance.covariance_)
        values = np.maximum(values, VARIANCE_FLOOR)
        rest = values[:-components].mean()
        means.append(x.mean(axis=0))
        directions.append(vectors[:, -components:].T)
        gains.append(1 / rest - 1 / values[-components:])
        rests.append(1 / rest)
    return Reference(*(np.array(part, dtype=np.float32) for part in (means, directions, gains, rests)))


def _labelled(
    data: tuple[NDArray[np.float32], NDArray[np.int64]], column: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    embeddings, targets = data
    labelled = targets[:, column] != MASKED
    return embeddings[labelled], targets[labelled, column]
