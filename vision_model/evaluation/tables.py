"""The report as Markdown tables: the same figures for a person to read, in the README's and the model card's words."""

from collections.abc import Iterable, Sequence
from typing import Any

from vision_model.evaluation.goals import (
    BASELINE,
    OURS_AUTO,
    OURS_WORDS,
    ten_shot_behind_probe,
    ten_shot_differences,
)

SHOTS = ("1", "5", "10", "16")


def tables(report: dict[str, Any]) -> str:
    """tables.md."""
    model = report["model"]
    parts = [
        f"# Evaluation of {model['name']} {model['version']} on `{report['split']}`",
        f"`{report['command']}`, graph SHA-256 `{model['graph_sha256']}`, {report['started']}. Intervals are 95 %, "
        "bootstrapped over groups (patients where they are known). Research use only, not for diagnostic use.",
        "## Goals\n\n" + goals_table(report),
        "## Linear probes\n\n" + probes_table(report),
        "## Few images a class\n\n" + few_shot_text(report) + "\n\n" + few_shot_table(report),
        "### 10-shot differences\n\n" + differences_table(report),
        "## Words alone\n\n" + zero_shot_table(report),
        "## Corruptions\n\n" + corruptions_table(report),
        "## Tasks that are served\n\n" + served_table(report),
        "## Operating points\n\n" + operating_table(report),
        "## The view shortcut\n\n" + shortcut_text(report),
        "## Images\n\n" + images_table(report),
    ]
    if "explanations" in report:
        parts.insert(-1, "## Explanations\n\n" + explanations_table(report))
    return "\n\n".join(parts) + "\n"


def goals_table(report: dict[str, Any]) -> str:
    """Every goal, missed ones first."""
    said = {True: "met", False: "**missed**", None: "not measured"}
    rows = sorted(report["goals"], key=lambda g: (g["met"] is not False, g["met"] is True))
    return table(
        ("goal", "wanted", "found", ""), [(g["subject"], g["wanted"], number(g["found"]), said[g["met"]]) for g in rows]
    )


def probes_table(report: dict[str, Any]) -> str:
    """AUROC of every encoder on every benchmark."""
    encoders = list(next(iter(report["benchmarks"].values()))["probes"])
    rows = []
    for name, entry in report["benchmarks"].items():
        cells = [with_interval(entry["probes"][e]["auroc"], entry["probes"][e]["auroc_interval"]) for e in encoders]
        rows.append((name, entry["column"], number(entry["floor"]), number(entry["goal"]), *cells))
    text = table(("benchmark", "column", "floor", "goal", *encoders), rows)
    if (most := report["images"].get("baseline_images")) is not None:
        text += (
            f'\n\nBaselines, and "ours, same images", learnt from at most {most} training images of each source, '
            'labels taking turns; "ours" from all. The floor is the initial weights\' on all of them.'
        )
    return text


def few_shot_text(report: dict[str, Any]) -> str:
    """How few-shot figures are meant."""
    return (
        "K labelled images of each label, each of another patient while there are patients left, drawn 10 times "
        '(`support_lists.json`); mean AUROC ± deviation over draws on all images measured. "ours, auto" is '
        '`FewShotClassifier`, and "ours, auto, words" the same given the words of each label: in-domain, words were '
        "fitted on the labels of all training images. All other rows use one plain logistic regression. "
        f"Left out of pretraining: {', '.join(report['left_out']) or 'none'}."
    )


def few_shot_table(report: dict[str, Any]) -> str:
    """Mean and deviation over seeds for every K; in-domain and left-out rows apart."""
    rows = []
    for column in ("in-domain", "left out"):
        for name, entry in report["benchmarks"].items():
            if entry["column"] == column:
                rows += [
                    (column, name, method, *(f"{points[k]['auroc']:.3f} ± {points[k]['deviation']:.3f}" for k in SHOTS))
                    for method, points in entry["few_shot"]["auroc"].items()
                ]
    return table(("column", "benchmark", "encoder", *(f"K = {k}" for k in SHOTS)), rows)


