"""From examples to pixels: image files, rows of .npz files and DICOM frames, in bounded memory.

Squares are kept in memory, or, with a folder for them, in a file that the next run maps at once.
"""

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_model.data.dicom import dicom_squares
from vision_model.data.example import Example, Split
from vision_model.data.medmnist_sets import rows_of
from vision_model.errors import ImageInvalid, SourceInvalid
from vision_model.manifest import InputSpec
from vision_model.preprocess import prepare, square

logger = logging.getLogger(__name__)

AT_ONCE = 256  # images a pool works on before the next are handed to it
DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "F"})  # Pillow's modes of more than 8 bits, which it would cut off
# For fingerprints, which need no window of training: the file's own or the percentiles.
ANY = InputSpec(size=14, patch=14, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), windows=(), percentiles=(0.5, 99.5))


def load_squares(examples: Sequence[Example], *, spec: InputSpec, cache: Path | None = None) -> NDArray[np.uint8]:
    """(N, S, S, 3) 8-bit squares of the examples, in their order: `prepare()` up to its normalisation, kept small.

    With `cache`, a folder, they are written to a file there that is named by what they were made of, and mapped
    instead of held; a later call with the same files and numbers reads none of them.
    Raises SourceInvalid naming the file that cannot be read.
    """
    shape = (len(examples), spec.size, spec.size, 3)
    if cache is None:
        squares = np.empty(shape, dtype=np.uint8)
        _fill(squares, examples, spec=spec)
        return squares
    kept = cache / f"squares-{_digest(examples, spec)}.npy"
    if not kept.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}.part")  # under torchrun every process may come here
        written = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        try:
            _fill(written, examples, spec=spec)
            written.flush()
            part.replace(kept)
        finally:
            part.unlink(missing_ok=True)
        logger.info("%s squares of %s px are kept in %s", len(examples), spec.size, kept)
    mapped: NDArray[np.uint8] = np.load(kept, mmap_mode="r")
    return mapped


def each_square(examples: Sequence[Example], *, spec: InputSpec) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(position, (S, S, 3) square) of every example: image files first, then .npz files, each read once, then DICOM."""
    files = [i for i, e in enumerate(examples) if e.index is None]
    frames = [i for i, e in enumerate(examples) if e.index is not None and e.path.suffix != ".npz"]
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(files), AT_ONCE):
            some = files[start : start + AT_ONCE]
            yield from zip(some, pool.map(lambda i: _of_file(examples[i], spec=spec), some), strict=True)
    for i, image in _rows(examples):
        yield i, _of_eight_bits(image, spec=spec)
    if frames:
        yield from zip(frames, dicom_squares([examples[i] for i in frames], spec=spec), strict=True)


def each_small(examples: Sequence[Example], *, side: int) -> Iterator[tuple[int, Image.Image]]:
    """(position, grey image of side x side px) of every example, the aspect ratio not kept; for fingerprints.

    Raises SourceInvalid naming the file that cannot be read.
    """
    files = [i for i, e in enumerate(examples) if e.index is None]
    others = [i for i, e in enumerate(examples) if e.index is not None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), AT_ONCE):
            some = files[start : start + AT_ONCE]
            yield from zip(some, pool.map(lambda i: _small(examples[i], side=side), some), strict=True)
    spec = replace(ANY, size=side)
    for n, pixels in each_square([examples[i] for i in others], spec=spec):
        yield others[n], Image.fromarray(pixels).convert("L")


def _fill(squares: NDArray[np.uint8], examples: Sequence[Example], *, spec: InputSpec) -> None:
    for i, pixels in each_square(examples, spec=spec):
        squares[i] = pixels


def _of_file(example: Example, *, spec: InputSpec) -> NDArray[np.uint8]:
    try:
        with Image.open(example.path) as image:
            if image.mode not in DEEP:
                return _of_eight_bits(np.asarray(image if image.mode == "L" else image.convert("RGB")), spec=spec)
            plain = replace(spec, mean=ANY.mean, std=ANY.std)  # 0..1 stays 0..1
            prepared = prepare(np.asarray(image), spec=plain).tensor.transpose(1, 2, 0)
    except (OSError, ImageInvalid, Image.DecompressionBombError) as exc:
        raise SourceInvalid(f"{example.path} cannot be read as an image: {exc}") from exc
    return np.rint(prepared * 255).astype(np.uint8)


def _of_eight_bits(pixels: NDArray[np.uint8], *, spec: InputSpec) -> NDArray[np.uint8]:
    unit = pixels.reshape(*pixels.shape[:2], -1).astype(np.float32) / np.float32(255)
    return np.rint(square(unit, size=spec.size) * 255).astype(np.uint8)


def _small(example: Example, *, side: int) -> Image.Image:
    try:
        with Image.open(example.path) as image:
            if image.mode not in DEEP:
                image.draft("L", (side, side))  # a JPEG is then decoded at a fraction of its size
                return image.convert("L").resize((side, side), Image.Resampling.BILINEAR)
    except (OSError, Image.DecompressionBombError) as exc:
        raise SourceInvalid(f"{example.path} cannot be read as an image: {exc}") from exc
    return Image.fromarray(_of_file(example, spec=replace(ANY, size=side))).convert("L")


def _rows(examples: Sequence[Example]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(position, image) of the examples in .npz files; every array is read once, front to back."""
    places: dict[tuple[Path, Split], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, example in enumerate(examples):
        if example.path.suffix == ".npz" and example.index is not None:
            places[example.path, example.split][example.index].append(i)
    for (path, split), wanted in places.items():
        for row, image in zip(sorted(wanted), rows_of(path, split, sorted(wanted)), strict=True):
            yield from ((i, image) for i in wanted[row])


def _digest(examples: Sequence[Example], spec: InputSpec) -> str:
    """Changes when a file, the order of the examples, or a number that squares depend on does."""
    digest = hashlib.sha256(repr((spec.size, spec.windows, spec.percentiles)).encode())
    for example in examples:
        digest.update(f"{example.key()}|{example.modality}|{example.body_part}\n".encode())
    return digest.hexdigest()[:20]
