"""One evaluation from images to files, on made images, a tiny model and encoders that need no download."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.vision_model.evaluation_images import evaluation_images
from tests.vision_model.tiny import tiny_model
from tests.vision_model.tiny_text import with_words
from vision_model.errors import EvaluationInvalid, SourceInvalid
from vision_model.evaluation.card import card, read_evaluation
from vision_model.evaluation.encoders import Encoder, Image8
from vision_model.evaluation.goals import PAPER_TASK
from vision_model.evaluation.report import write_report
from vision_model.evaluation.run import Measured, Settings, evaluate_model, no_baselines
from vision_model.manifest import MANIFEST_NAME, InputSpec, read_manifest
from vision_model.pretrain.heads import WHOLE

PLOTS = ("roc", "few_shot", "reliability", "confusion", "coverage", "corruptions", "embedding")


LEFT_OUT = ("covid_cxnet", "idc_breast_patches", "ieee8023_cxr", "mini_mias")


@dataclass(frozen=True)
class Columns:
    """Mean brightness of twelve strips: it sees where the bar stands, and learns nothing."""

    name: str
    digest: str = "c" * 64
    parts: Sequence[slice] = WHOLE

    def embed(self, images: Sequence[Image8]) -> dict[str, NDArray[np.float32]]:
        """As Encoder."""
        strips = [np.array_split(image.mean(axis=(0, 2)) / 255, 12) for image in images]
        return {"embedding": np.array([[s.mean() for s in row] for row in strips], np.float32)}


def stand_ins(_spec: InputSpec, _cache: Path) -> list[Encoder]:
    """Encoders without learning, under the names that goals compare with."""
    return [Columns("initial weights"), Columns("EfficientNet-Lite2")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = with_words(tiny_model(tmp_path_factory.mktemp("tiny")))
    manifest = read_manifest(folder)
    told = replace(manifest, training={**manifest.training, "left_out": ", ".join(LEFT_OUT)})
    (folder / MANIFEST_NAME).write_text(told.to_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluation_images(tmp_path_factory.mktemp("images"), each=3)


@pytest.fixture(scope="module")
def measured(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    with pytest.MonkeyPatch.context() as small:
        small.setattr("vision_model.evaluation.intervals.BOOTSTRAPS", 10)
        small.setattr("vision_model.evaluation.few_shot.SEEDS", 2)
        return evaluate_model(
            model,
            data=data,
            cache=tmp_path_factory.mktemp("cache"),
            settings=Settings(baseline_images=14, corruption_images=4, explanation_images=0),
            command="hilum model evaluate --data images",
            others=stand_ins,
        )


def test_every_part_of_the_report_is_written(measured: Measured, model: Path, tmp_path: Path) -> None:
    manifest = read_manifest(model)
    write_report(measured, manifest=manifest, out=tmp_path, notes="- It was never trained.")
    report = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert report["model"]["graph_sha256"] == manifest.graph_sha256
    assert set(report["encoders"]) == {"ours", "initial weights", "EfficientNet-Lite2"}
    assert {p.stem for p in tmp_path.glob("*.png")} == set(PLOTS)
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in PLOTS)
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in text for name in report["benchmarks"])
    written = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert written.index("## What it is bad at") < written.index("## What it is for")
    assert "- It was never trained." in written
    assert "Research use only, not for diagnostic use." in written


def test_sources_left_out_of_pretraining_stand_in_a_column_of_their_own(measured: Measured) -> None:
    columns = {entry["dataset"]: entry["column"] for entry in measured.report["benchmarks"].values()}
    assert {dataset for dataset, column in columns.items() if column == "left out"} == set(LEFT_OUT)
    assert set(measured.report["corruptions"]["sources"]) == {
        name for name, entry in measured.report["benchmarks"].items() if entry["column"] == "in-domain"
    }


def test_supports_name_training_images_alone(measured: Measured, data: Path) -> None:
    with (data / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        split_of = {row["file"]: row["split"] for row in csv.DictReader(lines)}
    lists = [
        files
        for benchmark in measured.supports.values()
        for seeds in benchmark["shots"].values()
        for files in seeds.values()
    ]
    assert len(lists) == len(measured.supports) * 4 * 2
    assert {split_of[name] for files in lists for name in files} == {"train"}


def test_an_encoder_that_reads_the_place_of_the_bar_beats_chance_and_is_measured_like_ours(measured: Measured) -> None:
    skin = measured.report["benchmarks"]["ham10000"]
    assert skin["probes"]["EfficientNet-Lite2"]["auroc"] > 0.7
    assert set(skin["few_shot"]["auroc"]) == {
        "ours",
        "initial weights",
        "EfficientNet-Lite2",
        "ours, auto",
        "ours, auto, words",
    }
    assert set(skin["few_shot"]["auroc"]["ours"]) == {"1", "5", "10", "16"}


def test_the_papers_rates_are_those_of_the_head_that_answers(measured: Measured) -> None:
    (child,) = [t for t in measured.report["served"]["tasks"] if t["task"] == PAPER_TASK]
    found = {g["subject"].split()[0]: g["found"] for g in measured.report["goals"] if PAPER_TASK in g["subject"]}
    sensitivity, specificity = child["sensitivity"]["pneumonia"], child["specificity"]["pneumonia"]
    assert (found["sensitivity"], found["specificity"]) == (sensitivity, specificity)
    counts = {n: c["images"] for n, c in measured.report["benchmarks"]["kermany_cxr"]["test"].items()}
    right = sensitivity * counts["pneumonia"] + specificity * counts["normal"]
    assert found["accuracy"] == pytest.approx(right / child["images"])


def test_ours_is_also_measured_on_the_images_that_baselines_saw(measured: Measured) -> None:
    skin = measured.report["benchmarks"]["ham10000"]["probes"]
    assert {name: probe["train_images"] for name, probe in skin.items()} == {
        "ours": 21,
        "ours, same images": 14,
        "initial weights": 14,
        "EfficientNet-Lite2": 14,
    }


def test_a_card_is_not_written_from_another_models_figures(measured: Measured, model: Path, tmp_path: Path) -> None:
    manifest = read_manifest(model)
    path = tmp_path / "evaluation.json"
    other = {**measured.report, "model": {**measured.report["model"], "graph_sha256": "0" * 64}}
    path.write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(EvaluationInvalid, match="evaluate it anew"):
        read_evaluation(path, manifest)
    path.write_text(json.dumps(measured.report), encoding="utf-8")
    assert read_evaluation(path, manifest)["split"] == "test"
    with pytest.raises(EvaluationInvalid, match="evaluate it anew"):
        read_evaluation(path, replace(manifest, text=None))
    path.write_text("no json", encoding="utf-8")
    with pytest.raises(EvaluationInvalid, match=r"evaluation\.json"):
        read_evaluation(path, manifest)


def test_what_the_figures_say_against_the_model_comes_first(measured: Measured, model: Path) -> None:
    missed = [g["subject"] for g in measured.report["goals"] if g["met"] is False]
    written = card(read_manifest(model), measured.report)
    first = written.split("## What it is for")[0]
    assert missed
    assert all(subject in first for subject in missed)


def test_a_source_that_is_missing_is_named(model: Path, data: Path, tmp_path: Path) -> None:
    rows = (data / "manifest.csv").read_text(encoding="utf-8").splitlines()
    part = tmp_path / "part"
    part.mkdir()
    kept = [row for row in rows if "busi" not in row]
    (part / "manifest.csv").write_text("\n".join(kept) + "\n", encoding="utf-8")
    with pytest.raises(SourceInvalid, match="no images of busi"):
        evaluate_model(model, data=part, cache=tmp_path, settings=Settings(), command="", others=no_baselines)
