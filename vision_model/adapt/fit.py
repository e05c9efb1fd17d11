"""Fit a linear head on a few embeddings, and choose how by leaving whole groups out. Needs the extra `adapt`."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from vision_model.adapt.head import Conformal, Linear, Support, group_weight, rounded
from vision_model.calibrate import temperature
from vision_model.runtime import softmax

logger = logging.getLogger(__name__)

Embeddings = NDArray[np.float64]
Indices = NDArray[np.int64]
Folds = Sequence[tuple[Indices, Indices]]  # (train, test)
About = dict[str, str | float]

STRENGTHS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)  # inverse regularisation of features of about unit variance
STRENGTH = 3e-3  # where nothing can be left out; the best on average over tasks of val
SHARES = (0.25, 0.5, 0.75)  # of the words' logits in the head's, beside none
FOLDS = 5  # ten chose no better heads on val, and the file holds each fold's head
SHRINKAGE = 0.5  # share of the mean variance in each dimension's: better than none or all of it on val
PROTOTYPE_TEMPERATURE = 0.3  # where nothing can be left out
DIRECTIONS = 32
KEPT = 0.95  # share of left-out images below the out-of-distribution threshold
ABSENT = -1e4  # logit of a label that a fold has no image of


@dataclass(frozen=True, slots=True)
class Examples:
    """What is learnt from: embeddings (n, D), label indices (n,) below `classes`, and the group of each image."""

    x: Embeddings
    y: Indices
    groups: NDArray[np.str_]
    classes: int
    words: Sequence[Embeddings] = ()  # (C, D) directions of each label's words in the embedding's space, map by map

    def __getitem__(self, chosen: Indices) -> "Examples":
        return replace(self, x=self.x[chosen], y=self.y[chosen], groups=self.groups[chosen])

    @property
    def fewest_images(self) -> int:
        """Images of the label that has fewest."""
        return int(np.bincount(self.y, minlength=self.classes).min())

    @property
    def fewest_groups(self) -> int:
        """Groups of the label that has fewest."""
        return min(len(set(self.groups[self.y == label].tolist())) for label in range(self.classes))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to fit: prototypes (strength None) or logistic regression, with a share of the words by one map."""

    strength: float | None
    share: float = 0.0
    words: int = 0

    @property
    def about(self) -> About:
        """What a report says of it."""
        words: About = {"text_share": self.share} if self.share else {}
        return (
            {"method": "prototype", **words}
            if self.strength is None
            else {"method": "logistic", "C": self.strength, **words}
        )


@dataclass(frozen=True, slots=True)
class Fitted:
    """A head's numbers, and what validation says of them."""

    linear: Linear
    conformal: Conformal | None
    support: Support
    about: About


def fit(examples: Examples, *, method: str, seed: int) -> Fitted:
    """Choose a candidate by the log loss of left-out images, fit it on all, and keep what its sets rest on.

    The candidate and the temperature are chosen on the same left-out scores that the sets then rest on. With 10 images
    a label of sources that the encoder had not seen, 90 % sets covered 0.90 on average over four tasks (0.73 to 0.98,
    as few images must), 0.88 with words; with images that it was trained on, 0.85 over nine, 0.82 with words.
    """
    with threadpool_limits(limits=1):  # matrices this small lose more to waiting threads than they gain
        folds = list(left_out(examples, seed=seed))
        support = reference(examples.x)
        counts: About = {"images": len(examples.y), "groups": len(set(examples.groups.tolist())), "folds": len(folds)}
        if not folds:
            logger.warning(
                "a label has images of one group only, so none can be left out: how good and how sure the head is was "
                "not measured, and its prediction sets hold every label"
            )
            default = Candidate(
                None if method == "prototype" else STRENGTH, 1 / (1 + examples.fewest_images) if examples.words else 0.0
            )  # an image of a label and its words count alike
            (linear,) = _linears(examples, [default])
            sureness = PROTOTYPE_TEMPERATURE if method == "prototype" else 1.0
            return Fitted(linear.divided(sureness), None, support, {**default.about, **counts})
        candidates = _candidates(method, maps=len(examples.words))
        of_fold = [_linears(examples[train], candidates) for train, _ in folds]
        best, sureness, about = _best(examples, candidates, of_fold, folds)
        heads = [heads[best].divided(sureness) for heads in of_fold]
        return Fitted(
            linear=_linears(examples, candidates)[best].divided(sureness),
            conformal=_conformal(examples, folds, heads, kind="cv+"),
            support=replace(support, threshold=_usual_distance(examples, folds)),
            about={**about, **counts},
        )


def fit_once(examples: Examples, train: Indices, test: Indices) -> Fitted:
    """Logistic regression on `train`, chosen and calibrated on `test`: for an encoder that has itself seen `train`."""
    with threadpool_limits(limits=1):  # matrices this small lose more to waiting threads than they gain
        candidates = _candidates("logistic", maps=len(examples.words))
        folds, linears = [(train, test)], _linears(examples[train], candidates)
        best, sureness, about = _best(examples, candidates, [linears], folds)
        linear = linears[best].divided(sureness)
        return Fitted(
            linear=linear,
            conformal=_conformal(examples, folds, [linear], kind="split"),
            support=replace(reference(examples.x[train]), threshold=_usual_distance(examples, folds)),
            about={**about, "method": "lora", "images": len(train), "left_out_images": len(test)},
        )


