"""What a batch is made of: shares of sources and modalities, masks, and views."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.vision_model.images import MODALITY
from vision_model.data.example import Example
from vision_model.data.mixture import MASKED, Batches, image_weights, targets
from vision_model.data.tasks import Curriculum, curriculum
from vision_model.manifest import InputSpec

SPEC = InputSpec(size=28, patch=14, mean=(0.5,) * 3, std=(0.25,) * 3, windows=(), percentiles=(0, 100))


@pytest.fixture(scope="module")
def what() -> Curriculum:
    return curriculum()


def example(dataset: str, modality: str, label: str = "normal", body_part: str = "CHEST") -> Example:
    return Example(Path("x"), dataset, modality, body_part, label, "g", "train", "CC0")


def test_datasets_and_the_classes_in_them_count_with_the_root_of_their_size() -> None:
    mixed = [example("large", "DX", "a")] * 64 + [example("large", "DX", "b")] * 36 + [example("small", "CT")] * 25
    weight = image_weights(mixed, modality_cap=1)
    assert weight.sum() == pytest.approx(1)
    assert weight[100:].sum() == pytest.approx(5 / 15)
    assert weight[:64].sum() / weight[:100].sum() == pytest.approx(8 / 14)
    assert weight[0] == pytest.approx(weight[63])


@pytest.mark.parametrize("cap", [0.26, 0.3, 0.5, 0.8])
def test_no_modality_has_more_than_its_cap_and_the_others_keep_their_proportions(cap: float) -> None:
    mixed = [example("a", "DX")] * 900 + [example("b", "CT")] * 9 + [example("c", "MR")] * 36 + [example("d", "US")] * 9
    free, capped = (image_weights(mixed, modality_cap=c) for c in (1, cap))
    modality = np.array([e.modality for e in mixed])
    mass = {m: capped[modality == m].sum() for m in ("DX", "CT", "MR", "US")}
    assert sum(mass.values()) == pytest.approx(1)
    assert mass["DX"] == pytest.approx(min(cap, free[:900].sum()))
    assert mass["MR"] == pytest.approx(min(cap, 2 * mass["CT"]))  # filled by what DX gives up
    assert mass["US"] == pytest.approx(mass["CT"])


def test_a_cap_too_low_for_all_shares_evenly_and_one_modality_alone_has_everything() -> None:
    np.testing.assert_allclose(image_weights([example("a", "DX")] * 4, modality_cap=0.3), 0.25)
    two = image_weights([example("a", "DX")] * 9 + [example("b", "CT")], modality_cap=0.3)
    assert two[:9].sum() == pytest.approx(0.5)


def test_a_dataset_that_is_left_out_changes_only_the_scale_of_the_others() -> None:
    mixed = [example("a", "DX")] * 16 + [example("b", "CT")] * 4 + [example("gone", "MR")] * 9
    with_it, without = image_weights(mixed, modality_cap=1), image_weights(mixed[:20], modality_cap=1)
    np.testing.assert_allclose(without, with_it[:20] / with_it[:20].sum())


def test_labels_that_no_task_knows_are_masked_and_every_image_has_a_route(what: Curriculum) -> None:
    pairs = sorted({pair for task in what.tasks for label in task.labels for pair in label.sources})
    kind = {pair[0]: MODALITY[task.route] for task in what.tasks for label in task.labels for pair in label.sources}
    known = [replace(example(d, kind[d][0], label), body_part=kind[d][1]) for d, label in pairs]
    strangers = [replace(e, dataset="another hospital") for e in known] + [
        replace(e, label="unheard of") for e in known
    ]
    for (dataset, label), row in zip(pairs, targets(known, what), strict=True):
        for task, value in zip(what.tasks, row[1:], strict=True):
            assert value == task.label_of.get((dataset, label), MASKED)
    of_strangers = targets(strangers, what)
    assert (of_strangers[:, 1:] == MASKED).all()
    np.testing.assert_array_equal(of_strangers[:, 0], np.tile(targets(known, what)[:, 0], 2))


def test_second_views_are_other_views_of_the_first_images(what: Curriculum) -> None:
    mixed = [example("a", "DX")] * 4 + [example("b", "CT")] * 4
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 256, (8, 28, 28, 3)).astype(np.uint8)
    batches = Batches(
        squares,
        mixed,
        concepts=np.arange(8),
        curriculum=what,
        spec=SPEC,
        batch=6,
        second_views=3,
        modality_cap=0.5,
        seed=1,
    )
    batch = batches[0]
    assert batch.images.shape == (6, 3, 28, 28)
    assert batch.second_views.shape == (3, 3, 28, 28)
    assert not (batch.images[:3] == batch.second_views).flatten(1).all(dim=1).any()
    assert batch.concepts.tolist() == batch.indices.tolist()
    again = batches[0]
    assert (again.images == batch.images).all()
    assert (again.second_views == batch.second_views).all()
