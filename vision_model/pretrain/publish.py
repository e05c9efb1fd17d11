"""Calibrate an exported graph on `val`, measure it on `test`, and write the manifest that lies beside it."""

import hashlib
import logging
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vision_model.calibrate import RULE, conformal_quantile, operating_point, temperature, with_mistakes
from vision_model.data.augment import Augmentation
from vision_model.data.example import Example
from vision_model.data.load import load_squares
from vision_model.data.mixture import MASKED, targets
from vision_model.data.sources import described
from vision_model.data.tasks import Curriculum
from vision_model.errors import QuantisationFailed
from vision_model.evaluation.served import Evaluation, Scores, evaluate, photographs, run_squares, score, score_squares
from vision_model.graph import Graph
from vision_model.manifest import (
    FLOAT_GRAPH_NAME,
    GOLDEN_NAME,
    GRAPH_NAME,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    InputSpec,
    Label,
    Manifest,
    Task,
    UnservedTask,
    file_sha256,
    text_spec,
)
from vision_model.net import EMBEDDING_SIZE
from vision_model.preprocess import normalise
from vision_model.pretrain.heads import CrossFitted
from vision_model.pretrain.recipe import Recipe
from vision_model.quantise import compare_answers, graph_files, quantise
from vision_model.runtime import SHIPPED, softmax

logger = logging.getLogger(__name__)

SERVED_FROM = 0.75  # lower 95 % bound of the test AUROC
CONFORMAL_ALPHA = 0.1
ROUTE_MINIMUM = 0.9
PARITY_IMAGES = 64
VIEWS = 2  # changed copies of each val image that operating points are chosen on
EVALUATION_NAME = "evaluation.json"


def publish(
    folder: Path,
    *,
    fitted: CrossFitted,
    by_split: dict[str, list[Example]],
    what: Curriculum,
    recipe: Recipe,
    spec: InputSpec,
    version: str,
    data: Path,
    differences: dict[str, float],
) -> Evaluation:
    """Calibrate the graph in `folder` on `val`, measure it on `test`, and write its manifest and evaluation.

    The graph's heads have seen `val`; what is calibrated there, is so by the logits of `fitted` that have not.
    """
    graph = folder / GRAPH_NAME
    squares = load_squares(by_split["val"], spec=spec)
    truth = targets(by_split["val"], what)
    scores, cost = answering(folder, squares, truth, fitted=fitted, what=what, spec=spec, seed=recipe.seed)
    manifest = calibrated_manifest(
        by_split["val"],
        scores,
        held_out_scores(graph, other_views(squares, by_split["val"], seed=recipe.seed), fitted, spec=spec),
        what=what,
        recipe=recipe,
        spec=spec,
        graph=graph,
        version=version,
        sources=tuple(
            {**row, "used_for": "the router's head only" if row["name"] in recipe.left_out else "encoder and heads"}
            for row in described(by_split["train"])
        ),
    )
    evaluation = evaluate(
        by_split["test"],
        score(graph, by_split["test"], spec=spec),
        score_squares(graph, photographs(size=spec.size), spec=spec),
        manifest=manifest,
        curriculum=what,
        command=f"hilum model pretrain --recipe {recipe.name} --data {data.name}",
        rng=np.random.default_rng(recipe.seed),
    )
    evaluation.notes.update({f"largest difference torch - ONNX, {k}": v for k, v in differences.items()})
    evaluation.notes.update(cost)
    write_golden(folder, spec=spec)
    (folder / EVALUATION_NAME).write_text(evaluation.to_json(), encoding="utf-8")
    (folder / MANIFEST_NAME).write_text(served_only(manifest, evaluation).to_json(), encoding="utf-8")
    return evaluation


