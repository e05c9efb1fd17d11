"""From examples to pixels: files of every kind, read in bounded memory."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vision_model.data.example import Example
from vision_model.errors import SourceInvalid
from vision_model.manifest import InputSpec
from vision_model.preprocess import square

AT_ONCE = 256  # images a pool works on before the next are handed to it


def load_squares(examples: Sequence[Example], *, spec: InputSpec) -> NDArray[np.uint8]:
    """(N, S, S, 3) 8-bit squares of the examples, in their order: `prepare()` up to its normalisation, kept small."""

    def one(example: Example) -> NDArray[np.uint8]:
        with Image.open(example.path) as image:
            rgb = np.asarray(image.convert("RGB"), dtype=np.float32) / np.float32(255)
        return np.rint(square(rgb, size=spec.size) * 255).astype(np.uint8)

    squares = np.empty((len(examples), spec.size, spec.size, 3), dtype=np.uint8)
    with ThreadPoolExecutor(4) as pool:
        for i, image in enumerate(pool.map(one, examples)):
            squares[i] = image
    return squares


def each_small(examples: Sequence[Example], *, side: int) -> Iterator[tuple[int, Image.Image]]:
    """(position, grey image of side x side px) of every example, the aspect ratio not kept.

    Raises SourceInvalid naming the file that cannot be read.
    """

    def one(example: Example) -> Image.Image:
        try:
            with Image.open(example.path) as image:
                image.draft("L", (side, side))  # a JPEG is then decoded at a fraction of its size
                return image.convert("L").resize((side, side), Image.Resampling.BILINEAR)
        except (OSError, UnidentifiedImageError) as exc:
            raise SourceInvalid(f"{example.path} cannot be read as an image: {exc}") from exc

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(examples), AT_ONCE):
            yield from enumerate(pool.map(one, examples[start : start + AT_ONCE]), start=start)
