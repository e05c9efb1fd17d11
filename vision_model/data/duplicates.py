"""Find images that are there twice, and keep them from being learnt and then examined.

Two images are the same when their perceptual hashes (pHash, Zauner 2010, by the ImageHash package) differ in few of 64
bits and their fine detail agrees too. The hash alone cannot tell: films of two children differ in fewer bits than two
copies of one picture whose contrast was stretched. Both numbers were chosen by looking at pairs of 14 sources: at and
above LIKENESS all are the same patient (ultrasound stills a moment apart, copies, slices a millimetre apart); below,
the first pairs of different children stand at .69. Pairs are rare there: fewer between .65 and .75 than below .60.
Of copies made on purpose, those squeezed to 28 px, compressed at quality 30, brightened or trimmed by 1 % are found.
Turned, mirrored or cropped copies are not.
"""

import csv
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import minimum_filter, uniform_filter

from vision_model.data.example import Example
from vision_model.data.load import each_small

logger = logging.getLogger(__name__)

BITS = 10  # of 64 that may differ
LIKENESS = 0.70  # correlation of fine detail, at and above which two images are one
SIDE = 32  # px of the thumbnails that detail is compared on
DARK = 12  # grey level under which a pixel is background: the rim of a fundus is no detail of it
DETAIL_SHARE = 0.1  # of the thumbnail that two images must both fill for a comparison to mean anything
NEAR_BLACK = 20.0  # added to the norms, so that the noise of two flat images is never alike
QUANTUM = 63  # steps of one unit of detail in an int8
COMPARISONS = 1 << 23  # hashes compared at once: 64 MB


@dataclass(frozen=True, slots=True)
class RemovedImage:
    """An image that is not trained on, and the one that it repeats."""

    image: Example
    twin: Example
    bits: int
    likeness: float


@dataclass(frozen=True, slots=True)
class Removed:
    """What was taken out of `train`, and what was found and left."""

    images: tuple[RemovedImage, ...]
    val_like_test: int  # images of val that also stand in test; they only choose thresholds, and stay

    def counts(self) -> dict[tuple[str, str, str], int]:
        """(dataset, twin's dataset, twin's split) -> images removed, the most first."""
        pairs = Counter((r.image.dataset, r.twin.dataset, r.twin.split) for r in self.images)
        return dict(pairs.most_common())

    def write_csv(self, path: Path) -> None:
        """One line an image."""
        with path.open("w", newline="", encoding="utf-8") as lines:
            rows = csv.writer(lines)
            rows.writerow(["dataset", "file", "twin_dataset", "twin_split", "twin_file", "bits", "likeness"])
            for r in self.images:
                twin = [r.twin.dataset, r.twin.split, r.twin.name]
                rows.writerow([r.image.dataset, r.image.name, *twin, r.bits, f"{r.likeness:.3f}"])


def without_duplicates(
    examples: Sequence[Example], *, cache: Path | None = None, guarded: Collection[str] = ()
) -> tuple[list[Example], Removed]:
    """The examples without the `train` images that repeat another, in their order, and what was removed.

    Out goes a train image that repeats one of `val` or `test` of any dataset, or, unless its own dataset is guarded
    too, any image of a `guarded` dataset: one that is kept from training altogether. Of train images that repeat each
    other across datasets the first stays. `val` and `test` are never changed. `cache` is a file (.npz) that keeps the
    fingerprints of files that did not change.
    """
    hashes, thumbnails = fingerprints(examples, cache=cache)
    details = detail(thumbnails)
    of_split = np.array([e.split for e in examples], dtype="U5")
    datasets, dataset = np.unique([e.dataset for e in examples], return_inverse=True)
    is_guarded = np.isin(datasets, sorted(guarded))[dataset]
    train, val, test = (np.flatnonzero(of_split == s) for s in ("train", "val", "test"))
    removed: dict[int, RemovedImage] = {}

    def note(i: int, j: int, bits: int, likeness: float) -> None:
        if i not in removed or removed[i].likeness < likeness:
            removed[i] = RemovedImage(examples[i], examples[j], bits, likeness)

    for i, j, bits, likeness in twins(hashes, details, train, np.concatenate([val, test])):
        note(i, j, bits, likeness)
    for i, j, bits, likeness in twins(hashes, details, train[~is_guarded[train]], train[is_guarded[train]]):
        note(i, j, bits, likeness)
    # Pairs come in the order of their first image, so whatever an image repeats is settled before it is met.
    across = [
        pair
        for pair in twins(hashes, details, train, train)
        if pair[0] < pair[1] and dataset[pair[0]] != dataset[pair[1]]
    ]
    for i, j, bits, likeness in sorted(across):
        if i not in removed and j not in removed and is_guarded[i] == is_guarded[j]:
            removed[j] = RemovedImage(examples[j], examples[i], bits, likeness)
    found = Removed(
        images=tuple(removed[i] for i in sorted(removed)),
        val_like_test=len({i for i, *_ in twins(hashes, details, val, test)}),
    )
    for (name, twin, split), count in found.counts().items():
        logger.info("%s train images of %s repeat images of %s %s and are left out", count, name, twin, split)
    if found.val_like_test:
        logger.info("%s images of val repeat images of test; they stay", found.val_like_test)
    return [e for i, e in enumerate(examples) if i not in removed], found


