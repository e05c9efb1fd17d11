"""One labelled image of a source, and the splits that no patient may cross."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
PRECEDENCE: tuple[Split, ...] = ("test", "train", "val")
# Shares of a source that brings no split of its own.
TEST_SHARE, VAL_SHARE = 0.20, 0.10


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled image. `group` is the patient, lesion or near-duplicate cluster that no split may cross."""

    path: Path
    dataset: str
    modality: str
    body_part: str
    label: str
    group: str
    split: Split
    licence: str
    population: str = "unknown"
    provenance: str = ""  # who published the image and where: an address or a citation
    index: int | None = None  # row of `<split>_images` in an .npz, or number of the frame (from 1) in a DICOM file

    @property
    def name(self) -> str:
        """The file, and which of its images where it holds several."""
        return self.path.name if self.index is None else f"{self.path.name}[{self.index}]"

    def key(self) -> str:
        """Names the pixels: another file, or the same one changed, has another key."""
        stat = self.path.stat()
        return f"{self.path.absolute()}|{self.split}|{self.index}|{stat.st_size}|{stat.st_mtime_ns}"


def split_of(group: str) -> Split:
    """70 % train, 10 % val, 20 % test by the group's digest: on every machine, in every order, the same."""
    share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64
    return "test" if share < TEST_SHARE else "val" if share < TEST_SHARE + VAL_SHARE else "train"


def one_split_each(examples: Sequence[Example]) -> list[Example]:
    """The examples whose group stands in their split alone: a group in two is kept in `test` first, then in `train`."""
    home: dict[str, Split] = {}
    for example in examples:
        home[example.group] = min(example.split, home.get(example.group, example.split), key=PRECEDENCE.index)
    kept = [example for example in examples if home[example.group] == example.split]
    if len(kept) < len(examples):
        logger.warning("%s images left out: their group also stands in another split", len(examples) - len(kept))
    return kept