def left_out(examples: Examples, *, seed: int) -> Iterator[tuple[Indices, Indices]]:
    """(train, test) indices of up to FOLDS folds that keep groups whole and labels in proportion.

    With up to FOLDS groups of a label each of them is left out alone. Nothing where a label has one group only.
    """
    folds = min(FOLDS, examples.fewest_groups)
    if folds > 1:
        split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        for train, test in split.split(examples.x, examples.y, examples.groups):
            if len(test):
                yield train, test


def prototypes(examples: Examples) -> Linear:
    """The nearest class mean, as a linear head: x·m - |m|²/2 over the embedding's width, in normalised features."""
    features, normaliser = normalised(examples.x)
    width = features.shape[1]
    weight = np.zeros((examples.classes, width))
    bias = np.full(examples.classes, ABSENT)
    for label in np.unique(examples.y):
        mean = features[examples.y == label].mean(axis=0)
        weight[label], bias[label] = mean / width, -0.5 * (mean @ mean) / width
    return normaliser.undone(weight, bias)


def logistic(examples: Examples, strengths: Sequence[float]) -> list[Linear]:
    """L2-regularised multinomial logistic regression at each strength, rising; each starts from the one before.

    The penalty sees only directions that the images span, so the fit is done in those: n numbers an image, not D.
    """
    features, normaliser = normalised(examples.x)
    coordinates, basis = spanned(features)
    present = np.unique(examples.y)
    model = LogisticRegression(warm_start=True, max_iter=500, tol=1e-4)
    linears = []
    for strength in strengths:
        weight = np.zeros((examples.classes, features.shape[1]))
        bias = np.full(examples.classes, ABSENT)
        bias[present] = 0
        if len(present) > 1:
            model.set_params(C=strength).fit(coordinates, examples.y)
            coefficients, intercept = model.coef_, model.intercept_
            if len(present) == 2:  # one row stands for two opposite ones; the softmax of ±z/2 is the sigmoid of z
                coefficients = np.concatenate([-coefficients, coefficients]) / 2
                intercept = np.concatenate([-intercept, intercept]) / 2
            weight[present], bias[present] = coefficients @ basis, intercept
        linears.append(normaliser.undone(weight, bias))
    return linears


def blended(linear: Linear, examples: Examples, directions: Embeddings, share: float) -> Linear:
    """The head with `share` of its logits from words (C, D), both brought to the head's spread over the examples.

    A softmax sees only differences between labels, so the spread is taken after the labels' mean is.
    """
    centre = examples.x.mean(axis=0)
    words = Linear(
        directions.astype(np.float32), (-directions @ centre).astype(np.float32)
    )  # what sets an image apart from the others, not what they share
    present = np.unique(examples.y)
    ratio = _spread(linear, examples.x, present) / _spread(words, examples.x, present)
    return Linear(
        ((1 - share) * linear.weight + share * ratio * words.weight).astype(np.float32),
        ((1 - share) * linear.bias + share * ratio * words.bias).astype(np.float32),
    )


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Features are `(x - centre) / scale`."""

    centre: NDArray[np.float64]  # (D,)
    scale: NDArray[np.float64]  # (D,)

    def undone(self, weight: Embeddings, bias: NDArray[np.float64]) -> Linear:
        """A head on features (C, D) as one on embeddings."""
        own = weight / self.scale
        return Linear(own.astype(np.float32), (bias - own @ self.centre).astype(np.float32))


def normalised(x: Embeddings) -> tuple[Embeddings, Normaliser]:
    """Centred embeddings of about unit variance; each dimension's is drawn towards the mean of all, as few tell it."""
    variance = x.var(axis=0)
    scale = np.sqrt(SHRINKAGE * variance.mean() + (1 - SHRINKAGE) * variance) + 1e-12
    centre = x.mean(axis=0)
    return (x - centre) / scale, Normaliser(centre, scale)


def spanned(features: Embeddings) -> tuple[Embeddings, Embeddings]:
    """(n, D) -> coordinates (n, r) in an orthonormal basis (r, D) of what the rows span."""
    if len(features) >= features.shape[1]:
        return features, np.eye(features.shape[1])
    values, vectors = np.linalg.eigh(features @ features.T)
    kept = values > 1e-9 * max(values[-1], 1e-30)
    root = np.sqrt(values[kept])
    return vectors[:, kept] * root, (vectors[:, kept] / root).T @ features


