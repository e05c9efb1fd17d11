"""Whether heat maps say what the model looks at: deletion and insertion, occlusion, and weights drawn anew."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from PIL import Image

from vision_model.errors import SourceInvalid
from vision_model.explain import contrast_map, rank_correlation, relevance_map, verify_explanation
from vision_model.graph import INPUT, Graph
from vision_model.manifest import GRAPH_NAME, Manifest, Task, read_manifest
from vision_model.preprocess import ModelInput, normalise
from vision_model.runtime import Model, softmax

BOOTSTRAPS = 2000
STEPS = 12  # of deletion and insertion
RANDOM_ORDERS = 2  # that a map's order is compared with, for each image
TAPPED_BLOCKS = 5  # from the first tap to the end: whatever tap a head reads, at least one of them stands before it
BLOCK = re.compile(r"\bblocks\.(\d+)\.")
WEIGHTS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8})
STORED = frozenset({"Cast", "DequantizeLinear"})  # turn a weight as it is stored into one that is computed with


@dataclass(frozen=True)
class Removal:
    """Areas under the label's probability as patches go or come, in the map's order and in a random one; (N,) each."""

    deletion: NDArray[np.float64]  # small is good: what the map marks is what the probability hangs on
    deletion_random: NDArray[np.float64]
    insertion: NDArray[np.float64]  # large is good
    insertion_random: NDArray[np.float64]


def explanation_figures(
    folder: Path,
    images: Mapping[str, NDArray[np.uint8]],
    *,
    rng: np.random.Generator,
    heard: Callable[[str, int, int], None] | None = None,
) -> dict[str, float]:
    """Figures of the model's heat maps on images of each task, (N, S, S, 3) 8-bit squares.

    The map is that of the most probable label. For each task: the largest error of the maps' sums, gains over a random
    order in deletion and insertion (positive is better than random), agreement with occlusion, and similarity to the
    maps of models with weights drawn anew (near zero is right); means with the bounds of their 95 % intervals over
    images as "..., low" and "..., high". `heard` is called with what is measured, images done and their number.
    Raises SourceInvalid for a task without images, and what reading the model raises.
    """
    manifest = read_manifest(folder)
    source = onnx.load(folder / GRAPH_NAME)
    model = Model(manifest, Graph(folder / GRAPH_NAME), folder=folder)
    redrawn = {
        name: Model(
            manifest,
            Graph(with_weights_redrawn(source, blocks=blocks, rng=rng).SerializeToString()),
            folder=folder,
        )
        for name, blocks in (("head", 0), (f"head and last {TAPPED_BLOCKS} blocks", TAPPED_BLOCKS))
    }
    figures: dict[str, float] = {}
    for name, squares in images.items():
        task = manifest.task(name)
        if not len(squares):
            raise SourceInvalid(f"no images of task {name} to explain")
        per_image: dict[str, list[float]] = {}
        errors = []
        for i, square in enumerate(squares):
            model_input = _model_input(square, manifest)
            (prediction,) = model.predict_inputs([model_input])
            label = max(prediction.result(name).findings, key=lambda f: f.probability)
            relevance = relevance_map(prediction, manifest=manifest, task=name, label=label.label)
            errors.append(abs(float(relevance.sum()) - label.logit))
            contrast = contrast_map(prediction, manifest=manifest, task=name, label=label.label)
            removal = removal_areas(model, model_input, contrast, task=task, label=label.label, rng=rng)
            values = {
                "deletion gain over random": float((removal.deletion_random - removal.deletion).mean()),
                "insertion gain over random": float((removal.insertion - removal.insertion_random).mean()),
                "rank correlation with occlusion": verify_explanation(
                    model, model_input, task=name, label=label.label, stride=2
                ).rank_correlation,
            }
            for changed, other in redrawn.items():
                (twin,) = other.predict_inputs([model_input])
                foreign = contrast_map(twin, manifest=manifest, task=name, label=label.label)
                values[f"rank correlation, redrawn {changed}"] = rank_correlation(contrast, foreign)
                values[f"SSIM, redrawn {changed}"] = similarity(contrast, foreign)
            for figure, value in values.items():
                per_image.setdefault(figure, []).append(value)
            if heard is not None:
                heard(name, i + 1, len(squares))
        figures[f"{name}: largest error of a map's sum"] = max(errors)
        for figure, seen in per_image.items():
            low, high = mean_interval(np.array(seen), rng=rng)
            figures |= {
                f"{name}: {figure}": float(np.mean(seen)),
                f"{name}: {figure}, low": low,
                f"{name}: {figure}, high": high,
            }
    return figures


def removal_areas(
    model: Model,
    model_input: ModelInput,
    relevance: NDArray[np.float32],
    *,
    task: Task,
    label: str,
    rng: np.random.Generator,
    steps: int = STEPS,
    orders: int = RANDOM_ORDERS,
) -> Removal:
    """Deletion and insertion (Petsiuk et al. 2018, arXiv 1806.07421) of one image, patch by patch.

    Deleted patches take the image's mean colour; insertion starts from a blurred image, which shows no new edges.
    """
    patch, tensor = model.manifest.input.patch, model_input.tensor
    flat, smooth = np.broadcast_to(tensor.mean(axis=(1, 2), keepdims=True), tensor.shape), blurred(tensor)
    counts = np.unique(np.rint(np.linspace(0, relevance.size, steps + 1)).astype(int))

    def area(order: NDArray[np.int64], start: NDArray[np.float32], end: NDArray[np.float32]) -> float:
        frames = []
        for count in counts:
            changed = np.zeros(relevance.size, dtype=bool)
            changed[order[:count]] = True
            mask = changed.reshape(relevance.shape).repeat(patch, axis=0).repeat(patch, axis=1)
            frames.append(np.where(mask, end, start))
        (logits,) = model.run(np.stack(frames), ("logits",))
        own = logits[:, task.first_logit : task.first_logit + len(task.labels)]
        place = [entry.name for entry in task.labels].index(label)
        curve = softmax(own / task.temperature)[:, place]
        return float(np.trapezoid(curve, counts / relevance.size))

    strongest_first = np.argsort(-relevance, axis=None, kind="stable")
    random = [rng.permutation(relevance.size) for _ in range(orders)]
    return Removal(
        deletion=np.array([area(strongest_first, tensor, flat)]),
        deletion_random=np.array([area(order, tensor, flat) for order in random]),
        insertion=np.array([area(strongest_first, smooth, tensor)]),
        insertion_random=np.array([area(order, smooth, tensor) for order in random]),
    )


def with_weights_redrawn(source: onnx.ModelProto, *, blocks: int, rng: np.random.Generator) -> onnx.ModelProto:
    """A copy whose linear head, and the last `blocks` transformer blocks, have lost what they learnt.

    The sanity check of Adebayo et al. 2018 (arXiv 1810.03292). Each tensor's values are shuffled, so that it keeps its
    distribution and, in a quantised graph, its scale.
    """
    model = onnx.ModelProto()
    model.CopyFrom(source)
    chosen = head_weights(model) | block_weights(model, blocks=blocks)
    for tensor in model.graph.initializer:
        if tensor.name in chosen:
            value = numpy_helper.to_array(tensor)
            shuffled = rng.permutation(value.ravel()).reshape(value.shape)
            tensor.CopyFrom(numpy_helper.from_array(shuffled, tensor.name))
    return model


def head_weights(model: onnx.ModelProto) -> set[str]:
    """Names of the weights between the patch tokens and the patches' logits."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    weights = _weights(model)
    found: set[str] = set()
    waiting = ["patch_logits"]
    while waiting:
        name = waiting.pop()
        if name in weights:
            found.add(name)
        elif name != "patch_tokens" and name in made_by:
            waiting += made_by[name].input
    return found