def answering(
    folder: Path,
    squares: NDArray[np.uint8],
    truth: NDArray[np.int64],
    *,
    fitted: CrossFitted,
    what: Curriculum,
    spec: InputSpec,
    seed: int,
) -> tuple[Scores, dict[str, float]]:
    """Let the 8-bit graph answer on a CPU if it may: (`val` scores with the graph that answers, what the 8 bits cost).

    Everything that is calibrated is calibrated on these scores. A graph that is refused leaves the float graph alone.
    """
    graph = folder / GRAPH_NAME
    exact, whole = held_out_scores(graph, squares, fitted, spec=spec), graph.read_bytes()
    rng = np.random.default_rng(seed)
    chosen = squares[np.sort(rng.permutation(len(squares))[:PARITY_IMAGES])].astype(np.float32) / np.float32(255)
    try:
        cosine = quantise(folder, images=np.stack([normalise(s, spec=spec) for s in chosen]))
        cost = {"mean cosine of embeddings, int8 - float": cosine}
        quick = held_out_scores(graph, squares, fitted, spec=spec)
        for column, task in enumerate(what.tasks, start=1):
            labelled = truth[:, column] != MASKED
            own = slice(first := what.first_logit(task.name), first + len(task.labels))
            loss, flips = compare_answers(
                exact.logits[labelled, own],
                quick.logits[labelled, own],
                truth[labelled, column],
                name=task.name,
                rng=rng,
            )
            cost |= {f"AUROC on val, float - int8, {task.name}": loss, f"labels flipped by int8, {task.name}": flips}
    except QuantisationFailed as refusal:
        logger.warning("%s; the float graph answers", refusal)
        for name in (FLOAT_GRAPH_NAME, WEIGHTS_NAME):
            (folder / name).unlink(missing_ok=True)
        graph.write_bytes(whole)
        return exact, {}
    return quick, cost


def held_out_scores(graph: Path, squares: NDArray[np.uint8], fitted: CrossFitted, *, spec: InputSpec) -> Scores:
    """Scores of rounds of the squares of `val`, their logits by heads that have not seen the image's group."""
    embedding, ood = run_squares(graph, squares, ("embedding", "ood"), spec=spec)
    return Scores(fitted.held_out(embedding), ood)


def calibrated_manifest(
    examples: Sequence[Example],
    scores: Scores,
    other_scores: Scores,
    *,
    what: Curriculum,
    recipe: Recipe,
    spec: InputSpec,
    graph: Path,
    version: str,
    sources: tuple[dict[str, str], ...],
) -> Manifest:
    """A manifest with every task, calibrated on these `val` examples; test figures are zero until they are measured.

    `other_scores` are those of `other_views` of the same images. Operating points look at them, too: a threshold is
    carried to other scanners, while temperatures and prediction sets promise nothing beyond images like these, unless
    these are too easy (`with_mistakes`).
    """
    truth = targets(examples, what)
    tasks = []
    for i, task in enumerate(what.tasks):
        of_task = np.array([e.dataset == task.evaluate for e in examples]) & (truth[:, i + 1] != MASKED)
        first, labels = what.first_logit(task.name), truth[of_task, i + 1]
        own = slice(first, first + len(task.labels))
        logits = scores.logits[of_task, own]
        all_views = np.concatenate([logits, other_scores.logits[np.tile(of_task, VIEWS), own]])
        shown, shown_labels = with_mistakes(logits, all_views, labels)
        t = temperature(shown, shown_labels)
        seen, seen_labels = softmax(all_views / t), np.tile(labels, 1 + VIEWS)
        tasks.append(
            Task(
                name=task.name,
                display=task.display,
                route=task.route,
                population=task.population,
                labels=tuple(
                    Label(
                        name=label.name,
                        display=label.display,
                        code=label.code,
                        normal=label.normal,
                        operating_point=operating_point(seen[:, c], seen_labels == c),
                    )
                    for c, label in enumerate(task.labels)
                ),
                first_logit=first,
                temperature=t,
                conformal_alpha=CONFORMAL_ALPHA,
                conformal_quantile=conformal_quantile(softmax(shown / t), shown_labels, alpha=CONFORMAL_ALPHA),
                ood_index=i,
                ood_threshold=float(np.quantile(scores.ood[of_task, i], recipe.ood_quantile)),
                sources=tuple(sorted({d for label in task.labels for d, _ in label.sources})),
                test_auroc=0.0,
                test_auroc_interval=(0.0, 0.0),
            )
        )
    routes = len(what.routes)
    precision, more_graphs, weights_sha256 = graph_files(graph.parent)
    calibration = [(t.temperature, t.conformal_quantile, t.ood_threshold, t.labels) for t in tasks]
    return Manifest(
        name=SHIPPED,
        version=version,
        graph_sha256=file_sha256(graph),
        precision=precision,
        more_graphs=more_graphs,
        weights_sha256=weights_sha256,
        input=spec,
        embedding_size=EMBEDDING_SIZE,
        routes=what.routes,
        route_temperature=temperature(scores.logits[:, :routes], truth[:, 0]),
        route_minimum=ROUTE_MINIMUM,
        tasks=tuple(tasks),
        unserved=(),
        text=text_spec(graph.parent),
        threshold_set=hashlib.sha256(repr(calibration).encode()).hexdigest(),
        licence="research use only: several sources forbid commercial use or state no licence",
        sources=sources,
        training={
            "recipe": recipe.name,
            "seed": str(recipe.seed),
            "initial": recipe.initial,
            "left_out": ", ".join(recipe.left_out),
            "operating_point_rule": RULE,
            "heads": "train and val; calibrated on val with heads that had not seen the group",
            "torch": torch.__version__,
            "commit": _commit(),
            "made": datetime.now(UTC).date().isoformat(),
        },
    )