def differences_table(report: dict[str, Any]) -> str:
    """Ten-shot: ours less the initial weights on each task; then the means that the goals ask for."""
    rows = []
    for name, entry in report["benchmarks"].items():
        cells = []
        for method in ("ours", OURS_AUTO, OURS_WORDS):
            d = entry["few_shot"]["ten_shot_differences"].get(f"{method} less {BASELINE}")
            cells.append("–" if d is None else with_interval(d["difference"], d["interval"], signed=True))
        behind = [ten_shot_behind_probe(report, method).get(name) for method in (OURS_AUTO, OURS_WORDS)]
        rows.append((entry["column"], name, *cells, *map(number, behind)))
    text = table(
        (
            "column",
            "benchmark",
            f"ours less {BASELINE}, same regression",
            f"{OURS_AUTO}, less {BASELINE}",
            f"{OURS_WORDS}, less {BASELINE}",
            f"full-data probe less 10-shot of {OURS_AUTO}",
            f"of {OURS_WORDS}",
        ),
        rows,
    )
    left = ten_shot_differences(report)
    if left:
        mean = sum(left.values()) / len(left)
        text += "\n\nSources left out, 10-shot less the initial weights: "
        text += ", ".join(f"{source} {d:+.3f}" for source, d in left.items()) + f"; mean {mean:+.3f}."
    return text


def zero_shot_table(report: dict[str, Any]) -> str:
    """Balanced accuracy against chance, the ablation of the words, and the router."""
    entries = {n: e for n, e in report["benchmarks"].items() if "zero_shot" in e}
    routing = report["routing"]["all"]
    text = (
        f"Routing: {routing['accuracy']:.4f} of {routing['images']} images right; {routing['answered']:.4f} are "
        f"answered, of which {number(routing['accuracy_of_answered'], digits=4)} right."
    )
    if not entries:
        return text + " The model has no text encoder."
    sets = list(next(iter(entries.values()))["zero_shot"]["ablation"])
    rows = [
        (
            e["column"],
            n,
            f"{e['zero_shot']['chance']:.3f}",
            with_interval(e["zero_shot"]["balanced_accuracy"], e["zero_shot"]["interval"]),
            *(number(e["zero_shot"]["ablation"][s]) for s in sets),
        )
        for n, e in entries.items()
    ]
    for column in ("in-domain", "left out"):
        own = [e["zero_shot"] for e in entries.values() if e["column"] == column]
        if own:
            chance = sum(z["chance"] for z in own) / len(own)
            accuracy = sum(z["balanced_accuracy"] for z in own) / len(own)
            means = [sum(z["ablation"][s] for z in own) / len(own) for s in sets]
            rows.append((column, "**mean**", f"{chance:.3f}", f"{accuracy:.3f}", *(f"{m:.3f}" for m in means)))
    return text + "\n\n" + table(("column", "benchmark", "chance", "balanced accuracy", *sets), rows)


def corruptions_table(report: dict[str, Any]) -> str:
    """Loss of AUROC of the probes under each corruption, mean over sources."""
    found = report["corruptions"]
    if not found["sources"]:
        return "Not measured: no source is in-domain."
    encoders = list(found["mean_loss"])
    kinds = list(next(iter(found["sources"].values()))["ours"]["losses"])
    rows = [
        (kind, *(f"{_mean(s[e]['losses'][kind] for s in found['sources'].values()):+.3f}" for e in encoders))
        for kind in kinds
    ]
    rows.append(("**mean**", *(f"{found['mean_loss'][e]:+.3f}" for e in encoders)))
    text = f"Severity {found['severity']}, AUROC of the probe on clean less damaged images, mean over sources.\n\n"
    text += table(("corruption", *encoders), rows)
    rows = [
        (n, str(s["images"]), *(f"{s[e]['mean_loss']:+.3f}" for e in encoders)) for n, s in found["sources"].items()
    ]
    return text + "\n\n" + table(("source", "images", *encoders), rows)


