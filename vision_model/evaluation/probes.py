"""Linear probes: how much of a question a frozen encoder answers to logistic regression on all training images.

They are fitted as the heads that serve are; only the strength is chosen, on `val`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_model.data.mixture import MASKED
from vision_model.evaluation.intervals import auroc, interval_of
from vision_model.pretrain.heads import Heads, fit_head
from vision_model.runtime import softmax

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # C of features of unit deviation
UNCHOSEN = 1e-2  # the strength where `val` is too small to choose one
FEWEST = 3  # val images of a label that a choice may rest on
ITERATIONS = 2000


@dataclass(frozen=True)
class Labelled:
    """Embeddings (N, D), label indices (N,) and groups (N,) of one benchmark's images of one split."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    groups: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.y)

    def only(self, kept: NDArray[np.bool_]) -> "Labelled":
        """Those of a (N,) mask."""
        return Labelled(self.x[kept], self.y[kept], self.groups[kept])


@dataclass(frozen=True)
class Probe:
    """A probe fitted on `train` and `val`, and what chose its strength."""

    heads: Heads
    shown: NDArray[np.int64]  # the labels that the rows of the heads stand for
    labels: int
    strength: float
    val_auroc: float | None  # before `val` was learnt from; None where it was too small to choose by

    def probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, D) embeddings -> (N, C); a label that no image had keeps probability 0."""
        probabilities = np.zeros((len(x), self.labels))
        probabilities[:, self.shown] = softmax(self.heads.logits(x))
        return probabilities


def fit_probe(train: Labelled, val: Labelled, *, parts: Sequence[slice], labels: int) -> Probe:
    """The mean of a regression on each part, its strength that with the best AUROC on `val`, fitted on both then.

    Where `val` has fewer than FEWEST images of a label it can choose nothing, but is learnt from.
    """
    choosing = min(int((val.y == label).sum()) for label in range(labels)) >= FEWEST

    def fitted(x: NDArray[np.float32], y: NDArray[np.int64], strength: float) -> Probe:
        heads = fit_head(x, y, parts=parts, strength=strength, iterations=ITERATIONS)
        return Probe(heads, np.unique(y), labels, strength, val_auroc=None)

    def val_auroc(strength: float) -> float:
        return auroc(fitted(train.x, train.y, strength).probabilities(val.x), val.y)

    areas = {strength: val_auroc(strength) for strength in STRENGTHS} if choosing else {}
    best = max(areas, key=areas.__getitem__) if choosing else UNCHOSEN  # of equals the stronger regularisation
    probe = fitted(np.concatenate([train.x, val.x]), np.concatenate([train.y, val.y]), best)
    return replace(probe, val_auroc=areas.get(best))


def measure_probe(probe: Probe, test: Labelled, *, rng: np.random.Generator) -> dict[str, Any]:
    """AUROC with its interval over groups, and the strength that was chosen on `val`."""
    p = probe.probabilities(test.x)
    return {
        "auroc": auroc(p, test.y),
        "auroc_interval": interval_of(lambda i: auroc(p[i], test.y[i]), test.groups, rng=rng),
        "strength": probe.strength,
        "val_auroc": probe.val_auroc,
    }


def select(
    embedding: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.str_], chosen: NDArray[np.bool_]
) -> Labelled:
    """The labelled images among the chosen (N,)."""
    kept = chosen & (labels != MASKED)
    return Labelled(embedding[kept], labels[kept], groups[kept])


def class_counts(data: Labelled, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Images and groups of each label."""
    return {
        name: {"images": int((data.y == i).sum()), "groups": len(set(data.groups[data.y == i].tolist()))}
        for i, name in enumerate(names)
    }
