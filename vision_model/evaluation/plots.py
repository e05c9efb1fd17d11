"""Draw the report: ROC, reliability, confusion, coverage, few-shot curves, corruptions, and a map of the embedding."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

# isort: split
mpl.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import roc_curve

from vision_model.data.mixture import MASKED, targets
from vision_model.data.tasks import Curriculum
from vision_model.evaluation.run import Measured
from vision_model.manifest import Manifest, Task
from vision_model.runtime import softmax

# Okabe & Ito's colours, told apart with any colour vision, and a marker each for print.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#7F7F7F", "#F0E442")
MARKERS = "os^Dv<>Pp"
BINS = 10
MAP_IMAGES = 1500
TERMS = ("supervised", "text", "self", "val")  # columns of metrics.csv


@dataclass(frozen=True)
class ServedTask:
    """A served task's calibrated probabilities (N, C), whether each label is in the set, and the truth (N,)."""

    task: Task
    probabilities: NDArray[np.float64]
    in_set: NDArray[np.bool_]
    labels: NDArray[np.int64]


def plots(measured: Measured, *, manifest: Manifest, what: Curriculum, out: Path) -> list[Path]:
    """Write every plot as PNG into `out`; returns the files."""
    served = list(_served(measured, manifest, what))
    written = []

    @contextmanager
    def figure(name: str, panels: int, *, columns: int = 3, size: float = 4.2) -> Iterator[list[Axes]]:
        rows = -(-panels // columns)
        fig, axes = plt.subplots(rows, columns, figsize=(size * columns, size * rows), squeeze=False, layout="tight")
        flat = list(axes.flat)
        for unused in flat[panels:]:
            unused.set_axis_off()
        yield flat[:panels]
        written.append(out / f"{name}.png")
        fig.savefig(written[-1], dpi=110)
        plt.close(fig)

    entries = measured.report["benchmarks"]
    with figure("roc", len(entries)) as panels:
        for axis, name in zip(panels, entries, strict=True):
            _roc(axis, name, measured)
    with figure("few_shot", len(entries)) as panels:
        for axis, (name, entry) in zip(panels, entries.items(), strict=True):
            _few_shot(axis, name, entry)
        panels[0].legend(fontsize=6, loc="lower right")  # once: it would hide lines in every panel
    with figure("reliability", len(served)) as panels:
        for axis, one in zip(panels, served, strict=True):
            _reliability(axis, one)
    with figure("confusion", len(served), size=5.2) as panels:
        for axis, one in zip(panels, served, strict=True):
            _confusion(axis, one)
    with figure("coverage", 1, columns=1, size=8) as panels:
        _coverage(panels[0], served)
    if measured.report["corruptions"]["sources"]:
        with figure("corruptions", 1, columns=1, size=8) as panels:
            _corruptions(panels[0], measured.report["corruptions"])
    with figure("embedding", 2, columns=2, size=7) as panels:
        _map(panels, measured, what)
    return written


def curves(records: Mapping[str, Path], out: Path) -> None:
    """Draw what `metrics.csv` of several runs says: each term of the loss that one has, and the loss on `val`."""
    rows: dict[str, list[dict[str, str]]] = {}
    for name, path in records.items():
        with path.open(newline="", encoding="utf-8") as lines:
            rows[name] = list(csv.DictReader(lines))
    shown = [term for term in TERMS if any(row[term] for of_run in rows.values() for row in of_run)]
    fig, axes = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 4.2), squeeze=False, layout="tight")
    for axis, term in zip(axes[0], shown, strict=True):
        for colour, (name, of_run) in zip(COLOURS, rows.items(), strict=False):
            points = [(int(row["step"]), float(row[term])) for row in of_run if row[term]]
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, label=name, linewidth=1)
        axis.set(title=term, xlabel="step")
        axis.legend(fontsize=6)
    fig.savefig(out, dpi=110)
    plt.close(fig)


