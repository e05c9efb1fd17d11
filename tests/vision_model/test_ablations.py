"""The comparison of trainings: every variant is trained and measured, and nothing of `test` is looked at."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.vision_model.evaluation_images import evaluation_images
from vision_model.evaluation import ablations
from vision_model.evaluation.ablations import ablate, table, variants
from vision_model.evaluation.plots import curves
from vision_model.knowledge import knowledge
from vision_model.pretrain.heads import embed_examples
from vision_model.pretrain.recipe import Recipe, read_recipe


@pytest.fixture
def recipe() -> Recipe:
    tiny = read_recipe("tiny")
    return replace(tiny, stages=(replace(tiny.stages[0], steps=2, second_views=0),), left_out=("ieee8023_cxr",))


def test_variants_differ_from_the_recipe_in_one_thing(recipe: Recipe) -> None:
    made = variants(recipe, knowledge())
    assert made["labels and words"].recipe == recipe
    assert made["labels alone"].recipe == replace(recipe, text_weight=0.0)
    assert made["every block trained"].recipe == replace(recipe, frozen_blocks=0)
    assert made["initial weights"].recipe.stages[0].steps == 0
    alone = made["self-distillation alone"].recipe
    assert (alone.supervised_weight, alone.text_weight) == (0, 0)
    assert alone.self_weight > 0
    for name, steps in (("initial weights", 0), ("labels and words", recipe.stages[0].steps)):
        stage = made[f"{name}, three patches more a side"].recipe.stages[0]
        assert (stage.size, stage.steps) == (recipe.stages[0].size + 42, steps)
    names = made["labels, and names for words"].words
    assert all(concept.texts == (concept.display,) for concept in names)
    assert names["pneumonia"].sources == knowledge()["pneumonia"].sources


def test_every_variant_is_measured_without_a_look_at_test(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = evaluation_images(tmp_path / "images", each=3)
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        of_test = [row["file"] for row in csv.DictReader(lines) if row["split"] == "test"]
    kept = dict(list(variants(recipe, knowledge()).items())[:2])
    monkeypatch.setattr(ablations, "variants", lambda *_: kept)
    looked_at: list[str] = []
    embedded = embed_examples

    def embed(net, examples, **rest):  # type: ignore[no-untyped-def]
        looked_at.extend(f"{e.dataset}/{e.path.name}" for e in examples)
        return embedded(net, examples, **rest)

    monkeypatch.setattr(ablations, "embed_examples", embed)
    figures = ablate(folder, tmp_path / "out", recipe=recipe)
    assert list(figures) == ["initial weights", "labels and words"]
    assert looked_at
    assert not set(looked_at) & set(of_test)
    for measured in figures.values():
        assert 0 <= measured.probe_auroc <= 1
        assert list(measured.block_aurocs) == ["block 8", "block 10", "block 12"]
        assert all(0 <= area <= 1 for area in measured.block_aurocs.values())
        assert 0 <= measured.ten_shot_auroc <= 1
        assert -1 <= measured.words_above_chance <= 1
    assert not any(math.isnan(m.probe_auroc) for m in figures.values())
    assert table(figures).count("\n") == 4
    curves({name: tmp_path / "out" / name.replace(" ", "-") / "metrics.csv" for name in figures}, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as drawn:
        assert drawn.size[0] > 1000
    # What is measured is not measured again.
    monkeypatch.setattr(ablations, "train", lambda *_, **__: pytest.fail("trained again"))
    assert ablate(folder, tmp_path / "out", recipe=recipe) == figures
