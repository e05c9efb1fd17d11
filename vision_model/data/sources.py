"""Read a source of labelled images: a folder with a `manifest.csv`."""

import csv
from pathlib import Path

from vision_model.data.example import PRECEDENCE, Example, Split, one_split_each
from vision_model.data.load import load_squares
from vision_model.errors import SourceInvalid

__all__ = ["COLUMNS", "Example", "Split", "load_squares", "read_manifest"]

COLUMNS = ("file", "dataset", "modality", "body_part", "label", "group", "split", "licence")


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
                population=row.get("population") or "unknown",
                provenance=row.get("provenance") or "",
            )
            for row in rows
        ]
    return one_split_each(examples)


def _split(value: str, path: Path) -> Split:
    for split in PRECEDENCE:
        if value == split:
            return split
    raise SourceInvalid(f"{path}: split is {value!r}; it is train, val or test")
