"""Change a training image as another scanner, window, or hand would have.

Every turn, mirror and stretch is one matrix and one resampling in 8 bits; every change of brightness is one table of
256 values; a grey image is worked on as one channel. Measured on one core at 168 (224) px: grey 1.1 (1.6) ms, colour
1.8 (3.3) ms. A chain of MONAI's random transforms that did the same but for window, JPEG and impulses: 5.6 (8.0) ms.
MONAI's convolutions would wait for torch's threads, half a second an image, while a net trains beside them; so only its
matrices are used.
"""

import io

import numpy as np
from monai.transforms.utils import create_rotate, create_scale, create_shear, create_translate
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

# Left and right are anatomy on a chest film; tissue under a lens has no up; the rest may be mirrored.
MIRRORED = frozenset({"CT", "MR", "US", "OP", "MG"})
TURNED = frozenset({"DMS", "SM"})


class Augmentation:
    """Random geometry and intensity for 8-bit squares; the same seed gives the same image."""

    def __call__(self, image: NDArray[np.uint8], *, modality: str, seed: int) -> NDArray[np.float32]:
        """(S, S, 3) 8-bit -> (S, S, 3) in 0..1; of a grey image the three channels are one array, not to be written."""
        rng = np.random.default_rng(seed)
        size = len(image)
        grey = bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())
        plane = Image.fromarray(np.ascontiguousarray(image[..., 0]) if grey else np.ascontiguousarray(image))
        matrix = geometry(rng, modality=modality, size=size)
        if matrix is not None:
            numbers = tuple(matrix[:2].ravel().tolist())
            plane = plane.transform(plane.size, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR)
        if rng.random() < 0.15:  # a coarser scan
            small = max(1, round(size * rng.uniform(0.5, 0.9)))
            plane = plane.resize((small, small), Image.Resampling.NEAREST).resize(
                (size, size), Image.Resampling.BILINEAR
            )
        unit = brightness(rng, grey=grey)[np.asarray(plane)]
        if rng.random() < 0.15:
            unit = smoothed(unit, sigma_px=rng.uniform(0.4, 1.2, 2).tolist())
        if rng.random() < 0.2:
            unit = unit + np.float32(rng.uniform(0, 0.04)) * rng.standard_normal(unit.shape, dtype=np.float32)
        if rng.random() < 0.05:  # dead and hot pixels
            struck = rng.integers(0, size, (max(1, int(rng.uniform(0, 0.01) * size * size)), 2))
            unit[struck[:, 0], struck[:, 1]] = rng.integers(0, 2, (len(struck), *unit.shape[2:]))
        unit = unit.clip(0, 1)
        if rng.random() < 0.15:
            unit = compressed(unit, quality=int(rng.integers(30, 91)))
        return np.broadcast_to(unit[..., None], image.shape) if grey else unit


def geometry(rng: np.random.Generator, *, modality: str, size: int) -> NDArray[np.float64] | None:
    """(3, 3) from a pixel (x, y, 1) of the new image to where it is read in the old one, or None for no change.

    Mirrors and quarter turns as the modality allows them; nine times of ten also a turn of up to 0.2 rad, shear up to
    0.08, an object from 0.89 to 1.43 times as large, and a shift of up to 7 % of the side.
    """
    about_centre = np.eye(3)
    if modality in MIRRORED | TURNED and rng.random() < 0.5:
        about_centre = create_scale(2, (-1.0, 1.0))
    if modality in TURNED:
        about_centre = create_rotate(2, np.pi / 2 * int(rng.integers(4))) @ about_centre
    if rng.random() < 0.9:
        turn, *shear = rng.uniform((-0.2, -0.08, -0.08), (0.2, 0.08, 0.08)).tolist()
        shift = rng.uniform(-0.07 * size, 0.07 * size, 2).tolist()
        scale = rng.uniform(0.7, 1.12, 2).tolist()
        about_centre = (
            create_rotate(2, turn) @ create_shear(2, shear) @ create_translate(2, shift) @ create_scale(2, scale)
        ) @ about_centre
    elif np.array_equal(about_centre, np.eye(3)):
        return None
    centre = size / 2  # PIL reads at the centres of pixels: a mirrored image is exact
    matrix: NDArray[np.float64] = (
        create_translate(2, (centre, centre)) @ about_centre @ create_translate(2, (-centre, -centre))
    )
    return matrix


def brightness(rng: np.random.Generator, *, grey: bool) -> NDArray[np.float32]:
    """(256,) what each 8-bit value becomes: another window (grey images only), gamma, scale and offset."""
    table = np.linspace(0, 1, 256, dtype=np.float32)
    if grey and rng.random() < 0.25:  # as another reader would set the window
        low, high = rng.uniform(0, 0.15), rng.uniform(0.8, 1)
        table = ((table - np.float32(low)) / np.float32(high - low)).clip(0, 1)
    if rng.random() < 0.6:
        table **= np.float32(rng.uniform(0.6, 1.7))
    if rng.random() < 0.5:
        table *= np.float32(1 + rng.uniform(-0.2, 0.2))
    if rng.random() < 0.5:
        table += np.float32(rng.uniform(-0.1, 0.1))
    return table.clip(0, 1)


def compressed(unit: NDArray[np.float32], *, quality: int) -> NDArray[np.float32]:
    """(S, S) or (S, S, 3) in 0..1 after a JPEG of that quality."""
    with io.BytesIO() as file:
        Image.fromarray(np.rint(unit * 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
        with Image.open(file) as decoded:
            return np.asarray(decoded, dtype=np.float32) / np.float32(255)


def smoothed(unit: NDArray[np.float32], *, sigma_px: list[float]) -> NDArray[np.float32]:
    """(S, S) or (S, S, 3) under a Gaussian of that width along rows and columns."""
    blurred: NDArray[np.float32] = gaussian_filter(unit, (*sigma_px, 0)[: unit.ndim], mode="constant", truncate=3)
    return blurred