def other_views(squares: NDArray[np.uint8], examples: Sequence[Example], *, seed: int) -> NDArray[np.uint8]:
    """(VIEWS * N, S, S, 3): the squares as the training augmentation changes them, one whole round after another."""
    augmentation = Augmentation()
    return np.stack(
        [
            np.rint(augmentation(image, modality=example.modality, seed=seed + number) * 255).astype(np.uint8)
            for number, (image, example) in enumerate(
                zip(np.tile(squares, (VIEWS, 1, 1, 1)), [*examples] * VIEWS, strict=True)
            )
        ]
    )


def served_only(manifest: Manifest, evaluation: Evaluation) -> Manifest:
    """The manifest with its test figures in, and the tasks under the bar moved to `unserved`."""
    measured = {e.task: e for e in evaluation.tasks}
    unserved = tuple(
        UnservedTask(
            t.name,
            f"test AUROC {measured[t.name].auroc:.3f}, lower 95 % bound {measured[t.name].auroc_interval[0]:.3f}: "
            f"below {SERVED_FROM}",
        )
        for t in manifest.tasks
        if measured[t.name].auroc_interval[0] < SERVED_FROM
    )
    hidden = {u.name for u in unserved}
    return replace(
        manifest,
        unserved=unserved,
        tasks=tuple(
            replace(t, test_auroc=measured[t.name].auroc, test_auroc_interval=measured[t.name].auroc_interval)
            for t in manifest.tasks
            if t.name not in hidden
        ),
    )


def write_golden(folder: Path, *, spec: InputSpec) -> None:
    """Keep the graph's outputs for a picture made by code, which `hilum model verify` repeats on the user's machine."""
    axis = np.linspace(0, 1, spec.size, dtype=np.float32)
    rings = 0.5 + 0.5 * np.sin(24 * np.hypot(axis[:, None] - 0.4, axis[None, :] - 0.6))
    images = normalise(np.repeat(rings[..., None], 3, axis=2), spec=spec)[None]
    embedding, logits, ood = Graph(folder / GRAPH_NAME).run(images, ("embedding", "logits", "ood"))
    np.savez_compressed(folder / GOLDEN_NAME, images=images, embedding=embedding, logits=logits, ood=ood)


def table(evaluation: Evaluation) -> str:
    """The evaluation as a Markdown table."""
    lines = [
        "| task | test images (groups) | AUROC (95 %) | balanced accuracy (95 %) | ECE before / after "
        "| coverage, set size | OOD AUROC photographs / other modalities | in-distribution withheld |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {e.task} | {e.images} ({e.groups}) | {e.auroc:.3f} ({e.auroc_interval[0]:.3f}–{e.auroc_interval[1]:.3f}) "
        f"| {e.balanced_accuracy:.3f} ({e.balanced_accuracy_interval[0]:.3f}–{e.balanced_accuracy_interval[1]:.3f}) "
        f"| {e.ece_before:.3f} / {e.ece_after:.3f} | {e.coverage:.3f}, {e.mean_set_size:.2f} "
        f"| {e.ood_auroc['photographs']:.3f} / {e.ood_auroc['other modalities']:.3f} "
        f"| {e.withheld_in_distribution:.3f} |"
        for e in evaluation.tasks
    ]
    return "\n".join(lines)


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607  # git of the path
    return done.stdout.strip() or "unknown"
