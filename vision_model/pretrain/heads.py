"""Fit the final linear heads on embeddings."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from tqdm import tqdm

from vision_model.calibrate import temperature
from vision_model.data.example import Example
from vision_model.data.load import load_squares
from vision_model.data.mixture import MASKED
from vision_model.data.tasks import Curriculum
from vision_model.errors import SourceInvalid
from vision_model.manifest import InputSpec
from vision_model.net import EMBEDDING_SIZE, TAP_SIZE, TAPS, HilumNet
from vision_model.preprocess import normalise
from vision_model.pretrain.reference import parts_of
from vision_model.runtime import softmax

logger = logging.getLogger(__name__)

# Columns of the embedding that a head may read: one tap's, or all.
TAP_COLUMNS = {
    **{str(tap): slice(i * TAP_SIZE, (i + 1) * TAP_SIZE) for i, tap in enumerate(TAPS)},
    "all": slice(0, EMBEDDING_SIZE),
}


SMALLEST_DEVIATION = 0.01  # of features of about unit size; less would be rounding, and a head would magnify it


@dataclass(frozen=True)
class Heads:
    """Linear heads on the embedding, all tasks side by side in the curriculum's order."""

    weight: NDArray[np.float32]  # (C, D)
    bias: NDArray[np.float32]  # (C,)


@dataclass(frozen=True)
class Embedded:
    """What the encoder says of N images, in their order."""

    mean: NDArray[np.float32]  # (N, D), the embedding
    parts: NDArray[np.float32]  # (N, P, W), see `parts_of`: what tells an image that is unlike the others


def embed_examples(
    net: HilumNet, examples: Sequence[Example], *, spec: InputSpec, bf16: bool, batch: int = 32
) -> Embedded:
    """What the encoder says of the examples, in their order; in bf16, where it was trained so, thrice as fast."""
    squares = load_squares(examples, spec=spec)
    means, parts = [], []
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        for start in tqdm(range(0, len(examples), batch), desc="embed", unit="batch", mininterval=10):
            images = np.stack(
                [normalise(s.astype(np.float32) / np.float32(255), spec=spec) for s in squares[start : start + batch]]
            )
            tokens = net.unit_features(torch.from_numpy(images)).float()
            means.append(tokens.mean(dim=1).numpy())
            parts.append(parts_of(tokens).numpy())
    return Embedded(np.concatenate(means), np.concatenate(parts))


def fit_heads(
    train: tuple[NDArray[np.float32], NDArray[np.int64]],
    val: tuple[NDArray[np.float32], NDArray[np.int64]],
    *,
    curriculum: Curriculum,
    strengths: Sequence[float],
) -> Heads:
    """L2-regularised logistic regression for the route and each task; taps and strength are chosen on `val`.

    A head reads one tap, all of them, or is the mean of the heads of each tap: sources differ in which depth serves
    them. Chosen by log loss once a temperature is fitted, since one will be: how sure a head is can be mended, its
    order not. `train` and `val` are (embeddings, targets); a target of MASKED leaves an image out of that task.
    """
    centre, scale = train[0].mean(axis=0), np.maximum(train[0].std(axis=0), SMALLEST_DEVIATION)
    weights, biases = [], []
    names = ["route", *(t.name for t in curriculum.tasks)]
    classes = [len(curriculum.routes), *(len(t.labels) for t in curriculum.tasks)]
    for column, (name, count) in enumerate(zip(names, classes, strict=True)):
        x, y = _labelled(train, column)
        x_val, y_val = _labelled(val, column)
        standard, standard_val = (x - centre) / scale, (x_val - centre) / scale
        candidates: dict[str, tuple[float, NDArray[np.float64], NDArray[np.float64]]] = {}
        # What separates the routes is at every depth; nothing is to be chosen.
        for taps, columns in TAP_COLUMNS.items() if column else [("all", slice(None))]:
            fits = []
            for strength in strengths:
                fitted = LogisticRegression(C=strength, max_iter=1000).fit(standard[:, columns], y)
                coefficients = np.zeros((len(fitted.coef_), x.shape[1]))
                coefficients[:, columns] = fitted.coef_
                both = _two_rows(coefficients, fitted.intercept_)
                fits.append((_calibrated_loss(standard_val, y_val, *both), *both))
            candidates[taps] = min(fits, key=lambda f: f[0])
        if column:
            single = [candidates[str(tap)][1:] for tap in TAPS]
            mean = (np.mean([w for w, _ in single], axis=0), np.mean([b for _, b in single], axis=0))
            candidates["mean"] = (_calibrated_loss(standard_val, y_val, *mean), *mean)
        taps, (loss, coefficients, intercept) = min(candidates.items(), key=lambda c: c[1][0])
        logger.info("%s: taps %s, log loss %.4f on %s images of val", name, taps, loss, len(y_val))
        if len(intercept) != count:
            raise SourceInvalid(f"{name} has {count} labels and the train images show {len(intercept)} of them")
        weights.append(coefficients / scale)
        biases.append(intercept - weights[-1] @ centre)
    return Heads(np.concatenate(weights).astype(np.float32), np.concatenate(biases).astype(np.float32))


def _two_rows(
    coefficients: NDArray[np.float64], intercept: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A row for each class: scikit-learn has one for two; the softmax of ±z/2 is the sigmoid of z."""
    if len(intercept) > 1:
        return coefficients, intercept
    return np.concatenate([-coefficients, coefficients]) / 2, np.concatenate([-intercept, intercept]) / 2


def _calibrated_loss(
    x: NDArray[np.float64], y: NDArray[np.int64], weight: NDArray[np.float64], bias: NDArray[np.float64]
) -> float:
    logits = x @ weight.T + bias
    return float(log_loss(y, softmax(logits / temperature(logits, y)), labels=range(len(bias))))


def _labelled(
    data: tuple[NDArray[np.float32], NDArray[np.int64]], column: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    embeddings, targets = data
    labelled = targets[:, column] != MASKED
    return embeddings[labelled], targets[labelled, column]
