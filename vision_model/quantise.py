"""Make the 8-bit graph that answers on a CPU, beside the float graph of the same weights; refuse it where it is worse.

Weights are whole numbers in -127..127 with one scale for each output (Jacob et al. 2018, arXiv 1712.05877). The int8
graph scales each activation by its own largest value when it meets it; training images say beforehand only how its
channels differ, which `smooth` evens out. Heads, the out-of-distribution reference and attention stay in fp32, so an
explanation still sums to its logit. The float graph turns the same weights to fp32 when its session starts: it is what
torch computes, and what a GPU runs.
"""

import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vision_model.errors import GraphInvalid, QuantisationFailed
from vision_model.evaluation.intervals import auroc
from vision_model.graph import PRECISION_KEY, Graph
from vision_model.manifest import FLOAT_GRAPH_NAME, GRAPH_NAME, WEIGHTS_NAME, GraphSpec, Precision, file_sha256
from vision_model.net import PerChannel, ReadOut

logger = logging.getLogger(__name__)

TOP = 127  # largest magnitude of a weight; -128 stays unused, so that the grid is symmetric
SHARED_FROM = 1024  # numbers; smaller tensors stay inside both graphs
ALIGNED = 64  # bytes, a cache line
LEAST_COSINE = 0.99  # of the mean over images, of the int8 embedding with the float one
SUM_TOLERANCE = 1e-4
AUROC_LOSS = 0.002
FLIPS = 0.05  # share of images whose most probable label may differ; those are near ties
RESAMPLES = 200
MIGRATED = 0.7  # SmoothQuant's alpha: 1 would leave all channels of an activation alike
LEAST = 1e-5  # of a weight; a channel that is not read stays finite


@torch.no_grad()
def smooth(net: ReadOut, images: Tensor) -> None:
    """Move most of what an activation's channels differ in into the weights that read them.

    An int8 activation has one scale for all its channels, a weight one for each output: a channel eight times larger
    than the others costs them three of their eight bits. What stands before a linear layer divides the channel and the
    layer multiplies it back, so the net computes what it did (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438). The
    largest magnitudes are those of `images` (B, 3, S, S), prepared training images of all kinds; a channel that is
    quiet in them is not raised, for another image may wake it. Call it once, before anything is rounded.
    """
    places = []
    for number, block in net.blocks():
        block.mlp.norm = PerChannel(block.mlp.fc2.in_features)
        pairs = ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1), (block.mlp.norm, block.mlp.fc2))
        places += [((number, i), before, layer) for i, (before, layer) in enumerate(pairs)]
    # Of both encoders together: blocks that no training has moved stay equal, and are stored once.
    largest: dict[tuple[int, int], Tensor] = {}

    def watch(place: tuple[int, int], _: nn.Module, inputs: tuple[Tensor]) -> None:
        found = inputs[0].abs().flatten(end_dim=-2).amax(dim=0)
        largest[place] = torch.maximum(largest.get(place, found), found)

    hooks = [layer.register_forward_pre_hook(partial(watch, place)) for place, _, layer in places]
    for number in range(len(images)):
        net.unit_features(images[number : number + 1])
    for hook in hooks:
        hook.remove()
    for place, before, layer in places:
        most, read = largest[place], layer.weight.abs().amax(dim=0)
        factor = most.clamp(min=most.median()) ** MIGRATED / read.clamp(min=LEAST) ** (1 - MIGRATED)
        factor /= factor.median()
        for parameter in before.parameters():
            parameter /= factor
        layer.weight *= factor


@torch.no_grad()
def round_to_int8(module: nn.Module) -> None:
    """Put the weights of the encoder's linear layers on their 8-bit grid, so that torch holds what the file will hold.

    Call it after `round_to_fp16`, which leaves weights alone that lie on their grid already.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and "encoder.blocks." in name:
            scale = column_scale(layer.weight.numpy().T)
            layer.weight.copy_(torch.from_numpy((np.rint(layer.weight.numpy().T / scale) * scale).T))


def column_scale(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The step of each column's grid, (outputs,) for a weight (inputs, outputs)."""
    scale: NDArray[np.float32] = np.abs(weight).max(axis=0) / np.float32(TOP)
    scale[scale == 0] = 1
    return scale


