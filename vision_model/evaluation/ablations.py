"""What each part of pretraining buys: `python -m vision_model.evaluation.ablations --data FOLDER --out FOLDER`.

Short runs from the same weights, on the same batches, that differ in one thing, against the weights they start from.
Nothing of `test` is looked at: sources that were learnt from are measured on `val`, and those that were left out on one
half of the patients of their `train`, with the support images from the other half. A run that was stopped goes on.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vision_model.data.duplicates import without_duplicates
from vision_model.data.example import Example
from vision_model.data.sources import read_sources
from vision_model.data.tasks import Curriculum, curriculum
from vision_model.evaluation.benchmarks import Benchmark, benchmarks, extra_labels
from vision_model.evaluation.few_shot import draw_supports, few_shot, plain_regression
from vision_model.evaluation.intervals import auroc
from vision_model.evaluation.plots import curves
from vision_model.evaluation.probes import fit_probe, select
from vision_model.evaluation.zero_shot import HEADLINE, prompts
from vision_model.knowledge import Knowledge, knowledge
from vision_model.net import PATCH, TAP_SIZE, TAPS
from vision_model.pretrain.heads import WHOLE, embed_examples
from vision_model.pretrain.loop import train
from vision_model.pretrain.objective import concept_targets, read_prompts
from vision_model.pretrain.recipe import Recipe, read_recipe
from vision_model.pretrain.run import learnable
from vision_model.pretrain.text_space import fit_projection
from vision_model.runtime import MODELS, SHIPPED
from vision_model.text import TextEncoder
from vision_model.zero_shot import WordSpace, balanced_accuracy

logger = logging.getLogger(__name__)

SHOTS = 10
WATCHED = 300  # images of val that the curves follow
LOOKS = 6  # at them, in each run
PROBED = 400  # training images of a source that a probe is fitted on


@dataclass(frozen=True)
class Variant:
    """One way to train; the knowledge file as it learns from it."""

    recipe: Recipe
    words: Knowledge


@dataclass(frozen=True, slots=True)
class Measured:
    """Means over sources."""

    probe_auroc: float  # learnt from: on val, the strength chosen there for every variant alike
    block_aurocs: dict[str, float]  # the same, reading one block alone
    ten_shot_auroc: float  # left out
    words_above_chance: float  # left out: balanced accuracy less chance, from words alone


def variants(recipe: Recipe, words: Knowledge) -> dict[str, Variant]:
    """As the recipe has it, and with one thing changed."""
    (stage,) = recipe.stages
    names_alone = Knowledge({c.name: replace(c, synonyms=(), phrases=()) for c in words})
    larger = replace(stage, size=stage.size + 3 * PATCH)
    doubled, all_twice = (replace(stage, second_views=n) for n in (max(1, stage.batch // 4), stage.batch))
    return {
        "initial weights": Variant(replace(recipe, stages=(replace(stage, steps=0),)), words),
        "labels and words": Variant(recipe, words),
        "labels alone": Variant(replace(recipe, text_weight=0.0), words),
        "labels, and names for words": Variant(recipe, names_alone),
        "labels, words and self-distillation": Variant(replace(recipe, self_weight=0.5, stages=(doubled,)), words),
        "self-distillation alone": Variant(
            replace(recipe, supervised_weight=0.0, text_weight=0.0, self_weight=0.5, stages=(all_twice,)), words
        ),
        "initial weights, three patches more a side": Variant(
            replace(recipe, stages=(replace(larger, steps=0),)), words
        ),
        "labels and words, three patches more a side": Variant(replace(recipe, stages=(larger,)), words),
        "every block trained": Variant(replace(recipe, frozen_blocks=0), words),
    }


def ablate(data: Path, out: Path, *, recipe: Recipe) -> dict[str, Measured]:
    """Train and measure every variant of a recipe with one stage; `out` keeps runs and figures.

    Raises what `pretrain` raises.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = read_sources(recipe.sources, root=data, permissive_only=recipe.permissive_only)
    unique, _ = without_duplicates(found, cache=out / "fingerprints.npz", guarded=recipe.left_out)
    what, examples = learnable(curriculum(), unique)
    there = {e.dataset for e in examples}
    asked = [b for b in benchmarks(what) if b.dataset in there]
    extra = extra_labels(data)
    figures = {}
    for name, variant in variants(recipe, knowledge()).items():
        run = _run(out, name)
        kept = run / "measured.json"
        if not kept.is_file():
            measured = _measured(variant, run, examples, what=what, asked=asked, extra=extra)
            kept.write_text(json.dumps(asdict(measured)), encoding="utf-8")
        figures[name] = Measured(**json.loads(kept.read_text(encoding="utf-8")))
        logger.info("%s: %s", name, figures[name])
    return figures


def _run(out: Path, name: str) -> Path:
    return out / name.replace(" ", "-").replace(",", "")


