"""Run a model: one graph, and what its numbers mean."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vision_model.errors import GraphInvalid, ImageInvalid, ModelNotFound, UnknownRoute
from vision_model.graph import PROVIDERS, Graph
from vision_model.manifest import GOLDEN_NAME, Code, Manifest, Precision, Task, read_manifest, verify_graph
from vision_model.preprocess import ModelInput, prepare
from vision_model.zero_shot import QueryResult, WordSpace, open_word_space

logger = logging.getLogger(__name__)

LEAST_GOLDEN_COSINE = 0.99  # 8-bit sums differ by roundings between CPUs (about 0.999); saturated ones by far more
MODELS = Path(__file__).parent / "models"
SHIPPED = "hilum-vits14"
RUNTIME_VERSION: str = onnxruntime.__version__
# (B, D), (B, T, C), (B, C), (B, G); the graph also has `patch_tokens` (B, T, D), fetched only when asked for.
OUTPUTS = ("embedding", "patch_logits", "logits", "ood")

__all__ = [
    "MODELS",
    "OUTPUTS",
    "PROVIDERS",
    "RUNTIME_VERSION",
    "SHIPPED",
    "Finding",
    "Model",
    "Prediction",
    "TaskResult",
    "golden_cosine",
    "load",
    "softmax",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """What the model says of one label: a calibrated probability and its operating point."""

    task: str
    label: str
    display: str
    code: Code | None
    normal: bool
    logit: float
    probability: float
    threshold: float
    positive: bool  # probability >= threshold, for labels that are not normal


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task's findings, its conformal prediction set, and how far the image is from its training images."""

    task: str
    findings: tuple[Finding, ...]
    prediction_set: tuple[str, ...]
    ood_score: float
    ood_threshold: float

    @property
    def out_of_distribution(self) -> bool:
        """Whether the image is further from the training images than nearly all of `val` is."""
        return self.ood_score > self.ood_threshold


@dataclass(frozen=True, slots=True)
class Prediction:
    """Everything the model computed for one image, before any gate: not every result may be shown."""

    results: tuple[TaskResult, ...]
    route: str | None  # None when no route reaches the manifest's minimum
    route_probability: float
    route_probabilities: dict[str, float]
    embedding: NDArray[np.float32] = field(repr=False)  # (D,)
    patch_logits: NDArray[np.float32] = field(repr=False)  # (T, C); they sum over T to the logits
    model_sha256: str
    input_sha256: str
    provider: str
    precision: str

    def result(self, task: str) -> TaskResult:
        """The result of one task by its name."""
        return next(r for r in self.results if r.task == task)


