"""Measure a model on held-out images, with baselines, and write the report and the model card."""

import argparse
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from vision_model.errors import TrainingError
from vision_model.manifest import read_manifest
from vision_model.runtime import MODELS, SHIPPED

COMMANDS = frozenset({"evaluate", "card"})


def add_arguments(commands: "argparse._SubParsersAction[Any]") -> None:
    """`hilum model evaluate` and `hilum model card`."""
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a model on held-out images: probes, few images a class, words, corruptions, trust",
        description="Measure a model on held-out images and write evaluation.json, tables.md, support_lists.json, "
        "MODEL_CARD.md and plots. Embeddings are kept in the cache, so the same command goes on where it was stopped.",
    )
    evaluate.add_argument("folder", nargs="?", type=Path, help="a model's folder (default: the shipped one)")
    evaluate.add_argument("--data", type=Path, required=True, help="a folder of images with a manifest.csv")
    evaluate.add_argument("--out", type=Path, required=True, help="the folder to write the report into")
    evaluate.add_argument(
        "--cache", type=Path, help="where embeddings and the baseline's weights are kept (default: OUT/cache)"
    )
    evaluate.add_argument(
        "--baselines",
        choices=("all", "none"),
        default="all",
        help="also measure the initial weights, EfficientNet-Lite2, HOG and pixels in the same way "
        "(default: %(default)s)",
    )
    evaluate.add_argument(
        "--split",
        choices=("test", "val"),
        default="test",
        help="the images to measure on; val is for choosing, but the heads that serve have learnt from it; test is for "
        "once (default: %(default)s)",
    )
    evaluate.add_argument(
        "--baseline-images",
        type=int,
        metavar="N",
        help="let baselines learn from at most N training images of each source, which halves the time at 400; ours is "
        "then measured on those as well (default: all)",
    )
    evaluate.add_argument(
        "--corruption-images",
        type=int,
        default=120,
        metavar="N",
        help="damage at most N images of each source, 8 ways (default: %(default)s)",
    )
    evaluate.add_argument(
        "--explanation-images",
        type=int,
        default=8,
        metavar="N",
        help="examine the heat maps of N images of each served task; 0 examines none (default: %(default)s)",
    )
    evaluate.add_argument("--json", action="store_true", help="print evaluation.json instead of the table of goals")
    card = commands.add_parser(
        "card", help="write MODEL_CARD.md again from an evaluation", description="Write MODEL_CARD.md from figures."
    )
    card.add_argument("folder", nargs="?", type=Path, help="a model's folder (default: the shipped one)")
    card.add_argument("--evaluation", type=Path, required=True, help="the evaluation.json of `hilum model evaluate`")
    card.add_argument("--out", type=Path, help="the file to write (default: MODEL_CARD.md in the model's folder)")
    for command in (evaluate, card):
        command.add_argument("--notes", type=Path, help="Markdown bullets to add to what the model is bad at")


def run(args: argparse.Namespace) -> int:
    """Raises TrainingError leaves, and those of loading a model."""
    notes = args.notes.read_text(encoding="utf-8") if args.notes else ""
    folder = args.folder or MODELS / SHIPPED
    manifest = read_manifest(folder)
    if args.model_command == "card":
        from vision_model.evaluation.card import card, read_evaluation

        target = args.out or folder / "MODEL_CARD.md"
        target.write_text(card(manifest, read_evaluation(args.evaluation, manifest), notes=notes), encoding="utf-8")
        print(target)
        return 0
    measuring, report = _needed()
    measured = measuring.evaluate_model(
        folder,
        data=args.data,
        cache=args.cache or args.out / "cache",
        settings=measuring.Settings(
            split=args.split,
            baseline_images=args.baseline_images,
            corruption_images=args.corruption_images,
            explanation_images=args.explanation_images,
        ),
        command=f"hilum model evaluate --data {args.data.name} --baselines {args.baselines} --split {args.split} "
        f"{f'--baseline-images {args.baseline_images} ' if args.baseline_images else ''}"
        f"--corruption-images {args.corruption_images} --explanation-images {args.explanation_images}",
        others=measuring.baselines if args.baselines == "all" else measuring.no_baselines,
    )
    report.write_report(measured, manifest=manifest, out=args.out, notes=notes)
    print(json.dumps(measured.report) if args.json else report.goals_table(measured.report))
    return 0


def _needed() -> tuple[ModuleType, ModuleType]:
    """Measuring needs the extra `train`; nothing else of the application does."""
    try:
        from vision_model.evaluation import report, run  # torch takes seconds to import and may be absent
    except ModuleNotFoundError as exc:
        raise TrainingError(
            f"{exc.name} is not installed; measuring needs the extra: pip install 'hilum[train]'"
        ) from exc
    return run, report
