"""Where in the image a logit comes from, without autograd.

The head is linear on the mean of the patch tokens, so a logit is exactly the sum of its patches' shares. That is a
decomposition of the head, not proof of cause: attention has mixed the patches before.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_model.errors import UnknownLabel
from vision_model.manifest import Manifest
from vision_model.runtime import Prediction


def relevance_map(prediction: Prediction, *, manifest: Manifest, task: str, label: str) -> NDArray[np.float32]:
    """(grid, grid) contributions of the patches to one label's logit; they sum to `Finding.logit`, bias included.

    Raises UnknownTask and UnknownLabel.
    """
    definition = manifest.task(task)
    names = [entry.name for entry in definition.labels]
    if label not in names:
        raise UnknownLabel(f"task {task!r} has no label {label!r}; its labels are {', '.join(names)}")
    column = prediction.patch_logits[:, definition.first_logit + names.index(label)]
    grid = manifest.input.grid
    return column.reshape(grid, grid)


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