class Model:
    """A loaded model. Safe to call from several threads, as its graph is."""

    def __init__(self, manifest: Manifest, graph: Graph, *, folder: Path, precision: Precision | None = None) -> None:
        self.manifest = manifest
        self.folder = folder  # the files that lie beside the graph
        self.graph = graph
        self.provider = graph.provider
        self.precision = precision or manifest.precision

    def predict_inputs(self, inputs: Sequence[ModelInput]) -> list[Prediction]:
        """Predict one batch of prepared images, every served task for each."""
        if not inputs:
            return []
        outputs = self.run(np.stack([i.tensor for i in inputs]), OUTPUTS)
        return [
            self._prediction(model_input, *(output[i] for output in outputs)) for i, model_input in enumerate(inputs)
        ]

    def predict(
        self, images: Sequence[NDArray[np.generic]], *, task: str | None = None, batch: int = 8
    ) -> list[Prediction]:
        """Predict images, (H, W) or (H, W, 3), uint8 or in modality units; with `task`, results of that task only.

        A task may be named by its beginning: "cxr-pneumonia" stands for the child's and the adult's.
        No gate is applied: modality, body part and age are the caller's to know. Raises ImageInvalid and UnknownTask.
        """
        chosen = {t.name for t in (self.manifest.tasks_named(task) if task else self.manifest.tasks)}
        predictions = [p for inputs in self._batches(images, size=batch) for p in self.predict_inputs(inputs)]
        return [replace(p, results=tuple(r for r in p.results if r.task in chosen)) for p in predictions]

    def embed(self, images: Sequence[NDArray[np.generic]], *, batch: int = 8) -> NDArray[np.float32]:
        """Embed images, (H, W) or (H, W, 3) -> (N, D) float32. Raises ImageInvalid."""
        parts = [
            self.run(np.stack([i.tensor for i in inputs]), ("embedding",))[0]
            for inputs in self._batches(images, size=batch)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.manifest.embedding_size), np.float32)

    def zero_shot(
        self,
        images: Sequence[NDArray[np.generic]],
        classes: Mapping[str, Sequence[str]],
        *,
        route: str | None = None,
        batch: int = 8,
    ) -> NDArray[np.float64]:
        """How images divide between classes given in words, untrained: -> (N, C); rows sum to 1 and are not calibrated.

        `classes` maps each class to texts that describe it, {"normal": ["clear lungs"], ...}: the more, the steadier.
        `route` says what the images show, as "DX-CHEST"; without it the router says so for each image.
        Raises ImageInvalid, PromptsInvalid, TextEncoderMissing, and UnknownRoute where the router cannot tell.
        """
        words = self.words
        embeddings = [np.empty((0, self.manifest.embedding_size), np.float32)]
        routes: list[str] = []
        for inputs in self._batches(images, size=batch):
            embedding, logits = self.run(np.stack([i.tensor for i in inputs]), ("embedding", "logits"))
            embeddings.append(embedding)
            routes += [route or self._route(row) for row in logits]
        return softmax(words.logits(np.concatenate(embeddings), classes, routes=routes))

    def query(
        self, images: Sequence[NDArray[np.generic]], text: str, *, route: str | None = None, batch: int = 8
    ) -> list[QueryResult]:
        """How much each image is like a text, and where: `QueryResult.relevance` sums to its score.

        Compare the scores of one text between images of one route; `explain.upsample` lays the map over an image.
        Raises as `zero_shot` does.
        """
        words = self.words
        (meaning,) = words.encoder.embed([text])
        results: list[QueryResult] = []
        for inputs in self._batches(images, size=batch):
            tokens, logits = self.run(np.stack([i.tensor for i in inputs]), ("patch_tokens", "logits"))
            results += [
                words.likeness(own, meaning, route=route or self._route(row))
                for own, row in zip(tokens, logits, strict=True)
            ]
        return results

    @cached_property
    def words(self) -> WordSpace:
        """The text encoder and the projection into its space, verified and opened when first asked for.

        Raises TextEncoderMissing, ModelDigestMismatch and GraphInvalid.
        """
        return open_word_space(self.folder, self.manifest)

    def run(self, tensors: NDArray[np.float32], outputs: Sequence[str]) -> list[NDArray[np.float32]]:
        """The bare graph: (B, 3, S, S) -> the named outputs."""
        return self.graph.run(tensors, outputs)

    def _batches(self, images: Sequence[NDArray[np.generic]], *, size: int) -> Iterator[list[ModelInput]]:
        for start in range(0, len(images), size):
            yield [prepare(np.asarray(image), spec=self.manifest.input) for image in images[start : start + size]]

    def _route(self, logits: NDArray[np.float32]) -> str:
        """The route of an image by its logits (C,). Raises ImageInvalid and UnknownRoute."""
        names = [route.name for route in self.manifest.routes]
        if not np.isfinite(logits).all():
            raise ImageInvalid("the model gave values that are not finite for this image; it is not answered")
        probabilities = softmax(logits[: len(names)] / self.manifest.route_temperature)
        best = int(probabilities.argmax())
        if probabilities[best] < self.manifest.route_minimum:
            raise UnknownRoute(
                f"it is not clear what the image shows ({names[best]} at {probabilities[best]:.0%}); "
                f"name its route: {', '.join(names)}"
            )
        return names[best]

    def _prediction(
        self,
        model_input: ModelInput,
        embedding: NDArray[np.float32],
        patch_logits: NDArray[np.float32],
        logits: NDArray[np.float32],
        ood: NDArray[np.float32],
    ) -> Prediction:
        manifest = self.manifest
        if not (np.isfinite(logits).all() and np.isfinite(ood).all()):
            raise ImageInvalid("the model gave values that are not finite for this image; it is not answered")
        names = [route.name for route in manifest.routes]
        route_probabilities = softmax(logits[: len(names)] / manifest.route_temperature)
        best = int(route_probabilities.argmax())
        probability = float(route_probabilities[best])
        return Prediction(
            results=tuple(_result(task, logits=logits, ood=ood) for task in manifest.tasks),
            route=names[best] if probability >= manifest.route_minimum else None,
            route_probability=probability,
            route_probabilities={n: float(p) for n, p in zip(names, route_probabilities, strict=True)},
            embedding=embedding,
            patch_logits=patch_logits,
            model_sha256=manifest.graph_sha256,
            input_sha256=model_input.sha256,
            provider=self.provider,
            precision=self.precision,
        )