def _served(measured: Measured, manifest: Manifest, what: Curriculum) -> Iterator[ServedTask]:
    truth = targets(measured.examples, what)
    columns = {t.name: i for i, t in enumerate(what.tasks, start=1)}
    dataset_of = {t.name: t.evaluate for t in what.tasks}
    for task in manifest.tasks:
        chosen = np.array([e.dataset == dataset_of[task.name] for e in measured.examples])
        chosen &= truth[:, columns[task.name]] != MASKED
        logits = measured.scores.logits[chosen, task.first_logit : task.first_logit + len(task.labels)]
        p = softmax(logits / task.temperature)
        yield ServedTask(task, p, 1 - p <= task.conformal_quantile, truth[chosen, columns[task.name]])


def _roc(axis: Axes, name: str, measured: Measured) -> None:
    """Two labels: a curve for each encoder. More: ours, a curve for each label against the rest."""
    y, entry = measured.truth[name], measured.report["benchmarks"][name]
    by_encoder = measured.probe_scores[name]
    if next(iter(by_encoder.values())).shape[1] == 2:
        curves = [
            (f"{encoder} {entry['probes'][encoder]['auroc']:.3f}", y == 1, p[:, 1]) for encoder, p in by_encoder.items()
        ]
        subtitle = "linear probes"
    else:
        curves = [
            (label, y == i, by_encoder["ours"][:, i])
            for i, label in enumerate(entry["labels"])
            if 0 < (y == i).sum() < len(y)
        ]
        subtitle = f"ours, one label against the rest, macro AUROC {entry['probes']['ours']['auroc']:.3f}"
    for i, (label, positive, score) in enumerate(curves):
        false_rate, true_rate, _ = roc_curve(positive, score)
        axis.plot(false_rate, true_rate, color=_colour(i), label=label, linewidth=1.6, linestyle=_dash(i))
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=0)
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axis.set_title(f"{name} ({entry['column']}, {entry['test_images']} images)\n{subtitle}", fontsize=9)
    axis.legend(fontsize=7, loc="lower right")


def _few_shot(axis: Axes, name: str, entry: dict[str, Any]) -> None:
    for i, (method, points) in enumerate(entry["few_shot"]["auroc"].items()):
        shots = [int(k) for k in points]
        axis.errorbar(
            [k * (1 + 0.03 * i) for k in shots],  # a little apart, so that bars do not hide each other
            [p["auroc"] for p in points.values()],
            yerr=[p["deviation"] for p in points.values()],
            color=_colour(i),
            marker=MARKERS[i],
            markersize=4,
            capsize=2,
            linewidth=1.3,
            label=method,
        )
    axis.axhline(entry["probes"]["ours"]["auroc"], color="0.3", linestyle=":", label="ours, all training images")
    axis.axhline(0.5, color="0.85", linewidth=1, zorder=0)
    axis.set_xscale("log")
    axis.set_xticks([1, 5, 10, 16], ["1", "5", "10", "16"])
    axis.minorticks_off()
    axis.set(xlabel="images a label", ylabel="AUROC, mean ± deviation of 10 draws")
    axis.set_title(f"{name}\n{entry['column']}", fontsize=9)
    axis.set_ylim(top=1.02)


def _reliability(axis: Axes, one: ServedTask) -> None:
    confidence = one.probabilities.max(axis=1)
    right = one.probabilities.argmax(axis=1) == one.labels
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    for b in np.unique(bin_of):
        own = bin_of == b
        axis.bar((b + 0.5) / BINS, right[own].mean(), width=0.9 / BINS, color=COLOURS[4])
        axis.text((b + 0.5) / BINS, 0.02, str(own.sum()), ha="center", fontsize=6)
        axis.plot(confidence[own].mean(), right[own].mean(), marker="o", color=COLOURS[0], markersize=4)
    axis.plot([0, 1], [0, 1], color="0.4", linewidth=1)
    axis.set(xlabel="probability of the most probable label", ylabel="share right", xlim=(0, 1), ylim=(0, 1.02))
    axis.set_title(f"{one.task.name}\nnumbers: images in each bin", fontsize=9)


