"""Where in the image a logit comes from, without autograd.

The head is linear on the mean of the patch tokens, so a logit is exactly the sum of its patches' shares. That is a
decomposition of the head, not proof of cause: attention has mixed the patches before. What can be checked is whether
the model misses what the map marks: cover it, and see how far the answer falls (Zeiler & Fergus 2014, arXiv 1311.2901).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_model.errors import UnknownLabel
from vision_model.manifest import Manifest
from vision_model.preprocess import ModelInput
from vision_model.runtime import Model, Prediction

COVER = 3  # patches a side that are hidden at once; one alone is guessed from its neighbours


def relevance_map(prediction: Prediction, *, manifest: Manifest, task: str, label: str) -> NDArray[np.float32]:
    """(grid, grid) contributions of the patches to one label's logit; they sum to `Finding.logit`, bias included.

    Raises UnknownTask and UnknownLabel.
    """
    definition = manifest.task(task)
    column = definition.first_logit + _place(manifest, task=task, label=label)
    grid = manifest.input.grid
    return prediction.patch_logits[:, column].reshape(grid, grid)


def contrast_map(prediction: Prediction, *, manifest: Manifest, task: str, label: str) -> NDArray[np.float32]:
    """(grid, grid) contributions to the label's logit less the mean of its task's logits.

    A softmax sees only differences between logits, so this, not the bare logit, is what moves the probability.
    """
    others = [relevance_map(prediction, manifest=manifest, task=task, label=e.name) for e in manifest.task(task).labels]
    own = relevance_map(prediction, manifest=manifest, task=task, label=label)
    contrast: NDArray[np.float32] = own - np.mean(others, axis=0, dtype=np.float32)
    return contrast


def upsample(relevance: NDArray[np.float32], *, shape: tuple[int, int]) -> NDArray[np.float32]:
    """(grid, grid) -> (rows, columns) of the frame, bilinear: the inverse of the stretch in `prepare()`."""
    rows, columns = shape
    return np.asarray(Image.fromarray(relevance).resize((columns, rows), Image.Resampling.BILINEAR))


@dataclass(frozen=True, slots=True)
class Verification:
    """What covering parts of the image says of a map."""

    drops: NDArray[np.float32]  # (grid, grid), see `occlusion_map`
    rank_correlation: float  # Spearman's, of the drops and the map as the cover sees it; -1 to 1
    drop_at_strongest: float  # what covering the place that the map marks strongest takes from the logit contrast
    weaker_elsewhere: float  # share of the other places whose covering takes less


def occlusion_map(
    model: Model,
    model_input: ModelInput,
    *,
    task: str,
    label: str,
    cover: int = COVER,
    stride: int = 1,
    batch: int = 8,
    heard: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """(grid, grid) drop of the logit contrast where the image is covered: positive where it spoke for the label.

    A square of `cover` patches a side in the image's own mean colour moves over the grid by `stride` patches; a patch's
    value is the mean drop of the squares over it. `heard` is called with the images done and their number after each
    batch. A grid of 12 takes 100 runs with a stride of 1, and 36 with 2. Raises UnknownTask and UnknownLabel.
    """
    manifest = model.manifest
    definition, place = manifest.task(task), _place(manifest, task=task, label=label)
    columns = slice(definition.first_logit, definition.first_logit + len(definition.labels))
    grid, patch, tensor = manifest.input.grid, manifest.input.patch, model_input.tensor
    colour = tensor.mean(axis=(1, 2), keepdims=True)
    squares = _squares(grid, cover=cover, stride=stride)

    def contrasts(images: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        (logits,) = model.run(np.stack(images), ("logits",))
        own = logits[:, columns]
        contrast: NDArray[np.float32] = own[:, place] - own.mean(axis=1)
        return contrast

    (whole,) = contrasts([tensor])
    drops = np.zeros((grid, grid), np.float32)
    covers = np.zeros((grid, grid), np.float32)
    for start in range(0, len(squares), batch):
        covered = []
        for rows, columns_of_grid in squares[start : start + batch]:
            image = tensor.copy()
            image[:, _pixels(rows, patch), _pixels(columns_of_grid, patch)] = colour
            covered.append(image)
        for square, contrast in zip(squares[start : start + batch], contrasts(covered), strict=True):
            drops[square] += whole - contrast
            covers[square] += 1
        if heard is not None:
            heard(min(start + batch, len(squares)), len(squares))
    return drops / covers


def verify_explanation(
    model: Model,
    model_input: ModelInput,
    *,
    task: str,
    label: str,
    cover: int = COVER,
    stride: int = 1,
    batch: int = 8,
    heard: Callable[[int, int], None] | None = None,
) -> Verification:
    """Compare the contrast map of a label with what covering the image does to it.

    The map is first averaged as the moving cover averages, since nothing finer can be compared. `heard` as in
    `occlusion_map`. Raises UnknownTask and UnknownLabel.
    """
    drops = occlusion_map(
        model, model_input, task=task, label=label, cover=cover, stride=stride, batch=batch, heard=heard
    )
    (prediction,) = model.predict_inputs([model_input])
    relevance = contrast_map(prediction, manifest=model.manifest, task=task, label=label)
    seen = covered_mean(relevance, cover=cover, stride=stride)
    strongest = np.unravel_index(int(seen.argmax()), seen.shape)
    return Verification(
        drops=drops,
        rank_correlation=rank_correlation(seen, drops),
        drop_at_strongest=float(drops[strongest]),
        weaker_elsewhere=float((drops < drops[strongest]).sum() / max(drops.size - 1, 1)),
    )


def covered_mean(values: NDArray[np.float32], *, cover: int = COVER, stride: int = 1) -> NDArray[np.float32]:
    """(grid, grid) values averaged over each square of the cover, and again over the squares of each patch."""
    total, covers = np.zeros_like(values), np.zeros_like(values)
    for square in _squares(len(values), cover=cover, stride=stride):
        total[square] += values[square].mean()
        covers[square] += 1
    return total / covers


def rank_correlation(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Spearman's correlation of two arrays of one shape; 0 where one of them is flat."""
    a, b = _ranks(one), _ranks(other)
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread else 0.0


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks from 0 of the flattened values; equal values share their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(count) - (count + 1) / 2)[place.ravel()]
    return ranks


def _squares(grid: int, *, cover: int, stride: int) -> list[tuple[slice, slice]]:
    """The places of a cover that moves over the grid and stays inside it; together they cover every patch."""
    if not 1 <= stride <= cover:
        raise ValueError(f"a cover of {cover} patches moves by 1 to {cover} patches, not by {stride}")
    last = max(grid - cover, 0)
    starts = sorted({*range(0, last, stride), last})
    spans = [slice(start, min(start + cover, grid)) for start in starts]
    return [(rows, columns) for rows in spans for columns in spans]


def _pixels(patches: slice, patch: int) -> slice:
    return slice(patches.start * patch, patches.stop * patch)


def _place(manifest: Manifest, *, task: str, label: str) -> int:
    names = [entry.name for entry in manifest.task(task).labels]
    if label not in names:
        raise UnknownLabel(f"task {task!r} has no label {label!r}; its labels are {', '.join(names)}")
    return names.index(label)
