"""From a folder of images to a served model, on tiny images and a few steps."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vision_model
from tests.vision_model.images import made_images
from vision_model.data.mixture import MASKED, Batches, image_weights, targets
from vision_model.data.sources import COLUMNS, Example, load_squares, read_manifest
from vision_model.data.tasks import Curriculum, curriculum
from vision_model.errors import LossNotFinite, ParityFailed, RecipeInvalid, SourceInvalid
from vision_model.export import ServedNet, export
from vision_model.manifest import GRAPH_NAME
from vision_model.net import EMBEDDING_SIZE, HilumNet
from vision_model.pretrain.heads import Heads, Reference
from vision_model.pretrain.loop import train
from vision_model.pretrain.recipe import Recipe, read_recipe
from vision_model.pretrain.run import evaluate_folder, pretrain


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def examples(folder: Path) -> list[Example]:
    return [e for e in read_manifest(folder) if e.split == "train"]


@pytest.fixture(scope="module")
def what() -> Curriculum:
    return curriculum()


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return read_recipe("tiny")


def test_one_command_makes_a_model_that_loads_predicts_and_verifies(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vision_model.evaluation.intervals.BOOTSTRAPS", 40)
    evaluation = pretrain(recipe_name="tiny", data=folder, out=tmp_path / "run", version="9", workers=0)
    made = tmp_path / "run" / "model"
    assert str(Path(vision_model.__file__).parent).encode() not in (made / GRAPH_NAME).read_bytes()
    model = vision_model.load(made)
    served, unserved = {t.name for t in model.manifest.tasks}, {u.name for u in model.manifest.unserved}
    measured = {e.task: e for e in evaluation.tasks}
    assert served | unserved == set(measured)
    assert served == {name for name, e in measured.items() if e.auroc_interval[0] >= 0.75}
    (prediction,) = model.predict([np.full((30, 30), 128, np.uint8)])
    assert {r.task for r in prediction.results} == served
    assert max(v for k, v in evaluation.notes.items() if k.startswith("largest difference")) <= 1e-4
    assert json.loads((made / "evaluation.json").read_text())["graph_sha256"] == model.manifest.graph_sha256
    again = evaluate_folder(made, data=folder)
    assert {e.task: e.auroc for e in again.tasks} == {n: measured[n].auroc for n in served}
    with np.load(made / "golden.npz") as golden:
        np.testing.assert_allclose(model.run(golden["images"], ["logits"])[0], golden["logits"], atol=1e-4)


def test_a_stopped_run_goes_on_to_the_same_weights(
    examples: list[Example], what: Curriculum, recipe: Recipe, tmp_path: Path
) -> None:
    whole = train(examples, curriculum=what, recipe=recipe, run=tmp_path / "whole", workers=0)
    first, second = recipe.stages
    train(examples, curriculum=what, recipe=replace(recipe, stages=(first,)), run=tmp_path / "stopped", workers=0)
    resumed = train(examples, curriculum=what, recipe=recipe, run=tmp_path / "stopped", workers=0)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)
    assert len((tmp_path / "stopped" / "metrics.csv").read_text().splitlines()) == first.steps + second.steps


def test_a_batch_depends_on_seed_and_step_alone(examples: list[Example], what: Curriculum, recipe: Recipe) -> None:
    spec = recipe.input_spec(size=28, windows=())
    squares = load_squares(examples, spec=spec)

    def batches(seed: int) -> Batches:
        return Batches(squares, examples, curriculum=what, spec=spec, batch=4, modality_cap=0.9, seed=seed)

    one, other = batches(5), batches(5)
    other[0]  # an earlier batch leaves no trace in a later one
    torch.testing.assert_close(one[3], other[3], rtol=0, atol=0)
    assert not torch.equal(one[3][0], batches(6)[3][0])


def test_loss_that_is_not_finite_stops_the_run_and_names_the_batch(
    examples: list[Example], what: Curriculum, recipe: Recipe, tmp_path: Path
) -> None:
    wild = replace(recipe, stages=(replace(recipe.stages[0], rate=1e30, steps=9),))
    with pytest.raises(LossNotFinite, match=r"batch: .*\.png"):
        train(examples, curriculum=what, recipe=wild, run=tmp_path, workers=0)


def test_a_small_source_is_heard_and_a_modality_is_capped(tmp_path: Path) -> None:
    def example(dataset: str, modality: str) -> Example:
        return Example(tmp_path, dataset, modality, "CHEST", "normal", "g", "train", "")

    mixed = [example("large", "DX")] * 900 + [example("small", "CT")] * 100
    free = image_weights(mixed, modality_cap=1)
    assert free[:900].sum() == pytest.approx(30 / 40)
    capped = image_weights(mixed, modality_cap=0.6)
    assert capped[:900].sum() == pytest.approx(0.6)
    assert capped.sum() == pytest.approx(1)


def test_a_label_that_no_task_names_is_masked(what: Curriculum, tmp_path: Path) -> None:
    (row,) = targets([Example(tmp_path, "odir5k", "OP", "RETINA", "normal", "g", "train", "")], what)
    by_task = dict(zip([t.name for t in what.tasks], row[1:], strict=True))
    assert by_task["fundus-dr"] == 0
    assert by_task["fundus-disease"] == 0
    assert by_task["cxr-pneumonia-adult"] == MASKED
    assert what.routes[row[0]].name == "OP-RETINA"


def test_a_group_in_two_splits_is_kept_in_test_alone(tmp_path: Path) -> None:
    with (tmp_path / "manifest.csv").open("w", newline="", encoding="utf-8") as lines:
        rows = csv.writer(lines)
        rows.writerow(COLUMNS)
        for split in ("train", "val", "test"):
            rows.writerow([f"{split}.png", "d", "DX", "CHEST", "normal", "same patient", split, ""])
    assert [e.split for e in read_manifest(tmp_path)] == ["test"]


def test_a_manifest_without_a_column_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("file,dataset\n", encoding="utf-8")
    with pytest.raises(SourceInvalid, match="modality"):
        read_manifest(tmp_path)
    with pytest.raises(SourceInvalid, match=r"manifest\.csv"):
        read_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"), [("seed = 1", "seed"), ("size = 42", "multiple"), ("bf16 = false", "bf16")]
)
def test_a_recipe_that_lacks_a_key_is_refused(tmp_path: Path, change: str, message: str) -> None:
    text = (Path(vision_model.__file__).parent / "recipes" / "tiny.toml").read_text(encoding="utf-8")
    broken = text.replace(change, "size = 43" if change.startswith("size") else "")
    (tmp_path / "broken.toml").write_text(broken, encoding="utf-8")
    with pytest.raises(RecipeInvalid, match=message):
        read_recipe(str(tmp_path / "broken.toml"))
    with pytest.raises(RecipeInvalid, match="cpu"):
        read_recipe("no-such")


def test_a_graph_that_differs_from_torch_is_not_written(what: Curriculum, recipe: Recipe, tmp_path: Path) -> None:
    groups = len(what.tasks)
    rng = np.random.default_rng(0)
    # Not rounded to fp16 beforehand, and large: what the file stores is then not what torch holds.
    heads = Heads(
        rng.normal(0, 50, (what.logits, EMBEDDING_SIZE)).astype(np.float32), np.zeros(what.logits, np.float32)
    )
    reference = Reference(
        np.zeros((groups, EMBEDDING_SIZE), np.float32),
        np.zeros((groups, 2, EMBEDDING_SIZE), np.float32),
        np.zeros((groups, 2), np.float32),
        np.ones(groups, np.float32),
    )
    images = rng.normal(size=(2, 3, 28, 28)).astype(np.float32)
    served = ServedNet(HilumNet(what, size=28), heads, reference)
    with pytest.raises(ParityFailed, match="between torch and ONNX Runtime"):
        export(served, size=28, path=tmp_path / GRAPH_NAME, images=images)
    assert list(tmp_path.iterdir()) == []