def _measured(
    variant: Variant,
    run: Path,
    examples: Sequence[Example],
    *,
    what: Curriculum,
    asked: Sequence[Benchmark],
    extra: dict[tuple[str, str], str],
) -> Measured:
    recipe, encoder = variant.recipe, TextEncoder(MODELS / SHIPPED)
    texts = read_prompts(variant.words, what, encoder)
    learnt = [e for e in examples if e.dataset not in recipe.left_out]
    net = train(
        [e for e in learnt if e.split == "train"],
        watched=_spread([e for e in learnt if e.split == "val"], WATCHED),
        curriculum=what,
        knowledge=variant.words,
        prompts=texts,
        recipe=recipe,
        run=run,
    )
    spec = recipe.input_spec(size=recipe.stages[-1].size, windows=what.windows)
    shown = [*_some(learnt, recipe.seed), *(e for e in learnt if e.split == "val")]
    shown += [e for e in examples if e.dataset in recipe.left_out and e.split == "train"]
    x = embed_examples(net, shown, spec=spec, bf16=recipe.bf16).mean
    splits, groups = np.array([e.split for e in shown]), np.array([e.group for e in shown])
    left_out = np.array([e.dataset in recipe.left_out for e in shown])
    concepts = concept_targets(shown, variant.words, texts)
    space = WordSpace(
        encoder,
        fit_projection(
            *((x[chosen], concepts[chosen]) for chosen in (~left_out & (splits == s) for s in ("train", "val"))),
            prompts=texts,
            routes=len(what.routes),
        ),
        tuple(r.name for r in what.routes),
    )
    asked_half = _half(groups, recipe.seed)
    blocks = {f"block {tap + 1}": slice(i * TAP_SIZE, (i + 1) * TAP_SIZE) for i, tap in enumerate(TAPS)}
    probes: dict[str, list[float]] = {name: [] for name in ("all", *blocks)}
    ten_shot, words = [], []
    for benchmark in asked:
        labels, count = benchmark.labels_of(shown, extra=extra), len(benchmark.labels)
        if benchmark.dataset not in recipe.left_out:
            for name, part in {"all": WHOLE[0], **blocks}.items():
                of_split = [select(x[:, part], labels, groups, splits == s) for s in ("train", "val")]
                fitted = fit_probe(*of_split, parts=WHOLE, labels=count)
                if fitted.val_auroc is not None:
                    probes[name].append(fitted.val_auroc)
            continue
        support, query = (select(x, labels, groups, left_out & half) for half in (~asked_half, asked_half))
        if min(len(set(part.y.tolist())) for part in (support, query)) < count:
            continue
        draws = [d for d in draw_supports(support.y, support.groups, labels=count) if d.shots == SHOTS]
        answers = few_shot(support, query, draws, method=plain_regression, labels=count)[SHOTS]
        ten_shot.append(float(np.mean([auroc(p, query.y) for p in answers])))
        said = space.logits(
            query.x, prompts(benchmark, words=variant.words)[HEADLINE], routes=[benchmark.route] * len(query)
        )
        words.append(balanced_accuracy(said.argmax(axis=1), query.y) - 1 / count)
    areas = {name: _mean(values) for name, values in probes.items()}
    return Measured(areas.pop("all"), areas, _mean(ten_shot), _mean(words))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _spread(examples: Sequence[Example], most: int) -> list[Example]:
    """At most that many of the examples, from all over."""
    return [examples[i] for i in np.unique(np.linspace(0, len(examples) - 1, most).astype(int))]


def _some(examples: Sequence[Example], seed: int) -> list[Example]:
    """At most PROBED training images of each source."""
    order = np.random.default_rng(seed).permutation(len(examples))
    counts: dict[str, int] = {}
    some = []
    for e in (examples[i] for i in order if examples[i].split == "train"):
        counts[e.dataset] = counts.get(e.dataset, 0) + 1
        if counts[e.dataset] <= PROBED:
            some.append(e)
    return some


def _half(groups: NDArray[np.str_], seed: int) -> NDArray[np.bool_]:
    """(N,) whether an image's group is in the drawn half of all."""
    names = np.unique(groups)
    return np.isin(groups, np.random.default_rng(seed).permutation(names)[: len(names) // 2])


def table(figures: dict[str, Measured]) -> str:
    """As Markdown."""
    blocks = next(iter(figures.values())).block_aurocs
    rows = [
        f"| trained on | probe AUROC, learnt from (val) | {' | '.join(f'{b} alone' for b in blocks)} "
        "| 10-shot AUROC, left out | words less chance, left out |",
        f"|---|---|{'---|' * len(blocks)}---|---|",
    ]
    for name, m in figures.items():
        areas = " | ".join(f"{area:.3f}" for area in (m.probe_auroc, *m.block_aurocs.values()))
        rows.append(f"| {name} | {areas} | {m.ten_shot_auroc:.3f} | {m.words_above_chance:+.3f} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of images with a manifest.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and figures")
    parser.add_argument("--recipe", default="cpu", help="whose numbers hold for all else (default: cpu)")
    parser.add_argument("--size", type=int, default=126, help="px (default: 126)")
    parser.add_argument("--steps", type=int, default=150, help="of each run (default: 150)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    recipe = read_recipe(args.recipe)
    stage = replace(recipe.stages[0], size=args.size, steps=args.steps, warm_up=max(1, args.steps // 10))
    short = replace(recipe, stages=(stage,), watch_every=max(1, args.steps // LOOKS))
    figures = ablate(args.data, args.out, recipe=short)
    curves({name: _run(args.out, name) / "metrics.csv" for name in figures}, args.out / "curves.png")
    (args.out / "ablations.md").write_text(table(figures), encoding="utf-8")
    print(table(figures))  # noqa: T201  # what was asked for


if __name__ == "__main__":
    main()
