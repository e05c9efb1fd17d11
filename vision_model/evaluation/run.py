"""`hilum model evaluate`: everything that is said of a model, measured by one command."""

import logging
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from vision_model.adapt.classifier import Text
from vision_model.data.example import Example
from vision_model.data.load import load_squares
from vision_model.data.mixture import MASKED, targets
from vision_model.errors import SourceInvalid
from vision_model.evaluation import corruptions, few_shot, shortcuts
from vision_model.evaluation.bench import Bench, Settings, open_bench
from vision_model.evaluation.benchmarks import Benchmark
from vision_model.evaluation.encoders import Efficientnet, Encoder, Initial, baselines, no_baselines
from vision_model.evaluation.explanations import explanation_figures
from vision_model.evaluation.features import Change, features
from vision_model.evaluation.few_shot import FewShotMethod, plain_regression
from vision_model.evaluation.goals import OURS_AUTO, OURS_WORDS
from vision_model.evaluation.probes import (
    Labelled,
    Probe,
    class_counts,
    fit_probe,
    measure_probe,
    select,
)
from vision_model.evaluation.served import Scores, evaluate, photographs
from vision_model.evaluation.zero_shot import HEADLINE, prompts, routing, zero_shot
from vision_model.knowledge import knowledge
from vision_model.manifest import InputSpec
from vision_model.preprocess import normalise
from vision_model.runtime import Model

__all__ = ["Measured", "Settings", "baselines", "evaluate_model", "no_baselines"]

logger = logging.getLogger(__name__)

PACKAGES = ("numpy", "scikit-learn", "onnxruntime", "torch", "timm", "pillow", "scikit-image")
OURS_SHARED = "ours, same images"  # where baselines see fewer training images than there are


@dataclass(frozen=True)
class Measured:
    """The figures, and the arrays behind them that plots are drawn from."""

    report: dict[str, Any]
    supports: dict[str, Any]
    probe_scores: dict[str, dict[str, NDArray[np.float64]]]  # benchmark -> encoder -> (N, C)
    truth: dict[str, NDArray[np.int64]]  # benchmark -> (N,)
    scores: Scores  # of the measured split
    examples: Sequence[Example]  # of the measured split
    embedding: NDArray[np.float32]  # ours, of the measured split


@contextmanager
def _hushed(name: str) -> Iterator[None]:
    """Let a logger speak of errors only: a head that says what it chose is one of hundreds here."""
    speaker = logging.getLogger(name)
    before = speaker.level
    speaker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        speaker.setLevel(before)


def evaluate_model(
    folder: Path,
    *,
    data: Path,
    cache: Path,
    settings: Settings,
    command: str,
    others: Callable[[InputSpec, Path], list[Encoder]] = baselines,
) -> Measured:
    """Measure the model of a folder on a folder of images, beside the `others` that are made for its input.

    Raises ModelNotFound, ManifestInvalid, ModelDigestMismatch, WeightsInvalid, and SourceInvalid naming what is
    missing.
    """
    started = datetime.now(UTC)
    bench = open_bench(folder, data=data, cache=cache, settings=settings, command=command, others=others)
    for encoder in bench.encoders:
        with bench.timed(f"embedding by {encoder.name}"):
            bench.embed(encoder)
    of_split = bench.of_split(settings.split)
    measured = [e for e, chosen in zip(bench.examples, of_split, strict=True) if chosen]
    ours = {name: values[of_split] for name, values in bench.outputs["ours"].items()}
    scores = Scores(ours["logits"], ours["ood"])
    report: dict[str, Any] = {
        "command": command,
        "split": settings.split,
        "started": started.isoformat(timespec="seconds"),
        "model": _model_facts(bench.model),
        "left_out": sorted(bench.left_out),
        "encoders": {
            e.name: {"digest": e.digest, "width": bench.outputs[e.name]["embedding"].shape[1]} for e in bench.encoders
        },
        "images": {
            "total": len(bench.examples),
            "measured": len(measured),
            "duplicates": bench.duplicates,
            "baseline_images": settings.baseline_images,
        },
    }
    with bench.timed("served tasks"):
        report["served"] = asdict(_served(bench, measured, scores))
    with threadpool_limits(
        1
    ):  # thousands of small regressions: threads would wait for each other longer than they work
        entries, supports, probes, probe_scores, truth = _benchmarks(bench)
    report["benchmarks"] = entries
    with bench.timed("zero-shot"):
        report["routing"] = routing(
            scores.logits,
            targets(measured, bench.what)[:, 0],
            [e.dataset for e in measured],
            manifest=bench.model.manifest,
        )
        _zero_shot(bench, entries)
    with bench.timed("corruptions"):
        report["corruptions"] = _corruptions(bench, probes)
    with bench.timed("shortcuts"):
        report["shortcuts"] = _shortcuts(bench, probe_scores)
    if settings.explanation_images:
        with bench.timed("explanations"):
            report["explanations"] = _explanations(bench, folder, measured)
    report["seconds"] = bench.seconds
    report["versions"] = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    report["machine"] = {"processor": platform.machine(), "system": platform.system(), "provider": bench.model.provider}
    return Measured(report, supports, probe_scores, truth, scores, measured, ours["embedding"])