def on_grid(weight: NDArray[np.float32]) -> bool:
    """Whether a tensor is a weight (inputs, outputs) that `round_to_int8` has rounded."""
    if weight.ndim != 2 or weight.size < SHARED_FROM:
        return False
    steps = weight / column_scale(weight)
    return bool(np.abs(steps - np.rint(steps)).max() < 1e-3)


def store_as_int8(model: onnx.ModelProto) -> int:
    """Quarter the file: rounded weights are stored as int8, and multiplied by their scale when the session starts.

    Returns how many were. Plain Cast and Mul: every provider folds them, and none takes them for its own int8.
    """
    kept: list[onnx.TensorProto] = []
    first: list[onnx.NodeProto] = []
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or not on_grid(value):
            kept.append(tensor)
            continue
        name, scale = tensor.name, column_scale(value)
        kept.append(numpy_helper.from_array(np.rint(value / scale).astype(np.int8), f"{name}.int8"))
        kept.append(numpy_helper.from_array(scale, f"{name}.scale"))
        first.append(helper.make_node("Cast", [f"{name}.int8"], [f"{name}.steps"], to=TensorProto.FLOAT))
        first.append(helper.make_node("Mul", [f"{name}.steps", f"{name}.scale"], [name]))
    nodes = [*first, *model.graph.node]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return len(first) // 2


def quantise(folder: Path, *, images: NDArray[np.float32]) -> float:
    """Turn model.onnx of `folder`, an export with int8-stored weights, into the int8 graph, float.onnx and weights.bin.

    Returns the mean cosine of the embeddings of `images` (N, 3, S, S) under the two graphs. Raises QuantisationFailed,
    leaving the folder as it was, when there are no such weights, when the cosine is below 0.99, or when an explanation
    does not sum to its logits within 1e-4.
    """
    whole = onnx.load(folder / GRAPH_NAME)
    part = folder / "quantise.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        quick = onnx.ModelProto()
        quick.CopyFrom(whole)
        if not compute_in_int8(quick):
            raise QuantisationFailed(f"{GRAPH_NAME} holds no int8-stored weights; round them before the export")
        helper.set_model_props(whole, {PRECISION_KEY: "int8-stored"})
        helper.set_model_props(quick, {PRECISION_KEY: "int8"})
        share_weights([whole, quick], part / WEIGHTS_NAME)
        onnx.save(whole, part / FLOAT_GRAPH_NAME)
        onnx.save(quick, part / GRAPH_NAME)
        cosine = compare(part / FLOAT_GRAPH_NAME, part / GRAPH_NAME, images)
        for name in (WEIGHTS_NAME, FLOAT_GRAPH_NAME, GRAPH_NAME):
            (part / name).replace(folder / name)
    finally:
        shutil.rmtree(part)
    logger.info("quantised %s: mean cosine of the embeddings %.5f", folder.name, cosine)
    return cosine


def compute_in_int8(model: onnx.ModelProto) -> int:
    """Let every product with an int8-stored weight take 8-bit integers; returns how many there are.

    The pattern is the one that ONNX Runtime fuses into DynamicQuantizeMatMul.
    """
    stored = {t.name.removesuffix(".int8") for t in model.graph.initializer if t.name.endswith(".int8")}
    nodes: list[onnx.NodeProto] = []
    scaled: set[str] = set()  # activations whose 8-bit form is there already
    products = 0
    for node in model.graph.node:
        if node.output[0].removesuffix(".steps") in stored:
            continue
        if node.op_type != "MatMul" or node.input[1] not in stored:
            nodes.append(node)
            continue
        (x, weight), y = node.input, node.output[0]
        if x not in scaled:
            scaled.add(x)
            nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [f"{x}.8", f"{x}.step", f"{x}.zero"]))
        nodes += [
            helper.make_node("MatMulInteger", [f"{x}.8", f"{weight}.int8", f"{x}.zero"], [f"{y}.whole"]),
            helper.make_node("Cast", [f"{y}.whole"], [f"{y}.float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{x}.step", f"{weight}.scale"], [f"{y}.step"]),
            helper.make_node("Mul", [f"{y}.float", f"{y}.step"], [y]),
        ]
        products += 1
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return products


