"""What the encoder is measured on: the questions of `benchmarks.toml`, and which images answer them."""

import csv
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_model.data.example import Example
from vision_model.data.mixture import MASKED
from vision_model.data.tasks import Curriculum, TaskDefinition
from vision_model.errors import RecipeInvalid, SourceInvalid
from vision_model.manifest import Manifest

BENCHMARKS_FILE = Path(__file__).parent.parent / "benchmarks.toml"
EXTRA_LABELS = "extra_labels.csv"


@dataclass(frozen=True, slots=True)
class BenchmarkLabel:
    """One answer, the source labels that mean it, and where its words come from."""

    name: str
    display: str
    sources: frozenset[tuple[str, str]]  # (dataset, label)
    concepts: tuple[str, ...]  # of knowledge.toml
    words: tuple[str, ...]  # where knowledge.toml has no concept


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One question to the encoder, answered on one dataset."""

    name: str
    display: str
    dataset: str
    route: str
    labels: tuple[BenchmarkLabel, ...]
    extra: str | None  # the key in extra_labels.csv whose values are the labels
    floor: float | None
    goal: float | None
    note: str

    def labels_of(self, examples: Sequence[Example], *, extra: dict[tuple[str, str], str]) -> NDArray[np.int64]:
        """(N,) label indices, MASKED where an image does not belong; `extra` as `extra_labels` reads it."""
        index = {pair: i for i, label in enumerate(self.labels) for pair in label.sources}
        return np.array(
            [
                index.get((e.dataset, e.label if self.extra is None else extra.get((_file(e), self.extra), "")), MASKED)
                for e in examples
            ],
            dtype=np.int64,
        )


def benchmarks(curriculum: Curriculum, path: Path = BENCHMARKS_FILE) -> tuple[Benchmark, ...]:
    """Read `benchmarks.toml`. Raises RecipeInvalid when it names a task that is not there."""
    tasks = {task.name: task for task in curriculum.tasks}
    return tuple(_benchmark(table, tasks) for table in tomllib.loads(path.read_text(encoding="utf-8"))["benchmark"])


def extra_labels(folder: Path) -> dict[tuple[str, str], str]:
    """(file, key) -> value of `extra_labels.csv`; empty where a folder has none."""
    path = folder / EXTRA_LABELS
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as lines:
        return {(row["file"], row["key"]): row["value"] for row in csv.DictReader(lines)}


def left_out(manifest: Manifest, asked: Sequence[Benchmark]) -> frozenset[str]:
    """The datasets that the encoder never saw.

    The manifest's training facts name them under `left_out`, since the router's head may still list them as sources;
    without that, those that stand in none of its sources.
    """
    named = manifest.training.get("left_out")
    if named is not None:
        return frozenset(name.strip() for name in named.split(",") if name.strip())
    trained = {source["name"] for source in manifest.sources}
    return frozenset(b.dataset for b in asked if b.dataset not in trained)


def require_sources(examples: Sequence[Example], asked: Sequence[Benchmark]) -> None:
    """Raises SourceInvalid naming the datasets that benchmarks ask for and the folder does not hold."""
    there = {e.dataset for e in examples}
    if missing := sorted({b.dataset for b in asked} - there):
        raise SourceInvalid(f"the folder holds no images of {', '.join(missing)}, which the evaluation measures")


def _benchmark(table: dict[str, Any], tasks: dict[str, TaskDefinition]) -> Benchmark:
    if "task" in table:
        if table["task"] not in tasks:
            raise RecipeInvalid(f"benchmark {table['name']}: tasks.toml has no task {table['task']!r}")
        task = tasks[table["task"]]
        dataset, route = task.evaluate, task.route
        labels = tuple(
            BenchmarkLabel(
                name=label.name,
                display=label.display,
                sources=frozenset(pair for pair in label.sources if pair[0] == dataset),
                concepts=(label.concept,),
                words=(),
            )
            for label in task.labels
        )
    else:
        labels = tuple(_label(entry) for entry in table["labels"])
        (dataset,) = {pair[0] for label in labels for pair in label.sources}
        route = table["route"]
    return Benchmark(
        name=table["name"],
        display=table["display"],
        dataset=dataset,
        route=route,
        labels=labels,
        extra=table.get("extra"),
        floor=table.get("floor"),
        goal=table.get("goal"),
        note=table.get("note", ""),
    )


def _label(entry: dict[str, Any]) -> BenchmarkLabel:
    return BenchmarkLabel(
        name=entry["name"],
        display=entry["display"],
        sources=frozenset((d, v) for d, _, v in (pair.partition(":") for pair in entry["from"])),
        concepts=tuple(entry.get("concepts", ())),
        words=tuple(entry.get("words", ())),
    )


def _file(example: Example) -> str:
    """The file as the source's csv writes it: dataset folder and name."""
    return f"{example.path.parent.name}/{example.path.name}"
