"""A tiny real model for tests: patch means as tokens, linear heads, the outputs of the shipped graph."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vision_model.data.tasks import Curriculum, curriculum
from vision_model.manifest import (
    GRAPH_NAME,
    MANIFEST_NAME,
    InputSpec,
    Label,
    Manifest,
    OperatingPoint,
    Task,
    file_sha256,
)

SIZE, PATCH, CHANNELS = 28, 14, 3


def tiny_model(
    folder: Path, *, route: str = "DX-CHEST", ood_threshold: float = 1e6, unserved: tuple[str, ...] = ()
) -> Path:
    """Write a model whose router always says `route` and whose logits follow the brightness; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    what = curriculum()
    served = [t for t in what.tasks if t.name not in unserved]
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(CHANNELS, what.logits)).astype(np.float32)
    bias = np.zeros(what.logits, np.float32)
    weight[:, : len(what.routes)] = 0
    bias[[r.name for r in what.routes].index(route)] = 10
    onnx.save(_graph(weight, bias, groups=len(what.tasks)), folder / GRAPH_NAME)
    manifest = _manifest(folder, what, served={t.name for t in served}, ood_threshold=ood_threshold)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return folder


def _graph(weight: np.ndarray, bias: np.ndarray, *, groups: int) -> onnx.ModelProto:
    def tensor(name: str, value: object) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(value), name)

    tokens = (SIZE // PATCH) ** 2
    nodes = [
        helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[PATCH, PATCH], strides=[PATCH, PATCH]),
        helper.make_node("Reshape", ["pooled", "flat"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["patch_tokens"], perm=[0, 2, 1]),
        helper.make_node("ReduceMean", ["patch_tokens", "token_axis"], ["embedding"], keepdims=0),
        helper.make_node("MatMul", ["patch_tokens", "weight"], ["unbiased"]),
        helper.make_node("Add", ["unbiased", "bias"], ["patch_logits"]),
        helper.make_node("ReduceSum", ["patch_logits", "token_axis"], ["logits"], keepdims=0),
        helper.make_node("Mul", ["embedding", "embedding"], ["squares"]),
        helper.make_node("MatMul", ["squares", "ones"], ["ood"]),
    ]
    widths = {"embedding": CHANNELS, "logits": len(bias), "ood": groups}
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", w]) for n, w in widths.items()]
    outputs += [
        helper.make_tensor_value_info("patch_tokens", TensorProto.FLOAT, ["batch", tokens, CHANNELS]),
        helper.make_tensor_value_info("patch_logits", TensorProto.FLOAT, ["batch", tokens, len(bias)]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        outputs,
        [
            tensor("flat", np.array([0, CHANNELS, tokens], np.int64)),
            tensor("token_axis", np.array([1], np.int64)),
            tensor("weight", (weight / tokens).astype(np.float32)),
            tensor("bias", (bias / tokens).astype(np.float32)),
            tensor("ones", np.ones((CHANNELS, groups), np.float32)),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _manifest(folder: Path, what: Curriculum, *, served: set[str], ood_threshold: float) -> Manifest:
    point = OperatingPoint(threshold=0.5, rule="fixed for tests", sensitivity=1.0, specificity=1.0)
    return Manifest(
        name="tiny",
        version="0",
        graph_sha256=file_sha256(folder / GRAPH_NAME),
        precision="fp32",
        input=InputSpec(
            size=SIZE,
            patch=PATCH,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            windows=what.windows,
            percentiles=(0.5, 99.5),
        ),
        embedding_size=CHANNELS,
        routes=what.routes,
        route_temperature=1.0,
        route_minimum=0.5,
        tasks=tuple(
            Task(
                name=t.name,
                display=t.display,
                route=t.route,
                population=t.population,
                labels=tuple(Label(e.name, e.display, e.code, e.normal, point) for e in t.labels),
                first_logit=what.first_logit(t.name),
                temperature=1.0,
                conformal_alpha=0.1,
                conformal_quantile=0.6,
                ood_index=i,
                ood_threshold=ood_threshold,
                sources=(t.evaluate,),
                test_auroc=0.9,
                test_auroc_interval=(0.8, 1.0),
            )
            for i, t in enumerate(what.tasks)
            if t.name in served
        ),
        unserved=(),
        threshold_set="0" * 64,
        licence="made for tests",
        sources=(),
        training={},
    )
