"""Fit the linear map from finished embeddings into text space, and lay it beside the graph."""

import logging
import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vision_model.data.mixture import MASKED
from vision_model.errors import SourceInvalid
from vision_model.manifest import TEXT_GRAPH_NAME, TOKENIZER_NAME
from vision_model.pretrain.objective import Prompts, text_loss
from vision_model.runtime import MODELS, SHIPPED
from vision_model.text import TEXT_SIZE
from vision_model.zero_shot import Projection

logger = logging.getLogger(__name__)

STEPS, LOOK_EVERY = 600, 30
BATCH = 512
RATE, DECAY = 2e-3, 0.1

Aligned = tuple[NDArray[np.float32], NDArray[np.int64]]  # embeddings (N, D), and each one's concept or MASKED


def fit_projection(train: Aligned, val: Aligned, *, prompts: Prompts, routes: int, seed: int) -> Projection:
    """The projection whose loss on `val` is least on the way of its training.

    The encoder has come to rest by now, so this is the words' counterpart of fitting the final heads. Concepts are
    drawn by the square root of how often they are shown. Raises SourceInvalid when `train` or `val` shows no concept.
    """
    (x, concept), (x_val, concept_val) = (_named(*part) for part in (train, val))
    if not len(x) or not len(x_val):
        raise SourceInvalid("no label of train or of val is in knowledge.toml, so there are no words to align with")
    generator = torch.Generator().manual_seed(seed)
    centre, scale = x.mean(dim=0), x.std(dim=0) + 1e-6
    x, x_val = (x - centre) / scale, (x_val - centre) / scale
    linear, logarithm = nn.Linear(x.shape[1], TEXT_SIZE), nn.Parameter(torch.tensor(10.0).log())
    with torch.no_grad():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) * x.shape[1] ** -0.5)
        linear.bias.zero_()
    optimiser = torch.optim.AdamW([*linear.parameters(), logarithm], lr=RATE, weight_decay=DECAY)
    shown = torch.bincount(concept, minlength=len(prompts.concepts)).float()
    weight = shown[concept] ** -0.5
    plain = prompts.drawn(None)

    def loss(x: Tensor, concept: Tensor, drawn: Tensor) -> Tensor:
        text = functional.normalize(linear(x), dim=-1)
        return text_loss(text, concept, prompts=prompts, drawn=drawn, routes=routes, scale=logarithm)

    best, kept = np.inf, (linear.weight.detach().clone(), linear.bias.detach().clone(), 10.0)
    for step in range(1, STEPS + 1):
        drawn = torch.multinomial(weight, min(BATCH, len(x)), replacement=True, generator=generator)
        optimiser.zero_grad()
        loss(x[drawn], concept[drawn], prompts.drawn(generator)).backward()
        optimiser.step()
        if step % LOOK_EVERY == 0:
            with torch.no_grad():
                found = loss(x_val, concept_val, plain).item()
            if found < best:
                best = found
                kept = (linear.weight.detach().clone(), linear.bias.detach().clone(), float(logarithm.detach().exp()))
    logger.info("words: loss %.4f on %s images of val", best, len(x_val))
    unscaled = kept[0] / scale
    return Projection(
        weight=unscaled.numpy(),
        bias=(kept[1] - unscaled @ centre).numpy(),
        scale=kept[2],
        centres=prompts.centres(plain, routes=routes).numpy(),
    )


def write_text_space(folder: Path, projection: Projection) -> None:
    """Lay the projection and the text encoder beside the graph."""
    projection.save(folder)
    for name in (TEXT_GRAPH_NAME, TOKENIZER_NAME):
        if not (folder / name).is_file():
            shutil.copyfile(MODELS / SHIPPED / name, folder / name)


def _named(embeddings: NDArray[np.float32], concepts: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    named = concepts != MASKED
    return torch.from_numpy(embeddings[named]), torch.from_numpy(concepts[named])
