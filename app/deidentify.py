"""Make de-identified copies of files, and hold a study for a person where letters may stand in its pixels."""

import json
import logging
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread, dcmwrite

from app import durable
from app.errors import ConfigInvalid
from app.receive import NotReceived, Received, look
from dicom_io.deidentify.header import Deidentifier
from dicom_io.deidentify.pixels import Rectangle, blank, header_suspicions, lettering, without_unused_bits
from dicom_io.deidentify.profile import Action, Option
from dicom_io.errors import DicomError
from dicom_io.limits import Limits
from dicom_io.read import frames
from dicom_io.sandbox import Sandbox
from dicom_io.types import Instance
from dicom_io.uids import TRANSFER_SYNTAXES

logger = logging.getLogger(__name__)

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Held:
    """A file for which its whole study is kept back until a person has looked."""

    study_instance_uid: str
    sop_instance_uid: str
    reason: str


@dataclass(slots=True)
class Report:
    """What was done, without a single original value."""

    written: int = 0
    held: list[Held] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)  # (code, message)
    done: Counter[tuple[str, Action]] = field(default_factory=Counter)

    def to_json(self, options: Iterable[Option]) -> str:
        """For the folder's reader. The UIDs of held studies are the original ones: the report stays with the key."""
        return json.dumps(
            {
                "profile": "PS3.15 Annex E, Basic Application Level Confidentiality Profile",
                "options": sorted(option.meaning for option in options),
                "written": self.written,
                "held": [
                    {"study": h.study_instance_uid, "instance": h.sop_instance_uid, "reason": h.reason}
                    for h in self.held
                ],
                "failed": [{"code": code, "message": message} for code, message in self.failed],
                "changed": {f"{name} {action}": count for (name, action), count in sorted(self.done.items())},
            },
            indent=1,
        )


def project_key(path: Path) -> bytes:
    """The key of a project, made on first use and readable by its owner only. Raises ConfigInvalid."""
    with suppress(FileExistsError):
        durable.make_folder(path.absolute().parent)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        durable.sync_folder(path.absolute().parent)
    key = path.read_bytes()
    if len(key) < KEY_BYTES // 2:
        raise ConfigInvalid(f"{path} holds {len(key)} bytes, too few for a key; remove it, or name another file")
    return key


def deidentify(
    paths: Sequence[Path],
    *,
    out: Path,
    deidentifier: Deidentifier,
    sandbox: Sandbox,
    limits: Limits,
    scratch: Path,
    report: Path | None = None,
    released: frozenset[str] = frozenset(),
    rectangles: Sequence[Rectangle] = (),
) -> Iterator[Path | Held]:
    """Write copies into `out`, each under its new SOP Instance UID, and yield them; a study that is held yields why.

    `released` are Study or SOP Instance UIDs whose pixels a person has looked at. `rectangles` are blanked on every
    frame, which is the Clean Pixel Data option. `report` is a file for what was changed and held. Files, folders and
    zips are read as `receive` reads them, every frame of them in the decoding processes.
    """
    said = Report()
    by_study: dict[str, list[Instance]] = {}
    for arrival in look(paths, sandbox=sandbox, limits=limits, scratch=scratch):
        if isinstance(arrival, NotReceived):
            said.failed.append((arrival.code, arrival.message))
        elif isinstance(arrival, Received):
            by_study.setdefault(arrival.instance.ref.study_instance_uid, []).append(arrival.instance)
    durable.make_folder(out)
    for study, instances in by_study.items():
        held = [
            held
            for instance in instances
            if not released & {study, instance.ref.sop_instance_uid}
            for held in _suspicion(instance, sandbox=sandbox, rectangles=rectangles)
        ]
        held += [h for i in instances for h in _not_blanked(i, rectangles)]
        said.held += held
        yield from held
        if held:
            continue
        written: dict[Path, Path] = {}  # where it lies until the whole study does -> its name
        done: Counter[tuple[str, Action]] = Counter()
        for instance in instances:
            try:
                cleaned, of_one = deidentifier.clean(_blanked(dcmread(instance.path), rectangles))
                target = out / f"{cleaned.file_meta.MediaStorageSOPInstanceUID}.dcm"
                written[_write(cleaned, target)] = target
            except Exception as error:  # noqa: BLE001  # whatever pydicom makes of a broken file: it does not leave
                ref, reason = instance.ref, f"it cannot be written as a valid file ({type(error).__name__})"
                said.held.append(kept := Held(ref.study_instance_uid, ref.sop_instance_uid, reason))
                yield kept
                break
            done += of_one
        else:
            said.done += done
            said.written += len(written)
            for part, target in written.items():
                durable.replace(part, target)
                yield target
            continue
        for part in written:
            part.unlink()
    if report is not None:
        report.write_text(said.to_json(deidentifier.options), encoding="utf-8")


