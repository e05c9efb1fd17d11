"""The decoding processes: killed, hung, starved or lying, they are a coded error here and nothing more."""

import fcntl
import json
import os
import signal
import struct
import sys
import termios
import threading
import time
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from dicom_io import wire
from dicom_io.errors import (
    DicomError,
    Malformed,
    SandboxAnswerRefused,
    SandboxCrashed,
    SandboxOutOfMemory,
    SandboxTimedOut,
    SandboxUnavailable,
)
from dicom_io.limits import MIB, Limits
from dicom_io.read import Sandbox, frames, read_instance
from dicom_io.sandbox import _Worker
from dicom_io.types import Frame, InstanceRef, VoiLut, Window
from tests.dicom_io import build
from tests.dicom_io.conftest import packaged

REF = InstanceRef("1.2", "1.3", "1.4", "1.5")


@pytest.fixture
def own_sandbox(limits: Limits) -> Iterator[Sandbox]:
    """A sandbox that a test may break."""
    with Sandbox(workers=1, limits=limits) as made:
        yield made


def worker_of(sandbox: Sandbox) -> _Worker:
    worker = sandbox._idle[-1]
    assert worker is not None
    return worker


def waiting_bytes(worker: _Worker) -> int:
    """How much lies in the pipe of requests that the process has not read yet."""
    count = array("i", [0])
    fcntl.ioctl(worker._requests, termios.FIONREAD, count)
    return count[0]


def stopped(process_id: int) -> bool:
    return "T (stopped)" in Path(f"/proc/{process_id}/status").read_text()