def fingerprints(
    examples: Sequence[Example], *, cache: Path | None = None
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """(N,) pHashes of 64 bits and (N, SIDE, SIDE) grey thumbnails of the whole images, aspect ratio not kept.

    Raises SourceInvalid for a file that is no image.
    """
    keys = [example.key() for example in examples]
    known: dict[str, int] = {}
    hashes, thumbnails = np.zeros(len(keys), np.uint64), np.zeros((len(keys), SIDE, SIDE), np.uint8)
    if cache is not None and cache.is_file():
        with np.load(cache) as kept:
            known = {key: i for i, key in enumerate(kept["keys"].tolist())}
            here = [(i, known[key]) for i, key in enumerate(keys) if key in known]
            if here:
                ours, theirs = np.array(here).T
                hashes[ours], thumbnails[ours] = kept["hashes"][theirs], kept["thumbnails"][theirs]
    unknown = [i for i, key in enumerate(keys) if key not in known]
    for n, grey in each_small([examples[i] for i in unknown], side=2 * SIDE):
        bits = imagehash.phash(grey).hash
        hashes[unknown[n]] = np.packbits(bits.ravel()).view(np.uint64)[0]
        thumbnails[unknown[n]] = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))
    if cache is not None and unknown:
        part = cache.with_suffix(f".{os.getpid()}.npz")  # under torchrun every process comes here
        part.parent.mkdir(parents=True, exist_ok=True)
        np.savez(part, keys=np.array(keys), hashes=hashes, thumbnails=thumbnails)
        part.replace(cache)
    return hashes, thumbnails


def detail(thumbnails: NDArray[np.uint8]) -> NDArray[np.int8]:
    """(N, SIDE * SIDE): each pixel against its surroundings, in their standard deviation; 0 is background."""
    details = np.zeros((len(thumbnails), SIDE * SIDE), np.int8)
    for start in range(0, len(thumbnails), 4096):
        grey = thumbnails[start : start + 4096].astype(np.float32)
        mean = uniform_filter(grey, size=(0, 5, 5))
        deviation = np.sqrt(np.maximum(uniform_filter(grey * grey, size=(0, 5, 5)) - mean * mean, 0))
        foreground = minimum_filter(grey, size=(1, 5, 5)) > DARK
        foreground |= foreground.mean(axis=(1, 2), keepdims=True) <= DETAIL_SHARE  # a dark image is compared whole
        unit = ((grey - mean) / (deviation + 3)).clip(-2, 2)
        steps = np.rint(unit * QUANTUM)
        steps[steps == 0] = 1  # 0 is kept for the background
        details[start : start + 4096] = (steps * foreground).reshape(len(grey), -1)
    return details


def twins(
    hashes: NDArray[np.uint64], details: NDArray[np.int8], left: NDArray[np.intp], right: NDArray[np.intp]
) -> Iterator[tuple[int, int, int, float]]:
    """(i of left, j of right, bits that differ, likeness) of the pairs that show the same; i and j are never equal."""
    if not len(right):
        return
    step = max(1, COMPARISONS // len(right))
    for start in range(0, len(left), step):
        rows = left[start : start + step]
        bits = np.bitwise_count(hashes[rows, None] ^ hashes[None, right])
        a, b = np.nonzero(bits <= BITS)
        distance, i, j = bits[a, b], rows[a], right[b]
        for first in range(0, len(i), 8192):
            some = slice(first, first + 8192)
            alike = _likeness(details[i[some]], details[j[some]])
            for k in np.flatnonzero((alike >= LIKENESS) & (i[some] != j[some])):
                yield int(i[first + k]), int(j[first + k]), int(distance[first + k]), float(alike[k])


def _likeness(a: NDArray[np.int8], b: NDArray[np.int8]) -> NDArray[np.float32]:
    """(P,) correlation of two (P, SIDE * SIDE) details over what is foreground in both."""
    x, y = (side.astype(np.float32) / QUANTUM for side in (a * (b != 0), b * (a != 0)))
    norm = np.sqrt(np.einsum("pd,pd->p", x, x) * np.einsum("pd,pd->p", y, y))
    alike: NDArray[np.float32] = np.einsum("pd,pd->p", x, y) / (norm + NEAR_BLACK)
    return np.where((x != 0).mean(axis=1) >= DETAIL_SHARE, alike, np.float32(0))
