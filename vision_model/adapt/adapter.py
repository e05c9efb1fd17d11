"""LoRA without torch: low-rank branches beside the query, key and value layers of the graph that ships."""

import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_model.errors import ExtraMissing, GraphInvalid, PrecisionUnavailable
from vision_model.graph import Graph
from vision_model.manifest import GraphSpec
from vision_model.runtime import Model

QKV_BIAS = "net.encoder.blocks.{block}.attn.qkv.bias"  # its name survives the export; the weight's does not


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA (Hu et al. 2021, arXiv 2106.09685): the qkv layer of `blocks[i]` also gives `x @ down[i] @ up[i]`."""

    blocks: tuple[int, ...]  # from 0
    down: NDArray[np.float16] = field(repr=False)  # (L, inputs, rank)
    up: NDArray[np.float16] = field(repr=False)  # (L, rank, outputs)

    def applied(self, model: Model) -> Model:
        """A second model on the same float graph with these branches in; costs the memory of one more.

        Raises ExtraMissing without the onnx package, PrecisionUnavailable and GraphInvalid.
        """
        onnx = needed("onnx", extra="train")
        spec = float_graph(model)
        proto = onnx.load(model.folder / spec.file)
        for block, down, up in zip(self.blocks, self.down, self.up, strict=True):
            _add_branch(proto.graph, block, down.astype(np.float32), up.astype(np.float32), onnx=onnx)
        graph = Graph(proto.SerializeToString(), provider=model.graph.asked, size=model.manifest.input.size)
        return Model(model.manifest, graph, folder=model.folder, precision=spec.precision)


def float_model(model: Model) -> Model:
    """The model on its float graph, as it is."""
    nothing = np.empty((0, 0, 0), np.float16)
    return Adapter((), nothing, nothing).applied(model)


def float_graph(model: Model) -> GraphSpec:
    """The model's graph that computes in fp32. Raises PrecisionUnavailable when all there is computes in 8 bits."""
    for precision in ("fp16-stored", "int8-stored"):
        try:
            return model.manifest.graph(precision=precision)
        except PrecisionUnavailable:
            continue
    return model.manifest.graph(precision="fp32")


def product_of(graph: Any, bias: str) -> Any:
    """The MatMul of the linear layer with that bias. Raises GraphInvalid."""
    add = next((n for n in graph.node if n.op_type == "Add" and bias in n.input), None)
    product = next(
        (n for n in graph.node if add is not None and n.op_type == "MatMul" and n.output[0] in add.input), None
    )
    if product is None:
        raise GraphInvalid(f"the graph has no linear layer with the bias {bias}; LoRA needs one that Hilum exported")
    return product


def needed(module: str, *, extra: str) -> ModuleType:
    """A module that serving does without. Raises ExtraMissing when what it needs is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        raise ExtraMissing(f"{exc.name} is not installed; this needs the extra: pip install 'hilum[{extra}]'") from exc


def _add_branch(
    graph: Any, block: int, down: NDArray[np.float32], up: NDArray[np.float32], *, onnx: ModuleType
) -> None:
    product = product_of(graph, QKV_BIAS.format(block=block))
    given, taken = product.input[0], product.output[0]
    plain, low, change = (f"lora.{block}.{part}" for part in ("plain", "low", "change"))
    product.output[0] = plain
    matrices = {f"lora.{block}.down": down, f"lora.{block}.up": up}
    graph.initializer.extend(onnx.numpy_helper.from_array(matrix, name) for name, matrix in matrices.items())
    node = onnx.helper.make_node
    branch = [
        node("MatMul", [given, f"lora.{block}.down"], [low]),
        node("MatMul", [low, f"lora.{block}.up"], [change]),
        node("Add", [plain, change], [taken]),
    ]
    place = list(graph.node).index(product) + 1  # nodes stand in the order in which they are computed
    for offset, each in enumerate(branch):
        graph.node.insert(place + offset, each)
