"""Fit the final linear heads on embeddings."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from vision_model.data.example import Example
from vision_model.data.load import load_squares
from vision_model.data.mixture import MASKED
from vision_model.data.tasks import Curriculum
from vision_model.errors import SourceInvalid
from vision_model.manifest import InputSpec
from vision_model.net import EMBEDDING_SIZE, TRAINED_SIZE, HilumNet, ReadOut
from vision_model.preprocess import normalise
from vision_model.pretrain.place import in_bf16
from vision_model.pretrain.reference import parts_of

WHOLE = (slice(None),)
# What one half reads, training has moved; what the other reads, it has not.
HALVES = (slice(0, TRAINED_SIZE), slice(TRAINED_SIZE, EMBEDDING_SIZE))
FOLDS = 3  # of `val`
SMALLEST_DEVIATION = 0.01  # of features of about unit size; less would be rounding, and a head would magnify it


@dataclass(frozen=True)
class Heads:
    """Linear heads on the embedding, all tasks side by side in the curriculum's order."""

    weight: NDArray[np.float32]  # (C, D)
    bias: NDArray[np.float32]  # (C,)

    def logits(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, D) -> (N, C)."""
        found: NDArray[np.float32] = embedding @ self.weight.T + self.bias
        return found


@dataclass(frozen=True)
class CrossFitted:
    """Heads that learnt from `train` and `val`, and what they may be calibrated with."""

    heads: Heads
    without: tuple[Heads, ...]  # each has seen `train`, and `val` but for the groups of one fold
    fold: NDArray[np.int64]  # (N,) of the images of `val`

    def held_out(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """(R·N, D) of R rounds of the images of `val` -> (R·N, C) logits of heads that have not seen their group."""
        fold = np.tile(self.fold, len(embedding) // len(self.fold))
        logits = np.empty((len(embedding), len(self.heads.bias)), np.float32)
        for number, heads in enumerate(self.without):
            logits[fold == number] = heads.logits(embedding[fold == number])
        return logits


@dataclass(frozen=True)
class Embedded:
    """What the encoder says of N images, in their order."""

    mean: NDArray[np.float32]  # (N, D), the embedding
    parts: NDArray[np.float32]  # (N, P, W), see `parts_of`: what tells an image that is unlike the others


def embed_examples(
    net: HilumNet | ReadOut,
    examples: Sequence[Example],
    *,
    spec: InputSpec,
    bf16: bool,
    kept: Path | None = None,
    batch: int = 32,
) -> Embedded:
    """What the encoder says of the examples, in their order; in bf16 where it was trained so.

    With `kept`, a file, it is written there, and read when a run that was stopped asks the same again.
    """
    digest = hashlib.sha256(repr((spec, bf16, [e.key() for e in examples])).encode())
    for tensor in net.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    if kept is not None and kept.is_file():
        with np.load(kept) as stored:
            if stored["digest"].item() == digest.hexdigest():
                return Embedded(stored["mean"], stored["parts"])
    squares = load_squares(examples, spec=spec)
    means, parts = [], []
    with torch.inference_mode(), in_bf16(torch.device("cpu"), wanted=bf16):
        for start in tqdm(range(0, len(examples), batch), desc="embed", unit="batch", mininterval=10):
            images = np.stack(
                [normalise(s.astype(np.float32) / np.float32(255), spec=spec) for s in squares[start : start + batch]]
            )
            tokens = net.unit_features(torch.from_numpy(images)).float()
            means.append(tokens.mean(dim=1).numpy())
            parts.append(parts_of(tokens).numpy())
    found = Embedded(np.concatenate(means), np.concatenate(parts))
    if kept is not None:
        part = kept.with_suffix(".part.npz")
        np.savez(part, mean=found.mean, parts=found.parts, digest=np.array(digest.hexdigest()))
        part.replace(kept)
    return found


def fit_heads(
    train: tuple[NDArray[np.float32], NDArray[np.int64]],
    val: tuple[NDArray[np.float32], NDArray[np.int64]],
    *,
    groups: NDArray[np.str_],
    curriculum: Curriculum,
    strength: float,
) -> CrossFitted:
    """L2-regularised logistic regression for the route and each task on `train` and `val`, and again without folds.

    `train` and `val` are (embeddings, targets); a target of MASKED leaves an image out of that task. `groups` are those
    of `val`: none is on both sides of a fold. Nothing is chosen here: of a few dozen patients of `val`, a choice of
    depth or strength moved `test` by as much as any of them was worth. Raises SourceInvalid.
    """
    x, targets = np.concatenate([train[0], val[0]]), np.concatenate([train[1], val[1]])
    # Names of groups begin with their source, so that each fold has its share of each source.
    fold = np.unique(groups, return_inverse=True)[1] % FOLDS
    of_image = np.concatenate([np.full(len(train[0]), FOLDS), fold])
    rounds = [np.ones(len(x), np.bool_), *(of_image != number for number in range(FOLDS))]
    heads, *without = (
        _fitted(x[seen], targets[seen], curriculum=curriculum, strength=strength)
        for seen in tqdm(rounds, desc="heads", unit="fit")
    )
    return CrossFitted(heads, tuple(without), fold)


def fit_head(
    x: NDArray[np.float32], y: NDArray[np.int64], *, parts: Sequence[slice], strength: float, iterations: int = 1000
) -> Heads:
    """The mean of a logistic regression on each part of standardised embeddings (N, D); a row for each label of y.

    The parts, side by side, are the embedding.
    """
    centre, scale = x.mean(axis=0), np.maximum(x.std(axis=0), SMALLEST_DEVIATION)
    standard = (x - centre) / scale
    fitted = [LogisticRegression(C=strength, max_iter=iterations).fit(standard[:, part], y) for part in parts]
    coefficients, intercept = _two_rows(
        np.concatenate([part.coef_ for part in fitted], axis=1) / len(parts),
        np.mean([part.intercept_ for part in fitted], axis=0),
    )
    weight = coefficients / scale
    return Heads(weight.astype(np.float32), (intercept - weight @ centre).astype(np.float32))


def _fitted(
    embeddings: NDArray[np.float32], targets: NDArray[np.int64], *, curriculum: Curriculum, strength: float
) -> Heads:
    heads = []
    names = ["route", *(t.name for t in curriculum.tasks)]
    classes = [len(curriculum.routes), *(len(t.labels) for t in curriculum.tasks)]
    for column, (name, count) in enumerate(zip(names, classes, strict=True)):
        labelled = targets[:, column] != MASKED
        x, y = embeddings[labelled], targets[labelled, column]
        if len(shown := np.unique(y)) != count:
            raise SourceInvalid(f"{name} has {count} labels and the train images show {len(shown)} of them")
        heads.append(fit_head(x, y, parts=HALVES, strength=strength))
    return Heads(np.concatenate([h.weight for h in heads]), np.concatenate([h.bias for h in heads]))


def _two_rows(
    coefficients: NDArray[np.float64], intercept: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A row for each class: scikit-learn has one for two; the softmax of ±z/2 is the sigmoid of z."""
    if len(intercept) > 1:
        return coefficients, intercept
    return np.concatenate([-coefficients, coefficients]) / 2, np.concatenate([-intercept, intercept]) / 2
