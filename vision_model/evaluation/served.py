"""The figures of the tasks that are served: what the manifest says of them comes from here and nowhere else."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from vision_model.calibrate import expected_calibration_error, perfect_calibration_error
from vision_model.data.mixture import MASKED, targets
from vision_model.data.sources import Example, load_squares
from vision_model.data.tasks import Curriculum
from vision_model.errors import SourceInvalid
from vision_model.evaluation.intervals import area, auroc, bootstrap_interval
from vision_model.graph import Graph
from vision_model.manifest import InputSpec, Manifest, Task
from vision_model.preprocess import normalise, square
from vision_model.runtime import softmax

logger = logging.getLogger(__name__)

# Photographs that installed packages carry: (package, file inside it).
PHOTOGRAPHS = (
    *(("gradio", f"media_assets/images/{name}") for name in ("cheetah.jpg", "cheetah1.jpg", "lion.jpg", "tower.jpg")),
    *(("gradio", f"media_assets/images/{name}") for name in ("bus.png", "groot.jpeg")),
    *(("sklearn", f"datasets/images/{name}") for name in ("china.jpg", "flower.jpg")),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)


@dataclass(frozen=True)
class Scores:
    """The graph's numbers for N images: logits (N, C) and out-of-distribution scores (N, G)."""

    logits: NDArray[np.float32]
    ood: NDArray[np.float32]

    def __getitem__(self, chosen: NDArray[np.bool_]) -> "Scores":
        return Scores(self.logits[chosen], self.ood[chosen])


@dataclass(frozen=True)
class TaskEvaluation:
    """One task on the `test` split of its dataset; intervals are 95 %, bootstrapped over groups (patients)."""

    task: str
    dataset: str
    images: int
    groups: int
    auroc: float  # of the positive label, or the macro mean of one against the rest
    auroc_interval: tuple[float, float]
    balanced_accuracy: float  # at the operating points; with several labels the mean over labels, one against the rest
    balanced_accuracy_interval: tuple[float, float]
    accuracy: float  # share of images of which every label that is not normal is said or not said rightly
    sensitivity: dict[str, float]  # of each label that is not normal
    specificity: dict[str, float]
    argmax_accuracy: float
    ece_before: float
    ece_after: float
    ece_if_perfect: float  # to expect on as many images if the probabilities after were true
    coverage: float
    mean_set_size: float
    empty_sets: float
    withheld_in_distribution: float  # share of these images above the out-of-distribution threshold
    ood_auroc: dict[str, float] = field(default_factory=dict)  # against photographs and the other modalities
    ood_withheld: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Everything measured on `test`."""

    command: str
    graph_sha256: str
    images: int
    routing_accuracy: float
    routing_answered: float
    tasks: tuple[TaskEvaluation, ...]
    notes: dict[str, float]

    def to_json(self) -> str:
        """The text of evaluation.json."""
        return json.dumps(asdict(self), indent=1) + "\n"


def score(graph: Path, examples: Sequence[Example], *, spec: InputSpec) -> Scores:
    """Run the graph over examples."""
    return score_squares(graph, load_squares(examples, spec=spec), spec=spec)


def score_squares(graph: Path, squares: NDArray[np.uint8], *, spec: InputSpec) -> Scores:
    """Run the graph over (N, S, S, 3) 8-bit squares on the CPU."""
    return Scores(*run_squares(graph, squares, ("logits", "ood"), spec=spec))


def run_squares(
    graph: Path, squares: NDArray[np.uint8], outputs: Sequence[str], *, spec: InputSpec, batch: int = 16
) -> list[NDArray[np.float32]]:
    """The named outputs of the graph for (N, S, S, 3) 8-bit squares, on the CPU."""
    session = Graph(graph)
    found = []
    for start in tqdm(range(0, len(squares), batch), desc="score", unit="batch", mininterval=10):
        unit = squares[start : start + batch].astype(np.float32) / np.float32(255)
        found.append(session.run(np.stack([normalise(s, spec=spec) for s in unit]), outputs))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def photographs(*, size: int) -> NDArray[np.uint8]:
    """(N, S, S, 3) squares of everyday photographs, each whole and in its four quarters."""
    squares = []
    for package, name in PHOTOGRAPHS:
        with files(package).joinpath(name).open("rb") as stream, Image.open(stream) as image:
            photo = np.asarray(image.convert("RGB"), dtype=np.float32) / np.float32(255)
        rows, columns = photo.shape[0] // 2, photo.shape[1] // 2
        quarters = [photo[r, c] for r in (np.s_[:rows], np.s_[rows:]) for c in (np.s_[:columns], np.s_[columns:])]
        squares += [np.rint(square(part, size=size) * 255).astype(np.uint8) for part in (photo, *quarters)]
    return np.stack(squares)


def evaluate(
    examples: Sequence[Example],
    scores: Scores,
    photo_scores: Scores,
    *,
    manifest: Manifest,
    curriculum: Curriculum,
    command: str,
    rng: np.random.Generator,
) -> Evaluation:
    """Every figure of the manifest's tasks on these `test` examples. Raises SourceInvalid when a dataset is absent."""
    truth = targets(examples, curriculum)
    route_probabilities = softmax(scores.logits[:, : len(manifest.routes)] / manifest.route_temperature)
    answered = route_probabilities.max(axis=1) >= manifest.route_minimum
    right = route_probabilities.argmax(axis=1) == truth[:, 0]
    columns = {t.name: i for i, t in enumerate(curriculum.tasks, start=1)}
    evaluations = []
    for task in manifest.tasks:
        dataset = next(t.evaluate for t in curriculum.tasks if t.name == task.name)
        of_task = np.array([e.dataset == dataset for e in examples]) & (truth[:, columns[task.name]] != MASKED)
        if not of_task.any():
            raise SourceInvalid(f"no test images of {dataset}, which task {task.name} is measured on")
        others = truth[:, 0] != [r.name for r in manifest.routes].index(task.route)
        groups = np.array([e.group for e in examples])[of_task]
        evaluation = evaluate_task(
            scores[of_task], truth[of_task, columns[task.name]], groups, task=task, dataset=dataset, rng=rng
        )
        away = {
            "photographs": photo_scores.ood[:, task.ood_index],
            "other modalities": scores.ood[others, task.ood_index],
        }
        inside = scores.ood[of_task, task.ood_index]
        for name, outside in away.items():
            evaluation.ood_auroc[name] = _separation(inside, outside)
            evaluation.ood_withheld[name] = float((outside > task.ood_threshold).mean())
        evaluations.append(evaluation)
    return Evaluation(
        command=command,
        graph_sha256=manifest.graph_sha256,
        images=len(examples),
        routing_accuracy=float(right[answered].mean()),
        routing_answered=float(answered.mean()),
        tasks=tuple(evaluations),
        notes=_adult_against_child(examples, scores, manifest),
    )


