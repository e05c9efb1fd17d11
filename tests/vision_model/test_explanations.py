"""The figures of heat maps, on a model whose maps are known to be right."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import vision_model
from tests.vision_model.tiny import PATCH, SIZE, tiny_model
from vision_model.errors import SourceInvalid
from vision_model.evaluation.explanations import (
    block_weights,
    blurred,
    explanation_figures,
    head_weights,
    removal_areas,
    similarity,
    with_weights_redrawn,
)
from vision_model.explain import contrast_map
from vision_model.manifest import GRAPH_NAME
from vision_model.preprocess import prepare

TASK = "brain-mri-tumor"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), dtype=np.uint8)
    return coarse.repeat(SIZE // 2, axis=1).repeat(SIZE // 2, axis=2)


def test_figures_of_a_model_without_attention_are_as_good_as_they_can_be(
    folder: Path, images: NDArray[np.uint8]
) -> None:
    heard: list[tuple[str, int, int]] = []
    figures = explanation_figures(
        folder, {TASK: images}, rng=np.random.default_rng(0), heard=lambda *done: heard.append(done)
    )
    assert figures[f"{TASK}: largest error of a map's sum"] < 1e-4
    assert figures[f"{TASK}: deletion gain over random"] > 0
    assert figures[f"{TASK}: insertion gain over random, low"] <= figures[f"{TASK}: insertion gain over random"]
    assert abs(figures[f"{TASK}: rank correlation, redrawn head"]) <= 1
    assert heard == [(TASK, i, 4) for i in (1, 2, 3, 4)]


def test_a_task_without_images_is_named(folder: Path) -> None:
    with pytest.raises(SourceInvalid, match=TASK):
        explanation_figures(folder, {TASK: np.empty((0, SIZE, SIZE, 3), np.uint8)}, rng=np.random.default_rng(0))


def test_deleting_what_speaks_for_the_label_first_costs_most(folder: Path, images: NDArray[np.uint8]) -> None:
    model = vision_model.load(folder)
    model_input = prepare(images[0], spec=model.manifest.input)
    (prediction,) = model.predict_inputs([model_input])
    right = contrast_map(prediction, manifest=model.manifest, task=TASK, label="glioma")
    areas = [
        removal_areas(
            model,
            model_input,
            order,
            task=model.manifest.task(TASK),
            label="glioma",
            rng=np.random.default_rng(0),
        )
        for order in (right, -right)
    ]
    assert areas[0].deletion[0] < areas[1].deletion[0]
    assert areas[0].insertion[0] > areas[1].insertion[0]
    for of_order in areas:
        assert areas[0].deletion[0] <= of_order.deletion_random.min() <= areas[1].deletion[0]


def test_the_head_is_found_and_shuffled_and_nothing_else_changes(folder: Path) -> None:
    source = onnx.load(folder / GRAPH_NAME)
    assert head_weights(source) == {"weight", "bias"}
    redrawn = with_weights_redrawn(source, blocks=0, rng=np.random.default_rng(0))
    for before, after in zip(source.graph.initializer, redrawn.graph.initializer, strict=True):
        one, other = numpy_helper.to_array(before), numpy_helper.to_array(after)
        np.testing.assert_array_equal(np.sort(one, axis=None), np.sort(other, axis=None))
        assert (one.tobytes() == other.tobytes()) == (before.name != "weight" and before.name != "bias")


def test_a_numbered_matrix_belongs_to_the_block_whose_names_stand_around_it() -> None:
    # As torch's exporter writes them: biases by their names, matrices by numbers, some stored in 16 bits.
    def tensor(name: str, kind: type[np.generic], side: int = 2) -> onnx.TensorProto:
        return numpy_helper.from_array(np.ones((side, side), kind), name)

    nodes = [helper.make_node("Cast", ["val_7.fp16"], ["val_7"], to=TensorProto.FLOAT)]
    last = "images"
    for block, matrix in enumerate(["val_3", "val_7"]):
        for kind, weight in (("Add", f"net.blocks.{block}.norm.bias"), ("MatMul", matrix)):
            nodes.append(helper.make_node(kind, [last, weight], [f"{last}{block}"]))
            last += str(block)
    nodes.append(helper.make_node("Mul", [last, "net.encoder.norm.weight"], ["patch_tokens"]))
    nodes.append(helper.make_node("MatMul", ["patch_tokens", "val_9"], ["patch_logits"]))
    weights = [tensor(n, np.float32) for n in ("val_3", "val_9", "net.encoder.norm.weight")]
    weights += [tensor(f"net.blocks.{block}.norm.bias", np.float32) for block in (0, 1)]
    weights += [tensor("val_7.fp16", np.float16), tensor("net.blocks.1.shape", np.int64)]
    model = helper.make_model(helper.make_graph(nodes, "blocks", [], [], weights))
    assert block_weights(model, blocks=1) == {"val_7.fp16", "net.blocks.1.norm.bias"}
    assert block_weights(model, blocks=5) == block_weights(model, blocks=1) | {"val_3", "net.blocks.0.norm.bias"}
    assert block_weights(model, blocks=0) == set()
    assert head_weights(model) == {"val_9"}


def test_similarity_is_one_for_the_same_map_and_small_for_another() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 12, 12)).astype(np.float32)
    assert similarity(one, 3 * one + 2) == pytest.approx(1)
    assert abs(similarity(one, other)) < 0.3
    assert similarity(one, -one) < 0


def test_a_blurred_image_keeps_its_mean_and_loses_its_edges() -> None:
    tensor = np.zeros((3, 8 * PATCH, 8 * PATCH), np.float32)
    tensor[:, ::2] = 1
    soft = blurred(tensor)
    assert soft.mean() == pytest.approx(0.5, abs=0.01)
    assert soft.std() < 0.01
