"""Which images a training step sees: sources by the square root of their size, so that small ones are heard."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vision_model.data.augment import Augmentation
from vision_model.data.sources import Example
from vision_model.data.tasks import Curriculum
from vision_model.manifest import InputSpec
from vision_model.preprocess import normalise

MASKED = -1


def image_weights(examples: Sequence[Example], *, modality_cap: float) -> NDArray[np.float64]:
    """Probability of each image: a dataset counts with n^½, a class in it with n^½, a modality with at most the cap."""
    in_dataset = Counter(e.dataset for e in examples)
    in_class = Counter((e.dataset, e.label) for e in examples)
    class_mass: Counter[str] = Counter()
    for (dataset, _), n in in_class.items():
        class_mass[dataset] += n**0.5
    weight = np.array(
        [in_dataset[e.dataset] ** 0.5 * in_class[e.dataset, e.label] ** -0.5 / class_mass[e.dataset] for e in examples]
    )
    weight /= weight.sum()
    of_modality = {m: np.array([e.modality == m for e in examples]) for m in sorted({e.modality for e in examples})}
    cap = max(modality_cap, 1 / len(of_modality))  # two modalities cannot both have less than a half
    full: set[str] = set()
    mass = {m: weight[is_m].sum() for m, is_m in of_modality.items()}
    while over := {m for m in mass if mass[m] > cap + 1e-9} - full:  # what one gives up may fill the next
        full |= over
        rest = sum(mass[m] for m in mass if m not in full)
        for m, is_m in of_modality.items():
            weight[is_m] *= cap / mass[m] if m in full else (1 - cap * len(full)) / rest
        mass = {m: weight[is_m].sum() for m, is_m in of_modality.items()}
    weight /= weight.sum()
    return weight


def targets(examples: Sequence[Example], curriculum: Curriculum) -> NDArray[np.int64]:
    """(N, 1 + tasks): the route, then each task's label index, or MASKED where the source does not say."""
    return np.array(
        [
            [curriculum.route_of(e.modality, e.body_part)]
            + [task.label_of.get((e.dataset, e.label), MASKED) for task in curriculum.tasks]
            for e in examples
        ],
        dtype=np.int64,
    )


class Batch(NamedTuple):
    """One step's images and what is known of them."""

    images: Tensor  # (B, 3, S, S)
    second_views: Tensor  # (n, 3, S, S): another view of the first n images
    targets: Tensor  # (B, 1 + tasks)
    concepts: Tensor  # (B,)
    indices: Tensor  # (B,) into the examples


class Batches(Dataset[Batch]):
    """Item `i` is a whole batch, which depends on the seed and `i` alone: a resumed run sees what another would."""

    def __init__(
        self,
        squares: NDArray[np.uint8],
        examples: Sequence[Example],
        *,
        concepts: NDArray[np.int64],
        curriculum: Curriculum,
        spec: InputSpec,
        batch: int,
        second_views: int,
        modality_cap: float,
        seed: int,
    ) -> None:
        self._squares = squares
        self._modality = [e.modality for e in examples]
        self._targets = targets(examples, curriculum)
        self._concepts = concepts
        self._weight = image_weights(examples, modality_cap=modality_cap)
        self._spec = spec
        self._batch = batch
        self._second_views = second_views
        self._seed = seed
        self._augmentation = Augmentation()

    def __getitem__(self, item: int) -> Batch:
        rng = np.random.default_rng((self._seed, item))
        indices = rng.choice(len(self._weight), size=self._batch, p=self._weight)
        return Batch(
            images=self._views(indices, rng),
            second_views=self._views(indices[: self._second_views], rng),
            targets=torch.from_numpy(self._targets[indices]),
            concepts=torch.from_numpy(self._concepts[indices]),
            indices=torch.from_numpy(indices),
        )

    def _views(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        views = np.empty((len(indices), 3, self._spec.size, self._spec.size), dtype=np.float32)
        for view, i in zip(views, indices, strict=True):
            seed = int(rng.integers(2**31))
            view[:] = normalise(
                self._augmentation(self._squares[i], modality=self._modality[i], seed=seed), spec=self._spec
            )
        return torch.from_numpy(views)
