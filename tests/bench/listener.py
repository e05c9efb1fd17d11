"""Time and torment `hilum listen` beside the servers that departments have: `python -m tests.bench.listener`.

    rates     files a second, against DCMTK's storescp and Orthanc in the same run
    kills     kill -9 at random moments while four associations store: acknowledged = stored
    loop      from the last C-STORE to the report in Orthanc, less the quiet time that is waited for
    memory    of the listener under many associations, and under half-open sockets with an honest peer beside them

Each prints JSON. Files are made here; nothing outlives the run.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from pynetdicom import AE
from sqlalchemy import select

from app.db import audit
from app.db.session import engine, sessions
from app.db.tables import Reception, StoredInstance
from app.spool import Spool
from tests.app.films import DX_IMAGE
from tests.dicom_io.build import data_set, part10
from tests.services import dcmtk, free_port, orthanc

MEGABYTE = 1_000_000


def main() -> None:
    """Run the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("rates", "kills", "loop", "memory"))
    parser.add_argument("--files", type=int, default=500, help="of 0.5 MB each (default: 500)")
    parser.add_argument("--large-files", type=int, default=40, help="of 10 MB each (default: 40)")
    parser.add_argument("--kills", type=int, default=200, help="default: 200")
    parser.add_argument("--studies", type=int, default=50, help="of one image each, for the loop (default: 50)")
    parser.add_argument("--slices", type=int, default=200, help="of one series, for the loop (default: 200)")
    parser.add_argument("--seconds", type=float, default=300, help="of 25 associations at once (default: 300)")
    parser.add_argument("--database", help="URL of an empty database (default: SQLite)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hilum-bench-") as name:
        folder = Path(name)
        result: object
        if args.part == "rates":
            result = rates(folder, small=args.files, large=args.large_files, database=args.database)
        elif args.part == "kills":
            result = kills(folder, count=args.kills, database=args.database)
        elif args.part == "loop":
            result = loop(folder, studies=args.studies, slices=args.slices, database=args.database)
        else:
            result = memory(folder, seconds=args.seconds, database=args.database)
    print(json.dumps(result, indent=1))  # noqa: T201  # what was asked for


# What is stored, and what stores it.


def films(
    folder: Path, count: int, *, size_bytes: int, rng: np.random.Generator, images_a_study: int = 10
) -> list[Path]:
    """Uncompressed 16-bit images, whose pixels no disk can compress."""
    side = round((size_bytes / 2) ** 0.5)
    folder.mkdir(parents=True)
    written = []
    for number in range(count):
        if number % images_a_study == 0:
            study, series = generate_uid(), generate_uid()
        made = data_set(
            rng.integers(0, 4096, (side, side), dtype=np.uint16),
            SOPClassUID=DX_IMAGE,
            SOPInstanceUID=generate_uid(),
            StudyInstanceUID=study,
            SeriesInstanceUID=series,
            PatientID=f"BENCH{number // images_a_study}",
            Modality="DX",
        )
        written.append(folder / f"{number:05}.dcm")
        written[-1].write_bytes(part10(made))
    return written


