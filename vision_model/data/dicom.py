"""Read a folder of DICOM files to learn from: the only place of this package that knows DICOM.

Frames are decoded by `dicom_io` in its sandbox and shown as the serving side shows them (`app.window`; a test holds the
two together), by the same `prepare()`. A patient's ID is only ever seen as a slow digest.
"""

import csv
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import DicomError, NotDicom
from dicom_io.limits import Limits
from dicom_io.read import frames, read_instance
from dicom_io.sandbox import Sandbox
from dicom_io.types import Frame, Instance
from dicom_io.voi import eight_bits
from vision_model.data.example import PRECEDENCE, Example, Split, split_of
from vision_model.data.folder import labelled_files
from vision_model.errors import SourceInvalid
from vision_model.manifest import InputSpec
from vision_model.preprocess import ModelInput, prepare

logger = logging.getLogger(__name__)

# Their objects hold display values of 8 bits (PS3.3 C.8.5.6.1.4 for ultrasound, C.8.12.1 for visible light).
DISPLAY_MODALITIES = frozenset({"DMS", "ES", "GM", "OP", "SM", "US", "XC"})
Answer = tuple[Split | None, str]  # split or None, label


def read_dicom(
    root: Path,
    *,
    name: str,
    licence: str,
    provenance: str = "",
    population: str = "unknown",
    modality: str = "",
    body_part: str = "",
    labels: Path | None = None,
    frames_per_file: int = 1,
) -> list[Example]:
    """The images of a folder of DICOM files, an even sample of `frames_per_file` frames from each.

    `labels` is a CSV file with the columns uid and label, and split where the source has one; a uid names an instance,
    a series or a study, and the narrowest counts. Without it the files lie in a folder for each class. Images without a
    label, and files that are not DICOM or cannot be read, are left out and counted in the log. `modality` and
    `body_part` stand in for what a file says. A patient is a group; one without a PatientID is known by the study.
    Raises SourceInvalid when nothing is left, when a file names no modality or body part, and for a broken CSV.
    """
    if not root.is_dir():
        raise SourceInvalid(f"{root} is no folder")
    answers = _read_labels(labels) if labels is not None else None
    found: list[tuple[Path, Answer | None]]
    if answers is None:
        found = [(path, (split, label)) for split, label, path in labelled_files(root)]
    else:
        found = [(path, None) for path in sorted(root.rglob("*")) if path.is_file() and path != labels]
    examples: list[Example] = []
    left_out: Counter[str] = Counter()
    with Sandbox(workers=1, limits=Limits()) as sandbox:
        for path, by_folder in found:
            try:
                instance = read_instance(path, sandbox=sandbox)
            except DicomError as exc:
                left_out[NotDicom.code if isinstance(exc, NotDicom) else exc.code] += 1
                continue
            answer = by_folder if answers is None else _answer(instance, answers)
            if answer is None or instance.number_of_frames == 0:
                left_out["no label" if answer is None else "no pixels"] += 1
                continue
            stated = modality or instance.modality, body_part or (instance.body_part or "").upper()
            if not stated[0] or not stated[1]:
                raise SourceInvalid(f"{path} names no modality or body part; give modality and body_part in the recipe")
            group = f"{name}:{_digest(name, instance.patient.patient_id or instance.ref.study_instance_uid)}"
            split, label = answer
            examples += [
                Example(
                    path=path,
                    dataset=name,
                    modality=stated[0],
                    body_part=stated[1],
                    label=label,
                    group=group,
                    split=split or split_of(group),
                    licence=licence,
                    population=population,
                    provenance=provenance,
                    index=number,
                )
                for number in _sample(instance.number_of_frames, frames_per_file)
            ]
    for reason, count in left_out.items():
        logger.warning("%s files of %s left out: %s", count, name, reason)
    if not examples:
        raise SourceInvalid(f"{root} holds no DICOM image with a label ({dict(left_out)})")
    return examples


def dicom_squares(examples: Sequence[Example], *, spec: InputSpec) -> Iterator[NDArray[np.uint8]]:
    """The (S, S, 3) 8-bit square of each example, in their order; raises SourceInvalid naming the file."""
    workers = min(4, os.cpu_count() or 1)
    plain = replace(spec, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # 0..1 stays 0..1

    def one(example: Example) -> NDArray[np.uint8]:
        assert example.index is not None
        try:
            instance = read_instance(example.path, sandbox=sandbox)
            (frame,) = frames(instance, sandbox=sandbox, numbers=[example.index])
        except DicomError as exc:
            raise SourceInvalid(f"{example.path}, frame {example.index} cannot be decoded ({exc.code}): {exc}") from exc
        shown = show(frame, modality=example.modality, body_part=example.body_part, spec=plain)
        return np.rint(shown.tensor.transpose(1, 2, 0) * 255).astype(np.uint8)

    with Sandbox(workers=workers, limits=Limits()) as sandbox, ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(examples), 64):  # what waits to be taken stays in memory
            yield from pool.map(one, examples[start : start + 64])


def show(frame: Frame, *, modality: str, body_part: str, spec: InputSpec) -> ModelInput:
    """The model's input from a frame: the window of training, else what the file asks for, else the percentiles.

    Raises ImageInvalid.
    """
    if frame.pixels.ndim == 3:
        return prepare(frame.pixels, spec=spec)
    rule = spec.window(modality, body_part)
    if rule is None and frame.windows and frame.windows[0].function == "LINEAR":
        rule = frame.windows[0].centre, frame.windows[0].width
    if rule is not None:
        return prepare(frame.pixels, spec=spec, window=rule)
    if frame.windows or frame.voi_luts:
        return prepare(eight_bits(frame), spec=spec)
    if modality in DISPLAY_MODALITIES and frame.pixels.min() >= 0 and frame.pixels.max() <= 255:
        return prepare(frame.pixels.astype(np.uint8), spec=spec)
    return prepare(frame.pixels, spec=spec)


def _sample(count: int, wanted: int) -> list[int]:
    taken = min(count, wanted)
    return [int((i + 0.5) * count / taken) + 1 for i in range(taken)]


def _answer(instance: Instance, answers: dict[str, Answer]) -> Answer | None:
    ref = instance.ref
    for uid in (ref.sop_instance_uid, ref.series_instance_uid, ref.study_instance_uid):
        if uid in answers:
            return answers[uid]
    return None


def _read_labels(path: Path) -> dict[str, Answer]:
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = csv.DictReader(lines)
            missing = {"uid", "label"} - set(rows.fieldnames or ())
            if missing:
                raise SourceInvalid(f"{path} lacks the columns {', '.join(sorted(missing))}")
            answers: dict[str, Answer] = {}
            for row in rows:
                split: Split | None = next((s for s in PRECEDENCE if s == row.get("split")), None)
                if row.get("split") and split is None:
                    raise SourceInvalid(f"{path}: split is {row['split']!r}; it is train, val or test")
                answers[row["uid"]] = (split, row["label"])
            return answers
    except OSError as exc:
        raise SourceInvalid(f"{path} cannot be read: {exc.strerror}") from exc


@cache
def _digest(name: str, patient: str) -> str:
    # IDs are short numbers, which a fast digest would give away to anyone who counts.
    return hashlib.scrypt(patient.encode(), salt=name.encode(), n=2**12, r=8, p=1, dklen=8).hex()
