"""`hilum model embed|adapt`: images to embeddings, and a labelled folder to a head that answers a new question."""

import argparse
import csv
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from app import wiring
from app.commands import progress
from app.config import load
from app.pictures import Origin, Unreadable, files, read
from vision_model.adapt import FewShotClassifier
from vision_model.adapt.classifier import METHODS, Text
from vision_model.errors import SupportInvalid
from vision_model.preprocess import ModelInput
from vision_model.runtime import Model

COMMANDS = frozenset({"embed", "adapt"})
BATCH = 8
NOTICE = "Research use only, not for diagnostic use."


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The two subcommands."""
    embed = commands.add_parser("embed", help="write the embeddings of images to a file")
    embed.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="DICOM or picture files (PNG, JPEG, TIFF), or folders"
    )
    embed.add_argument("--out", type=Path, required=True, help="the .npz file: embeddings (N, D), names, frames")
    adapt = commands.add_parser("adapt", help="learn a new question from a few labelled images")
    adapt.add_argument(
        "--data",
        type=Path,
        required=True,
        help="a folder with one folder for each label, or with a manifest.csv (columns file, label; group if known)",
    )
    adapt.add_argument("--out", type=Path, required=True, help="the file of the head")
    adapt.add_argument("--method", choices=METHODS, default="auto", help="how to learn (default: %(default)s)")
    adapt.add_argument(
        "--groups-from",
        metavar="HOW",
        help="what tells which images are one patient's: 'folder' (the folder a file lies in), 'patient' (DICOM's "
        "Patient ID), 'name:REGEX' (its first group, or the match, in the file's name), or a column of the manifest",
    )
    adapt.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help='a TOML file with the words of each label: label = ["phrase", ...], or label = "concept", a name in '
        "knowledge.toml; the head takes from them what left-out images agree with",
    )
    adapt.add_argument("--split", help="with a manifest.csv: take only rows whose column `split` says this")
    adapt.add_argument("--seed", type=int, default=0, help="of the folds (default: %(default)s)")
    for command in (embed, adapt):
        command.add_argument("--model", type=Path, metavar="FOLDER", help="a model's folder (default: the settings')")


def run(args: argparse.Namespace) -> int:
    """0, or 1 when a file could not be read; the rest goes on. Raises VisionModelError."""
    return _embed(args) if args.model_command == "embed" else _adapt(args)


def _embed(args: argparse.Namespace) -> int:
    paths = files(args.paths)
    with _reading(args) as reading:
        embedded = list(_embedded(reading.pictures(paths), model=reading.model))
        vectors = [vector for _, vector in embedded]
        size = reading.model.manifest.embedding_size
        with args.out.open("wb") as stream:
            np.savez_compressed(
                stream,
                embeddings=np.stack(vectors) if vectors else np.empty((0, size), np.float32),
                names=np.array([origin.name for origin, _ in embedded], dtype=np.str_),
                frames=np.array([origin.frame for origin, _ in embedded], dtype=np.int64),
                graph_sha256=np.array(reading.model.manifest.graph_sha256),
            )
    print(f"{len(embedded)} images, {size} numbers each: {args.out}")
    return 1 if reading.failures else 0


@dataclass(frozen=True, slots=True)
class _Labelled:
    path: Path
    label: str
    group: str | None


def _adapt(args: argparse.Namespace) -> int:
    rows, text = _rows(args.data, groups_from=args.groups_from, split=args.split), _text(args.text)
    by_path = {row.path: row for row in rows}
    with _reading(args) as reading:
        model, pictures = reading.model, reading.pictures(by_path)
        # LoRA changes the encoder, so that it needs the images themselves; else one batch of them is held at a time.
        found: list[tuple[Origin, ModelInput]] | list[tuple[Origin, NDArray[np.float32]]] = (
            list(pictures) if args.method == "lora" else list(_embedded(pictures, model=model))
        )
        labels = [by_path[origin.path].label for origin, _ in found]
        groups = _groups([origin for origin, _ in found], by_path, groups_from=args.groups_from)
        classifier = FewShotClassifier(model, method=args.method, seed=args.seed)
        classifier.fit([image for _, image in found], labels, groups, text=text)
        classifier.save(args.out)
    print("\n".join(_told(classifier, labels, groups, out=args.out)))
    return 1 if reading.failures else 0


def _rows(data: Path, *, groups_from: str | None, split: str | None) -> list[_Labelled]:
    """The labelled files of a folder. Raises SupportInvalid when it is laid out otherwise."""
    manifest = data / "manifest.csv"
    if manifest.is_file():
        with manifest.open(newline="", encoding="utf-8") as lines:
            table = csv.DictReader(lines)
            columns = set(table.fieldnames or ())
            column = next((c for c in columns if c == (groups_from or "group")), None)
            needed = {"file", "label"} | ({"split"} if split else set())
            if missing := needed - columns:
                raise SupportInvalid(f"{manifest} lacks the columns {', '.join(sorted(missing))}")
            return [
                _Labelled(data / row["file"], row["label"], row[column] if column else None)
                for row in table
                if split is None or row["split"] == split
            ]
    folders = sorted(p for p in data.iterdir() if p.is_dir()) if data.is_dir() else []
    rows = [_Labelled(path, folder.name, None) for folder in folders for path in files([folder])]
    if not rows:
        raise SupportInvalid(f"{data} holds neither a manifest.csv nor folders of images, one for each label")
    return rows


def _text(path: Path | None) -> Text | None:
    """What a file says of each label. Raises SupportInvalid."""
    if path is None:
        return None
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise SupportInvalid(f"--text {path} cannot be read as TOML: {exc}") from exc
    words: dict[str | int, str | list[str]] = {}
    for label, given in found.items():
        if not isinstance(given, str) and not (isinstance(given, list) and all(isinstance(t, str) for t in given)):
            raise SupportInvalid(f'--text {path}: {label} needs ["phrase", ...] or "concept"')
        words[label] = given
    return words


def _groups(origins: Sequence[Origin], by_path: dict[Path, _Labelled], *, groups_from: str | None) -> list[str] | None:
    """The patient of each image; None where nothing was said of it. Raises SupportInvalid where one is not told."""
    known = [by_path[origin.path].group for origin in origins]
    if groups_from is None or None not in known:
        return None if None in known else [str(group) for group in known]
    if groups_from not in {"folder", "patient"} and not groups_from.startswith("name:"):
        raise SupportInvalid(f"--groups-from {groups_from}: it is folder, patient, name:REGEX or a manifest's column")
    groups: list[str] = []
    for origin in origins:
        if groups_from == "folder":
            group: str | None = str(origin.path.parent)
        elif groups_from == "patient":
            group = origin.patient_id
        else:
            try:
                found = re.search(groups_from.removeprefix("name:"), origin.path.name)
            except re.error as exc:
                raise SupportInvalid(f"--groups-from {groups_from}: not a regular expression ({exc})") from exc
            group = None if found is None else found[1] if found.re.groups else found[0]
        if not group:
            raise SupportInvalid(f"--groups-from {groups_from} tells no group for {origin.path.name}")
        groups.append(group)
    return groups


def _told(classifier: FewShotClassifier, labels: list[str], groups: list[str] | None, *, out: Path) -> Iterator[str]:
    """What was learnt, how well left-out images were told apart, and how to go on."""
    report, counts = classifier.report_, Counter(labels)
    images = ", ".join(f"{label} {counts[label]}" for label in map(str, classifier.classes_))
    patients = f"{len(set(groups))} groups" if groups else "each taken as a patient of its own"
    yield f"learnt from {len(labels)} images ({images}), {patients}"
    chosen = ", ".join(f"{key} {report[key]:g}" for key in ("C", "text_share") if key in report)
    yield f"method: {report['method']}{f' ({chosen})' if chosen else ''}"
    if "auroc" in report:
        yield (
            f"left-out images: AUROC {report['auroc']:.3f}, balanced accuracy {report['balanced_accuracy']:.3f}, "
            f"log loss {report['log_loss']:.3f}"
        )
    else:
        yield "left-out images: none could be left out, so how good the head is was not measured"
    yield f"head: {out} ({out.stat().st_size / 1000:.0f} kB), for this encoder only"
    yield ""
    yield "from vision_model import load"
    yield "from vision_model.adapt import FewShotClassifier"
    yield f"head = FewShotClassifier.load({str(out)!r}, load())"
    yield "head.predict_proba(images); head.predict_set(images, alpha=0.1)"
    yield ""
    yield NOTICE


@dataclass(slots=True)
class _Reading:
    """A model and what reads images for it; counts the files that could not be read."""

    parts: wiring.Readers
    scratch: Path
    failures: int = 0

    @property
    def model(self) -> Model:
        return self.parts.model

    def pictures(self, paths: Iterable[Path]) -> Iterator[tuple[Origin, ModelInput]]:
        """The images of all files, one after another; what cannot be read is told on stderr."""
        settings = self.parts.settings
        every = list(paths)
        for number, path in enumerate(every, start=1):
            for found in read(
                path,
                model=self.model,
                sandbox=self.parts.sandbox,
                limits=settings.reading.limits,
                scratch=self.scratch,
                frames_per_series=settings.diagnose.frames_per_series,
            ):
                if isinstance(found, Unreadable):
                    self.failures += 1
                    progress.clear()
                    print(f"{found.name}: {found.code}: {found.message}", file=sys.stderr)
                else:
                    yield found
            progress.show(f"{number} of {len(every)} files read")
        progress.clear()


@contextmanager
def _reading(args: argparse.Namespace) -> Iterator[_Reading]:
    settings = load(args.config)
    if args.model is not None:
        settings = settings.model_copy(update={"model": settings.model.model_copy(update={"path": args.model})})
    with wiring.readers(settings) as parts, TemporaryDirectory(prefix="hilum-") as scratch:
        yield _Reading(parts, Path(scratch))


def _embedded(
    pictures: Iterator[tuple[Origin, ModelInput]], *, model: Model
) -> Iterator[tuple[Origin, NDArray[np.float32]]]:
    """Each image's origin and its embedding (D,)."""
    while batch := list(islice(pictures, BATCH)):
        (vectors,) = model.run(np.stack([model_input.tensor for _, model_input in batch]), ("embedding",))
        yield from ((origin, vector) for (origin, _), vector in zip(batch, vectors, strict=True))
