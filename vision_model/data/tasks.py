"""What is to be learnt: the routes, tasks and labels of `tasks.toml`."""

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vision_model.errors import RecipeInvalid
from vision_model.knowledge import Concept, Knowledge, Pair, knowledge
from vision_model.manifest import Code, Population, Route, WindowRule

TASKS_FILE = Path(__file__).parent.parent / "tasks.toml"


@dataclass(frozen=True)
class TaskLabel:
    """One answer, and the (dataset, label) pairs of the sources that mean it."""

    name: str
    display: str
    normal: bool
    code: Code | None
    concept: str  # its table in knowledge.toml
    sources: frozenset[Pair]


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
    def label_of(self) -> dict[Pair, int]:
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
        return _route_of(self.routes, modality, body_part)


def curriculum(path: Path = TASKS_FILE, *, words: Knowledge | None = None) -> Curriculum:
    """Read `tasks.toml`, whose labels point into `words`: `knowledge.toml` unless given.

    Raises RecipeInvalid where a task's concepts belong to no route or to two, KnowledgeInvalid where one is absent.
    """
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    routes = tuple(Route(r["name"], tuple(r["modalities"]), tuple(r["body_parts"])) for r in raw["route"])
    return Curriculum(
        routes=routes,
        windows=tuple(WindowRule(**w) for w in raw["window"]),
        tasks=tuple(_task(t, routes=routes, words=words or knowledge()) for t in raw["task"]),
    )


def _task(raw: dict[str, Any], *, routes: tuple[Route, ...], words: Knowledge) -> TaskDefinition:
    population = raw["population"]
    datasets = set(raw["datasets"])
    labels = []
    for label in raw["labels"]:
        concept = words[label["concept"]]
        pairs = {pair for kind in words.family(concept) for pair in kind.sources if pair[0] in datasets}
        if not pairs:
            raise RecipeInvalid(f"task {raw['name']}: no label of {', '.join(datasets)} means {concept.name}")
        labels.append(
            TaskLabel(
                name=label["name"],
                display=label.get("display", concept.display),
                normal=label.get("normal", False),
                code=words.code(concept),
                concept=concept.name,
                sources=frozenset(pairs),
            )
        )
    return TaskDefinition(
        name=raw["name"],
        display=raw["display"],
        route=_shared_route(raw["name"], [words[label.concept] for label in labels], routes),
        population=Population(
            description=population["description"],
            minimum_age_years=population.get("minimum_age_years"),
            maximum_age_years=population.get("maximum_age_years"),
        ),
        evaluate=raw["evaluate"],
        labels=tuple(labels),
    )


def _shared_route(task: str, concepts: list[Concept], routes: tuple[Route, ...]) -> str:
    """The route that all of a task's concepts belong to: what the gate lets through is what their images show."""
    found = {_route_of(routes, concept.modality or "", concept.anatomy or "") for concept in concepts}
    if len(found) > 1:
        raise RecipeInvalid(f"task {task}: its labels belong to {', '.join(sorted(routes[i].name for i in found))}")
    return routes[found.pop()].name


def _route_of(routes: tuple[Route, ...], modality: str, body_part: str) -> int:
    for i, route in enumerate(routes):
        if modality in route.modalities and body_part in route.body_parts:
            return i
    raise RecipeInvalid(f"tasks.toml has no route for modality {modality!r}, body part {body_part!r}")