def evaluate_task(
    scores: Scores,
    labels: NDArray[np.int64],
    groups: NDArray[np.str_],
    *,
    task: Task,
    dataset: str,
    rng: np.random.Generator,
) -> TaskEvaluation:
    """One task's figures from its images' scores (N) and true label indices (N)."""
    own = scores.logits[:, task.first_logit : task.first_logit + len(task.labels)]
    calibrated = softmax(own / task.temperature)
    thresholds = np.array([label.operating_point.threshold for label in task.labels])
    findings = [i for i, label in enumerate(task.labels) if not label.normal]
    said, true = calibrated[:, findings] >= thresholds[findings], labels[:, None] == findings
    in_set = 1 - calibrated <= task.conformal_quantile

    def measured(chosen: NDArray[np.int64]) -> tuple[float, float]:
        return auroc(calibrated[chosen], labels[chosen]), float(
            np.mean(_rates(calibrated[chosen], labels[chosen], thresholds, findings)[2])
        )

    low, high = bootstrap_interval(measured, groups, rng=rng)
    sensitivity, specificity, balanced = _rates(calibrated, labels, thresholds, findings)
    return TaskEvaluation(
        task=task.name,
        dataset=dataset,
        images=len(labels),
        groups=len(set(groups.tolist())),
        auroc=auroc(calibrated, labels),
        auroc_interval=(low[0], high[0]),
        balanced_accuracy=float(np.mean(balanced)),
        balanced_accuracy_interval=(low[1], high[1]),
        accuracy=float((said == true).all(axis=1).mean()),
        sensitivity={task.labels[i].name: s for i, s in zip(findings, sensitivity, strict=True)},
        specificity={task.labels[i].name: s for i, s in zip(findings, specificity, strict=True)},
        argmax_accuracy=float((calibrated.argmax(axis=1) == labels).mean()),
        ece_before=expected_calibration_error(softmax(own), labels),
        ece_after=expected_calibration_error(calibrated, labels),
        ece_if_perfect=perfect_calibration_error(calibrated, rng=rng.spawn(1)[0]),
        coverage=float(in_set[np.arange(len(labels)), labels].mean()),
        mean_set_size=float(in_set.sum(axis=1).mean()),
        empty_sets=float((in_set.sum(axis=1) == 0).mean()),
        withheld_in_distribution=float((scores.ood[:, task.ood_index] > task.ood_threshold).mean()),
    )


def _rates(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], thresholds: NDArray[np.float64], findings: list[int]
) -> tuple[list[float], list[float], list[float]]:
    """Sensitivity, specificity and their mean for each label that is not normal and is present."""
    sensitivity, specificity, balanced = [], [], []
    for i in findings:
        said, true = probabilities[:, i] >= thresholds[i], labels == i
        if not true.any() or true.all():
            raise ValueError("a label is absent")
        sensitivity.append(float(said[true].mean()))
        specificity.append(float((~said[~true]).mean()))
        balanced.append((sensitivity[-1] + specificity[-1]) / 2)
    return sensitivity, specificity, balanced


def _separation(inside: NDArray[np.float32], outside: NDArray[np.float32]) -> float:
    """AUROC of the score telling outside from inside."""
    outward = np.concatenate([np.zeros(len(inside), np.bool_), np.ones(len(outside), np.bool_)])
    return area(outward, np.concatenate([inside, outside]))


def _adult_against_child(examples: Sequence[Example], scores: Scores, manifest: Manifest) -> dict[str, float]:
    """How well the child task's score tells an adult's film from a child's, should the age be missing."""
    task = next((t for t in manifest.tasks if t.name == "cxr-pneumonia-child"), None)
    adult = np.array([e.dataset == "nih_cxr" for e in examples])
    child = np.array([e.dataset == "kermany_cxr" for e in examples])
    if task is None or not adult.any() or not child.any():
        return {}
    ood = scores.ood[:, task.ood_index]
    return {
        "ood auroc, adult (nih_cxr) against paediatric chest film": _separation(ood[child], ood[adult]),
        "share of adult films above the child task's threshold": float((ood[adult] > task.ood_threshold).mean()),
    }
