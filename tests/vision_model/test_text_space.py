"""The map into text space tells shown concepts apart, and carries what they share to words that were not shown."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vision_model.data.mixture import MASKED
from vision_model.errors import SourceInvalid
from vision_model.pretrain.objective import Prompts
from vision_model.pretrain.text_space import fit_projection
from vision_model.text import TEXT_SIZE
from vision_model.zero_shot import Projection, unit

SICK, LUNG, BRAIN, BREAST = range(4)  # what texts and images say, each in a direction of its own
CONCEPTS = ((LUNG,), (LUNG, SICK), (BRAIN,), (BRAIN, SICK), (BREAST,), (BREAST, SICK))
ROUTES = (0, 0, 1, 1, 2, 2)
WIDTH = 40


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    said = np.linalg.qr(np.random.default_rng(0).normal(size=(TEXT_SIZE, 4)))[0].T
    texts = [
        functional.normalize(torch.tensor(said[list(c)].sum(axis=0), dtype=torch.float32), dim=0) for c in CONCEPTS
    ]
    return Prompts(
        concepts=tuple("abcdef"),
        texts=tuple(text[None] for text in texts),
        route=torch.tensor(ROUTES),
    )


def _images(concepts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
    shown = np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, 4)))[0].T
    x = rng.normal(scale=0.3, size=(len(concepts), WIDTH)) + 5  # what all images share
    return np.stack(
        [row + shown[list(CONCEPTS[c])].sum(axis=0) * 3 for row, c in zip(x, concepts, strict=True)]
    ).astype(np.float32)


@pytest.fixture(scope="module")
def projection(prompts: Prompts) -> Projection:
    rng = np.random.default_rng(2)
    # Lungs and brains are shown, well and sick; of breasts there is no image.
    concepts = np.repeat([0, 1, 2, 3], [90, 30, 30, 30])
    val = np.repeat([0, 1, 2, 3], 10)
    unnamed = np.full(5, MASKED)
    train = (
        np.concatenate([_images(concepts, rng), np.full((5, WIDTH), 1e3, np.float32)]),
        np.concatenate([concepts, unnamed]),
    )
    return fit_projection(train, (_images(val, rng), val), prompts=prompts, routes=3)


@pytest.mark.parametrize(("healthy", "sick"), [(0, 1), (2, 3), (4, 5)])
def test_sick_is_told_from_healthy_also_where_no_image_was_shown(
    projection: Projection, prompts: Prompts, healthy: int, sick: int
) -> None:
    route = ROUTES[healthy]
    concepts = np.repeat([healthy, sick], 20)
    vectors = _images(concepts, np.random.default_rng(3)) @ projection.weight.T - projection.origins[route]
    texts = prompts.drawn(None).numpy()[[healthy, sick]] - projection.centres[route]
    sureness = unit(vectors) @ unit(texts).T
    apart = sureness[:, 1] - sureness[:, 0]
    assert apart[20:].min() > apart[:20].max()
    if route < 2:  # where the mean image is known, the border lies between the two
        assert ((apart > 0) == (concepts == sick)).all()


def test_the_mean_image_of_a_route_is_like_no_text_of_it(projection: Projection) -> None:
    rng = np.random.default_rng(4)
    both = [_images(np.full(4000, c), rng).mean(axis=0) for c in (0, 1)]  # each concept counts once
    middle = np.mean(both, axis=0) @ projection.weight.T - projection.origins[0]
    away = both[1] @ projection.weight.T - projection.origins[0]
    assert np.linalg.norm(middle) < 0.1 * np.linalg.norm(away)
    np.testing.assert_allclose(projection.origins[2], projection.origins[:2].mean(axis=0), rtol=1e-3, atol=1e-3)


def test_images_that_no_word_names_teach_nothing(prompts: Prompts) -> None:
    x = np.ones((4, WIDTH), np.float32)
    nothing = np.full(4, MASKED)
    with pytest.raises(SourceInvalid, match=r"knowledge\.toml"):
        fit_projection((x, nothing), (x, nothing), prompts=prompts, routes=3)


def test_one_concept_alone_gives_numbers(prompts: Prompts) -> None:
    one = np.zeros(6, np.int64)
    x = _images(one, np.random.default_rng(5))
    found = fit_projection((x, one), (x, one), prompts=prompts, routes=3)
    assert np.isfinite(found.weight).all()
    assert np.isfinite(found.origins).all()
