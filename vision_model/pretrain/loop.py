"""The training loop, top to bottom: batches, views, losses, step, average, checkpoint."""

import contextlib
import copy
import csv
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vision_model.data.example import Example
from vision_model.data.load import load_squares
from vision_model.data.mixture import Batch, Batches, targets
from vision_model.data.tasks import Curriculum
from vision_model.errors import LossNotFinite
from vision_model.knowledge import Knowledge
from vision_model.net import PATCH, HilumNet
from vision_model.preprocess import normalise
from vision_model.pretrain.initial import at_size, initial_state
from vision_model.pretrain.objective import Prompts, concept_targets, losses, supervised_loss
from vision_model.pretrain.place import Place, find_place, in_bf16
from vision_model.pretrain.recipe import Recipe, Stage

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 300.0
WATCHED = 512  # images of val whose loss is looked at
COLUMNS = ("stage", "step", "loss", "supervised", "text", "self", "val", "rate", "seconds")
GRADIENT_NORM = 3.0


def train(
    examples: Sequence[Example],
    *,
    watched: Sequence[Example],
    curriculum: Curriculum,
    knowledge: Knowledge,
    prompts: Prompts,
    recipe: Recipe,
    run: Path,
    workers: int = 1,
) -> HilumNet:
    """Train on `examples` through every stage and return the averaged net at the last stage's size.

    `watched` are examples of `val` whose loss is written down now and then; nothing is learnt from them. `run` receives
    `checkpoint.pt` (a killed run goes on from it to the same numbers), `metrics.csv`, TensorBoard's events and
    `net.pt`. Under torchrun every process takes its own batches of each step.
    Raises LossNotFinite with the batch's files, and WeightsInvalid.
    """
    run.mkdir(parents=True, exist_ok=True)
    place = find_place()
    torch.manual_seed(recipe.seed)
    initial = initial_state(recipe.initial, cache=run.parent / "cache")
    nets = _Nets(curriculum, recipe, place, initial)
    checkpoint = run / "checkpoint.pt"
    first_stage, first_step, optimiser_state = 0, 0, None
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True, map_location=place.device)
        first_stage, first_step, optimiser_state = saved["stage"], saved["step"], saved["optimiser"]
        nets.resize(recipe.stages[first_stage], net=saved["net"], average=saved["average"])
        logger.info("going on from step %s of stage %s", first_step, first_stage + 1)
    for number, stage in enumerate(recipe.stages):
        if number < first_stage:
            continue
        if number > first_stage:
            nets.resize(stage, net=nets.net.state_dict(), average=nets.average.state_dict())
            first_step, optimiser_state = 0, None
        spec = recipe.input_spec(size=stage.size, windows=curriculum.windows)
        batches = Batches(
            load_squares(examples, spec=spec),
            examples,
            concepts=concept_targets(examples, knowledge, prompts),
            curriculum=curriculum,
            spec=spec,
            batch=stage.batch,
            second_views=stage.second_views if recipe.self_weight else 0,
            modality_cap=recipe.modality_cap,
            seed=recipe.seed * 1000 + number,
        )
        chosen = torch.randperm(len(watched), generator=torch.Generator().manual_seed(recipe.seed))[:WATCHED].tolist()
        _run_stage(
            nets,
            batches,
            examples,
            watched=_Watched([watched[i] for i in chosen], curriculum, recipe, stage, place),
            curriculum=curriculum,
            prompts=prompts,
            recipe=recipe,
            number=number,
            first_step=first_step,
            optimiser_state=optimiser_state,
            run=run,
            workers=workers,
        )
    if place.first:
        torch.save(nets.average.state_dict(), run / "net.pt")
    return nets.average.cpu().eval()


