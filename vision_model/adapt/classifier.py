"""A few-shot classifier of images, shaped like scikit-learn's: fit, predict, save."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from vision_model.adapt.adapter import needed
from vision_model.adapt.head import Head, LabelValue, load_head
from vision_model.errors import HeadNotFitted, ImageInvalid, SupportInvalid, UnknownLabel
from vision_model.knowledge import knowledge
from vision_model.manifest import InputSpec
from vision_model.preprocess import ModelInput, prepare
from vision_model.runtime import Model
from vision_model.zero_shot import LEAST_LENGTH

logger = logging.getLogger(__name__)

Picture = NDArray[np.generic] | ModelInput
Images = Sequence[Picture] | NDArray[np.generic]
Text = Mapping[LabelValue, str | Sequence[str] | NDArray[np.floating]]
Method = Literal["auto", "prototype", "logistic", "lora"]

METHODS = ("auto", "prototype", "logistic", "lora")
PROTOTYPE_UP_TO = 2  # images a label; above it logistic regression is better on val
LORA_FROM = 50  # images of the rarest label
BATCH = 8  # images of one run
REMEMBERED = 20_000  # embeddings, about 100 MB


class FewShotClassifier:
    """Labels for images from a few examples, with prediction sets, an out-of-distribution score and explanations.

    `images` are everywhere a sequence of (H, W) or (H, W, 3) arrays as `Model.embed` takes them, of `ModelInput`s, or
    of the model's embeddings, (N, D) floats. `groups` say which images belong together (a patient, a lesion);
    validation never parts them. Methods: "prototype" (nearest class mean), "logistic" (its strength chosen by left-out
    groups), "lora" (also changes the encoder's last blocks; needs the extra `train`), or "auto": prototypes up to 2
    images a label, else logistic regression.

    After `fit`: `classes_`, `head_` (what is saved), `report_` (what validation chose, and how well it did).
    """

    classes_: NDArray[Any]
    head_: Head

    def __init__(self, model: Model, method: Method = "auto", *, seed: int = 0) -> None:
        self.model = model
        self.method = method
        self.seed = seed
        self._embedder = _Embedder(model)

    def fit(
        self,
        images: Images,
        labels: Sequence[LabelValue] | NDArray[Any],
        groups: Sequence[object] | NDArray[Any] | None = None,
        *,
        text: Text | None = None,
    ) -> Self:
        """Learn from N images and their labels; `text` gives each label's phrases, its concept's name in
        knowledge.toml, or a direction (D,).

        The head takes from words what left-out images agree with; where none can be left out they count as one image
        of a label.

        Raises SupportInvalid, ImageInvalid, UnknownLabel for text of labels that are not there, ExtraMissing without
        scikit-learn (or without torch for "lora"), and TextEncoderMissing for phrases where the model reads none.
        """
        fitting = needed("vision_model.adapt.fit", extra="adapt")
        if self.method not in METHODS:
            raise SupportInvalid(f"method is {self.method!r}; it is one of {', '.join(METHODS)}")
        count = len(images)
        classes, y, of_group = _checked(count, labels, groups)
        if groups is None:
            logger.warning(
                "no groups are given, so each image counts as a patient of its own; if some patients have several, "
                "validation and prediction sets promise too much: pass groups="
            )
        method = self._chosen(y, classes=len(classes))
        words = () if text is None else self._directions(text, [c.item() for c in classes])
        adapter, embedder = None, self._embedder if self._embedder.model is self.model else _Embedder(self.model)
        if method == "lora":
            lora = needed("vision_model.adapt.lora", extra="train")
            train, test = lora.parts(y, of_group, seed=self.seed)
            inputs = _inputs([images[i] for i in train], spec=self.model.manifest.input)
            adapter = lora.fit(self.model, inputs, y[train], seed=self.seed)
            embedder = _Embedder(adapter.applied(self.model))
        x = embedder(images).astype(np.float64)
        examples = fitting.Examples(x, y, of_group, len(classes), words)
        if adapter is None:
            fitted = fitting.fit(examples, method=method, seed=self.seed)
        else:
            fitted = fitting.fit_once(examples, train, test)
        self._embedder = embedder
        self.classes_ = classes
        self.head_ = Head(
            encoder_sha256=self.model.manifest.graph_sha256,
            labels=tuple(c.item() for c in classes),
            linear=fitted.linear,
            conformal=fitted.conformal,
            support=fitted.support,
            about={**fitted.about, "precision": embedder.model.precision},
            adapter=adapter,
        )
        logger.info("fitted %s", ", ".join(f"{key} {value}" for key, value in fitted.about.items()))
        return self

    def calibrate(
        self,
        images: Images,
        labels: Sequence[LabelValue] | NDArray[Any],
        groups: Sequence[object] | NDArray[Any] | None = None,
    ) -> Self:
        """Rest the prediction sets on further images, of patients that `fit` did not see (split conformal).

        Raises HeadNotFitted, SupportInvalid, ImageInvalid, and UnknownLabel for a label that `fit` did not see.
        """
        head = self._head()
        known = {label: i for i, label in enumerate(head.labels)}
        plain = np.asarray(labels).tolist()
        if unknown := sorted({str(label) for label in plain if label not in known}):
            raise UnknownLabel(f"the head has no label {', '.join(unknown)}; its labels are {head.labels}")
        if len(plain) != len(images) or (groups is not None and len(groups) != len(images)):
            raise SupportInvalid(f"{len(images)} images, {len(plain)} labels: there must be one of each, and a group")
        indices = np.array([known[label] for label in plain], np.int64)
        self.head_ = head.calibrated(
            self._embedder(images), indices, groups=range(len(plain)) if groups is None else list(groups)
        )
        return self

    def decision_function(self, images: Images) -> NDArray[np.float64]:
        """Calibrated logits (N, C), in the order of `classes_`; what `explain` splits up."""
        return self._head().decision_function(self._embedder(images))

    def predict_proba(self, images: Images) -> NDArray[np.float64]:
        """Probabilities (N, C), in the order of `classes_`. Raises HeadNotFitted, ImageInvalid."""
        return self._head().predict_proba(self._embedder(images))

    def predict(self, images: Images) -> NDArray[Any]:
        """The most probable label of each image (N,)."""
        best = self.predict_proba(images).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def predict_set(self, images: Images, alpha: float = 0.1) -> list[tuple[LabelValue, ...]]:
        """The labels of each image that cannot be ruled out: sets that hold the true one in 1 - alpha of new patients.

        They rest on images that the head had not seen: those of `calibrate`, else those left out in validation (CV+).
        Where these are too few for `alpha` every label is in, and the log says how many it takes. Raises AlphaInvalid.
        """
        return self._head().predict_set(self._embedder(images), alpha=alpha)

    def score(self, images: Images, labels: Sequence[LabelValue] | NDArray[Any]) -> float:
        """Share of images whose most probable label is the true one."""
        return float((self.predict(images) == np.asarray(labels)).mean())

    def ood_score(self, images: Images) -> NDArray[np.float64]:
        """How far each image (N,) lies from those learnt from; about 1 is usual, above `ood_threshold_` is not."""
        return self._head().support.distance(self._embedder(images))

    def explain(self, image: Picture, label: LabelValue) -> NDArray[np.float32]:
        """(grid, grid) shares of the patches in the label's logit of `decision_function`; they sum to it.

        Raises UnknownLabel, ImageInvalid.
        """
        head = self._head()
        tensor = prepared(image, spec=self.model.manifest.input).tensor
        (tokens,) = self._embedder.model.run(tensor[None], ("patch_tokens",))
        return head.explain(tokens[0], label)

    def save(self, path: str | Path) -> None:
        """Write the head to one small file, bound to the encoder by its digest. Raises HeadNotFitted."""
        self._head().save(path)

    @classmethod
    def load(cls, path: str | Path, model: Model) -> Self:
        """A fitted classifier from a saved head. Raises HeadInvalid and HeadOfAnotherEncoder."""
        head = load_head(path)
        classifier = cls(model)
        classifier._embedder = _Embedder(head.encoder(model))
        classifier.head_ = head
        classifier.classes_ = np.array(head.labels)
        return classifier

    @property
    def report_(self) -> dict[str, str | float]:
        """What was fitted, what validation chose, and how well left-out images were told apart."""
        return dict(self._head().about)

    @property
    def ood_threshold_(self) -> float:
        """The `ood_score` that 95 % of left-out images stay below; infinite where too few were left out to say."""
        return self._head().support.threshold

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002  # scikit-learn's signature
        """The arguments of the constructor, by name."""
        return {"model": self.model, "method": self.method, "seed": self.seed}

    def set_params(self, **parameters: Any) -> Self:
        """Change arguments of the constructor. Raises SupportInvalid for a name that it does not have."""
        for name, value in parameters.items():
            if name not in self.get_params():
                raise SupportInvalid(f"FewShotClassifier has no parameter {name!r}; it has model, method and seed")
            setattr(self, name, value)
        return self

    def __sklearn_clone__(self) -> "FewShotClassifier":
        """An unfitted classifier on the same model: a session cannot be copied, and its embeddings stay true."""
        copy = type(self)(**self.get_params())
        copy._embedder = self._embedder  # noqa: SLF001  # of its own class
        return copy

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn's model selection asks of an estimator."""
        utils = needed("sklearn.utils", extra="adapt")
        return utils.Tags(
            estimator_type="classifier",
            target_tags=utils.TargetTags(required=True),
            classifier_tags=utils.ClassifierTags(),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "head_")

    def __repr__(self) -> str:
        return f"FewShotClassifier({self.model.manifest.name}, method={self.method!r}, seed={self.seed})"

    def _head(self) -> Head:
        if not hasattr(self, "head_"):
            raise HeadNotFitted("this classifier has not been fitted; call fit(images, labels, groups=...) first")
        return self.head_

    def _chosen(self, y: NDArray[np.int64], *, classes: int) -> str:
        if self.method != "auto":
            return self.method
        if len(y) <= PROTOTYPE_UP_TO * classes:
            return "prototype"
        if np.bincount(y).min() >= LORA_FROM:
            logger.info('with %s or more images of each label method="lora" may do better, in minutes', LORA_FROM)
        return "logistic"

    def _directions(self, text: Text, labels: list[LabelValue]) -> tuple[NDArray[np.float64], ...]:
        """(C, D) by each map: where each label's words point in the embedding's space, less what all of them share."""
        if missing := [str(label) for label in labels if label not in text]:
            raise UnknownLabel(f"text has no words for {', '.join(missing)}; give some for every label")
        given = [text[label] for label in labels]
        if all(isinstance(words, np.ndarray) for words in given):
            directions = _finite(np.stack([np.asarray(words, np.float64) for words in given]))
            if directions.shape != (len(labels), self.model.manifest.embedding_size):
                raise SupportInvalid(f"directions of text have the shape {directions.shape[1:]}, not the embedding's")
            return (_apart(directions),)
        known = knowledge()
        prompts = {
            str(label): list(known[words].texts) if isinstance(words, str) else [str(phrase) for phrase in words]
            for label, words in zip(labels, given, strict=True)
        }
        space = self.model.words
        texts = _apart(space.classes(prompts).astype(np.float64))
        texts /= np.maximum(np.linalg.norm(texts, axis=1, keepdims=True), LEAST_LENGTH)
        return _apart(texts @ space.projection.weight), _apart(texts @ space.projection.sharp)


class _Embedder:
    """Embeddings (N, D) of one model: as given, as remembered by the digest of their pixels, or computed."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._known: dict[str, NDArray[np.float32]] = {}

    def __call__(self, images: Images) -> NDArray[np.float32]:
        size = self.model.manifest.embedding_size
        if len(images) and all(isinstance(image, np.ndarray) and image.ndim == 1 for image in images):
            given = np.asarray(images)
            if given.ndim != 2 or given.shape[1] != size or given.dtype.kind != "f":
                raise ImageInvalid(
                    f"an array of shape {given.shape} and type {given.dtype} is neither a sequence of images nor "
                    f"float embeddings (N, {size}); put single images in a list"
                )
            return _finite(given).astype(np.float32)
        spec = self.model.manifest.input
        digests = [_digest(image) for image in images]
        new = {d: image for d, image in zip(digests, images, strict=True) if d not in self._known}
        for start in range(0, len(new), BATCH):
            chunk = list(islice(new.items(), start, start + BATCH))
            tensors = np.stack([prepared(image, spec=spec).tensor for _, image in chunk])
            (vectors,) = self.model.run(tensors, ("embedding",))
            self._known.update(zip([digest for digest, _ in chunk], vectors, strict=True))
        found = [self._known[d] for d in digests]
        for oldest in list(self._known)[: max(len(self._known) - REMEMBERED, 0)]:
            del self._known[oldest]
        return _finite(np.stack(found)) if found else np.empty((0, size), np.float32)


def prepared(image: Picture, *, spec: InputSpec) -> ModelInput:
    """The image as the model takes it; one that is prepared already stays as it is. Raises ImageInvalid."""
    return image if isinstance(image, ModelInput) else prepare(np.asarray(image), spec=spec)


def _checked(
    count: int, labels: Sequence[LabelValue] | NDArray[Any], groups: Sequence[object] | NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.str_]]:
    """(classes, label indices (n,), group of each image (n,)). Raises SupportInvalid."""
    given = np.asarray(labels)
    if given.ndim != 1 or len(given) != count:
        raise SupportInvalid(f"{count} images and labels of shape {given.shape}: there must be one label for each")
    if given.dtype.kind not in "Uiub":
        raise SupportInvalid(f"labels are of type {given.dtype}; give words or whole numbers, and none missing")
    if groups is not None and len(groups) != count:
        raise SupportInvalid(f"{count} images and {len(groups)} groups: there must be one group for each image")
    classes, y = np.unique(given, return_inverse=True)
    if len(classes) < 2:
        raise SupportInvalid(f"{count} images of {len(classes)} label(s): learning takes images of at least two labels")
    of_group = np.arange(count).astype(str) if groups is None else np.array([str(group) for group in groups])
    return classes, y.astype(np.int64), of_group


def _apart(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """What sets each of the vectors (C, D) apart from the others."""
    own: NDArray[np.float64] = vectors - vectors.mean(axis=0)
    return own


def _finite(embeddings: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(embeddings).all():
        raise SupportInvalid("embeddings hold values that are not finite; embed the images again")
    return embeddings


def _inputs(images: Images, *, spec: InputSpec) -> NDArray[np.float32]:
    """(N, 3, S, S). Raises SupportInvalid for embeddings, and ImageInvalid."""
    if any(isinstance(image, np.ndarray) and image.ndim == 1 for image in images):
        raise SupportInvalid('method "lora" changes the encoder, so it needs the images and not their embeddings')
    return np.stack([prepared(image, spec=spec).tensor for image in images])


def _digest(image: Picture) -> str:
    """The pixels' digest, with shape and type: the same bytes may be another image in another shape."""
    if isinstance(image, ModelInput):
        return f"prepared {image.sha256}"
    array = np.asarray(image)
    return hashlib.sha256(f"{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
