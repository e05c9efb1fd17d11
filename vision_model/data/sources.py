"""The sources that a recipe names, each read by one function: a manifest, a folder per class, MedMNIST, DICOM."""

import csv
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from vision_model.data.dicom import read_dicom
from vision_model.data.example import PRECEDENCE, Example, Split, one_split_each
from vision_model.data.folder import read_folder
from vision_model.data.licences import published, refusal
from vision_model.data.load import load_squares
from vision_model.data.medmnist_sets import MADE_FROM, read_medmnist
from vision_model.errors import RecipeInvalid, SourceInvalid

__all__ = ["COLUMNS", "Example", "SourceSpec", "Split", "described", "load_squares", "read_manifest", "read_sources"]

logger = logging.getLogger(__name__)

COLUMNS = ("file", "dataset", "modality", "body_part", "label", "group", "split", "licence")
Kind = Literal["manifest", "folder", "medmnist", "dicom"]


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """One `[[sources]]` table of a recipe."""

    kind: Kind
    path: str = ""  # under the data folder, or absolute; for medmnist where its .npz files lie
    name: str = ""  # of the dataset (folder, dicom), or MedMNIST's own word for the set ("breastmnist")
    modality: str = ""  # DICOM's word; needed for a folder, for dicom where the files do not say
    body_part: str = ""
    population: str = "unknown"
    licence: str = "unknown"
    provenance: str = ""  # who published it and where
    group_pattern: str = ""  # folder: the patient in a file's name
    labels: str = ""  # dicom: a CSV with uid, label and perhaps split, under `path`
    frames_per_file: int = 1  # dicom
    size: int = 28  # medmnist: 28, 64, 128 or 224
    download: bool = True  # medmnist

    @classmethod
    def of_table(cls, table: Mapping[str, Any]) -> "SourceSpec":
        """Check a TOML table; raises RecipeInvalid naming the key that is absent, unknown, or of another type."""
        wanted = {f.name: f.type for f in fields(cls)}
        for key, value in table.items():
            if key not in wanted:
                raise RecipeInvalid(f"[[sources]] knows no {key!r}; it has {', '.join(wanted)}")
            kind = {"size": int, "frames_per_file": int, "download": bool}.get(key, str)
            if type(value) is not kind:
                raise RecipeInvalid(f"[[sources]] {key} is {value!r}, which is not {kind.__name__}")
        if table.get("kind") not in get_args(Kind):
            raise RecipeInvalid(f"[[sources]] kind is {table.get('kind')!r}; it is one of {', '.join(get_args(Kind))}")
        needed = {
            "manifest": (),
            "folder": ("path", "name", "modality", "body_part"),
            "medmnist": ("name",),
            "dicom": ("path", "name"),
        }
        missing = [key for key in needed[table["kind"]] if not table.get(key)]
        if missing:
            raise RecipeInvalid(f"[[sources]] of kind {table['kind']} lacks {', '.join(missing)}")
        if table.get("frames_per_file", 1) < 1:
            raise RecipeInvalid("[[sources]] frames_per_file is at least 1")
        return cls(**table)


def read_sources(
    sources: Sequence[SourceSpec], *, root: Path, permissive_only: bool = False, left_out: Collection[str] = ()
) -> list[Example]:
    """The examples of all sources in their order; without any, those of the manifest folder `root`.

    With `permissive_only`, images of `train` and `val` under another licence are left out, so that nothing of them
    reaches weights or thresholds; `test` stays, since measuring is not training. `left_out` names datasets of which
    nothing is returned. A group that stands in two splits is kept in one, as in `read_manifest`.
    Raises RecipeInvalid, SourceInvalid and SourceNotFetched; SourceInvalid also when two sources bring one dataset, or
    the images of one another.
    """
    origin: dict[str, int] = {}
    read: list[Example] = []
    for number, source in enumerate(sources or [SourceSpec(kind="manifest")]):
        examples = _read(source, root)
        for dataset in {e.dataset for e in examples}:
            if origin.setdefault(dataset, number) != number:
                raise SourceInvalid(f"two sources bring a dataset named {dataset}; give one of them another name")
        read += [e for e in examples if e.dataset not in left_out]
    datasets = {e.dataset for e in read}
    for made, original in MADE_FROM.items():
        if made in datasets and original in datasets:
            raise SourceInvalid(f"{made} repeats images of {original} in other splits; name one of them in left_out")
    if permissive_only:
        refused = {e.licence: why for e in read if (why := refusal(e.licence)) is not None}
        gone = Counter((e.dataset, e.licence) for e in read if e.licence in refused and e.split != "test")
        for (dataset, licence), count in sorted(gone.items()):
            logger.info("%s images of %s are not trained on: %r %s", count, dataset, licence, refused[licence])
        read = [e for e in read if e.licence not in refused or e.split == "test"]
    if not any(e.split == "train" for e in read):
        raise SourceInvalid("no image is left to train on")
    return one_split_each(read)


def described(examples: Sequence[Example]) -> tuple[dict[str, str], ...]:
    """For manifest and model card: each dataset with its licences, provenance, and the number of these images."""
    rows = []
    for dataset in sorted({e.dataset for e in examples}):
        ours = [e for e in examples if e.dataset == dataset]
        licences = [licence or "not stated" for licence, _ in Counter(e.licence for e in ours).most_common()]
        rows.append(
            {
                "name": dataset,
                "licence": "; ".join(licences),
                "permissive": "yes" if all(refusal(e.licence) is None for e in ours) else "no",
                "provenance": "; ".join(sorted({e.provenance for e in ours} - {""})) or "not stated",
                "modality": ", ".join(sorted({e.modality for e in ours})),
                "population": ", ".join(sorted({e.population for e in ours})),
                "train_images": str(len(ours)),
            }
        )
    return tuple(rows)


def read_manifest(folder: Path) -> list[Example]:
    """The examples of a folder with a `manifest.csv`; its columns population and provenance may be absent.

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
                provenance=row.get("provenance") or published().get(row["dataset"], ""),
            )
            for row in rows
        ]
    return one_split_each(examples)


def _read(source: SourceSpec, root: Path) -> list[Example]:
    folder = root / source.path
    match source.kind:
        case "manifest":
            return read_manifest(folder)
        case "folder":
            return read_folder(
                folder,
                name=source.name,
                modality=source.modality,
                body_part=source.body_part,
                licence=source.licence,
                provenance=source.provenance,
                population=source.population,
                group_pattern=source.group_pattern,
            )
        case "medmnist":
            return read_medmnist(source.name, folder=folder, size=source.size, download=source.download)
        case "dicom":
            return read_dicom(
                folder,
                name=source.name,
                licence=source.licence,
                provenance=source.provenance,
                population=source.population,
                modality=source.modality,
                body_part=source.body_part,
                labels=folder / source.labels if source.labels else None,
                frames_per_file=source.frames_per_file,
            )


def _split(value: str, path: Path) -> Split:
    for split in PRECEDENCE:
        if value == split:
            return split
    raise SourceInvalid(f"{path}: split is {value!r}; it is train, val or test")
