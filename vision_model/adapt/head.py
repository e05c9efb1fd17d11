"""A few-shot head: linear on the embedding, asked, explained and stored with numpy alone."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vision_model.adapt.adapter import Adapter
from vision_model.errors import AlphaInvalid, HeadInvalid, HeadOfAnotherEncoder, UnknownLabel
from vision_model.runtime import Model, softmax

logger = logging.getLogger(__name__)

FORMAT = "hilum-head-1"

LabelValue = str | int


@dataclass(frozen=True, slots=True)
class Linear:
    """Logits are `embedding @ weight.T + bias`; centring, scaling and temperature are already inside."""

    weight: NDArray[np.float32]  # (C, D)
    bias: NDArray[np.float32]  # (C,)

    def logits(self, embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., D) -> (..., C), in double precision."""
        product: NDArray[np.float64] = np.asarray(embeddings, np.float64) @ self.weight.astype(np.float64).T
        return product + self.bias

    def divided(self, temperature: float) -> "Linear":
        """The same order of labels, less or more sure; its weights are those that a file will hold."""
        return Linear(rounded(self.weight / temperature), (self.bias / temperature).astype(np.float32))


@dataclass(frozen=True, slots=True)
class Conformal:
    """What the prediction sets rest on: 1 - p(true) of images whose group their head had not seen.

    CV+ (Barber et al. 2021, arXiv 1905.02928; for classes Romano et al. 2020, arXiv 2006.02544) keeps the head of each
    fold beside the scores of the images it left out. Split conformal is the case of one head. A patient with many
    images counts once: scores are weighed by 1 / images of their group (Lee et al. 2023, arXiv 2306.06342).
    """

    heads: tuple[Linear, ...]
    scores: NDArray[np.float64]  # (n,)
    head: NDArray[np.int64]  # (n,) index of the head that gave the score
    weight: NDArray[np.float64]  # (n,) 1 / images of the same group
    kind: Literal["cv+", "split"]

    @property
    def groups(self) -> int:
        """Groups (patients) that the sets rest on."""
        return round(float(self.weight.sum()))

    def sets(self, embeddings: NDArray[np.floating], *, alpha: float) -> NDArray[np.bool_]:
        """(N, D) -> (N, C): whether each label is in the set that holds the true one in 1 - alpha of new groups.

        CV+ promises 1 - 2 alpha in the worst case and keeps 1 - alpha in practice. With fewer than 1 / alpha - 1
        groups nothing can be promised: every label is in, and the log says how many groups it takes.
        """
        if not 0 < alpha < 1:
            raise AlphaInvalid(f"alpha is {alpha:g}; it is the share of sets that may miss, between 0 and 1")
        needed = needed_groups(alpha)
        if self.groups < needed:
            logger.warning(
                "prediction sets for alpha %g need at least %s groups, and there are %s: every label is in each set; "
                "calibrate on more images or allow more errors",
                alpha,
                needed,
                self.groups,
            )
        below = np.zeros((len(embeddings), len(self.heads[0].bias)))
        for i, linear in enumerate(self.heads):
            own = self.head == i
            order = np.argsort(self.scores[own], kind="stable")
            mass = np.concatenate([[0.0], np.cumsum(self.weight[own][order])])
            scores = 1 - softmax(linear.logits(embeddings))
            below += mass[np.searchsorted(self.scores[own][order], scores, side="left")]
        # In whole numbers of groups `below` is exact; the small term keeps sums of thirds on the right side.
        inside: NDArray[np.bool_] = below < (1 - alpha) * (self.groups + 1) - 1e-9
        return inside if self.groups >= needed else np.ones_like(inside)


