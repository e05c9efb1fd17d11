"""Few images a class: how an encoder does when somebody brings K labelled images of each, ten times over."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from vision_model.adapt import FewShotClassifier
from vision_model.adapt.classifier import Text
from vision_model.evaluation.intervals import FEWEST_GROUPS, auroc, bootstrap_interval
from vision_model.evaluation.probes import Labelled
from vision_model.runtime import Model

logger = logging.getLogger(__name__)

SHOTS = (1, 5, 10, 16)  # images a class, each of another patient while there are patients left
SEEDS = 10
PLAIN_C = 30.0  # best of .1 to 100 for the initial weights on val of six sources, at 5 and 16 images a label

# (support embeddings, labels, groups), (query embeddings) -> (M, C) probabilities
FewShotMethod = Callable[[Labelled, NDArray[np.float32]], NDArray[np.float64]]


@dataclass(frozen=True)
class Support:
    """Which training images one draw brings: indices into the benchmark's training images."""

    shots: int
    seed: int
    indices: NDArray[np.int64]


def draw_supports(y: NDArray[np.int64], groups: NDArray[np.str_], *, labels: int) -> list[Support]:
    """Every K and seed. A seed's smaller supports are part of its larger ones, so that curves compare like with like.

    Within a label groups are drawn first and one image of each; only when all groups have given one is a second taken.
    A label with fewer than K images gives all it has.
    """
    supports = []
    for seed in range(SEEDS):
        rng = np.random.default_rng((seed, len(y)))
        order = [_by_group(np.flatnonzero(y == label), groups, rng=rng) for label in range(labels)]
        supports += [Support(k, seed, np.concatenate([o[:k] for o in order])) for k in SHOTS]
    return supports


def plain_regression(support: Labelled, query: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logistic regression with a fixed strength, the same for every encoder.

    Features are centred on the support and divided by its root mean square length: one number, so that it means the
    same for wide and narrow embeddings, and holds for two images as for two hundred.
    """
    centre = support.x.mean(axis=0)
    away = support.x - centre
    length = np.sqrt((away**2).sum(axis=1).mean()) + 1e-12
    fitted = LogisticRegression(C=PLAIN_C, max_iter=1000).fit(away / length, support.y)
    probabilities: NDArray[np.float64] = fitted.predict_proba((query - centre) / length)
    return probabilities


def auto_head(model: Model, *, text: Text | None = None) -> FewShotMethod:
    """What a researcher gets from `FewShotClassifier(model, method="auto")`, on embeddings; with each label's words."""

    def fitted(support: Labelled, query: NDArray[np.float32]) -> NDArray[np.float64]:
        classifier = FewShotClassifier(model, method="auto")
        classifier.fit(support.x, support.y.tolist(), groups=support.groups, text=text)
        probabilities: NDArray[np.float64] = classifier.predict_proba(query)
        return probabilities

    return fitted


def few_shot(
    train: Labelled, test: Labelled, supports: Sequence[Support], *, method: FewShotMethod, labels: int
) -> dict[int, NDArray[np.float64]]:
    """Shots -> (seeds, M, C) probabilities of the test images."""
    found: dict[int, list[NDArray[np.float64]]] = {}
    for support in supports:
        kept = np.zeros(len(train), np.bool_)
        kept[support.indices] = True
        chosen = train.only(kept)
        probabilities = np.zeros((len(test), labels))
        probabilities[:, np.unique(chosen.y)] = method(chosen, test.x)
        found.setdefault(support.shots, []).append(probabilities)
    return {shots: np.stack(draws) for shots, draws in found.items()}


def curve(probabilities: dict[int, NDArray[np.float64]], y: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """Shots -> mean and deviation of the AUROC over seeds, and the lowest and highest seed."""
    points = {}
    for shots, draws in probabilities.items():
        areas = np.array([auroc(p, y) for p in draws])
        points[str(shots)] = {
            "auroc": float(areas.mean()),
            "deviation": float(areas.std(ddof=1)) if len(areas) > 1 else 0.0,
            "lowest": float(areas.min()),
            "highest": float(areas.max()),
        }
    return points


def paired_difference(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], test: Labelled, *, rng: np.random.Generator | None
) -> dict[str, Any]:
    """Mean over seeds of ours less theirs on the same supports, with a 95 % interval over test groups.

    No interval without `rng`: twenty areas for each resample take their time where there are many labels.
    """

    def difference(i: NDArray[np.int64]) -> tuple[float]:
        y = test.y[i]
        return (float(np.mean([auroc(a[i], y) - auroc(b[i], y) for a, b in zip(ours, theirs, strict=True)])),)

    (value,) = difference(np.arange(len(test)))
    if rng is None or len(np.unique(test.groups)) < FEWEST_GROUPS:
        return {"difference": value, "interval": None}
    (low,), (high,) = bootstrap_interval(difference, test.groups, rng=rng)
    return {"difference": value, "interval": (low, high)}


def _by_group(indices: NDArray[np.int64], groups: NDArray[np.str_], *, rng: np.random.Generator) -> NDArray[np.int64]:
    """The indices in the order they are drawn: round after round, one of each group."""
    shuffled = rng.permutation(indices)
    seen: dict[str, int] = {}
    rounds = np.empty(len(shuffled), np.int64)
    for i, group in enumerate(groups[shuffled].tolist()):
        rounds[i] = seen[group] = seen.get(group, -1) + 1
    return shuffled[np.argsort(rounds, kind="stable")]