def _run_stage(
    nets: "_Nets",
    batches: Batches,
    examples: Sequence[Example],
    *,
    watched: "_Watched",
    curriculum: Curriculum,
    prompts: Prompts,
    recipe: Recipe,
    number: int,
    first_step: int,
    optimiser_state: dict[str, Any] | None,
    run: Path,
    workers: int,
) -> None:
    stage, place, net, average = recipe.stages[number], nets.place, nets.net, nets.average
    groups = net.parameter_groups(
        rate=stage.rate,
        decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        frozen_blocks=recipe.frozen_blocks,
    )
    optimiser = torch.optim.AdamW(groups)
    peak = [group["lr"] for group in optimiser.param_groups]
    if optimiser_state is not None:
        optimiser.load_state_dict(optimiser_state)
    # A term of weight 0 leaves its parameters without a gradient.
    model = DistributedDataParallel(net, find_unused_parameters=True) if place.world > 1 else net
    loader = iter(
        DataLoader(batches, batch_size=None, sampler=list(_items(stage, first_step, place)), num_workers=workers)
    )
    saved_at = time.monotonic()
    bar = tqdm(
        range(first_step, stage.steps),
        initial=first_step,
        total=stage.steps,
        desc=f"{stage.size} px",
        unit="step",
        mininterval=10,
        disable=not place.first,
    )
    with _Record(run, place) as record:
        for step in bar:
            # What a step draws (patches, paths, prompts) follows from its number alone, so a resumed run draws alike.
            torch.manual_seed((recipe.seed * 1000 + number) * 1_000_003 + step * place.world + place.rank)
            drawn = prompts.drawn(torch.default_generator)
            factor = _schedule(step, stage)
            for group, rate in zip(optimiser.param_groups, peak, strict=True):
                group["lr"] = rate * factor
            optimiser.zero_grad(set_to_none=True)
            net.train()
            totals: dict[str, float] = {}
            for part in range(stage.accumulate):
                batch = Batch(*(x.to(place.device, non_blocking=True) for x in next(loader)))
                with _gradients_kept_apart(model, part + 1 < stage.accumulate):
                    with in_bf16(place.device, wanted=recipe.bf16):
                        outputs = model(batch.images)
                        with torch.no_grad():
                            teacher = average(batch.second_views).projected if len(batch.second_views) else None
                    terms = losses(
                        outputs,
                        batch,
                        teacher=teacher,
                        prompts=prompts,
                        drawn=drawn,
                        curriculum=curriculum,
                        recipe=recipe,
                    )
                    loss = torch.stack(list(terms.values())).sum()
                    if not math.isfinite(loss.item()):
                        files = ", ".join(examples[i].path.name for i in batch.indices.tolist())
                        raise LossNotFinite(
                            f"the loss is {loss.item()} at step {step} of stage {number + 1}; batch: {files}"
                        )
                    (loss / stage.accumulate).backward()
                for name, value in {"loss": loss, **terms}.items():
                    totals[name] = totals.get(name, 0.0) + value.item() / stage.accumulate
            torch.nn.utils.clip_grad_norm_(net.parameters(), GRADIENT_NORM)
            optimiser.step()
            _follow(
                average, net, decay=min(recipe.average, (1 + step) / (10 + step)) if number == 0 else recipe.average
            )
            bar.set_postfix(loss=f"{totals['loss']:.3f}", refresh=False)
            end = step + 1 == stage.steps
            if end or (step + 1) % recipe.watch_every == 0:
                totals["val"] = watched.loss(average)
            record.write(number, step, totals, rate=factor)
            if place.first and (end or time.monotonic() - saved_at > CHECKPOINT_SECONDS):
                record.flush()
                _save(run / "checkpoint.pt", nets, optimiser, stage=number, step=step + 1)
                saved_at = time.monotonic()


