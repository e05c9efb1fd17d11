"""What was wanted, beside what was found: every goal is a row, computed from the report by rule."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BASELINE, IMAGENET = "initial weights", "EfficientNet-Lite2"
OURS_AUTO, OURS_WORDS = "ours, auto", "ours, auto, words"
PAPER_TASK, PAPER_LABEL = "cxr-pneumonia-child", "pneumonia"
PAPER = {"accuracy": 0.928, "sensitivity": 0.932, "specificity": 0.901}  # Kermany et al., Cell 2018
ECE_MOST = 0.03
COVERAGE = (0.88, 0.92)
FAR_OOD_LEAST, ADULT_CHILD_LEAST = 0.98, 0.85
ROUTING_LEAST = 0.99
TEN_SHOT_MEAN_LEAST, TEN_SHOT_EACH_LEAST = 0.03, -0.01
TEN_SHOT_BEHIND_MOST = 0.03
ZERO_SHOT_LEAST = 0.20
CORRUPTION_SHARE_MOST = 0.5
SUM_ERROR_MOST = 1e-4
ADULT_CHILD_NOTE = "ood auroc, adult (nih_cxr) against paediatric chest film"


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal. `found` is None where it was not measured."""

    subject: str
    wanted: str
    found: float | None
    met: bool | None


def goals(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every goal of the report, met, missed or not measured, as rows of evaluation.json."""
    rows = [*_probes(report), *_few_shot(report), *_zero_shot(report), *_corruptions(report), *_trust(report)]
    return [asdict(row) for row in rows]


def _probes(report: dict[str, Any]) -> list[Goal]:
    rows = []
    for name, entry in report["benchmarks"].items():
        ours = entry["probes"]["ours"]
        if entry["goal"] is not None:
            rows.append(_at_least(f"linear probe AUROC, {name}", ours["auroc"], entry["goal"]))
    for task in report["served"]["tasks"]:
        if task["task"] == PAPER_TASK:
            point = {"accuracy": task["accuracy"], **{m: task[m][PAPER_LABEL] for m in ("sensitivity", "specificity")}}
            rows += [
                Goal(f"{m} at its operating point, {PAPER_TASK}", f"> {least}", point[m], point[m] > least)
                for m, least in PAPER.items()
            ]
    return rows


def _few_shot(report: dict[str, Any]) -> list[Goal]:
    differences = ten_shot_differences(report)
    worst = min(differences.values()) if differences else None
    return [
        _at_least(
            "10-shot AUROC less the initial weights', mean over sources left out",
            _mean(differences.values()),
            TEN_SHOT_MEAN_LEAST,
        ),
        _at_least("10-shot AUROC less the initial weights', worst source left out", worst, TEN_SHOT_EACH_LEAST),
        *(
            _at_most(
                f"full-data probe less 10-shot AUROC{given}, mean in-domain",
                _mean(ten_shot_behind_probe(report, method).values()),
                TEN_SHOT_BEHIND_MOST,
            )
            for given, method in (("", OURS_AUTO), (" with the labels' words", OURS_WORDS))
        ),
    ]


def _zero_shot(report: dict[str, Any]) -> list[Goal]:
    above = [e["zero_shot"]["above_chance"] for e in _column(report, "left out").values() if "zero_shot" in e]
    return [
        _at_least("zero-shot balanced accuracy above chance, mean over tasks left out", _mean(above), ZERO_SHOT_LEAST),
        _at_least("routing, share right of what is answered", report["served"]["routing_accuracy"], ROUTING_LEAST),
    ]


def _corruptions(report: dict[str, Any]) -> list[Goal]:
    means = report["corruptions"]["mean_loss"]
    share = means["ours"] / means[IMAGENET] if means.get(IMAGENET, 0.0) > 0 else None
    return [
        _at_most(
            "mean loss of AUROC under corruption, as a share of EfficientNet-Lite2's", share, CORRUPTION_SHARE_MOST
        )
    ]


def _trust(report: dict[str, Any]) -> list[Goal]:
    rows = []
    for task in report["served"]["tasks"]:
        name, (low, high) = task["task"], COVERAGE
        rows.append(_at_most(f"calibration error, {name}", task["ece_after"], ECE_MOST))
        coverage = task["coverage"]
        rows.append(Goal(f"coverage of 90 % sets, {name}", f"{low} to {high}", coverage, low <= coverage <= high))
        rows += [
            _at_least(f"out-of-distribution AUROC against {what}, {name}", area, FAR_OOD_LEAST)
            for what, area in task["ood_auroc"].items()
        ]
    errors = [v for k, v in report.get("explanations", {}).items() if k.endswith("largest error of a map's sum")]
    rows.append(_at_most("a heat map's sum less its logit, largest", max(errors) if errors else None, SUM_ERROR_MOST))
    adult = report["served"]["notes"].get(ADULT_CHILD_NOTE)
    return [
        *rows,
        _at_least("out-of-distribution AUROC, adult against paediatric chest film", adult, ADULT_CHILD_LEAST),
    ]


def ten_shot_differences(report: dict[str, Any]) -> dict[str, float]:
    """Source left out -> ten-shot AUROC of ours less the initial weights', same regression; mean over its tasks."""
    found: dict[str, list[float]] = {}
    for entry in _column(report, "left out").values():
        difference = entry["few_shot"]["ten_shot_differences"].get(f"ours less {BASELINE}")
        if difference is not None:
            found.setdefault(entry["dataset"], []).append(difference["difference"])
    return {dataset: float(np.mean(values)) for dataset, values in found.items()}


def ten_shot_behind_probe(report: dict[str, Any], method: str) -> dict[str, float]:
    """In-domain benchmark -> full-data probe less ten-shot AUROC, both ours, the head fitted by `method`."""
    return {
        name: entry["probes"]["ours"]["auroc"] - entry["few_shot"]["auroc"][method]["10"]["auroc"]
        for name, entry in _column(report, "in-domain").items()
        if method in entry["few_shot"]["auroc"]
    }


def _mean(values: Collection[float]) -> float | None:
    return float(np.mean(list(values))) if values else None


def _column(report: dict[str, Any], column: str) -> dict[str, Any]:
    return {name: entry for name, entry in report["benchmarks"].items() if entry["column"] == column}


def _at_least(subject: str, found: float | None, least: float) -> Goal:
    return Goal(subject, f"≥ {least:g}", found, None if found is None else found >= least)


def _at_most(subject: str, found: float | None, most: float) -> Goal:
    return Goal(subject, f"≤ {most:g}", found, None if found is None else found <= most)