def _confusion(axis: Axes, one: ServedTask) -> None:
    names = [label.name for label in one.task.labels]
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (one.labels, one.probabilities.argmax(axis=1)), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), n in np.ndenumerate(counts):
        axis.text(
            column, row, str(n), ha="center", va="center", fontsize=7, color="w" if shares[row, column] > 0.5 else "k"
        )
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set(xlabel="most probable label", ylabel="true label")
    axis.set_title(f"{one.task.name}: images, shaded by share of the row", fontsize=9)


def _coverage(axis: Axes, served: Sequence[ServedTask]) -> None:
    """Coverage with a 95 % Wilson interval; images stand for themselves here, patients in the tables."""
    for i, one in enumerate(served):
        n = len(one.labels)
        share = float(one.in_set[np.arange(n), one.labels].mean())
        z = 1.96
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        axis.errorbar(
            share,
            i,
            xerr=[[max(share - middle + half, 0)], [max(middle + half - share, 0)]],
            fmt="o",
            color=COLOURS[0],
            capsize=3,
        )
        axis.text(
            1.015, i, f"mean set {one.in_set.sum(axis=1).mean():.2f} of {len(one.task.labels)}", va="center", fontsize=8
        )
    axis.axvspan(0.88, 0.92, color=COLOURS[2], alpha=0.2)
    axis.axvline(0.9, color=COLOURS[2], linewidth=1)
    axis.set_yticks(range(len(served)), [one.task.name for one in served])
    axis.invert_yaxis()
    lowest = min(one.in_set[np.arange(len(one.labels)), one.labels].mean() for one in served)
    axis.set(xlabel="share of images whose prediction set holds the true label (90 % promised)")
    axis.set_xlim(min(0.75, lowest - 0.1), 1.005)
    axis.set_title("Coverage of prediction sets, 95 % intervals over images", fontsize=10)


def _corruptions(axis: Axes, found: dict[str, Any]) -> None:
    encoders = list(found["mean_loss"])
    sources = found["sources"].values()
    kinds = list(next(iter(sources))["ours"]["losses"])
    for i, encoder in enumerate(encoders):
        losses = [np.mean([s[encoder]["losses"][kind] for s in sources]) for kind in kinds]
        places = np.arange(len(kinds)) + (i - (len(encoders) - 1) / 2) * 0.38
        axis.bar(
            places, losses, width=0.36, color=COLOURS[i], label=f"{encoder}: mean {found['mean_loss'][encoder]:.3f}"
        )
    axis.axhline(0, color="0.3", linewidth=1)
    axis.set_xticks(range(len(kinds)), kinds, rotation=20, ha="right")
    axis.set(ylabel="loss of AUROC, mean over sources")
    axis.set_title(f"What a probe loses at severity {found['severity']}", fontsize=10)
    axis.legend()


def _map(axes: Sequence[Axes], measured: Measured, what: Curriculum) -> None:
    """Where the images lie, by modality: the two leading directions, and neighbourhoods by t-SNE."""
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(measured.examples))[:MAP_IMAGES])
    x = measured.embedding[chosen]
    route = targets(measured.examples, what)[chosen, 0]
    leading = PCA(min(30, *x.shape), random_state=0).fit_transform(x)
    near = TSNE(perplexity=min(30, (len(x) - 1) / 3), init="pca", random_state=0).fit_transform(leading)
    for axis, points, title in zip(
        axes, (leading, near), ("leading directions (PCA)", "neighbours (t-SNE)"), strict=True
    ):
        for i, name in enumerate(r.name for r in what.routes):
            own = route == i
            axis.scatter(
                points[own, 0],
                points[own, 1],
                s=9,
                color=_colour(i),
                marker=MARKERS[i % len(MARKERS)],
                label=name,
                alpha=0.7,
            )
        axis.set_title(f"Embedding of {len(x)} images by modality: {title}", fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.legend(fontsize=8, markerscale=2)


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _dash(i: int) -> str:
    return ("-", "--", "-.", ":")[(i // 3) % 4]
