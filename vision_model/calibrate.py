"""Turn logits of `val` into temperatures, thresholds and quantiles. Nothing here ever sees `test`."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_curve

from vision_model.manifest import OperatingPoint
from vision_model.runtime import softmax

BINS = 15  # of confidence
PERFECT_DRAWS = 1000
TOO_EASY = 0.05  # share of `val` told wrongly; with less it says little of how sure to be where mistakes are made
RULE = (
    "the highest threshold whose balanced accuracy is within one standard error of the best, "
    "on val as it is and as other scanners and windows would have made it"
)


def with_mistakes(
    logits: NDArray[np.floating], all_views: NDArray[np.floating], labels: NDArray[np.int64]
) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """What to calibrate on: (N, C) logits of `val` with their labels, or, where these are TOO_EASY, of all its views.

    `all_views` (V·N, C) are `val` as it is and as other scanners would have made it, one whole round after another.
    """
    if np.mean(logits.argmax(axis=1) != labels) >= TOO_EASY:
        return logits, labels
    return all_views, np.tile(labels, len(all_views) // len(labels))


def temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """The temperature that makes (N, C) logits likeliest for the labels (Guo et al. 2017, arXiv 1706.04599).

    Targets are smoothed by 1 / (N + 2) as Platt (1999) does: a few images that are told apart do not prove certainty.
    """
    doubt = 1 / (len(labels) + 2)
    target = np.full(logits.shape, doubt / (logits.shape[1] - 1))
    target[np.arange(len(labels)), labels] = 1 - doubt

    def loss(log_temperature: float) -> float:
        p = softmax(logits / np.exp(log_temperature))
        return float(-(target * np.log(np.maximum(p, 1e-12))).sum(axis=1).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def operating_point(probability: NDArray[np.float64], positive: NDArray[np.bool_]) -> OperatingPoint:
    """The threshold on (N,) calibrated probabilities of one label against the rest, by RULE.

    Where many thresholds do as well on a small `val`, the highest raises the fewest false alarms; it lies midway
    between the two scores it parts, since neither side has a better claim to the gap.
    """
    # The first threshold is infinite: no operating point.
    false_rate, true_rate, thresholds = (x[1:] for x in roc_curve(positive, probability, drop_intermediate=False))
    balanced = (true_rate + 1 - false_rate) / 2
    best = balanced.max()
    n_true, n_false = positive.sum(), (~positive).sum()
    i = int(balanced.argmax())
    error = 0.5 * np.sqrt(true_rate[i] * (1 - true_rate[i]) / n_true + false_rate[i] * (1 - false_rate[i]) / n_false)
    chosen = int(np.flatnonzero(balanced >= best - error)[0])  # thresholds fall, so the first is the highest
    above = thresholds[chosen]
    middle = (above + probability[probability < above].max(initial=0)) / 2
    return OperatingPoint(
        threshold=float(middle if (probability < middle).sum() == (probability < above).sum() else above),
        rule=RULE,
        sensitivity=float(true_rate[chosen]),
        specificity=float(1 - false_rate[chosen]),
    )


def conformal_quantile(probabilities: NDArray[np.float64], labels: NDArray[np.int64], *, alpha: float) -> float:
    """Split conformal quantile of 1 - p(true): sets of labels with 1 - p at most this cover 1 - alpha of images.

    Sadinle, Lei & Wasserman 2019 (LAC). With fewer than 1/alpha - 1 images nothing can be
    promised, and every label is in the set (quantile 1).
    """
    scores = np.sort(1 - probabilities[np.arange(len(labels)), labels])
    rank = int(np.ceil((len(scores) + 1) * (1 - alpha)))
    return 1.0 if rank > len(scores) else float(scores[rank - 1])


def expected_calibration_error(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Gap between confidence and accuracy of the most probable label, over equal-width bins (Naeini et al. 2015)."""
    return _calibration_gap(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)


def perfect_calibration_error(probabilities: NDArray[np.float64], *, rng: np.random.Generator) -> float:
    """The error to expect on as many images if these probabilities were true: few images seem badly calibrated anyway.

    The mean over PERFECT_DRAWS draws of which answers were right.
    """
    confidence = probabilities.max(axis=1)
    draws = rng.random((PERFECT_DRAWS, len(confidence))) < confidence
    return float(np.mean([_calibration_gap(confidence, correct) for correct in draws]))


def _calibration_gap(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bin_of, weights=confidence - correct, minlength=BINS)).sum() / len(confidence))