class HilumListener:
    """`hilum listen` in a process of its own; what it keeps outlives `kill` and `start`."""

    def __init__(self, folder: Path, database: str | None, *, role: str = "listen", **pacs: str) -> None:
        self.port = free_port()
        self._command: list[str | Path] = [Path(sys.executable).with_name("hilum"), role]
        self.state, self.checkpoint = folder / "state", folder / "checkpoint.json"
        self.database = database or f"sqlite:///{folder / 'hilum.db'}"
        self.process: subprocess.Popen[bytes] | None = None
        self._environment = {
            **os.environ,
            "HILUM__STORAGE__DATABASE_URL": self.database,
            "HILUM__STORAGE__SPOOL": str(self.state),
            "HILUM__STORAGE__CHECKPOINT": str(self.checkpoint),
            "HILUM__PACS__PORT": str(self.port),
            "HILUM__PACS__CALLING_AE_TITLES": '["BENCH"]',
            "HILUM__PACS__MAXIMUM_ASSOCIATIONS_PER_HOST": "64",
            "HILUM__PACS__MAXIMUM_ASSOCIATIONS": "64",
            "HILUM__WEB__PORT": "0",
            **{f"HILUM__PACS__{key.upper()}": value for key, value in pacs.items()},
        }

    def start(self) -> None:
        """Returns once it answers a C-ECHO."""
        self.process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if echoed(self.port, "HILUM"):
                return
            assert self.process.poll() is None, "hilum listen ended by itself"
            time.sleep(0.05)
        raise AssertionError("hilum listen does not answer")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, its decoding processes too."""
        assert self.process is not None
        os.killpg(self.process.pid, how) if how is signal.SIGKILL else self.process.send_signal(how)
        self.process.wait(60)


@contextmanager
def hilum(folder: Path, database: str | None, *, role: str = "listen", **pacs: str) -> Iterator[HilumListener]:
    """A listener of ours that answers, gone after the block."""
    folder.mkdir(parents=True, exist_ok=True)
    listener = HilumListener(folder, database, role=role, **pacs)
    listener.start()
    try:
        yield listener
    finally:
        if listener.process is not None and listener.process.poll() is None:
            listener.stop()


@contextmanager
def storescp(folder: Path) -> Iterator[int]:
    """DCMTK's receiver, which forks for each association; its port."""
    folder.mkdir(parents=True)
    port = free_port()
    process = subprocess.Popen(
        [dcmtk("storescp"), "--fork", "-od", folder, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not echoed(port, "ANY-SCP"):
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def echoed(port: int, called: str) -> bool:
    """Whether somebody answers a C-ECHO there."""
    command: list[str | Path] = [
        dcmtk("echoscu"),
        "-aet",
        "BENCH",
        "-aec",
        called,
        "-to",
        "5",
        "-ta",
        "5",
        "127.0.0.1",
        str(port),
    ]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


# How fast.


def rates(folder: Path, *, small: int, large: int, database: str | None) -> dict[str, dict[str, float]]:
    """Files a second of every receiver for each load, and ours as a ratio to each other's.

    Every load goes to the receivers in turn, from the same sender (storescu, a process for each association), each time
    with fresh UIDs, so that nobody meets a duplicate.
    """
    rng = np.random.default_rng(4)
    loads = {
        "0.5 MB, 1 association": (small, 0.5, 1),
        "0.5 MB, 4 associations": (small, 0.5, 4),
        "10 MB, 1 association": (large, 10.0, 1),
    }
    found: dict[str, dict[str, float]] = {}
    with ExitStack() as servers:
        ours = servers.enter_context(hilum(folder / "hilum", database))
        theirs = servers.enter_context(orthanc())
        scp = servers.enter_context(storescp(folder / "storescp"))
        receivers = {"hilum": (ours.port, "HILUM"), "orthanc": (theirs.port, "ORTHANC"), "storescp": (scp, "ANY-SCP")}
        for load, (count, megabytes, associations) in loads.items():
            of_load: dict[str, float] = {}
            for name, (port, called) in receivers.items():
                sent = films(folder / "films", count, size_bytes=int(megabytes * MEGABYTE), rng=rng)
                os.sync()
                of_load[name] = count / send(sent, port, called, associations)
                shutil.rmtree(folder / "films")
            found[load] = {
                **{f"{name}, files/s": round(rate, 1) for name, rate in of_load.items()},
                "hilum / orthanc": round(of_load["hilum"] / of_load["orthanc"], 2),
                "hilum / storescp": round(of_load["hilum"] / of_load["storescp"], 2),
            }
    return found


def send(files: Sequence[Path], port: int, called: str, associations: int) -> float:
    """Seconds until the last of so many senders side by side has its last answer; every answer must be success."""

    def one(part: Sequence[Path]) -> None:
        command: list[str | Path] = [dcmtk("storescu"), "-aet", "BENCH", "-aec", called, "127.0.0.1", str(port), *part]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    parts = [files[i::associations] for i in range(associations)]
    started = time.perf_counter()
    with ThreadPoolExecutor(associations) as pool:
        list(pool.map(one, parts))
    return time.perf_counter() - started


# How safe.


def kills(folder: Path, *, count: int, database: str | None, rng_seed: int = 9) -> dict[str, object]:
    """Kill the listener `count` times while four associations store, and hold what it promised against what it has.

    A sender sends again what was not acknowledged, as modalities do. Raises AssertionError with what does not hold.
    """
    rng = np.random.default_rng(rng_seed)
    acknowledged: list[str] = []
    # Enough that something new is under way whenever the kill comes.
    made = films(folder / "films", 40 * count, size_bytes=40_000, rng=rng)
    sent = {str(dcmread(p, stop_before_pixels=True).SOPInstanceUID): p for p in made}
    fresh, chosen = iter(sent), list[str]()
    listener = HilumListener(folder, database)

    def store_some(part: list[str]) -> None:
        entity = AE("BENCH")
        entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 5
        entity.add_requested_context(DX_IMAGE, "1.2.840.10008.1.2.1")
        association = entity.associate("127.0.0.1", listener.port, ae_title="HILUM")
        if not association.is_established:
            return
        for uid in part:
            dataset = dcmread(sent[uid])
            try:
                status: Dataset = association.send_c_store(dataset)
            except (RuntimeError, ValueError):
                return
            if not status or status.Status != 0:
                return
            acknowledged.append(uid)
        association.release()

    rounds = 0
    for rounds in range(1, count + 1):  # noqa: B007  # told below
        listener.start()
        told = set(acknowledged)
        again = [uid for uid in chosen if uid not in told]
        chosen = again + list(islice(fresh, 40 - len(again)))
        with ThreadPoolExecutor(4) as pool:
            for part in range(4):
                pool.submit(store_some, chosen[part::4])
            # At a random moment of the work: after so many answers, the first of which takes long, and a bit more.
            enough, deadline = len(acknowledged) + int(rng.integers(0, 30)), time.monotonic() + 30
            while len(acknowledged) < enough and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(float(rng.uniform(0, 0.05)))
            listener.stop(signal.SIGKILL)
    told = set(acknowledged)
    return {"kills": rounds, "acknowledged": len(told), **kept(listener, sent=sent, acknowledged=told)}


def kept(listener: HilumListener, *, sent: dict[str, Path], acknowledged: set[str]) -> dict[str, object]:
    """What the listener holds after its last death, held against what it promised."""
    with sessions(engine(listener.database), checkpoint=listener.checkpoint)() as session:
        rows = session.scalars(select(StoredInstance)).all()
        uids = [row.sop_instance_uid for row in rows]
        spool = Spool(listener.state)
        for row in rows:
            spool.check(row.sha256)
            of_disk = dcmread(spool.path(row.sha256))
            assert of_disk.PixelData == dcmread(sent[row.sop_instance_uid]).PixelData
        outcomes = session.scalars(select(Reception.outcome)).all()
        broken = audit.verify(session, None).broken
    assert len(uids) == len(set(uids)), "an instance is there twice"
    assert (lost := acknowledged - set(uids)) == set(), f"{len(lost)} acknowledged instances are lost"
    assert "quarantined" not in outcomes, "the same bytes were taken for another object"
    assert broken is None, f"the audit chain is broken at {broken}"
    return {"stored": len(uids), "lost": 0, "doubled": 0, "audit": "holds"}


# How soon.

QUIET_SECONDS = 1.0


def loop(folder: Path, *, studies: int, slices: int, database: str | None) -> dict[str, float]:
    """Seconds until the report of each study is in a real Orthanc, the model that ships answering on this machine."""
    rng = np.random.default_rng(6)
    waited = []
    with ExitStack() as servers:
        theirs = servers.enter_context(orthanc())
        peer = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": str(theirs.port), "deliver": '["sr"]'}
        keys = {f"peers__archive__{key}": value for key, value in peer.items()}
        ours = servers.enter_context(
            hilum(folder / "hilum", database, role="serve", quiet_seconds=str(QUIET_SECONDS), **keys)
        )
        for number in range(studies + 1):
            count = slices if number == studies else 1
            sent = films(folder / str(number), count, size_bytes=MEGABYTE // 2, rng=rng, images_a_study=count)
            before = len(httpx.get(f"{theirs.url}/instances", trust_env=False).json())
            send(sent, ours.port, "HILUM", 1)
            started = time.perf_counter()
            while len(httpx.get(f"{theirs.url}/instances", trust_env=False).json()) == before:
                time.sleep(0.02)
            waited.append(time.perf_counter() - started - QUIET_SECONDS)
            shutil.rmtree(folder / str(number))
    return {
        "single images, median s": round(float(np.median(waited[:-1])), 2),
        "single images, worst s": round(max(waited[:-1]), 2),
        f"a series of {slices} images, s": round(waited[-1], 2),
    }


# How small, and whom it still serves.

ASSOCIATIONS, HALF_OPEN = 25, 130


def memory(folder: Path, *, seconds: float, database: str | None) -> dict[str, float]:
    """Largest resident memory of the listener with its decoding processes, and how long an honest peer waits."""
    rng = np.random.default_rng(5)
    with hilum(folder, database) as listener:
        assert listener.process is not None
        quiet = resident_mb(listener.process.pid)
        alone_s = send(films(folder / "alone", 20, size_bytes=MEGABYTE // 2, rng=rng), listener.port, "HILUM", 1) / 20
        with ExitStack() as sockets:
            for _ in range(HALF_OPEN):
                sockets.enter_context(socket.create_connection(("127.0.0.1", listener.port)))
            beside_s = send(films(folder / "beside", 20, size_bytes=MEGABYTE // 2, rng=rng), listener.port, "HILUM", 1)
        largest, stored, number = quiet, 0, 0
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            batch = films(folder / f"load{number}", 100, size_bytes=MEGABYTE // 2, rng=rng)
            with ThreadPoolExecutor(1) as pool:
                sending = pool.submit(send, batch, listener.port, "HILUM", ASSOCIATIONS)
                while not sending.done():
                    largest = max(largest, resident_mb(listener.process.pid))
                    time.sleep(0.2)
                sending.result()
            shutil.rmtree(folder / f"load{number}")
            stored, number = stored + len(batch), number + 1
    return {
        "resident at rest, MB": round(quiet),
        f"largest resident under {ASSOCIATIONS} associations, MB": round(largest),
        "files stored by them": stored,
        "honest peer, s a file": round(alone_s, 3),
        f"honest peer beside {HALF_OPEN} half-open sockets, s a file": round(beside_s / 20, 3),
    }


def resident_mb(process_id: int) -> float:
    """Resident memory of a process and its children; what they share counts for each."""
    total, waiting = 0.0, [process_id]
    while waiting:
        one = waiting.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text(encoding="ascii", errors="replace")
            children = [p.read_text(encoding="ascii").split() for p in Path(f"/proc/{one}/task").glob("*/children")]
        except OSError:  # it has just ended
            continue
        total += next((float(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)
        waiting += [int(child) for part in children for child in part]
    return total


if __name__ == "__main__":
    main()
