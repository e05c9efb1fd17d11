"""The decoding process: answers one request after the other until its input ends. Started by `dicom_io.sandbox`."""

import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io import wire
from dicom_io.dicomdir import references
from dicom_io.errors import DicomError, Malformed, NestingTooDeep, SandboxOutOfMemory, TooLarge
from dicom_io.evidence import evidence
from dicom_io.header import instance, number_of_frames
from dicom_io.layout import layout
from dicom_io.limits import Limits
from dicom_io.metadata import bulk_value, metadata
from dicom_io.part10 import Part10, open_part10
from dicom_io.pixels import frame
from dicom_io.stored_frame import stored_frame

_Answer = tuple[wire.Message, Sequence[NDArray[np.float32]]]


class _OpenFile:
    """The file last asked for, kept open so that the next frame of it needs no new parse."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._key: tuple[object, ...] | None = None
        self._part10: Part10 | None = None

    def at(self, path: Path) -> Part10:
        """The parsed file, parsed again when it is another one than before."""
        try:
            status = path.stat()
            key: tuple[object, ...] | None = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        except (OSError, ValueError):
            key = None  # open_part10 says why
        if self._part10 is None or key is None or key != self._key:
            self.forget()
            self._part10 = open_part10(path, limits=self._limits)
            self._key = key
        return self._part10

    def forget(self) -> None:
        """Close the file and give its memory back."""
        if self._part10 is not None:
            self._part10.close()
        self._part10 = self._key = None


def _answer(request: wire.Message, opened: _OpenFile, limits: Limits) -> _Answer:
    part10 = opened.at(Path(request["path"]))
    if request["ask"] == "instance":
        found = instance(part10)
        if found.number_of_frames and found.rows and found.columns and found.photometric_interpretation:
            _refuse_monsters(part10, limits)
        return wire.instance_message(found), ()
    if request["ask"] == "frame":
        return wire.frame_message(frame(part10, request["number"], limits=limits))
    if request["ask"] == "evidence":
        return wire.evidence_message(evidence(part10)), ()
    if request["ask"] == "metadata":
        return _content(metadata(part10, bulk_url=request["bulk_url"]), limits)
    if request["ask"] == "bulk":
        return _content(bulk_value(part10, request["place"]), limits)
    if request["ask"] == "stored frame":
        return _content(stored_frame(part10, request["number"], limits=limits), limits)
    return {"references": references(part10, limits=limits)}, ()


def _content(content: bytes, limits: Limits) -> _Answer:
    if len(content) > limits.frame_bytes:
        raise TooLarge(f"the answer has {len(content)} bytes; at most {limits.frame_bytes} are given out")
    return wire.content_message(content)


def _refuse_monsters(part10: Part10, limits: Limits) -> None:
    """A header whose frames can never be read is refused at once; other faults of the pixels wait until asked for."""
    try:
        layout(part10, limits=limits)
    except DicomError as exc:
        if exc.code == "dicom.too-large":
            raise
    assert number_of_frames(part10) > 0


def _answer_or_error(request: wire.Message, opened: _OpenFile, limits: Limits) -> list[bytes | memoryview]:
    """The packed answer; whatever a broken file provokes is an answer too, not the end of the process."""
    error: DicomError
    try:
        return wire.pack(*_answer(request, opened, limits))
    except DicomError as exc:
        error = exc
    except MemoryError:
        opened.forget()
        error = SandboxOutOfMemory("the file needs more memory than a decoding process may have")
    except RecursionError:
        error = NestingTooDeep("the data set is nested too deeply")
    except Exception as exc:  # noqa: BLE001 - see above
        opened.forget()
        error = Malformed(f"the file cannot be read ({type(exc).__name__})")
    return wire.pack(wire.error_message(error))


def _set_limits(limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))


def _grant_processor_time(seconds: int) -> None:
    """Let the next answer take `seconds`; RLIMIT_CPU counts from the start of the process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, resource.RLIM_INFINITY))


def _read_exactly(descriptor: int, count: int) -> bytes:
    parts = b""
    while len(parts) < count:
        part = os.read(descriptor, count - len(parts))
        if not part:
            sys.exit(0)  # the parent has closed the pool, or is gone
        parts += part
    return parts


def _write(descriptor: int, parts: list[bytes | memoryview]) -> None:
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[os.write(descriptor, view) :]


def main(arguments: list[str]) -> None:
    """Serve requests from the standard input; nothing that a library prints can get into the answers."""
    settings: dict[str, Any] = json.loads(arguments[0])
    limits = Limits(**settings)
    requests, answers = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    _set_limits(limits)
    opened = _OpenFile(limits)
    _write(answers, wire.pack({"ready": True}))
    while True:
        header_bytes, payload_bytes = wire.sizes(_read_exactly(requests, wire.PREFIX.size), payload_bytes_max=0)
        request, _ = wire.unpack(_read_exactly(requests, header_bytes), bytearray(payload_bytes))
        _grant_processor_time(limits.cpu_seconds)
        _write(answers, _answer_or_error(request, opened, limits))


if __name__ == "__main__":
    main(sys.argv[1:])
