"""Damage images as scanners, networks and hands do, and see what a probe loses.

The definitions and strengths are those of ImageNet-C (Hendrycks & Dietterich 2019, arXiv 1903.12261), which MedMNIST-C
(arXiv 2406.17536) takes over, at severity 3 of 5, on 8-bit images of about 224 px. Grey images stay grey.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from vision_model.data.example import Example
from vision_model.data.mixture import MASKED
from vision_model.evaluation.encoders import Encoder, Image8
from vision_model.evaluation.features import Change, features
from vision_model.evaluation.intervals import auroc
from vision_model.evaluation.probes import Probe

SEVERITY = 3
NOISE_DEVIATION = 0.18
IMPULSE_SHARE = 0.09
BLUR_SIGMA_PX = 3.0
MOTION_RADIUS_PX, MOTION_SIGMA_PX = 15, 8.0
CONTRAST_KEPT = 0.2
BRIGHTNESS_ADDED = 0.3
JPEG_QUALITY = 15
PIXELATE_TO = 0.4

Unit = NDArray[np.float64]  # (rows, columns, 3) in 0..1


def gaussian_noise(image: Image8, rng: np.random.Generator) -> Image8:
    """Electronic noise: a normal deviate on every value."""
    return _eight_bit(_unit(image) + _field(image, rng.normal(0, NOISE_DEVIATION, image.shape)))


def impulse_noise(image: Image8, rng: np.random.Generator) -> Image8:
    """Salt and pepper: a share of the values becomes black or white."""
    draw = _field(image, rng.random(image.shape))
    unit = _unit(image)
    unit[draw < IMPULSE_SHARE / 2] = 0
    unit[draw > 1 - IMPULSE_SHARE / 2] = 1
    return _eight_bit(unit)


def gaussian_blur(image: Image8, _rng: np.random.Generator) -> Image8:
    """Out of focus, or resampled once too often."""
    return _eight_bit(gaussian_filter(_unit(image), sigma=(BLUR_SIGMA_PX, BLUR_SIGMA_PX, 0)))


def motion_blur(image: Image8, rng: np.random.Generator) -> Image8:
    """The patient or the hand moved, within 45 degrees of level: copies shifted along the way, later ones fainter."""
    angle = np.deg2rad(rng.uniform(-45, 45))
    steps = np.arange(2 * MOTION_RADIUS_PX + 1)
    weights = np.exp(-(steps**2) / (2 * MOTION_SIGMA_PX**2))
    weights /= weights.sum()
    far = int(steps[-1])
    padded = np.pad(_unit(image), ((far, far), (far, far), (0, 0)), mode="edge")
    rows, columns = image.shape[:2]
    smeared = np.zeros(image.shape)
    for step, weight in zip(steps, weights, strict=True):
        top, left = far + round(step * np.sin(angle)), far + round(step * np.cos(angle))
        smeared += weight * padded[top : top + rows, left : left + columns]
    return _eight_bit(smeared)


def jpeg(image: Image8, _rng: np.random.Generator) -> Image8:
    """Compressed for a messenger."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    with Image.open(buffer) as again:
        return np.asarray(again.convert("RGB"))


def low_contrast(image: Image8, _rng: np.random.Generator) -> Image8:
    """A window far too wide."""
    unit = _unit(image)
    mean = unit.mean(axis=(0, 1), keepdims=True)
    return _eight_bit((unit - mean) * CONTRAST_KEPT + mean)


def brightness(image: Image8, _rng: np.random.Generator) -> Image8:
    """Overexposed: the value of hue, saturation and value is raised."""
    unit = _unit(image)
    value = unit.max(axis=2, keepdims=True)
    raised = np.minimum(value + BRIGHTNESS_ADDED, 1)
    return _eight_bit(np.where(value > 0, unit * raised / np.maximum(value, 1e-12), raised))


def pixelate(image: Image8, _rng: np.random.Generator) -> Image8:
    """A thumbnail enlarged again."""
    rows, columns = image.shape[:2]
    small = (max(1, int(columns * PIXELATE_TO)), max(1, int(rows * PIXELATE_TO)))
    shrunk = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    return np.asarray(shrunk.resize((columns, rows), Image.Resampling.NEAREST))


CORRUPTIONS: dict[str, Callable[[Image8, np.random.Generator], Image8]] = {
    "Gaussian noise": gaussian_noise,
    "impulse noise": impulse_noise,
    "Gaussian blur": gaussian_blur,
    "motion blur": motion_blur,
    "JPEG": jpeg,
    "contrast": low_contrast,
    "brightness": brightness,
    "pixelate": pixelate,
}


def changes() -> list[Change]:
    """Each corruption as a change that features are computed after."""
    return [Change(f"{name}, severity {SEVERITY}", apply) for name, apply in CORRUPTIONS.items()]


def spread_sample(labels: NDArray[np.int64], *, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of at most `most` labelled images, in order: labels take turns, so that rare ones are there."""
    shuffled = rng.permutation(np.flatnonzero(labels != MASKED))
    turn = np.empty(len(shuffled), np.int64)
    seen: dict[int, int] = {}
    for i, label in enumerate(labels[shuffled].tolist()):
        turn[i] = seen[label] = seen.get(label, -1) + 1
    return np.sort(shuffled[np.argsort(turn, kind="stable")][:most])


def corruption_loss(
    probe: Probe, labels: NDArray[np.int64], clean: NDArray[np.float32], *, damaged: dict[str, NDArray[np.float32]]
) -> dict[str, Any]:
    """What one probe loses on these images: clean AUROC, and its loss under each corruption.

    `clean` is (N, D); `damaged` holds the embeddings after each corruption.
    """
    area = auroc(probe.probabilities(clean), labels)
    losses = {name: area - auroc(probe.probabilities(x), labels) for name, x in damaged.items()}
    return {"clean_auroc": area, "losses": losses, "mean_loss": float(np.mean(list(losses.values())))}


def damaged_features(encoder: Encoder, examples: Sequence[Example], *, cache: Path) -> dict[str, NDArray[np.float32]]:
    """Corruption -> (N, D) embeddings of the damaged images."""
    return {
        name: features(encoder, examples, cache=cache, change=change)["embedding"]
        for name, change in zip(CORRUPTIONS, changes(), strict=True)
    }


def _unit(image: Image8) -> Unit:
    return image.astype(np.float64) / 255


def _eight_bit(unit: Unit) -> Image8:
    image: Image8 = np.rint(unit.clip(0, 1) * 255).astype(np.uint8)
    return image


def _field(image: Image8, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Random values for each pixel: one for all three channels where the image is grey."""
    grey = bool((image == image[..., :1]).all())
    return np.repeat(values[..., :1], 3, axis=2) if grey else values
