"""Write MODEL_CARD.md from a manifest and its evaluation: what the model is bad at stands first, picked by rule."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vision_model.errors import EvaluationInvalid
from vision_model.evaluation import tables
from vision_model.evaluation.goals import BASELINE, ECE_MOST
from vision_model.manifest import Manifest, Population

LOW_SENSITIVITY = 0.7
WIDE_INTERVAL = 0.1
LITTLE_ABOVE_CHANCE = 0.05
WORTH_SAYING = 0.6  # AUROC of a shortcut alone
WORSE = 0.002  # a difference of AUROC that is more than rounding

STANDING = (
    "Populations are narrow: one hospital for children's films, mostly fair skin for dermatoscopy, single collections "
    "elsewhere. Other groups: unmeasured.",
    "Slices of the brain MRI, chest CT and head CT sources carry no patient identifiers; neighbours of one patient may "
    "stand on both sides of a split, so these figures may flatter.",
    "An out-of-distribution score is no proof that a picture is a patient, and an explanation is a decomposition of "
    "the head, not of a cause.",
)


def read_evaluation(path: Path, manifest: Manifest) -> dict[str, Any]:
    """The report of `hilum model evaluate`. Raises EvaluationInvalid when it is absent, or of another model."""
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        measured = report["model"]["graph_sha256"], report["model"]["projection_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise EvaluationInvalid(
            f"{path} is not an evaluation; name the evaluation.json that `hilum model evaluate --out` wrote"
        ) from exc
    if measured != (manifest.graph_sha256, manifest.text and manifest.text.projection_sha256):
        raise EvaluationInvalid(
            f"{path} measured another graph than that of {manifest.name} {manifest.version}, or other words: "
            "evaluate it anew"
        )
    return report


def card(manifest: Manifest, report: dict[str, Any], *, notes: str = "") -> str:
    """MODEL_CARD.md. `notes` are Markdown bullets written by hand, which follow those that the figures give."""
    bad = "\n".join(f"- {line}" for line in weaknesses(manifest, report))
    standing = "\n".join(f"- {line}" for line in STANDING)
    sections = [
        f"# Model card: {manifest.name} {manifest.version}",
        "**Research use only, not for diagnostic use.** Several sources of the weights forbid commercial use or state "
        "no licence, so the weights are for research only. The code is Apache-2.0.",
        f"## What it is bad at\n\n{bad}\n" + (f"{notes.strip()}\n" if notes.strip() else "") + standing,
        "## What it is for\n\nResearch on the tasks below, inside their populations; and embeddings for new questions "
        "with few labelled images. The application withholds an answer when modality, body part, view, age or "
        "distribution do not fit, and says why.\n\n" + intended(manifest),
        "## How it was measured\n\n" + measured_how(report),
        "## Goals\n\n" + tables.goals_table(report),
        "## Linear probes\n\n" + tables.probes_table(report),
        "## Few images a class\n\n"
        + tables.few_shot_text(report)
        + "\n\n"
        + tables.differences_table(report)
        + "\n\n"
        + tables.few_shot_table(report),
        "## Words alone\n\n" + tables.zero_shot_table(report),
        "## Tasks that are served\n\n" + tables.served_table(report) + "\n\n" + tables.operating_table(report),
        "## Corruptions\n\n" + tables.corruptions_table(report),
        "## The view shortcut\n\n" + tables.shortcut_text(report),
        "## How it was made\n\n" + made(manifest),
        "## Sources\n\n" + sources(manifest),
        "## How to reproduce\n\n" + reproduce(manifest, report),
        "## Images behind the figures\n\n" + tables.images_table(report),
    ]
    if "explanations" in report:
        sections.insert(-5, "## Explanations\n\n" + tables.explanations_table(report))
    return "\n\n".join(sections) + "\n"


def weaknesses(manifest: Manifest, report: dict[str, Any]) -> Iterator[str]:
    """What the figures say against the model, one sentence each."""
    for unserved in manifest.unserved:
        yield f"**{unserved.name} is not answered**: {unserved.reason}."
    missed = [g for g in report["goals"] if g["met"] is False]
    if missed:
        listed = "".join(f"\n  - {g['subject']}: {tables.number(g['found'])}, wanted {g['wanted']}" for g in missed)
        yield f"**{len(missed)} of {len(report['goals'])} goals were missed**:{listed}"
    yield from _against_initial(report)
    low = sorted(
        (sensitivity, task["task"], label)
        for task in report["served"]["tasks"]
        for label, sensitivity in task["sensitivity"].items()
        if sensitivity < LOW_SENSITIVITY
    )
    if low:
        listed = ", ".join(f"{label} {1 - s:.0%} ({task})" for s, task, label in low)
        yield f"At its operating points it misses many: {listed}."
    for task in report["served"]["tasks"]:
        width = task["auroc_interval"][1] - task["auroc_interval"][0]
        if width > WIDE_INTERVAL:
            yield (
                f"{task['task']} is measured on {task['images']} images of {task['groups']} groups: AUROC "
                f"{tables.with_interval(task['auroc'], task['auroc_interval'])}."
            )
    few = [t for t in report["served"]["tasks"] if t["ece_if_perfect"] > ECE_MOST]
    if few:
        listed = "; ".join(f"{t['task']} {t['ece_after']:.3f}, {t['ece_if_perfect']:.3f} to expect" for t in few)
        yield (
            "Some tasks have too few images to show whether their probabilities are right: true ones, too, would show "
            f"a calibration error beyond the goal: {listed}."
        )
    yield from _words(report)
    yield from _view(report)


def intended(manifest: Manifest) -> str:
    """For whom each task is answered."""
    rows = [
        (
            t.name,
            t.display,
            t.route,
            t.population.description,
            _ages(t.population),
            ", ".join(x.display for x in t.labels),
        )
        for t in manifest.tasks
    ]
    return tables.table(("task", "question", "route", "images it learnt from", "age in years", "labels"), rows)


def measured_how(report: dict[str, Any]) -> str:
    """The protocol, in words."""
    images = report["images"]
    return (
        f"`{report['command']}` on the `{report['split']}` split ({images['measured']} images), graph SHA-256 "
        f"`{report['model']['graph_sha256']}`, {report['started']}; everything is in `evaluation.json`, the draws of "
        "few-shot images in `support_lists.json`. What this command chooses, it chooses on `val`. Intervals are "
        f"95 %, 1,000 bootstraps over groups (patients where known). {images['duplicates']} training images that stand "
        "twice were left out. Baselines were run in the same way. Left out of pretraining altogether: "
        f"{', '.join(report['left_out']) or 'nothing'}."
    )


def made(manifest: Manifest) -> str:
    """The facts of the training, as the manifest holds them."""
    lines = [f"- {key.replace('_', ' ')}: {value}" for key, value in manifest.training.items()]
    if not any("energy" in key for key in manifest.training):
        lines.append("- energy: not measured")
    return "\n".join(lines)


def sources(manifest: Manifest) -> str:
    """Where the training images come from."""
    columns = list(dict.fromkeys(key for source in manifest.sources for key in source))
    rows = [[source.get(key, "") for key in columns] for source in manifest.sources]
    return tables.table([c.replace("_", " ") for c in columns], rows)


def reproduce(manifest: Manifest, report: dict[str, Any]) -> str:
    """The commands."""
    recipe = manifest.training.get("recipe", "cpu")
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return (
        f"`hilum model pretrain --recipe {recipe} --data FOLDER --out RUN`, then `hilum model evaluate RUN/model "
        "--data FOLDER --out REPORT` and `hilum model card RUN/model --evaluation REPORT/evaluation.json`. "
        f"Measured with {versions} in {sum(report['seconds'].values()) / 60:.0f} minutes."
    )


def _against_initial(report: dict[str, Any]) -> Iterator[str]:
    probes, shots = [], []
    for name, entry in report["benchmarks"].items():
        ours, theirs = entry["probes"].get("ours, same images", entry["probes"]["ours"]), entry["probes"].get(BASELINE)
        if theirs is not None and ours["auroc"] < theirs["auroc"] - WORSE:
            probes.append(f"{name} {ours['auroc']:.3f} (initial weights {theirs['auroc']:.3f})")
        difference = entry["few_shot"]["ten_shot_differences"].get(f"ours less {BASELINE}")
        if difference is not None and difference["difference"] < -WORSE:
            shots.append(
                f"{name} {tables.with_interval(difference['difference'], difference['interval'], signed=True)}"
            )
    if probes:
        yield f"Training moved features that these linear probes need: {'; '.join(probes)}."
    if shots:
        yield f"With 10 images a class it is worse than the weights it started from: {'; '.join(shots)}."


def _words(report: dict[str, Any]) -> Iterator[str]:
    poor = [
        f"{name} {z['balanced_accuracy']:.3f} (chance {z['chance']:.3f})"
        for name, entry in report["benchmarks"].items()
        if (z := entry.get("zero_shot")) is not None and z["above_chance"] < LITTLE_ABOVE_CHANCE
    ]
    if poor:
        yield f"Words alone tell hardly more than chance, balanced accuracy: {'; '.join(poor)}."


def _view(report: dict[str, Any]) -> Iterator[str]:
    found = report["shortcuts"]
    apparent = found.get("auroc_of_apparent_view_for_disease")
    if apparent is not None and apparent > WORTH_SAYING:
        yield (
            f"Some of the adult pneumonia score may be the view: the apparent view alone reaches AUROC {apparent:.3f}, "
            f"and among films of like view the score keeps {tables.number(found['auroc_given_apparent_view'])}."
        )
    border = found.get("looks", {}).get("border alone")
    if border is not None and border["auroc"] > WORTH_SAYING:
        yield (
            "The border of adult chest films alone, with no lung in it, tells pneumonia with AUROC "
            f"{tables.with_interval(border['auroc'], border['auroc_interval'])}."
        )


def _ages(population: Population) -> str:
    low, high = population.minimum_age_years, population.maximum_age_years
    if low is None and high is None:
        return "unknown"
    return f"{'' if low is None else f'{low:g}'} to under {'' if high is None else f'{high:g}'}"