def _suspicion(instance: Instance, *, sandbox: Sandbox, rectangles: Sequence[Rectangle]) -> Iterator[Held]:
    """Why a person has to look at this one first: at most one reason."""
    ref = instance.ref
    if instance.number_of_frames == 0:
        return
    try:
        header = dcmread(instance.path, stop_before_pixels=True)
        reason = None if rectangles else next(header_suspicions(header), None)
    except Exception as error:  # noqa: BLE001  # see above
        reason = f"its header cannot be read by what de-identifies it ({type(error).__name__})"
    try:
        for frame in frames(instance, sandbox=sandbox) if reason is None else ():
            pixels = frame.pixels.copy()
            for one in rectangles:
                pixels[one.row : one.row + one.rows, one.column : one.column + one.columns] = pixels.min()
            found = lettering(pixels)
            if found is not None:
                reason = f"frame {frame.number} may hold letters near row {found.row}, column {found.column}"
                break
    except DicomError as error:
        reason = f"its pixels could not be looked at: {error.code}"
    if reason is not None:
        yield Held(ref.study_instance_uid, ref.sop_instance_uid, reason)


def _not_blanked(instance: Instance, rectangles: Sequence[Rectangle]) -> Iterator[Held]:
    syntax = TRANSFER_SYNTAXES.get(instance.transfer_syntax_uid)
    if rectangles and instance.number_of_frames and (syntax is None or syntax.encapsulated):
        reason = "compressed pixels are not blanked here; decompress the file first, with dcmdjpeg for example"
        yield Held(instance.ref.study_instance_uid, instance.ref.sop_instance_uid, reason)


def _blanked(dataset: Dataset, rectangles: Sequence[Rectangle]) -> Dataset:
    """The same data set; its pixels, unless they are compressed, without what unused bits hold and what is marked."""
    if "PixelData" not in dataset or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return dataset
    samples, bits = int(dataset.SamplesPerPixel), int(dataset.BitsAllocated)
    if bits not in (8, 16, 32) or not (rectangles or int(dataset.BitsStored) < bits):
        return dataset
    shape = (int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns))
    kind = np.dtype(f"{'<' if dataset.file_meta.TransferSyntaxUID.is_little_endian else '>'}u{bits // 8}")
    count = int(np.prod(shape)) * samples
    stored = without_unused_bits(
        np.frombuffer(dataset.PixelData, kind, count),
        bits_stored=int(dataset.BitsStored),
        high_bit=int(dataset.HighBit),
        signed=dataset.PixelRepresentation == 1,
    )
    if samples > 1 and dataset.get("PlanarConfiguration") == 1:
        planes = stored.reshape(shape[0] * samples, *shape[1:])
        pixels = blank(planes, rectangles)
    else:
        pixels = blank(stored.reshape(*shape, samples), rectangles)
    dataset.PixelData = pixels.tobytes() + dataset.PixelData[count * kind.itemsize :]
    return dataset


def _write(cleaned: Dataset, target: Path) -> Path:
    part = target.with_name(f".{target.stem}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            dcmwrite(file, cleaned, enforce_file_format=True)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part