def _served(bench: Bench, measured: Sequence[Example], scores: Scores) -> Any:
    spec = bench.model.manifest.input
    photos = photographs(size=spec.size).astype(np.float32) / np.float32(255)
    logits, ood = bench.model.run(np.stack([normalise(p, spec=spec) for p in photos]), ("logits", "ood"))
    return evaluate(
        measured,
        scores,
        Scores(logits, ood),
        manifest=bench.model.manifest,
        curriculum=bench.what,
        command=bench.command,
        rng=bench.rng(),
    )


Benchmarked = tuple[
    dict[str, Any],
    dict[str, Any],
    dict[str, dict[str, Probe]],
    dict[str, dict[str, NDArray[np.float64]]],
    dict[str, NDArray[np.int64]],
]


def _benchmarks(bench: Bench) -> Benchmarked:
    """Probes and few-shot heads on every benchmark: figures, support lists, probes, their scores, and the truth."""
    entries: dict[str, Any] = {}
    supports: dict[str, Any] = {}
    probes: dict[str, dict[str, Probe]] = {}
    scores: dict[str, dict[str, NDArray[np.float64]]] = {}
    truth: dict[str, NDArray[np.int64]] = {}
    for benchmark in bench.asked:
        names = [label.name for label in benchmark.labels]
        test = bench.labelled(benchmark, "ours", bench.settings.split)
        train = bench.labelled(benchmark, "ours", "train")
        for split, part in (("train", train), (bench.settings.split, test)):
            if len(np.unique(part.y)) < 2:
                raise SourceInvalid(
                    f"{benchmark.dataset}: {split} holds images of fewer than two labels of "
                    f"{benchmark.name}; the evaluation needs two"
                )
        truth[benchmark.name] = test.y
        entry: dict[str, Any] = {
            "display": benchmark.display,
            "dataset": benchmark.dataset,
            "column": "left out" if benchmark.dataset in bench.left_out else "in-domain",
            "note": benchmark.note,
            "labels": {label.name: label.display for label in benchmark.labels},
            "train": class_counts(train, names),
            "test": class_counts(test, names),
            "test_images": len(test),
            "test_groups": len(set(test.groups.tolist())),
            "floor": benchmark.floor,
            "goal": benchmark.goal,
        }
        with bench.timed(f"probes of {benchmark.name}"):
            entry["probes"], probes[benchmark.name], scores[benchmark.name] = _probes(bench, benchmark)
        with bench.timed(f"few-shot heads of {benchmark.name}"), _hushed("vision_model.adapt"):
            entry["few_shot"], supports[benchmark.name] = _few_shot(bench, benchmark)
        entries[benchmark.name] = entry
    return entries, supports, probes, scores, truth


def _probes(
    bench: Bench, benchmark: Benchmark
) -> tuple[dict[str, Any], dict[str, Probe], dict[str, NDArray[np.float64]]]:
    figures: dict[str, Any] = {}
    fitted: dict[str, Probe] = {}
    scores: dict[str, NDArray[np.float64]] = {}
    asked = [(e.name, e, False) for e in bench.encoders]
    if not bench.shared.all():
        asked.append((OURS_SHARED, bench.encoders[0], True))
    for name, encoder, shared in asked:
        train, val, test = (
            bench.labelled(benchmark, encoder.name, split, shared=shared)
            for split in ("train", "val", bench.settings.split)
        )
        probe = fit_probe(train, val, parts=encoder.parts, labels=len(benchmark.labels))
        figures[name] = measure_probe(probe, test, rng=bench.rng()) | {"train_images": len(train)}
        fitted[name] = probe
        scores[name] = probe.probabilities(test.x)
    return figures, fitted, scores


