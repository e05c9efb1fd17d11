"""Read a source of labelled images: a folder with a `manifest.csv`."""

import csv
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_model.errors import SourceInvalid
from vision_model.manifest import InputSpec
from vision_model.preprocess import square

logger = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
PRECEDENCE: tuple[Split, ...] = ("test", "train", "val")
COLUMNS = ("file", "dataset", "modality", "body_part", "label", "group", "split", "licence")


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


def read_manifest(folder: Path) -> list[Example]:
    """The examples of a folder with a `manifest.csv`.

    A group that stands in two splits is kept in `test` first, then in `train`; its images in the other are left out.
    Raises SourceInvalid when the file or a column is absent.
    """
    path = folder / "manifest.csv"
    if not path.is_file():
        raise SourceInvalid(f"{folder} holds no manifest.csv; its columns are {', '.join(COLUMNS)}")
    with path.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines)
        missing = set(COLUMNS) - set(rows.fieldnames or ())
        if missing:
            raise SourceInvalid(f"{path} lacks the columns {', '.join(sorted(missing))}")
        examples = [
            Example(
                path=folder / row["file"],
                dataset=row["dataset"],
                modality=row["modality"],
                body_part=row["body_part"],
                label=row["label"],
                group=row["group"],
                split=_split(row["split"], path),
                licence=row["licence"],
            )
            for row in rows
        ]
    home: dict[str, Split] = {}
    for example in examples:
        home[example.group] = min(example.split, home.get(example.group, example.split), key=PRECEDENCE.index)
    kept = [example for example in examples if home[example.group] == example.split]
    if len(kept) < len(examples):
        logger.warning("%s images left out: their group also stands in another split", len(examples) - len(kept))
    return kept


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


def _split(value: str, path: Path) -> Split:
    for split in PRECEDENCE:
        if value == split:
            return split
    raise SourceInvalid(f"{path}: split is {value!r}; it is train, val or test")
