"""Describe the model that answers, or verify that its files are what they say."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import vision_model
from app.commands import model_adapt, model_evaluate
from app.config import load
from app.gate import age_range
from vision_model.errors import GraphInvalid, TrainingError
from vision_model.manifest import GOLDEN_NAME, Manifest, read_manifest
from vision_model.runtime import LEAST_GOLDEN_COSINE, MODELS, SHIPPED, Model, golden_cosine

GOLDEN_TOLERANCE = 1e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`hilum model`'s subcommands."""
    commands = parser.add_subparsers(dest="model_command", metavar="COMMAND", required=True)
    info = commands.add_parser("info", help="what the model answers, for whom, and how well it does")
    verify = commands.add_parser("verify", help="check the graph's digest, load it, and repeat its golden outputs")
    for command in (info, verify):
        command.add_argument(
            "folder",
            nargs="?",
            type=Path,
            help="a model's folder (default: model.path of the settings, or the shipped one)",
        )
    info.add_argument("--json", action="store_true", help="print one JSON object")
    pretrain = commands.add_parser(
        "pretrain", help="train a model from a recipe, calibrate it on val, measure it on test"
    )
    pretrain.add_argument(
        "--recipe", default="cpu", help="a shipped recipe's name or a TOML file (default: %(default)s)"
    )
    pretrain.add_argument("--data", type=Path, required=True, help="a folder of images with a manifest.csv")
    pretrain.add_argument("--out", type=Path, required=True, help="the run's folder; a stopped run goes on from there")
    pretrain.add_argument("--version", default="0.1.0", help="the version its manifest states (default: %(default)s)")
    model_evaluate.add_arguments(commands)
    model_adapt.add_arguments(commands)


def run(args: argparse.Namespace) -> int:
    """Raises ModelNotFound, ManifestInvalid, ModelDigestMismatch, GraphInvalid, ProviderUnavailable."""
    if args.model_command == "pretrain":
        return _pretrain(args)
    if args.model_command in model_evaluate.COMMANDS:
        return model_evaluate.run(args)
    if args.model_command in model_adapt.COMMANDS:
        return model_adapt.run(args)
    settings = load(args.config)
    folder = args.folder or settings.model.path or MODELS / SHIPPED
    if args.model_command == "verify":
        model = vision_model.load(
            folder,
            provider=settings.model.provider,
            precision=settings.model.precision,
            engine_cache=settings.model.engine_cache,
        )
        manifest = model.manifest
        print(f"{manifest.name} {manifest.version}: SHA-256 {manifest.graph_sha256} is as the manifest says")
        print(f"the graph loads on {model.provider} in {model.precision}")
        print(golden_check(model, folder))
        return 0
    manifest = read_manifest(folder)
    print(json.dumps(info_json(manifest)) if args.json else "\n".join(info_lines(manifest)))
    return 0


def _pretrain(args: argparse.Namespace) -> int:
    """Training needs the extra `train`; nothing else of the application but measuring does."""
    try:
        from vision_model.pretrain import run  # torch takes seconds to import and may be absent
    except ModuleNotFoundError as exc:
        raise TrainingError(
            f"{exc.name} is not installed; training needs the extra: pip install 'hilum[train]'"
        ) from exc
    evaluation = run.pretrain(recipe_name=args.recipe, data=args.data, out=args.out, version=args.version)
    if evaluation is not None:  # of several processes the first reports
        print(run.table(evaluation))
    return 0


def golden_check(model: Model, folder: Path) -> str:
    """Repeat the outputs that lie beside the graph and say how near they are. Raises GraphInvalid when they are not."""
    path = folder / GOLDEN_NAME
    if not path.is_file():
        return f"no {GOLDEN_NAME} beside the graph, so no outputs were repeated"
    if model.precision == "int8" or model.precision != model.manifest.precision:
        # Roundings to 8 bits fall otherwise on other processors, and the float graph has none: near, not equal.
        cosine = golden_cosine(model.graph, folder)
        if not cosine >= LEAST_GOLDEN_COSINE:
            raise GraphInvalid(
                f"the embedding has a cosine of {cosine:.4f} with the one in {GOLDEN_NAME} ({LEAST_GOLDEN_COSINE} is "
                "asked for); this build of ONNX Runtime or this machine computes otherwise"
            )
        return f"golden embedding repeated in {model.precision}; cosine {cosine:.5f}"
    with np.load(path, allow_pickle=False) as golden:
        expected = {name: golden[name] for name in golden.files if name != "images"}
        outputs = model.run(golden["images"], list(expected))
    worst = max(float(np.abs(output - expected[name]).max()) for name, output in zip(expected, outputs, strict=True))
    if not worst <= GOLDEN_TOLERANCE:
        raise GraphInvalid(
            f"the graph's outputs differ by {worst:.2g} from those in {GOLDEN_NAME} ({GOLDEN_TOLERANCE:g} is allowed); "
            "this build of ONNX Runtime or this machine computes otherwise"
        )
    return f"golden outputs repeated; largest difference {worst:.2g}"


def info_json(manifest: Manifest) -> dict[str, Any]:
    """The facts of a manifest that a program may want."""
    return {
        "name": manifest.name,
        "version": manifest.version,
        "sha256": manifest.graph_sha256,
        "precision": manifest.precision,
        "licence": manifest.licence,
        "threshold_set": manifest.threshold_set,
        "tasks": [asdict(task) for task in manifest.tasks],
        "unserved": [asdict(task) for task in manifest.unserved],
        "training": manifest.training,
    }


def info_lines(manifest: Manifest) -> Iterator[str]:
    """The same for a person."""
    yield f"{manifest.name} {manifest.version}  ({manifest.precision}, SHA-256 {manifest.graph_sha256})"
    yield f"licence: {manifest.licence}"
    yield f"thresholds: {manifest.threshold_set}"
    for task in manifest.tasks:
        low, high = task.test_auroc_interval
        yield ""
        yield f"{task.name}: {task.display}  [{task.route}]"
        yield f"  trained on: {task.population.description}; answered for: {age_range(task.population)}"
        yield f"  test AUROC {task.test_auroc:.3f} (95 % interval {low:.3f} to {high:.3f})"
        for label in task.labels:
            point = label.operating_point
            kind = "normal" if label.normal else f"threshold {point.threshold:.3f} ({point.rule})"
            yield f"  {label.display}: {kind}"
    for unserved in manifest.unserved:
        yield ""
        yield f"{unserved.name}: not served, {unserved.reason}"
    yield ""
    yield "Research use only, not for diagnostic use."
