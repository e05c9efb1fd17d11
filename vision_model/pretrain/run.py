"""One command from images to a model that can be served: train, fit heads, export, calibrate, evaluate."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vision_model.data.duplicates import without_duplicates
from vision_model.data.example import Example
from vision_model.data.load import load_squares
from vision_model.data.mixture import MASKED, targets
from vision_model.data.sources import read_sources
from vision_model.data.tasks import Curriculum, TaskDefinition, curriculum
from vision_model.errors import SourceInvalid
from vision_model.evaluation.served import Evaluation
from vision_model.export import ServedNet, export, round_to_fp16
from vision_model.knowledge import knowledge
from vision_model.manifest import GRAPH_NAME, InputSpec
from vision_model.net import PATCH, ReadOut, Untrained
from vision_model.preprocess import normalise
from vision_model.pretrain.heads import embed_examples, fit_heads
from vision_model.pretrain.initial import at_size, initial_state
from vision_model.pretrain.loop import train
from vision_model.pretrain.objective import concept_targets, read_prompts
from vision_model.pretrain.place import find_place
from vision_model.pretrain.publish import PARITY_IMAGES, publish, table
from vision_model.pretrain.recipe import Recipe, read_recipe
from vision_model.pretrain.reference import fit_reference
from vision_model.pretrain.text_space import fit_projection, write_text_space
from vision_model.quantise import round_to_int8, smooth
from vision_model.runtime import MODELS, SHIPPED
from vision_model.text import TextEncoder

__all__ = ["learnable", "pretrain", "table"]

logger = logging.getLogger(__name__)

SMOOTHED_ON = 256  # training images whose activations say how channels differ


def pretrain(*, recipe_name: str, data: Path, out: Path, version: str, workers: int = 1) -> Evaluation | None:
    """Make a model from a recipe and a folder of images with a manifest; `out/model` is then ready to serve.

    A run that was stopped goes on where it was when the same command is given again. Under torchrun all processes
    train, the first one does the rest, and the others return None. Raises TrainingError leaves.
    """
    recipe, words = read_recipe(recipe_name), knowledge()
    out.mkdir(parents=True, exist_ok=True)
    found = read_sources(recipe.sources, root=data, permissive_only=recipe.permissive_only)
    unique, removed = without_duplicates(found, cache=out / "fingerprints.npz", guarded=recipe.left_out)
    removed.write_csv(out / "removed.csv")
    what, examples = learnable(curriculum(), unique)
    by_split = _by_split(examples)
    prompts = read_prompts(words, what, TextEncoder(MODELS / SHIPPED))

    def concepts(split: str) -> NDArray[np.int64]:
        found = concept_targets(by_split[split], words, prompts)
        found[[e.dataset in recipe.left_out for e in by_split[split]]] = MASKED
        return found

    trained = train(
        [e for e in by_split["train"] if e.dataset not in recipe.left_out],
        watched=[e for e in by_split["val"] if e.dataset not in recipe.left_out],
        curriculum=what,
        knowledge=words,
        prompts=prompts,
        recipe=recipe,
        run=out,
        workers=workers,
    )
    if not find_place().first:
        return None
    net = ReadOut(trained.encoder, _untrained(recipe, cache=out.parent / "cache")).eval()
    spec = recipe.input_spec(size=recipe.stages[-1].size, windows=what.windows)
    rng = np.random.default_rng(recipe.seed)
    smooth(net, torch.from_numpy(_some_inputs(by_split["train"], SMOOTHED_ON, spec=spec, rng=rng)))
    round_to_fp16(net)
    round_to_int8(net)
    (train_embedded, train_targets), (val_embedded, val_targets) = (
        (
            embed_examples(net, by_split[split], spec=spec, bf16=recipe.bf16, kept=out / f"embedded-{split}.npz"),
            targets(by_split[split], what),
        )
        for split in ("train", "val")
    )
    fitted = fit_heads(
        (train_embedded.mean, train_targets),
        (val_embedded.mean, val_targets),
        groups=np.array([e.group for e in by_split["val"]]),
        curriculum=what,
        strength=recipe.head_c,
    )
    served = ServedNet(
        net,
        fitted.heads,
        fit_reference(
            (train_embedded.parts, train_targets),
            (val_embedded.parts, val_targets),
            tasks=[task.name for task in what.tasks],
            components=recipe.ood_components,
        ),
    )
    round_to_fp16(served)
    folder = out / "model"
    folder.mkdir(exist_ok=True)
    projection = fit_projection(
        (train_embedded.mean, concepts("train")),
        (val_embedded.mean, concepts("val")),
        prompts=prompts,
        routes=len(what.routes),
    )
    write_text_space(folder, projection)
    graph = folder / GRAPH_NAME
    chosen = _some_inputs(by_split["val"], PARITY_IMAGES, spec=spec, rng=rng)
    differences = export(served, size=spec.size, path=graph, images=chosen)
    return publish(
        folder,
        fitted=fitted,
        by_split=by_split,
        what=what,
        recipe=recipe,
        spec=spec,
        version=version,
        data=data,
        differences=differences,
    )


def _untrained(recipe: Recipe, *, cache: Path) -> Untrained:
    """The untrained encoder, with the weights that the run began with."""
    torch.manual_seed(recipe.seed)
    net, view = Untrained(size=recipe.stages[-1].size, view=recipe.untrained_view), recipe.untrained_view
    if (state := initial_state(recipe.initial, cache=cache)) is not None:
        state = at_size(state, grid=view // PATCH)
        net.encoder.load_state_dict({name: state[name] for name in net.encoder.state_dict()})
    return net


def learnable(whole: Curriculum, examples: Sequence[Example]) -> tuple[Curriculum, list[Example]]:
    """What can be learnt from these sources, and the examples that belong to it.

    A route without training images goes, with its examples, and a task of which `train` or `val` lacks a label: a
    smaller set of sources makes a smaller model. Raises SourceInvalid when no task is left.
    """
    train = [e for e in examples if e.split == "train"]
    present = {whole.route_of(e.modality, e.body_part) for e in train}
    kept = [e for e in examples if whole.route_of(e.modality, e.body_part) in present]

    def answerable(task: TaskDefinition) -> bool:
        shown = {s: {task.label_of.get((e.dataset, e.label)) for e in kept if e.split == s} for s in ("train", "val")}
        return all(set(range(len(task.labels))) <= labels for labels in shown.values())

    tasks = tuple(task for task in whole.tasks if answerable(task))
    if not tasks:
        raise SourceInvalid("train and val together show all labels of no task of tasks.toml; add sources or tasks")
    for task in set(whole.tasks) - set(tasks):
        logger.warning("%s is not learnt: train or val lacks images of one of its labels", task.name)
    return replace(whole, routes=tuple(r for i, r in enumerate(whole.routes) if i in present), tasks=tasks), kept


def _some_inputs(
    examples: Sequence[Example], count: int, *, spec: InputSpec, rng: np.random.Generator
) -> NDArray[np.float32]:
    """`count` of the examples, or all if they are fewer, as the graph takes them: (N, 3, S, S)."""
    chosen = [examples[i] for i in rng.permutation(len(examples))[:count]]
    unit = load_squares(chosen, spec=spec).astype(np.float32) / np.float32(255)
    return np.stack([normalise(square, spec=spec) for square in unit])


def _by_split(examples: Sequence[Example]) -> dict[str, list[Example]]:
    return {split: [e for e in examples if e.split == split] for split in ("train", "val", "test")}