def _few_shot(bench: Bench, benchmark: Benchmark) -> tuple[dict[str, Any], dict[str, Any]]:
    labels = len(benchmark.labels)
    methods: dict[str, tuple[str, FewShotMethod]] = {e.name: (e.name, plain_regression) for e in bench.encoders}
    methods[OURS_AUTO] = ("ours", few_shot.auto_head(bench.model))
    if bench.model.manifest.text is not None:
        texts = prompts(benchmark, words=knowledge())[HEADLINE]
        text: Text = {i: texts[label.name] for i, label in enumerate(benchmark.labels)}
        methods[OURS_WORDS] = ("ours", few_shot.auto_head(bench.model, text=text))
    train = bench.labelled(benchmark, "ours", "train", shared=True)
    drawn = few_shot.draw_supports(train.y, train.groups, labels=labels)
    curves: dict[str, Any] = {}
    at_ten: dict[str, NDArray[np.float64]] = {}
    test = bench.labelled(benchmark, "ours", bench.settings.split)
    for name, (encoder, method) in methods.items():
        found = few_shot.few_shot(
            bench.labelled(benchmark, encoder, "train", shared=True),
            bench.labelled(benchmark, encoder, bench.settings.split),
            drawn,
            method=method,
            labels=labels,
        )
        curves[name] = few_shot.curve(found, test.y)
        at_ten[name] = found[10]
    rng = bench.rng() if benchmark.dataset in bench.left_out else None
    differences = {
        f"{name} less {Initial.name}": few_shot.paired_difference(at_ten[name], at_ten[Initial.name], test, rng=rng)
        for name in ("ours", OURS_AUTO, OURS_WORDS)
        if name in at_ten and Initial.name in at_ten
    }
    return {"auroc": curves, "ten_shot_differences": differences}, _support_lists(bench, benchmark, drawn)


def _zero_shot(bench: Bench, entries: dict[str, Any]) -> None:
    """Put zero-shot figures into the entries, where the model has words for its images."""
    if bench.model.manifest.text is None:
        logger.warning("the model has no text encoder: nothing is measured in words")
        return
    for benchmark in bench.asked:
        test = bench.labelled(benchmark, "ours", bench.settings.split)
        entries[benchmark.name]["zero_shot"] = zero_shot(
            bench.model.words, test, benchmark, words=knowledge(), rng=bench.rng()
        )


def _support_lists(bench: Bench, benchmark: Benchmark, drawn: Sequence[few_shot.Support]) -> dict[str, Any]:
    labels = benchmark.labels_of(bench.examples, extra=bench.extra)
    kept = bench.of_split("train") & (labels != MASKED) & bench.shared
    names = [f"{e.dataset}/{e.path.name}" for e, k in zip(bench.examples, kept, strict=True) if k]
    listed: dict[str, dict[str, list[str]]] = {}
    for support in drawn:
        listed.setdefault(str(support.shots), {})[str(support.seed)] = [names[i] for i in support.indices]
    return {"labels": [label.name for label in benchmark.labels], "shots": listed}


def _corruptions(bench: Bench, probes: dict[str, dict[str, Probe]]) -> dict[str, Any]:
    """Mean loss of AUROC of our probe and of EfficientNet-Lite2's, on the same damaged images."""
    compared = [e for e in bench.encoders if e.name in {"ours", Efficientnet.name}]
    of_split = bench.of_split(bench.settings.split)
    labels: dict[str, NDArray[np.int64]] = {}
    chosen: dict[str, NDArray[np.int64]] = {}
    for benchmark in bench.asked:
        if benchmark.dataset not in bench.left_out:
            all_labels = np.where(of_split, benchmark.labels_of(bench.examples, extra=bench.extra), MASKED)
            own = corruptions.spread_sample(all_labels, most=bench.settings.corruption_images, rng=bench.rng())
            labels[benchmark.name], chosen[benchmark.name] = all_labels[own], own
    if not chosen:
        return {"severity": corruptions.SEVERITY, "sources": {}, "mean_loss": {}}
    sources: dict[str, Any] = {name: {"images": len(own)} for name, own in chosen.items()}
    images = [bench.examples[i] for own in chosen.values() for i in own]
    ends = np.cumsum([len(own) for own in chosen.values()])
    for encoder in compared:
        damaged = corruptions.damaged_features(encoder, images, cache=bench.cache)
        for name, own, end in zip(chosen, chosen.values(), ends, strict=True):
            fitted = probes[name].get(OURS_SHARED if encoder.name == "ours" else "", probes[name][encoder.name])
            sources[name][encoder.name] = corruptions.corruption_loss(
                fitted,
                labels[name],
                bench.outputs[encoder.name]["embedding"][own],
                damaged={kind: x[end - len(own) : end] for kind, x in damaged.items()},
            )
    means = {e.name: float(np.mean([s[e.name]["mean_loss"] for s in sources.values()])) for e in compared}
    return {"severity": corruptions.SEVERITY, "sources": sources, "mean_loss": means}


