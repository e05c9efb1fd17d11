"""A pool of decoding processes with limits on memory and time. A file that kills one is a plain error here.

The processes are started fresh (no fork of this process, whose threads may hold locks), know no secrets of it, and
answer in JSON and raw bytes (`dicom_io.wire`). One file stays open in each, so the frames of a long object are decoded
one by one without parsing it again.
"""

import fcntl
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dicom_io import wire
from dicom_io.errors import SandboxCrashed, SandboxError, SandboxTimedOut, SandboxUnavailable
from dicom_io.limits import Limits
from dicom_io.types import Evidence, Frame, Instance

logger = logging.getLogger(__name__)

_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
_PIPE_BYTES = 1 << 20
# Room for the VOI LUTs that travel with a frame.
_LUT_BYTES = 16 << 20


class _Worker:
    """One decoding process. Used by one thread at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._ready = False
        self._started = time.monotonic()
        self.last_path: Path | None = None
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module in our own interpreter
                [sys.executable, "-I", "-m", "dicom_io.sandbox_worker", json.dumps(asdict(limits))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # More threads of numpy's BLAS would only take address space.
                env=environment | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
                bufsize=0,
                start_new_session=True,  # Ctrl-C in a terminal is for the parent to handle
            )
        except OSError as exc:
            raise SandboxUnavailable(f"a decoding process cannot be started ({exc.strerror})") from exc
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        if sys.platform == "linux":
            fcntl.fcntl(self._answers, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    @property
    def process_id(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, request: wire.Message) -> tuple[wire.Message, list[NDArray[np.float32]]]:
        """Send one request and wait for its answer, within the limits; raises SandboxError when none comes."""
        if not self._ready:
            self._await_ready()
        deadline = time.monotonic() + self._limits.wall_seconds
        try:
            for part in wire.pack(request):
                os.write(self._requests, part)
        except OSError as exc:
            raise SandboxCrashed("the decoding process died before it took the file") from exc
        return self._read_message(deadline, "the file took more than {} s".format(f"{self._limits.wall_seconds:g}"))

    def end(self) -> None:
        """Kill the process if it still runs, and take its remains away."""
        if self.alive:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _await_ready(self) -> None:
        deadline = self._started + self._limits.start_seconds
        try:
            self._read_message(max(deadline, time.monotonic() + 1.0), "it did not come up in time")
        except SandboxError as exc:
            raise SandboxUnavailable(
                f"the decoding process did not start: {exc}; its memory limit is {self._limits.memory_bytes} bytes"
            ) from exc
        self._ready = True

    def _read_message(self, deadline: float, late: str) -> tuple[wire.Message, list[NDArray[np.float32]]]:
        prefix = self._read(wire.PREFIX.size, deadline, late)
        header_bytes, payload_bytes = wire.sizes(bytes(prefix), payload_bytes_max=self._limits.frame_bytes + _LUT_BYTES)
        header = self._read(header_bytes, deadline, late)
        return wire.unpack(bytes(header), self._read(payload_bytes, deadline, late))

    def _read(self, count: int, deadline: float, late: str) -> bytearray:
        buffer = bytearray(count)
        view, done = memoryview(buffer), 0
        while done < count:
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0 or not self._poll.poll(left_seconds * 1000):
                raise SandboxTimedOut(late)
            got = os.readv(self._answers, [view[done:]])
            if got == 0:
                raise self._death()
            done += got
        return buffer

    def _death(self) -> SandboxError:
        """Why the process closed its end."""
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return SandboxCrashed("the decoding process closed its output")
        if status == -signal.SIGXCPU:
            return SandboxTimedOut(f"the file took more than {self._limits.cpu_seconds} s of processor time")
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return SandboxCrashed(f"the decoding process died on this file ({how})")


class Sandbox:
    """Reads headers and decodes frames in separate processes. Thread-safe; use as a context manager or `close` it."""

    def __init__(self, *, workers: int, limits: Limits) -> None:
        if workers < 1:
            raise ValueError("a sandbox needs at least one worker")
        self.limits = limits
        self._changed = threading.Condition()
        self._closed = False
        # Last in, first out, so that one thread alone keeps one process warm. None: to be started when needed.
        self._idle: list[_Worker | None] = []
        try:
            for _ in range(workers):
                self._idle.append(_Worker(limits))
        except SandboxUnavailable:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes; those at work are ended when they have answered."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for worker in idle:
            if worker is not None:
                worker.end()

    def instance(self, path: Path) -> Instance:
        """Read the header of one file; raises DicomError."""
        header, _ = self._ask({"ask": "instance"}, path)
        return wire.instance_from(header, path=path)

    def frame(self, instance: Instance, number: int) -> Frame:
        """Decode one frame (1-based); raises DicomError."""
        header, arrays = self._ask({"ask": "frame", "number": number}, instance.path)
        return wire.frame_from(header, arrays, ref=instance.ref, number=number)

    def evidence(self, path: Path) -> Evidence:
        """Read what a report must know of one file's image; raises DicomError."""
        header, _ = self._ask({"ask": "evidence"}, path)
        return wire.evidence_from(header)

    def metadata(self, path: Path, *, bulk_url: str) -> wire.Message:
        """One file's data set in the DICOM JSON model (PS3.18 Annex F), large values as URIs under `bulk_url`.

        Raises DicomError.
        """
        return wire.data_set_from(*self._ask({"ask": "metadata", "bulk_url": bulk_url}, path))

    def bulk_value(self, path: Path, place: str) -> bytes:
        """The value that `metadata` left out under this place, little endian; raises DicomError."""
        return wire.content_from(*self._ask({"ask": "bulk", "place": place}, path))

    def stored_frame(self, path: Path, number: int) -> bytes:
        """One frame (1-based) as stored: the codestream, or native samples in little endian; raises DicomError."""
        return wire.content_from(*self._ask({"ask": "stored frame", "number": number}, path))

    def references(self, dicomdir: Path) -> list[list[str]]:
        """The files that a DICOMDIR names, as components, not yet checked; raises DicomError."""
        header, _ = self._ask({"ask": "references"}, dicomdir)
        return wire.references_from(header)

    def _ask(self, request: wire.Message, path: Path) -> tuple[wire.Message, list[NDArray[np.float32]]]:
        path = path.absolute()
        worker = self._take(path)
        try:
            answer = worker.ask({**request, "path": os.fspath(path)})
        except BaseException as exc:
            worker.end()
            self._give_back(None)
            if isinstance(exc, SandboxError):
                logger.warning("a decoding process was ended: %s", exc)
            raise
        worker.last_path = path
        self._give_back(worker)
        wire.raise_error(answer[0])
        return answer

    def _take(self, path: Path) -> _Worker:
        """A free process, if possible the one that has this file open; waits for one."""
        with self._changed:
            while not self._idle and not self._closed:
                self._changed.wait()
            if self._closed:
                raise SandboxUnavailable("the sandbox is closed")
            warm = (n for n, one in enumerate(self._idle) if one is not None and one.last_path == path)
            worker = self._idle.pop(next(warm, len(self._idle) - 1))
        if worker is not None and not worker.alive:
            worker.end()
            worker = None
        if worker is not None:
            return worker
        try:
            return _Worker(self.limits)
        except BaseException:
            self._give_back(None)
            raise

    def _give_back(self, worker: _Worker | None) -> None:
        with self._changed:
            if not self._closed:
                # A place without a process goes to the bottom, so that running ones are used first.
                self._idle.insert(len(self._idle) if worker is not None else 0, worker)
                self._changed.notify()
                return
        if worker is not None:
            worker.end()
