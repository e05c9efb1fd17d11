"""Fit the linear map from finished embeddings into text space, and lay it beside the graph."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vision_model.calibrate import temperature
from vision_model.data.mixture import MASKED
from vision_model.errors import SourceInvalid
from vision_model.manifest import TEXT_GRAPH_NAME, TOKENIZER_NAME
from vision_model.pretrain.heads import SMALLEST_DEVIATION
from vision_model.pretrain.objective import Prompts
from vision_model.runtime import MODELS, SHIPPED
from vision_model.zero_shot import LEAST_LENGTH, Projection, unit

logger = logging.getLogger(__name__)

RIDGE = 0.3  # of the sharp map, on features of unit variance
BROAD = 4.0  # parts of the broad map to one of the sharp
SURE = 10.0  # scale of the cosines that the temperature divides

Aligned = tuple[NDArray[np.float32], NDArray[np.int64]]  # embeddings (N, D), and each one's concept or MASKED


def fit_projection(train: Aligned, val: Aligned, *, prompts: Prompts, routes: int) -> Projection:
    """Two regressions of `train`'s texts on its embeddings, both centred by route; their sureness is fitted on `val`.

    The sharp map is a ridge regression: it knows which features go with which words among the concepts it was shown,
    and hardly anything of others. The broad one is its limit of endless regularisation, the covariance of features and
    words alone, which carries further to sources and words that were not shown. Both are wanted, so both are added, and
    the sharp one is kept by itself, too, for heads whose labelled images tell whether it holds.
    RIDGE and BROAD were chosen with each source left out in turn. A concept counts by the square root of how often it
    is shown. A route without images is centred as the mean of the others. Raises SourceInvalid when `train` or `val`
    shows no concept.
    """
    (x, concept), (x_val, concept_val) = (_named(*part) for part in (train, val))
    if not len(x) or not len(x_val):
        raise SourceInvalid("no label of train or of val is in knowledge.toml, so there are no words to align with")
    plain, route = prompts.drawn(None), prompts.route.numpy()
    centres = prompts.centres(plain, routes=routes).numpy()
    texts = unit(plain.numpy() - centres[route])
    deviation = np.maximum(x.std(axis=0), SMALLEST_DEVIATION)
    x = x / deviation
    origins = _centres(x, concept, route, routes=routes)
    shown = np.bincount(concept, minlength=len(texts))
    weight = shown[concept] ** -0.5
    away = x - origins[route[concept]]
    weighted = away * (weight / weight.sum())[:, None]
    broad = weighted.T @ texts[concept]
    sharp = np.linalg.solve(away.T @ weighted + RIDGE * np.eye(x.shape[1], dtype=np.float32), broad)
    sharp /= _length(away @ sharp)
    both = sharp + BROAD * broad / _length(away @ broad)
    projection = Projection(
        weight=(both.T / deviation).astype(np.float32),
        origins=(origins @ both).astype(np.float32),
        scale=1.0,
        centres=centres,
        sharp=(sharp.T / deviation).astype(np.float16),
    )
    alike = np.stack([unit(x_val @ projection.weight.T - origin) for origin in projection.origins])
    cosines = (alike[route[concept_val], np.arange(len(x_val))] @ texts.T).astype(np.float64)
    cosines[route[None, :] != route[concept_val][:, None]] = -np.inf
    scale = SURE / temperature(SURE * cosines, concept_val)
    right = float((cosines.argmax(axis=1) == concept_val).mean())
    logger.info("words: %.3f of %s images of val, among their routes' concepts; scale %.1f", right, len(x_val), scale)
    return replace(projection, scale=scale)


def write_text_space(folder: Path, projection: Projection) -> None:
    """Lay the projection and the text encoder beside the graph."""
    projection.save(folder)
    for name in (TEXT_GRAPH_NAME, TOKENIZER_NAME):
        if not (folder / name).is_file():
            shutil.copyfile(MODELS / SHIPPED / name, folder / name)


def _centres(
    x: NDArray[np.float32], concept: NDArray[np.int64], route: NDArray[np.int64], *, routes: int
) -> NDArray[np.float32]:
    """(R, D) mean over a route's concepts of their images' mean; for a route without images the mean of the others."""
    means = {c: x[concept == c].mean(axis=0) for c in np.unique(concept)}
    of_route = [[mean for c, mean in means.items() if route[c] == r] for r in range(routes)]
    centres = [np.mean(of, axis=0) if of else None for of in of_route]
    elsewhere = np.mean([c for c in centres if c is not None], axis=0)
    return np.stack([elsewhere if c is None else c for c in centres])


def _length(vectors: NDArray[np.float32]) -> float:
    return max(float(np.linalg.norm(vectors, axis=1).mean()), LEAST_LENGTH)


def _named(embeddings: NDArray[np.float32], concepts: NDArray[np.int64]) -> Aligned:
    named = concepts != MASKED
    return embeddings[named], concepts[named]