def _shortcuts(bench: Bench, probe_scores: dict[str, dict[str, NDArray[np.float64]]]) -> dict[str, Any]:
    """How far the adult chest-film score goes along with the view."""
    benchmark = next((b for b in bench.asked if b.dataset == "nih_cxr"), None)
    if benchmark is None:
        return {}
    test = bench.labelled(benchmark, "ours", bench.settings.split)
    view = shortcuts.fit_view_probe(_films_of_known_view(bench))
    found: dict[str, Any] = {"dataset": benchmark.dataset, "images": len(test)}
    if view is not None:
        found |= shortcuts.view_figures(view, probe_scores[benchmark.name]["ours"][:, 1], test)
    labels = benchmark.labels_of(bench.examples, extra=bench.extra)
    films = [e for e, y in zip(bench.examples, labels, strict=True) if y != MASKED]
    ours = bench.encoders[0]

    def auroc_after(change: Change | None) -> dict[str, Any]:
        if change is None:
            embedding = bench.outputs[ours.name]["embedding"][labels != MASKED]
        else:
            embedding = features(ours, films, cache=bench.cache, change=change)["embedding"]
        y, groups = labels[labels != MASKED], np.array([e.group for e in films])
        parts = [
            select(embedding, y, groups, np.array([e.split == s for e in films]))
            for s in ("train", "val", bench.settings.split)
        ]
        probe = fit_probe(parts[0], parts[1], parts=ours.parts, labels=len(benchmark.labels))
        return measure_probe(probe, parts[2], rng=bench.rng())

    found["looks"] = {name: auroc_after(change) for name, change in shortcuts.LOOKS}
    return found


def _explanations(bench: Bench, folder: Path, measured: Sequence[Example]) -> dict[str, float]:
    """How far heat maps say what the model looks at, on a few images of each served task."""
    truth = targets(measured, bench.what)
    squares = {}
    for column, task in enumerate(bench.what.tasks, start=1):
        if task.name in {t.name for t in bench.model.manifest.tasks}:
            own = np.array([e.dataset == task.evaluate for e in measured])
            labels = np.where(own, truth[:, column], MASKED)
            chosen = corruptions.spread_sample(labels, most=bench.settings.explanation_images, rng=bench.rng())
            squares[task.name] = load_squares([measured[i] for i in chosen], spec=bench.model.manifest.input)
    with tqdm(total=sum(map(len, squares.values())), desc="explanations", unit="image", mininterval=10) as bar:
        return explanation_figures(folder, squares, rng=bench.rng(), heard=lambda *_: bar.update())


def _films_of_known_view(bench: Bench) -> Labelled:
    """Training films whose projection extra_labels.csv states: AP is 1, PA is 0."""
    views = {"ap": 1, "pa": 0}
    y = np.array(
        [
            views.get(bench.extra.get((f"{e.path.parent.name}/{e.path.name}", "projection"), ""), MASKED)
            for e in bench.examples
        ],
        dtype=np.int64,
    )
    groups = np.array([e.group for e in bench.examples])
    return select(bench.outputs["ours"]["embedding"], y, groups, bench.of_split("train"))


def _model_facts(model: Model) -> dict[str, Any]:
    m = model.manifest
    return {
        "name": m.name,
        "version": m.version,
        "graph_sha256": m.graph_sha256,
        "projection_sha256": m.text.projection_sha256 if m.text else None,
        "threshold_set": m.threshold_set,
        "precision": m.precision,
        "size": m.input.size,
        "training": m.training,
        "licence": m.licence,
        "sources": list(m.sources),
        "unserved": [asdict(u) for u in m.unserved],
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "another build"  # onnxruntime and onnxruntime-gpu are one module under two names