def block_weights(model: onnx.ModelProto, *, blocks: int) -> set[str]:
    """Names of the weights of the last transformer blocks; a matrix of no telling name belongs to the block around it.

    The exporter names transposed matrices by number, but biases and norms keep the names of timm's modules, and nodes
    stand in the order they are computed in.
    """
    weights = _weights(model)
    stored = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type in STORED}
    of_block: dict[int, set[str]] = {}
    current = None
    for node in model.graph.node:
        if node.op_type in STORED:
            continue
        names = [stored.get(name, name) for name in node.input]
        numbers = [int(match[1]) for name in names if (match := BLOCK.search(name))]
        if numbers:
            current = max(numbers)
        elif any(name.endswith(("encoder.norm.weight", "head.bias")) or name == INPUT for name in names):
            current = None
        if current is not None:
            of_block.setdefault(current, set()).update(name for name in names if name in weights)
    last = sorted(of_block)[-blocks:] if blocks else []
    return {name for number in last for name in of_block[number]}


def blurred(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    """(3, S, S) with everything finer than an eighth of the side taken out."""
    size = tensor.shape[-1]
    channels = [
        Image.fromarray(channel).resize((8, 8), Image.Resampling.BOX).resize((size, size), Image.Resampling.BICUBIC)
        for channel in tensor
    ]
    return np.stack([np.asarray(channel, dtype=np.float32) for channel in channels])


def similarity(one: NDArray[np.float32], other: NDArray[np.float32], *, side: int = 5) -> float:
    """Structural similarity (Wang et al. 2004) of two maps, each first stretched to 0..1, over square windows."""
    a, b = _stretched(one), _stretched(other)
    side = min(side, *a.shape)
    windows_a, windows_b = (np.lib.stride_tricks.sliding_window_view(x, (side, side)) for x in (a, b))
    mean_a, mean_b = windows_a.mean(axis=(2, 3)), windows_b.mean(axis=(2, 3))
    covariance = (windows_a * windows_b).mean(axis=(2, 3)) - mean_a * mean_b
    spread = windows_a.var(axis=(2, 3)) + windows_b.var(axis=(2, 3))
    light, contrast = 0.01**2, 0.03**2  # Wang's constants for a range of 1
    ssim = (2 * mean_a * mean_b + light) * (2 * covariance + contrast)
    return float((ssim / ((mean_a**2 + mean_b**2 + light) * (spread + contrast))).mean())


def mean_interval(values: NDArray[np.float64], *, rng: np.random.Generator) -> tuple[float, float]:
    """95 % interval of the mean of (N,) values, resampling images."""
    means = values[rng.integers(len(values), size=(BOOTSTRAPS, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _weights(model: onnx.ModelProto) -> set[str]:
    return {t.name for t in model.graph.initializer if t.data_type in WEIGHTS and int(np.prod(t.dims)) > 1}


def _stretched(values: NDArray[np.float32]) -> NDArray[np.float64]:
    low, high = float(values.min()), float(values.max())
    return (values.astype(np.float64) - low) / ((high - low) or 1.0)


def _model_input(square: NDArray[np.uint8], manifest: Manifest) -> ModelInput:
    tensor = normalise(square.astype(np.float32) / np.float32(255), spec=manifest.input)
    return ModelInput(tensor=tensor, frame_shape=(square.shape[0], square.shape[1]), black=None, white=None)