def test_a_process_killed_between_files_is_replaced_unseen(own_sandbox: Sandbox) -> None:
    read_instance(packaged("CT_small.dcm"), sandbox=own_sandbox)
    worker = worker_of(own_sandbox)
    os.kill(worker.process_id, signal.SIGKILL)
    worker._process.wait()
    assert read_instance(packaged("MR_small.dcm"), sandbox=own_sandbox).modality == "MR"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_process_that_dies_on_a_file_is_an_error_and_the_next_file_reads(
    own_sandbox: Sandbox, number: signal.Signals
) -> None:
    read_instance(packaged("CT_small.dcm"), sandbox=own_sandbox)
    worker = worker_of(own_sandbox)
    process_id = worker.process_id
    os.kill(process_id, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        pending = threads.submit(read_instance, packaged("MR_small.dcm"), sandbox=own_sandbox)
        while not waiting_bytes(worker):  # a process that dies before it is given the file is replaced unseen
            time.sleep(0.01)
        os.kill(process_id, number)
        os.kill(process_id, signal.SIGCONT)
        with pytest.raises(SandboxCrashed, match=f"{number.name}|before it took the file"):
            pending.result()
    assert read_instance(packaged("MR_small.dcm"), sandbox=own_sandbox).modality == "MR"


def test_a_process_that_does_not_answer_is_ended_at_the_time_limit(limits: Limits) -> None:
    with Sandbox(workers=1, limits=replace(limits, wall_seconds=2.0)) as sandbox:
        read_instance(packaged("CT_small.dcm"), sandbox=sandbox)
        process_id = worker_of(sandbox).process_id
        os.kill(process_id, signal.SIGSTOP)
        with pytest.raises(SandboxTimedOut, match=r"more than 2 s"):
            read_instance(packaged("MR_small.dcm"), sandbox=sandbox)
        assert not Path(f"/proc/{process_id}").exists()


def test_a_file_that_needs_too_much_processor_time_is_ended(limits: Limits, tmp_path: Path) -> None:
    """Elements by the million in a sequence: slow to parse, small to send."""
    item = build.element(0x0008, 0x1150, b"UI", b"") * 400_000
    sequence = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item
    whole = build.part10(build.data_set(np.zeros((2, 2), np.uint8)))
    # (0008,1115) with undefined length is parsed at once.
    nested = struct.pack("<HH2sHI", 0x0008, 0x1115, b"SQ", 0, 0xFFFFFFFF) + sequence * 4 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    at = whole.index(b"\x20\x00\x0d\x00UI")
    path = build.write(tmp_path, whole[:at] + nested + whole[at:])
    with Sandbox(workers=1, limits=replace(limits, cpu_seconds=1)) as sandbox:
        with pytest.raises(SandboxTimedOut, match="1 s of processor time"):
            read_instance(path, sandbox=sandbox)
        assert read_instance(packaged("MR_small.dcm"), sandbox=sandbox).modality == "MR"


def test_a_process_needs_little_memory_for_a_small_file(limits: Limits) -> None:
    with Sandbox(workers=1, limits=replace(limits, memory_bytes=320 * MIB)) as sandbox:
        instance = read_instance(packaged("CT_small.dcm"), sandbox=sandbox)
        assert len(list(frames(instance, sandbox=sandbox))) == 1


def test_memory_that_is_not_to_be_had_is_said_so(limits: Limits, tmp_path: Path) -> None:
    zeros = np.zeros((5000, 5000), np.uint16)
    path = build.write(tmp_path, build.part10(build.data_set(zeros)))
    with Sandbox(workers=1, limits=replace(limits, memory_bytes=230 * MIB)) as sandbox:
        instance = read_instance(path, sandbox=sandbox)
        with pytest.raises(SandboxOutOfMemory):
            next(frames(instance, sandbox=sandbox))
        assert read_instance(packaged("MR_small.dcm"), sandbox=sandbox).modality == "MR"


def test_a_process_that_ends_at_once_is_said_so(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Sandbox(workers=1, limits=limits) as sandbox, pytest.raises(SandboxUnavailable, match="did not start"):
        read_instance(packaged("CT_small.dcm"), sandbox=sandbox)


def test_a_process_that_cannot_be_started_is_said_so(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(SandboxUnavailable, match="cannot be started"):
        Sandbox(workers=1, limits=limits)


def test_processes_have_their_limits(own_sandbox: Sandbox, limits: Limits) -> None:
    read_instance(packaged("CT_small.dcm"), sandbox=own_sandbox)
    rows = Path(f"/proc/{worker_of(own_sandbox).process_id}/limits").read_text().splitlines()
    soft = {row[:26].strip(): row[26:].split()[0] for row in rows[1:]}
    assert soft["Max address space"] == str(limits.memory_bytes)
    assert soft["Max file size"] == "0"
    assert soft["Max core file size"] == "0"
    assert int(soft["Max cpu time"]) <= limits.cpu_seconds + 10


def test_processes_know_no_secrets_of_the_parent(monkeypatch: pytest.MonkeyPatch, limits: Limits) -> None:
    monkeypatch.setenv("HILUM__STORAGE__DATABASE_URL", "postgresql://user:secret@db/hilum")
    with Sandbox(workers=1, limits=limits) as sandbox:
        read_instance(packaged("CT_small.dcm"), sandbox=sandbox)
        known = Path(f"/proc/{worker_of(sandbox).process_id}/environ").read_bytes()
    assert b"secret" not in known


def test_processes_end_with_the_pool(limits: Limits) -> None:
    sandbox = Sandbox(workers=2, limits=limits)
    ids = [worker.process_id for worker in sandbox._idle if worker is not None]
    sandbox.close()
    assert len(ids) == 2
    assert not any(Path(f"/proc/{process_id}").exists() for process_id in ids)
    with pytest.raises(SandboxUnavailable, match="closed"):
        read_instance(packaged("CT_small.dcm"), sandbox=sandbox)


def test_closing_twice_is_allowed(limits: Limits) -> None:
    sandbox = Sandbox(workers=1, limits=limits)
    sandbox.close()
    sandbox.close()


def test_a_pool_without_processes_is_a_mistake(limits: Limits) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Sandbox(workers=0, limits=limits)


def test_many_threads_share_few_processes(limits: Limits) -> None:
    names = ["CT_small.dcm", "MR_small.dcm", "examples_ybr_color.dcm", "SC_rgb_rle_2frame.dcm", "nothing.dcm"]
    expected: dict[str, object] = {}
    barrier = threading.Barrier(8)

    def read(name: str, sandbox: Sandbox) -> object:
        path = packaged(name) if name != "nothing.dcm" else Path("nothing.dcm")
        try:
            instance = read_instance(path, sandbox=sandbox)
            return [float(one.pixels.sum()) for one in frames(instance, sandbox=sandbox, numbers=[1])]
        except DicomError as exc:
            return exc.code

    def read_all(start: int, sandbox: Sandbox) -> list[tuple[str, object]]:
        barrier.wait()
        order = [names[(start + n) % len(names)] for n in range(20)]
        return [(name, read(name, sandbox)) for name in order]

    with Sandbox(workers=2, limits=limits) as sandbox, ThreadPoolExecutor(8) as threads:
        for answers in threads.map(lambda start: read_all(start, sandbox), range(8)):
            for name, answer in answers:
                assert expected.setdefault(name, answer) == answer
    assert expected["nothing.dcm"] == "dicom.file-unreadable"


def test_a_file_that_changes_is_parsed_again(own_sandbox: Sandbox, tmp_path: Path) -> None:
    path = build.write(tmp_path, build.part10(build.data_set(np.zeros((2, 2), np.uint8), Modality="CR")))
    assert read_instance(path, sandbox=own_sandbox).modality == "CR"
    build.write(tmp_path, build.part10(build.data_set(np.zeros((3, 3), np.uint16), Modality="DX")))
    assert read_instance(path, sandbox=own_sandbox).modality == "DX"


def frame_answer(**changes: object) -> tuple[wire.Message, list[np.ndarray]]:
    frame = Frame(
        ref=REF,
        number=1,
        pixels=np.zeros((2, 2), np.float32),
        spacing_mm=(0.5, 0.5),
        windows=(Window(1, 2),),
        voi_luts=(VoiLut(0, np.array([0, 1], np.float32)),),
        decoder="x",
    )
    header, arrays = wire.frame_message(frame)
    header["frame"].update(changes)
    return json.loads(json.dumps(header)), arrays


def test_a_frame_survives_the_wire() -> None:
    header, arrays = frame_answer()
    parts = b"".join(bytes(part) for part in wire.pack(header, arrays))
    header_bytes, payload_bytes = wire.sizes(parts[: wire.PREFIX.size], payload_bytes_max=1000)
    body = parts[wire.PREFIX.size :]
    assert len(body) == header_bytes + payload_bytes
    frame = wire.frame_from(*wire.unpack(body[:header_bytes], bytearray(body[header_bytes:])), ref=REF, number=1)
    assert frame.windows == (Window(1, 2),)
    assert frame.spacing_mm == (0.5, 0.5)
    assert frame.voi_luts[0].entries.tolist() == [0, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 2},
        {"spacing_mm": [1]},
        {"spacing_mm": "12"},
        {"windows": [{"centre": 1, "width": 0, "function": "LINEAR", "explanation": None}]},
        {"windows": [{"centre": 1, "width": 5, "function": "EVAL", "explanation": None}]},
        {"windows": [{"centre": float("nan"), "width": 5, "function": "LINEAR", "explanation": None}]},
        {"windows": 7},
        {"voi_luts": []},
        {"decoder": None},
        {"warnings": [1]},
    ],
)
def test_a_lying_process_cannot_forge_a_frame(changes: dict[str, object]) -> None:
    good = frame_answer()
    assert wire.frame_from(*good, ref=REF, number=1).number == 1
    header, arrays = frame_answer(**changes)
    with pytest.raises(SandboxAnswerRefused):
        wire.frame_from(header, arrays, ref=REF, number=1)


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        (b"", b""),
        (b"[]", b""),
        (b"{}", b""),
        (b'{"arrays": [[1000000000, 1000000000]]}', b""),
        (b'{"arrays": [[-1, 4]]}', b""),
        (b'{"arrays": [[2]]}', b"1234"),
        (b'{"arrays": [["2"]]}', b"12345678"),
        (b'{"arrays": ' + b"[" * 100_000, b""),
        (b"\xff\xfe", b""),
    ],
)
def test_nonsense_from_a_process_is_refused(text: bytes, payload: bytes) -> None:
    with pytest.raises(SandboxAnswerRefused):
        wire.unpack(text, bytearray(payload))


