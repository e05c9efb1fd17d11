"""Change a training image as another scanner, window, or hand would have."""

import numpy as np
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandAffine,
    RandFlip,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandRotate90,
    RandScaleIntensity,
    RandShiftIntensity,
    RandSimulateLowResolution,
)
from numpy.typing import NDArray

# Left and right are anatomy on a chest film; tissue under a lens has no up; the rest may be mirrored.
MIRRORED = frozenset({"CT", "MR", "US", "OP", "MG"})
TURNED = frozenset({"DMS", "SM"})


class Augmentation:
    """Random geometry and intensity for squares in 0..1; the same seed gives the same image."""

    def __init__(self) -> None:
        self._any = Compose(
            [
                RandAffine(
                    prob=0.9,
                    rotate_range=0.2,
                    shear_range=0.08,
                    translate_range=12,
                    scale_range=((-0.3, 0.12), (-0.3, 0.12)),
                    padding_mode="zeros",
                ),
                RandAdjustContrast(prob=0.6, gamma=(0.6, 1.7)),
                RandScaleIntensity(prob=0.5, factors=0.2),
                RandShiftIntensity(prob=0.5, offsets=0.1),
                RandGaussianSmooth(prob=0.15, sigma_x=(0.4, 1.2), sigma_y=(0.4, 1.2)),
                RandSimulateLowResolution(prob=0.15, zoom_range=(0.5, 0.9), upsample_mode="bilinear"),
                RandGaussianNoise(prob=0.2, std=0.04),
            ]
        )
        self._mirror = RandFlip(prob=0.5, spatial_axis=1)
        self._turn = Compose([RandFlip(prob=0.5, spatial_axis=1), RandRotate90(prob=0.75, spatial_axes=(0, 1))])

    def __call__(self, image: NDArray[np.uint8], *, modality: str, seed: int) -> NDArray[np.float32]:
        """(S, S, 3) 8-bit -> (S, S, 3) in 0..1."""
        channels_first = image.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        orient = self._turn if modality in TURNED else self._mirror if modality in MIRRORED else None
        if orient is not None:
            orient.set_random_state(seed=seed)
            channels_first = orient(channels_first)
        self._any.set_random_state(seed=seed)
        return np.asarray(self._any(channels_first), dtype=np.float32).clip(0, 1).transpose(1, 2, 0)