class _Nets:
    """The net that learns and its moving average, at one stage's size."""

    def __init__(self, curriculum: Curriculum, recipe: Recipe, place: Place, initial: dict[str, Tensor] | None) -> None:
        self._curriculum, self._recipe, self._initial = curriculum, recipe, initial
        self.place = place
        self.net = self._made(recipe.stages[0])
        self.average = copy.deepcopy(self.net).eval()

    def resize(self, stage: Stage, *, net: dict[str, Tensor], average: dict[str, Tensor]) -> None:
        """The same weights at another image size; frozen positions come anew from the initial grid."""
        states, made = (net, average), []
        for state in states:
            fresh = self._made(stage)
            positions = fresh.encoder.pos_embed.detach()
            if self._initial is None or not self._recipe.frozen_blocks:
                learnt = {"pos_embed": state["encoder.pos_embed"]}
                positions = at_size(learnt, grid=stage.size // PATCH)["pos_embed"]
            fresh.load_state_dict({**state, "encoder.pos_embed": positions})
            made.append(fresh)
        self.net, self.average = made[0], made[1].eval()

    def _made(self, stage: Stage) -> HilumNet:
        net = HilumNet(self._curriculum, size=stage.size, drop_path=self._recipe.drop_path, patch_drop=stage.patch_drop)
        if self._initial is not None:
            net.encoder.load_state_dict(at_size(self._initial, grid=stage.size // PATCH))
        return net.to(self.place.device)


class _Watched:
    """Images of `val`, plain and whole, whose supervised loss shows whether the average still generalises."""

    def __init__(
        self, examples: Sequence[Example], curriculum: Curriculum, recipe: Recipe, stage: Stage, place: Place
    ) -> None:
        self._spec = recipe.input_spec(size=stage.size, windows=curriculum.windows)
        self._squares = load_squares(examples, spec=self._spec) if place.first else None
        self._targets = torch.from_numpy(targets(examples, curriculum))
        self._curriculum, self._recipe, self._place = curriculum, recipe, place

    @torch.no_grad()
    def loss(self, net: HilumNet, *, batch: int = 64) -> float:
        """Mean supervised loss; NaN where this process does not watch or there is nothing to watch."""
        if self._squares is None or not len(self._squares):
            return math.nan
        total = 0.0
        for start in range(0, len(self._squares), batch):
            unit = self._squares[start : start + batch].astype("float32") / 255
            images = torch.stack([torch.from_numpy(normalise(u, spec=self._spec)) for u in unit])
            with in_bf16(self._place.device, wanted=self._recipe.bf16):
                logits = net(images.to(self._place.device)).logits.cpu()
            truth = self._targets[start : start + batch]
            total += (
                len(truth) * supervised_loss(logits, truth, curriculum=self._curriculum, recipe=self._recipe).item()
            )
        return total / len(self._squares)


class _Record:
    """metrics.csv and TensorBoard's events, written by the first process."""

    def __init__(self, run: Path, place: Place) -> None:
        self._began = time.monotonic()
        if not place.first:
            self._lines = self._board = None
            return
        path = run / "metrics.csv"
        fresh = not path.is_file()
        self._lines = path.open("a", newline="", encoding="utf-8")
        self._rows = csv.writer(self._lines)
        if fresh:
            self._rows.writerow(COLUMNS)
        self._board = SummaryWriter(str(run / "tensorboard"))

    def write(self, stage: int, step: int, totals: dict[str, float], *, rate: float) -> None:
        """One row; a term that this step does not have stays empty."""
        if self._lines is None or self._board is None:
            return
        values = {**totals, "rate": rate, "seconds": time.monotonic() - self._began}
        self._rows.writerow([stage, step, *(f"{values[c]:.5g}" if c in values else "" for c in COLUMNS[2:])])
        for name, value in totals.items():
            self._board.add_scalar(f"stage {stage + 1}/{name}", value, step)

    def flush(self) -> None:
        if self._lines is not None:
            self._lines.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines is not None and self._board is not None:
            self._lines.close()
            self._board.close()


def _gradients_kept_apart(model: nn.Module, apart: bool) -> contextlib.AbstractContextManager[None]:
    """Where more passes of the step follow, processes need not tell each other their gradients yet."""
    if apart and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


def _items(stage: Stage, first_step: int, place: Place) -> Iterator[int]:
    """The batches of this process, in order: `accumulate` a step, dealt out by rank."""
    for step in range(first_step, stage.steps):
        for part in range(stage.accumulate):
            yield (step * stage.accumulate + part) * place.world + place.rank


def _schedule(step: int, stage: Stage) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < stage.warm_up:
        return (step + 1) / stage.warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - stage.warm_up) / max(1, stage.steps - stage.warm_up)))


@torch.no_grad()
def _follow(average: HilumNet, net: HilumNet, *, decay: float) -> None:
    for slow, fast in zip(average.parameters(), net.parameters(), strict=True):
        if fast.requires_grad:
            slow.lerp_(fast, 1 - decay)


def _save(path: Path, nets: _Nets, optimiser: torch.optim.Optimizer, *, stage: int, step: int) -> None:
    part = path.with_suffix(".part")
    torch.save(
        {
            "stage": stage,
            "step": step,
            "net": nets.net.state_dict(),
            "average": nets.average.state_dict(),
            "optimiser": optimiser.state_dict(),
        },
        part,
    )
    part.replace(path)
