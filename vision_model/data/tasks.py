"""What is to be learnt: the routes, tasks and labels of `tasks.toml`."""

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vision_model.errors import RecipeInvalid
from vision_model.manifest import Code, Population, Route, WindowRule

TASKS_FILE = Path(__file__).parent.parent / "tasks.toml"


@dataclass(frozen=True)
class TaskLabel:
    """One answer, and the (dataset, label) pairs of the sources that mean it."""

    name: str
    display: str
    normal: bool
    code: Code | None
    sources: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class TaskDefinition:
    """One question; `evaluate` names the dataset whose `test` split its published figures come from."""

    name: str
    display: str
    route: str
    population: Population
    evaluate: str
    labels: tuple[TaskLabel, ...]

    @cached_property
    def label_of(self) -> dict[tuple[str, str], int]:
        """(dataset, source label) -> index into `labels`; a pair that is absent is masked."""
        return {pair: i for i, label in enumerate(self.labels) for pair in label.sources}


@dataclass(frozen=True)
class Curriculum:
    """All that is learnt. Logits stand in the order route, then task after task."""

    routes: tuple[Route, ...]
    windows: tuple[WindowRule, ...]
    tasks: tuple[TaskDefinition, ...]

    @property
    def logits(self) -> int:
        """Width of the classification layer."""
        return len(self.routes) + sum(len(task.labels) for task in self.tasks)

    def first_logit(self, name: str) -> int:
        """Where the logits of a task start."""
        start = len(self.routes)
        for task in self.tasks:
            if task.name == name:
                return start
            start += len(task.labels)
        raise RecipeInvalid(f"no task is named {name!r}")

    def route_of(self, modality: str, body_part: str) -> int:
        """Index of the route that (modality, body part) of a source's manifest belongs to."""
        for i, route in enumerate(self.routes):
            if modality in route.modalities and body_part in route.body_parts:
                return i
        raise RecipeInvalid(f"tasks.toml has no route for modality {modality!r}, body part {body_part!r}")


def curriculum(path: Path = TASKS_FILE) -> Curriculum:
    """Read `tasks.toml`."""
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    return Curriculum(
        routes=tuple(Route(r["name"], tuple(r["modalities"]), tuple(r["body_parts"])) for r in raw["route"]),
        windows=tuple(WindowRule(**w) for w in raw["window"]),
        tasks=tuple(_task(t) for t in raw["task"]),
    )


def _task(raw: dict) -> TaskDefinition:  # type: ignore[type-arg]  # a TOML table
    population = raw["population"]
    return TaskDefinition(
        name=raw["name"],
        display=raw["display"],
        route=raw["route"],
        population=Population(
            description=population["description"],
            minimum_age_years=population.get("minimum_age_years"),
            maximum_age_years=population.get("maximum_age_years"),
        ),
        evaluate=raw["evaluate"],
        labels=tuple(
            TaskLabel(
                name=label["name"],
                display=label["display"],
                normal=label.get("normal", False),
                code=Code(*label["code"]) if "code" in label else None,
                sources=frozenset((d, v) for d, _, v in (pair.partition(":") for pair in label["from"])),
            )
            for label in raw["labels"]
        ),
    )