def served_table(report: dict[str, Any]) -> str:
    """The heads that answer in the application."""
    rows = [
        (
            t["task"],
            f"{t['images']} ({t['groups']})",
            with_interval(t["auroc"], t["auroc_interval"]),
            with_interval(t["balanced_accuracy"], t["balanced_accuracy_interval"]),
            f"{t['ece_before']:.3f} / {t['ece_after']:.3f} / {t['ece_if_perfect']:.3f}",
            f"{t['coverage']:.3f}, {t['mean_set_size']:.2f}",
            " / ".join(f"{a:.3f}" for a in t["ood_auroc"].values()),
            f"{t['withheld_in_distribution']:.3f}",
        )
        for t in report["served"]["tasks"]
    ]
    return table(
        (
            "task",
            "images (groups)",
            "AUROC (95 %)",
            "balanced accuracy (95 %)",
            "ECE before / after / if the probabilities were true",
            "coverage, set size",
            "OOD AUROC photographs / other modalities",
            "in-distribution withheld",
        ),
        rows,
    ) + "".join(f"\n\n{note}: {value:.3g}." for note, value in report["served"]["notes"].items())


def operating_table(report: dict[str, Any]) -> str:
    """Sensitivity and specificity of each finding at its threshold."""
    rows = [
        (t["task"], label, f"{sensitivity:.3f}", f"{t['specificity'][label]:.3f}")
        for t in report["served"]["tasks"]
        for label, sensitivity in t["sensitivity"].items()
    ]
    return table(("task", "label", "sensitivity", "specificity"), rows)


def shortcut_text(report: dict[str, Any]) -> str:
    """What can be said of the view in the adult chest films."""
    found = report["shortcuts"]
    if not found:
        return "Not examined."
    lines = []
    if "view_probe" in found:
        view = found["view_probe"]
        lines.append(
            f"The source states no view. A probe for the view, learnt on {view['images']['AP']} AP and "
            f"{view['images']['PA']} PA films of another source (cross-validated AUROC "
            f"{view['cross_validated_auroc']:.3f}), tells pneumonia from normal with AUROC "
            f"{found['auroc_of_apparent_view_for_disease']:.3f}; its rank correlation with the pneumonia score is "
            f"{found['rank_correlation_of_score_and_apparent_view']:.2f}. Within thirds of the apparent view the score "
            f"keeps AUROC {number(found['auroc_given_apparent_view'])}."
        )
    looks = "; ".join(f"{n} {with_interval(f['auroc'], f['auroc_interval'])}" for n, f in found["looks"].items())
    lines.append(f"The same probe trained and tested on parts of the films, AUROC: {looks}.")
    return "\n\n".join(lines)


def explanations_table(report: dict[str, Any]) -> str:
    """How far the heat maps hold, for each served task."""
    found: dict[str, float] = report["explanations"]
    tasks = list(dict.fromkeys(key.partition(": ")[0] for key in found))
    figures = list(dict.fromkeys(f for key in found if not (f := key.partition(": ")[2]).endswith((", low", ", high"))))

    def cell(task: str, figure: str) -> str:
        value, low, high = (found.get(f"{task}: {figure}{end}") for end in ("", ", low", ", high"))
        if value is None:
            return "–"
        if low is None or high is None:
            return f"{value:.1e}"
        return with_interval(value, (low, high), signed=True)

    return table(("task", *figures), [(task, *(cell(task, figure) for figure in figures)) for task in tasks])


def images_table(report: dict[str, Any]) -> str:
    """How many images and groups stand behind each benchmark's labels."""
    rows = [
        (
            name,
            e["column"],
            ", ".join(f"{label} {n['images']} ({n['groups']})" for label, n in e["train"].items()),
            ", ".join(f"{label} {n['images']} ({n['groups']})" for label, n in e["test"].items()),
            e["note"],
        )
        for name, e in report["benchmarks"].items()
    ]
    return table(("benchmark", "column", "train images (groups)", f"{report['split']} images (groups)", "note"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)


def number(value: float | None, *, digits: int = 3) -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def with_interval(value: float, interval: Sequence[float] | None, *, signed: bool = False) -> str:
    """A figure with its interval, as far as it has one."""
    form = "{:+.3f}" if signed else "{:.3f}"
    if interval is None:
        return form.format(value)
    return f"{form.format(value)} ({form.format(interval[0])} to {form.format(interval[1])})"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