@pytest.mark.parametrize(
    "prefix",
    [
        wire.PREFIX.pack(b"XXXX", 1, 1),
        wire.PREFIX.pack(wire.MAGIC, 2**32 - 1, 0),
        wire.PREFIX.pack(wire.MAGIC, 1, 2**63),
    ],
)
def test_an_answer_over_the_caps_is_refused_before_memory_is_given(prefix: bytes) -> None:
    with pytest.raises(SandboxAnswerRefused):
        wire.sizes(prefix, payload_bytes_max=1000)


def test_only_errors_of_the_tree_come_through() -> None:
    with pytest.raises(Malformed, match="so it is"):
        wire.raise_error({"error": {"code": "dicom.malformed", "message": "so it is"}})
    for stated in ({"code": "os.system", "message": ""}, "rm -rf", {"message": "x"}):
        with pytest.raises(SandboxAnswerRefused):
            wire.raise_error({"error": stated})


@pytest.mark.parametrize(
    "field", ["ref", "patient", "rows", "number_of_frames", "position_mm", "warnings", "study_date"]
)
def test_a_lying_process_cannot_forge_an_instance(sandbox: Sandbox, field: str) -> None:
    path = packaged("CT_small.dcm")
    good = wire.instance_message(read_instance(path, sandbox=sandbox))
    assert wire.instance_from(json.loads(json.dumps(good)), path=path).rows == 128
    for bad in ("../../x", [1], {"study_instance_uid": "../x"}, 2**40, True):
        forged = json.loads(json.dumps(good))
        forged["instance"][field] = bad
        with pytest.raises(SandboxAnswerRefused):
            wire.instance_from(forged, path=path)


def test_limits_reach_the_process_as_they_are() -> None:
    assert Limits(**json.loads(json.dumps(asdict(Limits())))) == Limits()