def reference(x: Embeddings) -> Support:
    """A Gaussian of the embeddings under a Ledoit-Wolf covariance (2004), kept as its leading directions and the rest.

    On val it told other sources of the same modality from the support better than the nearest neighbour did.
    """
    mean = x.mean(axis=0)
    away = x - mean
    width = x.shape[1]
    coordinates, basis = spanned(away)
    values, vectors = np.linalg.eigh(coordinates.T @ coordinates / len(x))
    total = max(float(values.sum()), 1e-12)
    shrinkage = ledoit_wolf(away)
    variances = (1 - shrinkage) * values + shrinkage * total / width
    count = min(DIRECTIONS, len(values))
    leading = slice(len(values) - count, None)
    rest = max((total - variances[leading].sum()) / (width - count), 1e-9) if width > count else 1.0
    gains = 1 / rest - 1 / np.maximum(variances[leading], rest)
    return Support(
        mean=mean.astype(np.float32),
        directions=rounded(vectors[:, leading].T @ basis),
        gains=gains.astype(np.float32),
        inverse_rest=1 / rest,
        threshold=np.inf,
    )


def ledoit_wolf(away: Embeddings) -> float:
    """Share of the identity in the shrunk covariance of centred rows (n, D), from their (n, n) products alone."""
    products = away @ away.T / len(away)
    squared = float((products**2).sum())
    apart = squared - float(np.trace(products)) ** 2 / away.shape[1]
    noise = (len(away) * float((np.diag(products) ** 2).sum()) - squared) / len(away)
    return 1.0 if apart <= 0 else min(noise / apart, 1.0)


def auroc(logits: NDArray[np.float64], y: Indices) -> float:
    """Area under the ROC curve: of the second of two labels, else the mean over labels, one against the rest."""
    probabilities = softmax(logits)
    if logits.shape[1] == 2:
        return float(roc_auc_score(y == 1, probabilities[:, 1]))
    return float(np.mean([roc_auc_score(y == c, p) for c, p in enumerate(probabilities.T) if (y == c).any()]))


def _candidates(method: str, *, maps: int) -> list[Candidate]:
    strengths: tuple[float | None, ...] = (None,) if method == "prototype" else STRENGTHS
    mixes = [(0.0, 0), *((share, words) for words in range(maps) for share in SHARES)]
    return [Candidate(strength, *mix) for mix in mixes for strength in strengths]


def _linears(examples: Examples, candidates: Sequence[Candidate]) -> list[Linear]:
    """The head of each candidate, fitted on these examples."""
    strengths = sorted({c.strength for c in candidates if c.strength is not None})
    plain: dict[float | None, Linear] = dict(zip(strengths, logistic(examples, strengths), strict=True))
    if len(strengths) < len({c.strength for c in candidates}):
        plain[None] = prototypes(examples)
    return [
        blended(plain[c.strength], examples, examples.words[c.words], c.share) if c.share else plain[c.strength]
        for c in candidates
    ]


def _best(
    examples: Examples, candidates: Sequence[Candidate], of_fold: Sequence[Sequence[Linear]], folds: Folds
) -> tuple[int, float, About]:
    """(candidate, temperature, report) with the lowest log loss of left-out images once a temperature is fitted.

    A temperature is fitted first since one will be: how sure a head is can be mended, its order not.
    """
    y = np.concatenate([examples.y[test] for _, test in folds])
    scored = []
    for i in range(len(candidates)):
        left = [heads[i].logits(examples.x[test]) for heads, (_, test) in zip(of_fold, folds, strict=True)]
        logits = np.concatenate(left)
        sureness = temperature(logits, y)
        loss = float(log_loss(y, softmax(logits / sureness), labels=range(examples.classes)))
        scored.append((loss, i, sureness, logits))
    loss, best, sureness, logits = min(scored, key=lambda s: s[:2])
    return (
        best,
        sureness,
        {
            **candidates[best].about,
            "temperature": sureness,
            "log_loss": loss,
            "auroc": auroc(logits, y),
            "balanced_accuracy": float(balanced_accuracy_score(y, logits.argmax(axis=1))),
        },
    )


def _spread(linear: Linear, x: Embeddings, present: Indices) -> float:
    logits = linear.logits(x)[:, present]
    return max(float((logits - logits.mean(axis=1, keepdims=True)).std()), 1e-12)


def _conformal(
    examples: Examples, folds: Folds, heads: Sequence[Linear], *, kind: Literal["cv+", "split"]
) -> Conformal:
    tested = np.concatenate([test for _, test in folds])
    scores = [
        1 - softmax(linear.logits(examples.x[test]))[np.arange(len(test)), examples.y[test]]
        for linear, (_, test) in zip(heads, folds, strict=True)
    ]
    return Conformal(
        heads=tuple(heads),
        scores=np.concatenate(scores),
        head=np.repeat(np.arange(len(folds)), [len(test) for _, test in folds]),
        weight=group_weight(examples.groups[tested].tolist()),
        kind=kind,
    )


def _usual_distance(examples: Examples, folds: Folds) -> float:
    """The distance that KEPT of new images stay below, by those left out; infinite where they are too few to say."""
    distances = np.sort(
        np.concatenate([reference(examples.x[train]).distance(examples.x[test]) for train, test in folds])
    )
    rank = int(np.ceil((len(distances) + 1) * KEPT))
    return np.inf if rank > len(distances) else float(distances[rank - 1])