def load(
    path: str | Path | None = None,
    *,
    provider: str = "cpu",
    precision: Precision | None = None,
    threads: int = 0,
    engine_cache: Path | None = None,
    warm_up: int = 0,
) -> Model:
    """Load the shipped model, or the one in a folder that an export wrote.

    `provider` is "cpu", "cuda" or "tensorrt"; it is used or refused, never replaced. `precision` None takes what the
    model is meant to answer with on it. Where a CPU's 8-bit products are not those that the int8 graph was calibrated
    with (without VNNI they saturate), that is the float graph; the log and every record say so. `threads` of 0 leaves
    the number to ONNX Runtime. `warm_up` is the largest batch that will be asked for: it is run before this returns.
    TensorRT keeps its engines in `engine_cache`.
    Raises ModelNotFound, ManifestInvalid, ModelDigestMismatch, GraphInvalid, ProviderUnavailable, PrecisionUnavailable.
    """
    folder = MODELS / SHIPPED if path is None else Path(path)
    if not folder.is_dir():
        raise ModelNotFound(f"{folder} is not a folder")
    manifest = read_manifest(folder)
    verify_graph(folder, manifest)
    chosen = manifest.graph(provider=provider, precision=precision)
    size = manifest.input.size
    graph = Graph(folder / chosen.file, provider=provider, threads=threads, size=size, engine_cache=engine_cache)
    if chosen.precision == "int8" and golden_cosine(graph, folder) < LEAST_GOLDEN_COSINE:
        if precision is not None or not manifest.more_graphs:
            raise GraphInvalid(f"this CPU does not repeat {GOLDEN_NAME} in 8 bits; ask for precision int8-stored")
        chosen = manifest.more_graphs[0]
        logger.warning("this CPU does not repeat the int8 graph's numbers; %s answers", chosen.precision)
        graph = Graph(folder / chosen.file, provider=provider, threads=threads)
    if missing := {*OUTPUTS, "patch_tokens"} - graph.outputs:
        raise GraphInvalid(f"{chosen.file} lacks the outputs {', '.join(sorted(missing))}")
    if warm_up:
        graph.warm_up(size=size, batch=warm_up)
    return Model(manifest, graph, folder=folder, precision=chosen.precision)


def golden_cosine(graph: Graph, folder: Path) -> float:
    """How like its embedding of the golden image is to the one the export kept; 1 where none was kept."""
    path = folder / GOLDEN_NAME
    if not path.is_file():
        return 1.0
    with np.load(path, allow_pickle=False) as golden:
        images, expected = golden["images"], golden["embedding"].ravel()
    embedding = graph.run(images, ("embedding",))[0].ravel()
    return float(embedding @ expected / (np.linalg.norm(embedding) * np.linalg.norm(expected)))


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Softmax over the last axis in double precision."""
    shifted = np.exp(np.asarray(logits, np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def _result(task: Task, *, logits: NDArray[np.float32], ood: NDArray[np.float32]) -> TaskResult:
    own = logits[task.first_logit : task.first_logit + len(task.labels)]
    probabilities = softmax(own / task.temperature)
    return TaskResult(
        task=task.name,
        findings=tuple(
            Finding(
                task=task.name,
                label=label.name,
                display=label.display,
                code=label.code,
                normal=label.normal,
                logit=float(logit),
                probability=float(p),
                threshold=label.operating_point.threshold,
                positive=not label.normal and bool(p >= label.operating_point.threshold),
            )
            for label, logit, p in zip(task.labels, own, probabilities, strict=True)
        ),
        prediction_set=tuple(
            label.name for label, p in zip(task.labels, probabilities, strict=True) if 1 - p <= task.conformal_quantile
        ),
        ood_score=float(ood[task.ood_index]),
        ood_threshold=task.ood_threshold,
    )
