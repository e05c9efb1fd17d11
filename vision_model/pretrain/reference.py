"""What a task's training images look like to the encoder, so that an image unlike them can be told."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

from vision_model.data.mixture import MASKED
from vision_model.errors import SourceInvalid
from vision_model.net import TAP_SIZE, WIDTH

logger = logging.getLogger(__name__)

# Of features of about unit size; below it a distance would measure the rounding of fp32.
VARIANCE_FLOOR = 1e-4
SMALLEST_DISTANCE = 1e-6  # an image that is the mean itself has a logarithm too


@dataclass(frozen=True)
class Reference:
    """Gaussians of the training images of all tasks together (row 0, the background) and of each task (row 1 + g).

    There is one for each of P parts of what the encoder says of an image. It is kept as a mean, K leading directions
    with their variances, and one variance for all that is left: shrinkage (Ledoit & Wolf 2004) makes the small ones
    nearly equal.
    """

    mean: NDArray[np.float32]  # (1 + G, P, W)
    directions: NDArray[np.float32]  # (1 + G, P, K, W), orthonormal
    inverse: NDArray[np.float32]  # (1 + G, P, K), of the variances along the directions
    inverse_rest: NDArray[np.float32]  # (1 + G, P)
    usual: NDArray[np.float32]  # (G,), log ratio of the median image of val


class Unlikeness(nn.Module):
    """By how much an image is further from a task's training images than from everything the encoder was shown.

    That is relative Mahalanobis distance (Ren et al. 2021, arXiv 2106.09022) over several layers, with the ratio of the
    two squared distances in place of their difference, since that is what layers can be averaged in without weights.
    It looks at the mean of the patch tokens of each tap, and at their spread over the image: a drawn phantom has the
    mean of a brain, and not its variety. On a part of train and val, with the encoder of the model 0.1.0, it held back
    95 % of 40 drawn phantoms where the plain distance of the means held 20 %, and nearly twice as many films of other
    hospitals. Those phantoms also chose it; with the next encoder the one of `tests/web/images.py` passed. Nearest
    neighbours are left out: other sources of a task's own modality are told from its `test` images with an AUROC of
    .998 by this, .922 by the ten nearest training images (ranks averaged over the taps), .971 by both (0.4.0, mean of
    five tasks; a script not kept). Some of those sources are in the background, so the .998 flatters.
    """

    mean: Tensor
    directions: Tensor
    inverse: Tensor
    inverse_rest: Tensor
    usual: Tensor

    def __init__(self, reference: Reference) -> None:
        super().__init__()
        for name in ("mean", "directions", "inverse", "inverse_rest", "usual"):
            self.register_buffer(name, torch.from_numpy(getattr(reference, name)))

    def forward(self, parts: Tensor) -> Tensor:
        """(B, P, W) of `parts_of` -> (B, G): 1 is the median image of val, 2 is twice as far for the background's."""
        scores: Tensor = (self.log_ratios(parts) - self.usual).exp()
        return scores

    def log_ratios(self, parts: Tensor) -> Tensor:
        """(B, P, W) -> (B, G) mean over the parts of the logarithm of (distance to the task / to the background).

        The residual is taken out before it is squared: a difference of squares would lose it to rounding.
        """
        away = (parts[:, None] - self.mean).permute(1, 2, 0, 3)  # (1 + G, P, B, W)
        along = away @ self.directions.mT  # an einsum would turn the directions anew in every run of ONNX Runtime
        rest = away - along @ self.directions
        squares = (along.square() * self.inverse[:, :, None]).sum(-1)
        squares += rest.square().sum(-1) * self.inverse_rest[..., None]
        logarithms = squares.clamp_min(SMALLEST_DISTANCE).log().mean(dim=1).T  # (B, 1 + G)
        ratios: Tensor = logarithms[:, 1:] - logarithms[:, :1]
        return ratios


def parts_of(tokens: Tensor) -> Tensor:
    """Patch tokens (B, T, D) of about unit size -> (B, P, WIDTH): mean of each tap's patches, then their deviation.

    The class token is left out: it has no spread, and its mean was not needed.
    """
    patches = tokens.unflatten(-1, (-1, TAP_SIZE))[..., :WIDTH]  # (B, T, taps, WIDTH)
    mean = patches.mean(dim=1)
    spread = (patches - mean[:, None]).square().mean(dim=1).sqrt()
    return torch.cat([mean, spread], dim=1)


def fit_reference(
    train: tuple[NDArray[np.float32], NDArray[np.int64]],
    val: tuple[NDArray[np.float32], NDArray[np.int64]],
    *,
    tasks: Sequence[str],
    components: int,
) -> Reference:
    """Gaussians of the training images, and what is usual for `val`.

    Both are (parts (N, P, W), targets (N, 1 + G)); a target of MASKED leaves an image out of that task. Raises
    SourceInvalid when a task has no images.
    """
    parts, targets = train
    for column, task in enumerate(tasks, start=1):
        for split, (_, of_split) in (("train", train), ("val", val)):
            if not (of_split[:, column] != MASKED).any():
                raise SourceInvalid(f"no images of {split} belong to task {task}; nothing can be said to be usual")
    members = [np.ones(len(parts), dtype=bool), *(targets[:, 1:] != MASKED).T]
    fitted = [
        [_gaussian(parts[of_row, part], components=components) for part in range(parts.shape[1])] for of_row in members
    ]
    mean, directions, inverse, inverse_rest = (
        np.array([[gaussian[i] for gaussian in row] for row in fitted], dtype=np.float32) for i in range(4)
    )
    reference = Reference(mean, directions, inverse, inverse_rest, np.zeros(len(tasks), np.float32))
    with torch.inference_mode():
        ratios = Unlikeness(reference).log_ratios(torch.from_numpy(val[0])).numpy()
    usual = [np.median(ratios[val[1][:, 1 + g] != MASKED, g]) for g in range(len(tasks))]
    return Reference(mean, directions, inverse, inverse_rest, np.array(usual, dtype=np.float32))


def _gaussian(
    x: NDArray[np.float32], *, components: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    """Mean (W,), directions (K, W), inverse variances (K,) along them and of the rest, of (N, W) numbers."""
    values, vectors = np.linalg.eigh(LedoitWolf().fit(x).covariance_)
    values = np.maximum(values, VARIANCE_FLOOR)
    kept = min(components, len(values) - 1)
    return x.mean(axis=0), vectors[:, -kept:].T, 1 / values[-kept:], float(1 / values[:-kept].mean())
