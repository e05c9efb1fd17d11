"""Linear probes: how much of a question a frozen encoder answers to logistic regression on all training images."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from vision_model.calibrate import operating_point
from vision_model.data.mixture import MASKED
from vision_model.evaluation.intervals import Interval, auroc, bootstrap_interval, interval_of

logger = logging.getLogger(__name__)

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # C of features of unit deviation
FIRST_STRENGTH = 1e-3  # with which the part of the embedding is chosen
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
    """A fitted probe: standardisation, and logistic regression on one part of the embedding."""

    part: str
    columns: slice
    strength: float
    centre: NDArray[np.float32]
    scale: NDArray[np.float32]
    fitted: LogisticRegression
    labels: int
    val_auroc: float | None  # None where val was too small to choose by

    def probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, D) embeddings -> (N, C); a label that training did not have keeps probability 0."""
        found: NDArray[np.float64] = self.fitted.predict_proba((x[:, self.columns] - self.centre) / self.scale)
        probabilities = np.zeros((len(x), self.labels))
        probabilities[:, self.fitted.classes_] = found
        return probabilities


def fit_probe(train: Labelled, val: Labelled, *, parts: dict[str, slice], labels: int) -> Probe:
    """The probe whose part of the embedding, then whose strength, has the best AUROC on `val`.

    Where `val` has fewer than FEWEST images of a label it can choose nothing: all of the embedding and one strength.
    """
    choosing = min(int((val.y == label).sum()) for label in range(labels)) >= FEWEST

    def fitted(part: str, strength: float) -> Probe:
        x = train.x[:, parts[part]]
        centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
        regression = LogisticRegression(C=strength, max_iter=ITERATIONS).fit((x - centre) / scale, train.y)
        probe = Probe(part, parts[part], strength, centre, scale, regression, labels, val_auroc=None)
        return replace(probe, val_auroc=auroc(probe.probabilities(val.x), val.y)) if choosing else probe

    if not choosing:
        return fitted(next(iter(parts)), FIRST_STRENGTH)
    best = max((fitted(part, FIRST_STRENGTH) for part in parts), key=_by_val)
    others = [fitted(best.part, strength) for strength in STRENGTHS if strength != FIRST_STRENGTH]
    # Equals are settled for the stronger regularisation.
    return max([best, *others], key=lambda p: (_by_val(p), -p.strength))


def measure_probe(probe: Probe, test: Labelled, *, rng: np.random.Generator) -> dict[str, Any]:
    """AUROC with its interval over groups, and what was chosen on `val`."""
    p = probe.probabilities(test.x)
    return {
        "auroc": auroc(p, test.y),
        "auroc_interval": interval_of(lambda i: auroc(p[i], test.y[i]), test.groups, rng=rng),
        "part": probe.part,
        "strength": probe.strength,
        "val_auroc": probe.val_auroc,
    }


def at_threshold(probe: Probe, val: Labelled, test: Labelled, *, rng: np.random.Generator) -> dict[str, Any]:
    """Accuracy, sensitivity and specificity for label 1 of two, at the threshold that `val` chooses."""
    threshold = operating_point(probe.probabilities(val.x)[:, 1], val.y == 1).threshold
    said, true = probe.probabilities(test.x)[:, 1] >= threshold, test.y == 1

    def rates(i: NDArray[np.int64]) -> tuple[float, ...]:
        if not 0 < true[i].sum() < len(i):
            raise ValueError("a label is absent")
        return tuple(
            float(r) for r in ((said[i] == true[i]).mean(), said[i][true[i]].mean(), (~said[i][~true[i]]).mean())
        )

    low, high = bootstrap_interval(rates, test.groups, rng=rng)
    names = ("accuracy", "sensitivity", "specificity")
    found = dict(zip(names, rates(np.arange(len(test))), strict=True))
    intervals: dict[str, Interval] = dict(zip(names, zip(low, high, strict=True), strict=True))
    return {"threshold": threshold, **found, "intervals": intervals}


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


def _by_val(probe: Probe) -> float:
    return probe.val_auroc or 0.0
