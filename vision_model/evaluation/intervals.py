"""Areas under the ROC curve, and intervals that resample patients instead of images."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

BOOTSTRAPS = 1000
FEWEST_GROUPS = 5  # resampling fewer patients than this gives an interval that means nothing

Interval = tuple[float, float]


def area(positive: NDArray[np.bool_], scores: NDArray[np.floating]) -> float:
    """Area under the ROC curve of (N,) scores, as the Mann-Whitney statistic; ties count half.

    Raises ValueError when all images are of one kind.
    """
    n = int(positive.sum())
    if not 0 < n < len(positive):
        raise ValueError("the area needs images of two kinds")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def auroc(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Area under the ROC curve: of label 1 of two, else the mean over the labels present, one against the rest.

    `probabilities` is (N, C). Raises ValueError when all images are of one label.
    """
    if probabilities.shape[1] == 2:
        return area(labels == 1, probabilities[:, 1])
    present = np.unique(labels)
    if len(present) < 2:
        raise ValueError("the area needs images of two labels")
    return float(np.mean([area(labels == c, probabilities[:, c]) for c in present]))


def bootstrap_interval(
    measure: Callable[[NDArray[np.int64]], tuple[float, ...]], groups: NDArray[np.str_], *, rng: np.random.Generator
) -> tuple[list[float], list[float]]:
    """95 % percentile intervals of several figures at once, resampling whole groups: (lower bounds, upper bounds)."""
    names, inverse = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(inverse == i) for i in range(len(names))]
    draws: list[tuple[float, ...]] = []
    while len(draws) < BOOTSTRAPS:
        chosen = np.concatenate([members[i] for i in rng.integers(len(names), size=len(names))])
        try:
            draws.append(measure(chosen))
        except ValueError:  # a resample that holds one class only has no AUROC; draw again
            continue
    low, high = np.percentile(np.array(draws), [2.5, 97.5], axis=0)
    return low.tolist(), high.tolist()


def interval_of(
    measure: Callable[[NDArray[np.int64]], float], groups: NDArray[np.str_], *, rng: np.random.Generator
) -> Interval | None:
    """95 % interval of one figure over groups; None where there are too few groups to resample."""
    if len(np.unique(groups)) < FEWEST_GROUPS:
        return None
    (low,), (high,) = bootstrap_interval(lambda chosen: (measure(chosen),), groups, rng=rng)
    return low, high
