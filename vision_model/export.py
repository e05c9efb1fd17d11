"""Write a trained net as an ONNX graph, and only if the graph gives torch's numbers."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vision_model.errors import ParityFailed
from vision_model.graph import PRECISION_KEY
from vision_model.net import ReadOut
from vision_model.pretrain.heads import Heads
from vision_model.pretrain.reference import Reference, Unlikeness, parts_of
from vision_model.quantise import on_grid, store_as_int8

logger = logging.getLogger(__name__)

OUTPUTS = ("embedding", "patch_tokens", "patch_logits", "logits", "ood")
TOLERANCE = 1e-4
OPSET = 20  # the first that has Gelu as one operator
FP16_FROM = 1024  # smaller tensors stay fp32: nothing to gain


class ServedNet(nn.Module):
    """The graph that ships: the encoders, the fitted heads and the out-of-distribution reference."""

    def __init__(self, net: ReadOut, heads: Heads, reference: Reference) -> None:
        super().__init__()
        self.net = net
        self.head = nn.Linear(*heads.weight.T.shape)
        self.head.weight.data = torch.from_numpy(heads.weight)
        self.head.bias.data = torch.from_numpy(heads.bias)
        self.unlikeness = Unlikeness(reference)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(B, 3, S, S) -> embedding (B, D), patch tokens (B, T, D), patch logits (B, T, C), logits (B, C), ood (B, G).

        Patch logits are each patch's share of the logits, bias included; they sum to them. `ood` says how much further
        than usual the image is from each task's training images: see `Unlikeness`.
        """
        tokens = self.net.unit_features(images)
        patch_logits = self.head(tokens) / tokens.shape[1]
        ood = self.unlikeness(parts_of(tokens))
        return tokens.mean(dim=1), tokens, patch_logits, patch_logits.sum(dim=1), ood


@torch.no_grad()
def round_to_fp16(module: nn.Module) -> None:
    """Round every large float tensor of the module to fp16's values, so that torch holds what the file will hold.

    Weights that `quantise.round_to_int8` has rounded stay as they are.
    """
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point() and tensor.numel() >= FP16_FROM and not on_grid(tensor.numpy().T):
            tensor.copy_(tensor.half().float())


def export(served: ServedNet, *, size: int, path: Path, images: NDArray[np.float32]) -> dict[str, float]:
    """Write the graph, its weights stored in 8 or 16 bits, to `path`; returns the largest differences from torch.

    `served` must have been rounded already. `images` (N, 3, S, S) are real prepared images that parity is checked on.
    Raises ParityFailed, leaving no file, when an output differs by more than 1e-4 or a label flips.
    """
    served.eval()
    part = path.with_suffix(".part.onnx")
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.onnx.export(
        served,
        (torch.zeros(2, 3, size, size),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=list(OUTPUTS),
        dynamic_shapes={"images": {0: batch}},
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    store_as_fp16(model)
    in_8_bits = store_as_int8(model)
    strip_notes(model)
    helper.set_model_props(model, {PRECISION_KEY: "int8-stored" if in_8_bits else "fp16-stored"})
    onnx.checker.check_model(model)
    onnx.save(model, part)
    try:
        differences = parity(served, part, images)
    except ParityFailed:
        part.unlink()
        raise
    part.replace(path)
    logger.info("exported %s, largest differences from torch: %s", path.name, differences)
    return differences


def parity(served: ServedNet, graph: Path, images: NDArray[np.float32], *, batch: int = 8) -> dict[str, float]:
    """Largest difference between torch and ONNX Runtime for each output, over the images.

    Absolute, but for an `ood` beyond 1, where it is relative: an image far from all others has one of hundreds, of
    which fp32 keeps seven digits.
    Raises ParityFailed when one is above 1e-4 or when the most probable label of any head differs.
    """
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    largest = dict.fromkeys(OUTPUTS, 0.0)
    for start in range(0, len(images), batch):
        chunk = images[start : start + batch]
        with torch.inference_mode():
            expected = [t.numpy() for t in served(torch.from_numpy(chunk))]
        for name, a, b in zip(OUTPUTS, expected, session.run(list(OUTPUTS), {"images": chunk}), strict=True):
            unit = np.maximum(np.abs(a), 1) if name == "ood" else 1.0
            largest[name] = max(largest[name], float((np.abs(a - b) / unit).max()))
            if name == "logits" and (a.argsort(axis=1) != b.argsort(axis=1)).any():
                _refuse_flips(a, b)
    if worst := [f"{name} {value:.2e}" for name, value in largest.items() if not value <= TOLERANCE]:
        raise ParityFailed(f"ONNX Runtime differs from torch by more than {TOLERANCE}: {', '.join(worst)}")
    return largest


def store_as_fp16(model: onnx.ModelProto) -> None:
    """Halve the file: large float tensors are stored as fp16 and cast back when the session starts, once."""
    casts = []
    kept: list[onnx.TensorProto] = []
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or value.size < FP16_FROM or on_grid(value):
            kept.append(tensor)
            continue
        kept.append(numpy_helper.from_array(value.astype(np.float16), f"{tensor.name}.fp16"))
        casts.append(helper.make_node("Cast", [f"{tensor.name}.fp16"], [tensor.name], to=TensorProto.FLOAT))
    nodes: Sequence[onnx.NodeProto] = [*casts, *model.graph.node]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def strip_notes(model: onnx.ModelProto) -> None:
    """Take out the exporter's notes: stack traces with the paths of the machine that the export ran on."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _refuse_flips(torch_logits: NDArray[np.float32], onnx_logits: NDArray[np.float32]) -> None:
    """A changed order of two logits is a flip only where they are further apart than the tolerance."""
    rows = np.arange(len(torch_logits))[:, None]
    ordered = torch_logits[rows, onnx_logits.argsort(axis=1)]
    if (np.diff(ordered, axis=1) < -2 * TOLERANCE).any():
        raise ParityFailed("labels change their order between torch and ONNX Runtime")
