"""Words for a tiny model: a bag of words instead of a BERT, and a projection drawn at random."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from vision_model.manifest import MANIFEST_NAME, TEXT_GRAPH_NAME, TOKENIZER_NAME, read_manifest, text_spec
from vision_model.text import TEXT_SIZE
from vision_model.zero_shot import Projection

WORDS = ("[PAD]", "[UNK]", "bright", "dark", "left", "right", "lung", "picture", "of", "a")
SCALE = 5.0


def with_words(folder: Path) -> Path:
    """Lay a text encoder and a projection beside the tiny model of a folder and name them in its manifest."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding()
    tokenizer.save(str(folder / TOKENIZER_NAME))
    rng = np.random.default_rng(0)
    onnx.save(_bag_of_words(rng.normal(size=(len(WORDS), TEXT_SIZE)).astype(np.float32)), folder / TEXT_GRAPH_NAME)
    manifest = read_manifest(folder)
    weight = rng.normal(size=(TEXT_SIZE, manifest.embedding_size))
    Projection(
        weight=weight.astype(np.float32),
        sharp=weight.astype(np.float16),
        origins=rng.normal(size=(len(manifest.routes), TEXT_SIZE)).astype(np.float32),
        scale=SCALE,
        centres=0.03 * rng.normal(size=(len(manifest.routes), TEXT_SIZE)).astype(np.float32),
    ).save(folder)
    (folder / MANIFEST_NAME).write_text(replace(manifest, text=text_spec(folder)).to_json(), encoding="utf-8")
    return folder


def _bag_of_words(table: np.ndarray) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["table", "token_ids"], ["vectors"]),
        helper.make_node("Cast", ["mask"], ["here"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["here", "last"], ["weights"]),
        helper.make_node("Mul", ["vectors", "weights"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "tokens"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], ["embedding"], axis=-1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "bag of words",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "length"]) for n in ("token_ids", "mask")],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", TEXT_SIZE])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([-1], np.int64), "last"),
            numpy_helper.from_array(np.array([1], np.int64), "tokens"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
