"""What pretraining asks for: right labels, agreement with words, and agreement with oneself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vision_model.data.example import Example
from vision_model.data.mixture import MASKED, Batch
from vision_model.data.tasks import Curriculum
from vision_model.knowledge import Knowledge
from vision_model.net import Outputs
from vision_model.pretrain.recipe import Recipe
from vision_model.text import TextEncoder

CODING_PRECISION = 0.5  # epsilon of the coding rate, as SimDINO has it
LARGEST_TEXT_SCALE = math.log(100.0)  # CLIP's bound


@dataclass(frozen=True)
class Prompts:
    """What the knowledge file says of each concept that has a route, in text space."""

    concepts: tuple[str, ...]
    texts: tuple[Tensor, ...]  # for each concept (M, 384), unit length
    route: Tensor  # (K,) index into the curriculum's routes

    def drawn(self, generator: torch.Generator | None) -> Tensor:
        """(K, 384) one unit vector a concept: a random mixture of its texts, or their mean without a generator."""
        mixed = []
        for texts in self.texts:
            weight = torch.ones(len(texts))
            if generator is not None:
                weight = torch.empty(len(texts)).exponential_(generator=generator)
            mixed.append(weight @ texts)
        return functional.normalize(torch.stack(mixed), dim=-1)

    def centres(self, drawn: Tensor, *, routes: int) -> Tensor:
        """(R, 384) mean text of each route; zero where no concept has that route."""
        sums = torch.zeros(routes, drawn.shape[1]).index_add(0, self.route, drawn)
        return sums / torch.bincount(self.route, minlength=routes).clamp(min=1)[:, None]


def read_prompts(knowledge: Knowledge, curriculum: Curriculum, encoder: TextEncoder) -> Prompts:
    """The concepts of the knowledge file that belong to a route, each with the embeddings of all its texts."""
    routed = [
        (concept, route)
        for concept in knowledge
        for route, r in enumerate(curriculum.routes)
        if concept.sources and concept.modality in r.modalities and concept.anatomy in r.body_parts
    ]
    return Prompts(
        concepts=tuple(c.name for c, _ in routed),
        texts=tuple(torch.from_numpy(encoder.embed(list(c.texts))) for c, _ in routed),
        route=torch.tensor([route for _, route in routed]),
    )


def concept_targets(examples: Sequence[Example], knowledge: Knowledge, prompts: Prompts) -> NDArray[np.int64]:
    """(N,) index of each example's concept in the prompts, or MASKED where the knowledge file has none."""
    index = {name: i for i, name in enumerate(prompts.concepts)}
    found = [knowledge.of(e.dataset, e.label) for e in examples]
    return np.array([MASKED if c is None else index.get(c.name, MASKED) for c in found], dtype=np.int64)


def supervised_loss(logits: Tensor, targets: Tensor, *, curriculum: Curriculum, recipe: Recipe) -> Tensor:
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


def text_loss(text: Tensor, concept: Tensor, *, prompts: Prompts, drawn: Tensor, routes: int, scale: Tensor) -> Tensor:
    """Cross-entropy of images (B, 384) against the concepts of their own route, and against the routes' mean texts.

    Texts are centred: within a route by that route's mean, since what its texts share says nothing about the image
    and would make this a modality classifier; between routes by the mean of all.
    """
    centres = prompts.centres(drawn, routes=routes).to(text.device)
    drawn, route = drawn.to(text.device), prompts.route.to(text.device)
    factor = scale.clamp(max=LARGEST_TEXT_SCALE).exp()
    present = torch.bincount(route, minlength=routes) > 0
    named = concept != MASKED
    if not named.any():
        return text.sum() * 0
    text, concept = text[named], concept[named]
    between = factor * text @ functional.normalize(centres - centres[present].mean(dim=0), dim=-1).T
    between = between.masked_fill(~present, -torch.inf)
    within = factor * text @ functional.normalize(drawn - centres[route], dim=-1).T
    within = within.masked_fill(route[None, :] != route[concept][:, None], -torch.inf)
    return 0.5 * (functional.cross_entropy(between, route[concept]) + functional.cross_entropy(within, concept))


def self_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Two views of an image should look alike to student and teacher (B, P), and images should differ.

    SimDINO (Wu et al. 2025, arXiv 2502.10385): the coding rate of the student's vectors takes the place of centring,
    sharpening and prototypes.
    """
    images, width = student.shape
    alike = (student * teacher).sum(dim=-1).mean()
    gram = student.T @ student * (width / (images * CODING_PRECISION**2))
    rate = torch.logdet(torch.eye(width, device=student.device) + gram) / 2
    return 1 - alike - rate * (width + images) / (width * images)


def losses(
    outputs: Outputs,
    batch: Batch,
    *,
    teacher: Tensor | None,
    prompts: Prompts,
    drawn: Tensor,
    curriculum: Curriculum,
    recipe: Recipe,
) -> dict[str, Tensor]:
    """Every term by its name, weighted by the recipe; a term of weight 0 is left out.

    `teacher` (n, P) is what the averaged net makes of the second view of the batch's first n images.
    """
    terms = {}
    if recipe.supervised_weight:
        terms["supervised"] = recipe.supervised_weight * supervised_loss(
            outputs.logits, batch.targets, curriculum=curriculum, recipe=recipe
        )
    if recipe.text_weight:
        terms["text"] = recipe.text_weight * text_loss(
            outputs.text,
            batch.concepts,
            prompts=prompts,
            drawn=drawn,
            routes=len(curriculum.routes),
            scale=outputs.text_scale,
        )
    if teacher is not None:
        terms["self"] = recipe.self_weight * self_loss(outputs.projected[: len(teacher)], teacher)
    return terms
