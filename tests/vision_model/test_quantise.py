"""The int8 graph answers as the float graph of the same weights, or is not written."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import vision_model
from tests.vision_model.tiny import tiny_model
from vision_model.data.tasks import curriculum
from vision_model.errors import (
    GraphInvalid,
    ModelDigestMismatch,
    PrecisionUnavailable,
    QuantisationFailed,
)
from vision_model.graph import Graph
from vision_model.manifest import (
    FLOAT_GRAPH_NAME,
    GOLDEN_NAME,
    GRAPH_NAME,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    file_sha256,
    read_manifest,
)
from vision_model.net import ReadOut, Untrained, new_encoder
from vision_model.quantise import (
    column_scale,
    compare_answers,
    graph_files,
    on_grid,
    quantise,
    share_weights,
    smooth,
    store_as_int8,
)

SIZE, TOKENS, PATCH_VALUES, WIDTH = 28, 4, 588, 16
OUTPUTS = ("embedding", "patch_logits", "logits")


def rounded(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    scale = column_scale(weight)
    on_its_grid: NDArray[np.float32] = np.rint(weight / scale) * scale
    return on_its_grid


def export_tiny(folder: Path, *, weight: NDArray[np.float32], precision: str | None = "int8-stored") -> Path:
    """A model.onnx as an export leaves it: one large rounded layer, and a small fp32 head."""
    rng, what = np.random.default_rng(1), curriculum()
    initializers: dict[str, NDArray[np.generic]] = {
        "shape": np.array([0, TOKENS, PATCH_VALUES], np.int64),
        "tokens": np.array([1], np.int64),
        "weight": weight,
        "head": rng.normal(size=(WIDTH, what.logits)).astype(np.float32),
        "ones": np.ones((WIDTH, len(what.tasks)), np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["images", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["hidden"]),
        helper.make_node("Tanh", ["hidden"], ["patch_tokens"]),
        helper.make_node("ReduceMean", ["patch_tokens", "tokens"], ["embedding"], keepdims=0),
        helper.make_node("MatMul", ["patch_tokens", "head"], ["patch_logits"]),
        helper.make_node("ReduceSum", ["patch_logits", "tokens"], ["logits"], keepdims=0),
        helper.make_node("MatMul", ["embedding", "ones"], ["ood"]),
    ]
    shapes = {
        "embedding": [WIDTH],
        "patch_tokens": [TOKENS, WIDTH],
        "patch_logits": [TOKENS, what.logits],
        "logits": [what.logits],
        "ood": [len(what.tasks)],
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", *s]) for n, s in shapes.items()],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    store_as_int8(model)
    if precision:
        helper.set_model_props(model, {"precision": precision})
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / GRAPH_NAME)
    return folder


@pytest.fixture
def weight() -> NDArray[np.float32]:
    return rounded(np.random.default_rng(0).normal(scale=0.03, size=(PATCH_VALUES, WIDTH)).astype(np.float32))


@pytest.fixture
def images() -> NDArray[np.float32]:
    return np.random.default_rng(2).normal(size=(6, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture
def quantised(tmp_path: Path, weight: NDArray[np.float32], images: NDArray[np.float32]) -> Path:
    """A whole model's folder with both graphs, as pretraining leaves it."""
    folder = export_tiny(tiny_model(tmp_path / "model"), weight=weight)
    quantise(folder, images=images)
    precision, more, weights = graph_files(folder)
    manifest = replace(
        read_manifest(folder),
        graph_sha256=file_sha256(folder / GRAPH_NAME),
        precision=precision,
        more_graphs=more,
        weights_sha256=weights,
        embedding_size=WIDTH,
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return folder


def test_rounding_is_to_127_steps_of_each_column_and_stays_when_repeated(weight: NDArray[np.float32]) -> None:
    assert on_grid(weight)
    np.testing.assert_allclose(rounded(weight), weight, rtol=1e-6)
    assert not on_grid(weight.astype(np.float16).astype(np.float32) * np.float32(1.01) + np.float32(1e-3))
    assert set(np.unique(np.rint(weight / column_scale(weight)))) <= set(range(-127, 128))


def test_float_graph_has_the_numbers_of_the_rounded_weights(
    quantised: Path, weight: NDArray[np.float32], images: NDArray[np.float32]
) -> None:
    tokens = np.tanh(images.reshape(-1, TOKENS, PATCH_VALUES) @ weight)
    (embedding,) = Graph(quantised / FLOAT_GRAPH_NAME).run(images, ("embedding",))
    np.testing.assert_allclose(embedding, tokens.mean(axis=1), atol=1e-5)


def test_int8_embedding_is_near_the_float_one_and_both_explanations_sum(
    quantised: Path, images: NDArray[np.float32]
) -> None:
    quick, exact = (Graph(quantised / name) for name in (GRAPH_NAME, FLOAT_GRAPH_NAME))
    assert (quick.precision, exact.precision) == ("int8", "int8-stored")
    near = []
    for graph in (quick, exact):
        embedding, patch_logits, logits = graph.run(images, OUTPUTS)
        np.testing.assert_allclose(patch_logits.sum(axis=1), logits, atol=1e-4)
        near.append(embedding)
    np.testing.assert_allclose(near[0], near[1], atol=0.03)
    assert np.abs(near[0] - near[1]).max() > 0


def test_an_image_has_one_int8_answer_whatever_its_batch_holds(quantised: Path, images: NDArray[np.float32]) -> None:
    graph = Graph(quantised / GRAPH_NAME)
    loud = np.concatenate([images[:1], 50 * images[1:]])
    for together, alone in zip(graph.run(loud, OUTPUTS), graph.run(images[:1], OUTPUTS), strict=True):
        np.testing.assert_array_equal(together[:1], alone)


def test_graphs_share_one_file_of_weights(quantised: Path, weight: NDArray[np.float32]) -> None:
    assert weight.size <= (quantised / WEIGHTS_NAME).stat().st_size < 2 * weight.size
    assert all((quantised / name).stat().st_size < weight.size for name in (GRAPH_NAME, FLOAT_GRAPH_NAME))


def test_equal_tensors_of_two_names_are_kept_once(tmp_path: Path) -> None:
    values = {"one": 1.0, "same": 1.0, "other": 2.0}
    tensors = [numpy_helper.from_array(np.full(1024, value, np.float32), name) for name, value in values.items()]
    model = helper.make_model(helper.make_graph([], "weights", [], [], tensors))
    share_weights([model], tmp_path / WEIGHTS_NAME)
    assert (tmp_path / WEIGHTS_NAME).stat().st_size == 2 * 4096
    onnx.save(model, tmp_path / GRAPH_NAME)
    read = {t.name: numpy_helper.to_array(t)[0] for t in onnx.load(tmp_path / GRAPH_NAME).graph.initializer}
    assert read == values


def test_model_answers_in_int8_on_a_cpu_and_in_what_is_asked_for(quantised: Path) -> None:
    image = np.full((30, 30), 90, np.uint8)
    for asked, used in ((None, "int8"), ("int8", "int8"), ("int8-stored", "int8-stored")):
        model = vision_model.load(quantised, precision=asked)  # type: ignore[arg-type]
        assert model.precision == used
        assert model.predict([image])[0].precision == used
    with pytest.raises(PrecisionUnavailable, match="int8, int8-stored"):
        vision_model.load(quantised, precision="fp32")


def test_a_gpu_is_never_given_the_int8_graph(quantised: Path) -> None:
    manifest = read_manifest(quantised)
    assert manifest.graph(provider="cuda").precision == "int8-stored"
    with pytest.raises(PrecisionUnavailable):
        manifest.graph(provider="cuda", precision="int8")
    with pytest.raises(PrecisionUnavailable, match="CPU only"):
        replace(manifest, more_graphs=()).graph(provider="cuda")


@pytest.mark.parametrize("name", [GRAPH_NAME, FLOAT_GRAPH_NAME, WEIGHTS_NAME])
def test_a_changed_file_of_any_graph_is_not_run(quantised: Path, name: str) -> None:
    changed = bytearray((quantised / name).read_bytes())
    changed[len(changed) // 2] ^= 1
    (quantised / name).write_bytes(changed)
    with pytest.raises(ModelDigestMismatch, match=name):
        vision_model.load(quantised)


def test_where_the_cpu_does_not_repeat_the_golden_embedding_the_float_graph_answers(
    quantised: Path, images: NDArray[np.float32]
) -> None:
    (embedding,) = Graph(quantised / GRAPH_NAME).run(images[:1], ("embedding",))
    np.savez(quantised / GOLDEN_NAME, images=images[:1], embedding=embedding)
    assert vision_model.load(quantised).precision == "int8"
    np.savez(quantised / GOLDEN_NAME, images=images[:1], embedding=np.roll(embedding, 1))
    assert vision_model.load(quantised).precision == "int8-stored"
    with pytest.raises(GraphInvalid, match="int8-stored"):
        vision_model.load(quantised, precision="int8")


def test_weights_of_a_few_giants_are_refused_and_the_folder_stays(
    tmp_path: Path, weight: NDArray[np.float32], images: NDArray[np.float32]
) -> None:
    folder = export_tiny(tmp_path, weight=weight)
    before = (folder / GRAPH_NAME).read_bytes()
    images = images.copy()
    images[:, 0, 0, 0] = 1e5  # every other value of the activation becomes the same step
    with pytest.raises(QuantisationFailed, match="cosine"):
        quantise(folder, images=images)
    assert [p.name for p in folder.iterdir()] == [GRAPH_NAME]
    assert (folder / GRAPH_NAME).read_bytes() == before


def test_weights_that_were_not_rounded_are_refused(tmp_path: Path, images: NDArray[np.float32]) -> None:
    plain = np.random.default_rng(0).normal(size=(PATCH_VALUES, WIDTH)).astype(np.float32)
    with pytest.raises(QuantisationFailed, match="round them"):
        quantise(export_tiny(tmp_path, weight=plain), images=images)


def test_a_graph_that_states_no_precision_is_refused(tmp_path: Path, weight: NDArray[np.float32]) -> None:
    with pytest.raises(GraphInvalid, match="export the model again"):
        graph_files(export_tiny(tmp_path, weight=weight, precision=None))


def channel_of_outliers(net: ReadOut) -> int:
    """Make one channel of every normed token and of every hidden layer fifty times the others; returns which."""
    for _, block in net.blocks():
        for norm in (block.norm1, block.norm2):
            norm.weight.data[7] *= 50
        block.mlp.fc1.bias.data[7] += 20
    return 7


def inputs_of(net: ReadOut, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The largest magnitude of each channel that the first block's linear layers of each encoder read."""
    found: dict[str, torch.Tensor] = {}

    def watch(name: str, _: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        found[name] = inputs[0].abs().flatten(end_dim=-2).amax(dim=0)

    hooks = [
        layer.register_forward_pre_hook(partial(watch, name))
        for name, layer in net.named_modules()
        if name.endswith(("blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"))
    ]
    with torch.inference_mode():
        net.unit_features(images)
    for hook in hooks:
        hook.remove()
    return found


def test_smoothing_evens_out_channels_and_computes_the_same() -> None:
    torch.manual_seed(0)
    net = ReadOut(new_encoder(28), Untrained(size=28, view=14)).eval()
    encoders: tuple[Any, Any] = (net.encoder, net.untrained.encoder)
    encoders[1].blocks.load_state_dict(encoders[0].blocks[:8].state_dict())  # moved by no training
    loud, images = channel_of_outliers(net), torch.randn(4, 3, 28, 28)
    with torch.inference_mode():
        expected = net.unit_features(images)
    before = inputs_of(net, images)
    smooth(net, images)
    with torch.inference_mode():
        assert torch.allclose(net.unit_features(images), expected, atol=1e-4)
    after = inputs_of(net, images)
    assert len(after) == 6
    for name, most in after.items():
        assert most[loud] / most.median() < 0.4 * before[name][loud] / before[name].median(), name
        assert most.max() <= before[name].max() * 1.5, f"{name}: a quiet channel became a loud one"
    trained = encoders[0].blocks.state_dict()
    for name, value in encoders[1].blocks.state_dict().items():
        assert torch.equal(value, trained[name]), f"{name}: equal blocks are stored once"


def answers(n: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    labels = np.arange(n) % 2
    sure = np.where(labels == 1, 2.0, -2.0) + np.random.default_rng(3).normal(size=n)
    return np.stack([-sure, sure], axis=1), labels


def test_a_small_change_of_the_answers_passes_and_is_measured() -> None:
    logits, labels = answers(400)
    rng = np.random.default_rng(4)
    near = logits + rng.normal(scale=0.02, size=logits.shape)
    loss, flips = compare_answers(logits, near, labels, name="task", rng=rng)
    assert abs(loss) < 0.002
    assert flips <= 0.01


def test_a_loss_of_auroc_or_flipped_labels_refuse_the_graph() -> None:
    logits, labels = answers(400)
    rng = np.random.default_rng(5)
    with pytest.raises(QuantisationFailed, match="flips"):
        compare_answers(logits, -logits, labels, name="task", rng=rng)
    worse = logits * np.where(np.arange(400) % 9 == 0, 1e-3, 1)[:, None]  # the order changes, no label does
    with pytest.raises(QuantisationFailed, match="AUROC"):
        compare_answers(logits, worse, labels, name="task", rng=rng)


def test_manifest_tells_of_every_graph(quantised: Path) -> None:
    raw = json.loads((quantised / MANIFEST_NAME).read_text(encoding="utf-8"))
    (other,) = raw["more_graphs"]
    assert other == {
        "file": FLOAT_GRAPH_NAME,
        "precision": "int8-stored",
        "sha256": file_sha256(quantised / FLOAT_GRAPH_NAME),
    }
    assert raw["weights_sha256"] == file_sha256(quantised / WEIGHTS_NAME)