@dataclass(frozen=True, slots=True)
class Support:
    """A Gaussian of the embeddings that the head learnt from, kept as its leading directions and what is left.

    The squared Mahalanobis distance is `inverse_rest · |x - mean|² - sum((directions · (x - mean))² · gains)`, here
    over the embedding's width, so that about 1 is usual.
    """

    mean: NDArray[np.float32]  # (D,)
    directions: NDArray[np.float32]  # (K, D)
    gains: NDArray[np.float32]  # (K,)
    inverse_rest: float
    threshold: float  # of the distance; infinite where too few images were left out to set one

    def distance(self, embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, D) -> (N,)."""
        away = np.asarray(embeddings, np.float64) - self.mean
        along = away @ self.directions.astype(np.float64).T
        squared = self.inverse_rest * (away**2).sum(axis=1) - along**2 @ self.gains
        distances: NDArray[np.float64] = squared / away.shape[1]
        return distances


@dataclass(frozen=True, slots=True)
class Head:
    """A fitted head. `predict_*` take embeddings (N, D) of the encoder that `encoder_sha256` names."""

    encoder_sha256: str
    labels: tuple[LabelValue, ...]
    linear: Linear = field(repr=False)
    conformal: Conformal | None = field(repr=False)  # None where no image could be left out
    support: Support = field(repr=False)
    about: dict[str, str | float]  # method, what validation chose and how well it did, versions
    adapter: Adapter | None = field(default=None, repr=False)

    def decision_function(self, embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, D) -> calibrated logits (N, C); their softmax is `predict_proba`."""
        return self.linear.logits(embeddings)

    def predict_proba(self, embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, D) -> (N, C) in the order of `labels`."""
        return softmax(self.linear.logits(embeddings))

    def predict_set(self, embeddings: NDArray[np.floating], *, alpha: float) -> list[tuple[LabelValue, ...]]:
        """The labels that cannot be ruled out at error rate `alpha`, for each image. Raises AlphaInvalid."""
        if self.conformal is None:
            if not 0 < alpha < 1:
                raise AlphaInvalid(f"alpha is {alpha:g}; it is the share of sets that may miss, between 0 and 1")
            logger.warning(
                "no image could be left out while this head was fitted, so every label is in each set; sets for alpha "
                "%g take %s groups that the head has not seen: call calibrate() with them",
                alpha,
                needed_groups(alpha),
            )
            return [self.labels] * len(embeddings)
        inside = self.conformal.sets(embeddings, alpha=alpha)
        return [tuple(label for label, is_in in zip(self.labels, row, strict=True) if is_in) for row in inside]

    def explain(self, patch_tokens: NDArray[np.floating], label: LabelValue) -> NDArray[np.float32]:
        """(T, D) of one image -> (grid, grid) shares of the label's logit; they sum to it. Raises UnknownLabel."""
        if label not in self.labels:
            raise UnknownLabel(f"the head has no label {label!r}; its labels are {', '.join(map(str, self.labels))}")
        shares = self.linear.logits(patch_tokens)[:, self.labels.index(label)] / len(patch_tokens)
        grid = round(len(shares) ** 0.5)
        return shares.reshape(grid, grid).astype(np.float32)

    def calibrated(
        self, embeddings: NDArray[np.floating], labels: NDArray[np.int64], *, groups: Sequence[object]
    ) -> "Head":
        """The same head with split conformal sets from images (N, D) that it has not seen; `labels` are indices."""
        split = Conformal(
            heads=(self.linear,),
            scores=1 - self.predict_proba(embeddings)[np.arange(len(labels)), labels],
            head=np.zeros(len(labels), np.int64),
            weight=group_weight(groups),
            kind="split",
        )
        return replace(self, conformal=split)

    def check(self, model: Model) -> None:
        """Make sure that the head was fitted on this model's embeddings. Raises HeadOfAnotherEncoder."""
        if model.manifest.graph_sha256 != self.encoder_sha256:
            raise HeadOfAnotherEncoder(
                f"this head was fitted on the encoder {self.encoder_sha256[:16]}…, the loaded one is "
                f"{model.manifest.graph_sha256[:16]}…; fit it again or load the model it was made with"
            )

    def encoder(self, model: Model) -> Model:
        """The model whose embeddings this head takes: the one given, or with LoRA its adapted copy.

        Raises HeadOfAnotherEncoder, and with LoRA what `Adapter.applied` does.
        """
        self.check(model)
        if self.adapter is not None:
            return self.adapter.applied(model)
        if self.about.get("precision", model.precision) != model.precision:
            logger.warning(
                "this head was fitted on embeddings of the %s graph and is asked with those of the %s one: they are "
                "near each other, not the same",
                self.about["precision"],
                model.precision,
            )
        return model

    def save(self, path: str | Path) -> None:
        """Write one file of arrays and JSON, at the path as it is given. Nothing in it is ever executed."""
        arrays: dict[str, Any] = {}
        heads = [self.linear]
        if self.conformal is not None:
            heads += self.conformal.heads if self.conformal.kind == "cv+" else ()
            arrays |= {f"conformal_{name}": getattr(self.conformal, name) for name in ("scores", "head", "weight")}
        half, scales = zip(*(halved(linear.weight) for linear in heads), strict=True)
        arrays |= {"weight": np.stack(half), "scale": np.array(scales), "bias": np.stack([h.bias for h in heads])}
        directions, directions_scale = halved(self.support.directions)
        arrays |= {"mean": self.support.mean, "directions": directions, "gains": self.support.gains}
        if self.adapter is not None:
            arrays |= {"adapter_down": self.adapter.down, "adapter_up": self.adapter.up}
        header = {
            "format": FORMAT,
            "encoder_sha256": self.encoder_sha256,
            "labels": list(self.labels),
            "about": self.about,
            "conformal": None if self.conformal is None else self.conformal.kind,
            "directions_scale": float(directions_scale),
            "inverse_rest": self.support.inverse_rest,
            "threshold": self.support.threshold if np.isfinite(self.support.threshold) else None,
            "adapter": None if self.adapter is None else list(self.adapter.blocks),
        }
        target = Path(path)
        part = target.with_name(f"{target.name}.part")
        with part.open("wb") as stream:
            np.savez_compressed(stream, header=np.array(json.dumps(header)), **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(target)


def load_head(path: str | Path, model: Model | None = None) -> Head:
    """Read a saved head; with `model`, only if it was fitted on that model's embeddings.

    Raises HeadInvalid and HeadOfAnotherEncoder.
    """
    try:
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        header = json.loads(str(arrays["header"]))
        if header["format"] != FORMAT:
            raise HeadInvalid(f"{path} has the format {header['format']!r}; this version reads {FORMAT!r}")
        head = _decoded(header, arrays)
    except HeadInvalid:
        raise
    except FileNotFoundError as exc:
        raise HeadInvalid(f"{path} does not exist") from exc
    except Exception as exc:  # a damaged file raises whatever zipfile, zlib, json or numpy happen to raise
        raise HeadInvalid(f"{path} is not a saved head ({type(exc).__name__}: {exc}); save it again") from exc
    if model is not None:
        head.check(model)
    return head


def needed_groups(alpha: float) -> int:
    """The fewest groups that sets with error rate `alpha` can rest on: 1 / alpha - 1."""
    return int(np.ceil((1 - alpha) / alpha - 1e-9))


def group_weight(groups: Sequence[object]) -> NDArray[np.float64]:
    """(n,) 1 / images of the same group."""
    _, inverse, counts = np.unique(np.array([str(g) for g in groups]), return_inverse=True, return_counts=True)
    weight: NDArray[np.float64] = 1 / counts[inverse]
    return weight


def halved(matrix: NDArray[np.float32]) -> tuple[NDArray[np.float16], np.float32]:
    """A matrix as a file holds it: fp16, and one scale so that nothing overflows."""
    scale = np.float32(max(float(np.abs(matrix).max(initial=0)), 1e-30))
    return (matrix / scale).astype(np.float16), scale


def whole(half: NDArray[np.float16], scale: np.float32) -> NDArray[np.float32]:
    """What `halved` left of the matrix."""
    return half.astype(np.float32) * scale


def rounded(matrix: NDArray[np.floating]) -> NDArray[np.float32]:
    """The matrix as it will be read back: scores and sets must come from what is stored."""
    return whole(*halved(matrix.astype(np.float32)))


def _decoded(header: dict, arrays: dict[str, NDArray[Any]]) -> Head:  # type: ignore[type-arg]  # JSON
    """The head that a file's parts make; raises whatever a part that is absent or misshapen brings."""
    if not all(np.isfinite(a).all() for a in arrays.values() if a.dtype.kind == "f"):
        raise ValueError("it holds numbers that are not finite")
    labels, width = tuple(header["labels"]), arrays["mean"].shape[0]
    if arrays["weight"].shape[1:] != (len(labels), width) or arrays["bias"].shape[1:] != (len(labels),):
        raise ValueError("it has weights for other labels or another encoder than it names")
    linear, *of_fold = (
        Linear(whole(half, scale), bias.astype(np.float32))
        for half, scale, bias in zip(arrays["weight"], arrays["scale"], arrays["bias"], strict=True)
    )
    conformal = None
    if header["conformal"] is not None:
        conformal = Conformal(
            heads=tuple(of_fold) if header["conformal"] == "cv+" else (linear,),
            scores=arrays["conformal_scores"],
            head=arrays["conformal_head"],
            weight=arrays["conformal_weight"],
            kind=header["conformal"],
        )
    support = Support(
        mean=arrays["mean"],
        directions=whole(arrays["directions"], np.float32(header["directions_scale"])),
        gains=arrays["gains"],
        inverse_rest=header["inverse_rest"],
        threshold=np.inf if header["threshold"] is None else header["threshold"],
    )
    blocks = header["adapter"]
    adapter = None if blocks is None else Adapter(tuple(blocks), arrays["adapter_down"], arrays["adapter_up"])
    return Head(header["encoder_sha256"], labels, linear, conformal, support, header["about"], adapter)