def share_weights(models: Sequence[onnx.ModelProto], path: Path) -> None:
    """Move the large tensors of graphs of the same weights into one file, equal ones once."""
    places: dict[bytes, int] = {}
    with path.open("wb") as stream:
        for tensor in (t for model in models for t in model.graph.initializer):
            raw = numpy_helper.to_array(tensor).tobytes()
            if len(raw) < SHARED_FROM:
                continue
            if raw not in places:
                stream.write(bytes(-stream.tell() % ALIGNED))
                places[raw] = stream.tell()
                stream.write(raw)
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", path.name), ("offset", str(places[raw])), ("length", str(len(raw)))):
                tensor.external_data.add(key=key, value=value)


def compare(reference: Path, quick: Path, images: NDArray[np.float32]) -> float:
    """Mean cosine of the embeddings under two graphs. Raises QuantisationFailed as `quantise` does."""
    expected = Graph(reference).run(images, ("embedding",))[0]
    embedding, patch_logits, logits = Graph(quick).run(images, ("embedding", "patch_logits", "logits"))
    unexplained = float(np.abs(patch_logits.sum(axis=1) - logits).max())
    if not unexplained <= SUM_TOLERANCE:
        raise QuantisationFailed(f"patch logits of the int8 graph miss the logits by {unexplained:.2g}")
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(embedding, axis=1)
    cosine = float(((expected * embedding).sum(axis=1) / lengths).mean())
    if not cosine >= LEAST_COSINE:
        raise QuantisationFailed(f"embeddings of the int8 graph have a mean cosine of {cosine:.4f} with the float ones")
    return cosine


def compare_answers(
    reference: NDArray[np.floating],
    quick: NDArray[np.floating],
    labels: NDArray[np.int64],
    *,
    name: str,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """(loss of AUROC, share of flipped labels) of one head's (N, C) logits on `val` under two graphs.

    Raises QuantisationFailed when more than 5 % (and more than one image) flip, or when the loss is above 0.002 and
    above one standard error of the paired difference: of fifty images a single pair that changes its order can cost
    more, in either direction.
    """
    flipped = int((reference.argmax(axis=1) != quick.argmax(axis=1)).sum())
    flips = flipped / len(labels)
    if flipped > max(1, FLIPS * len(labels)):
        raise QuantisationFailed(f"{name}: the int8 graph flips {flips:.1%} of the labels; {FLIPS:.0%} is allowed")
    loss = _area(reference, labels) - _area(quick, labels)
    if loss > AUROC_LOSS:
        draws = (rng.integers(len(labels), size=len(labels)) for _ in range(RESAMPLES))
        losses = [_area(reference[d], labels[d]) - _area(quick[d], labels[d]) for d in draws if len(set(labels[d])) > 1]
        if loss > (error := float(np.std(losses))):
            raise QuantisationFailed(
                f"{name}: the int8 graph loses {loss:.4f} of AUROC on val (standard error {error:.4f}); "
                f"{AUROC_LOSS} is allowed"
            )
    return loss, flips


def graph_files(folder: Path) -> tuple[Precision, tuple[GraphSpec, ...], str | None]:
    """What a manifest says of a folder's graphs: precision of model.onnx, the other graphs, digest of weights.bin.

    Raises GraphInvalid for a graph that does not state its precision.
    """
    own, other = folder / GRAPH_NAME, folder / FLOAT_GRAPH_NAME
    if not other.is_file():
        return precision_of(own), (), None
    more = GraphSpec(other.name, precision_of(other), file_sha256(other))
    return precision_of(own), (more,), file_sha256(folder / WEIGHTS_NAME)


def precision_of(graph: Path) -> Precision:
    """What a graph says of itself. Raises GraphInvalid."""
    said = Graph(graph).precision
    for precision in get_args(Precision):
        if said == precision:
            known: Precision = precision
            return known
    raise GraphInvalid(f"{graph.name} states precision {said!r}; export the model again")


def _area(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return auroc(shifted / shifted.sum(axis=1, keepdims=True), labels)
