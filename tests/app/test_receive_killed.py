"""A receiver that is killed at any moment has kept what it acknowledged, and nothing twice."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from sqlalchemy import Engine, select

from app import scratch
from app.db import audit
from app.db.checkpoint import Checkpoint
from app.db.session import sessions
from app.db.tables import Reception, StoredInstance
from app.spool import Spool
from tests.app.films import film

ROOT = Path(__file__).resolve().parents[2]
KILLS = {"sqlite": 20, "postgresql": 6}  # the receiver is the same; what differs is one commit
FILES_A_FOLDER = 6


@contextmanager
def receiver(database_url: str, state: Path) -> Iterator[tuple[IO[str], IO[str]]]:
    """What the receiving process reads from us, and what it prints."""
    command = [sys.executable, "-m", "tests.app.receiving", database_url, str(state)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        yield process.stdin, process.stdout
        process.stdin.close()
    assert process.returncode == 0


def receive_and_kill(
    folder: Path, *, to: IO[str], printed: IO[str], after: int | None, delay_s: float
) -> dict[str, str]:
    """What was acknowledged (UID -> SHA-256) before the kill, which comes `delay_s` after the `after`-th line."""
    to.write(f"{folder}\n")
    to.flush()
    acknowledged: dict[str, str] = {}
    process_id = 0
    for count, line in enumerate(iter(printed.readline, "")):
        words = line.split()
        if words == ["gone"]:
            return acknowledged
        if words[0] == "pid":
            process_id = int(words[1])
        else:
            acknowledged[words[0]] = words[1]
        if count == after:
            time.sleep(delay_s)
            with suppress(ProcessLookupError):  # it was faster
                os.kill(process_id, signal.SIGKILL)
    raise AssertionError("the receiving process ended by itself")


def test_what_was_acknowledged_is_kept_once_whenever_the_receiver_is_killed(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    rng = np.random.default_rng(20)
    state, incoming = tmp_path / "state", tmp_path / "in"
    acknowledged: dict[str, str] = {}
    with receiver(database_url, state) as (to, printed):
        for attempt in range(KILLS[engine.dialect.name]):
            # A sender sends again what was not acknowledged, and some of what was.
            folder = incoming / f"{attempt:02}"
            for number in range(4 * attempt, 4 * attempt + FILES_A_FOLDER):
                film(folder, number, series=1 + number % 3)
            # After the first line the decoding process starts, which takes long; then a file takes about 20 ms.
            after = int(rng.integers(0, FILES_A_FOLDER))
            delay_s = float(rng.uniform(0, 0.03 if after else 0.7))
            acknowledged |= receive_and_kill(folder, to=to, printed=printed, after=after, delay_s=delay_s)
        everything = receive_and_kill(incoming, to=to, printed=printed, after=None, delay_s=0)

    spool = Spool(state / "spool")
    with sessions(engine, checkpoint=None)() as session:
        stored = {row.sop_instance_uid: row.sha256 for row in session.scalars(select(StoredInstance))}
        receptions = session.scalars(select(Reception.sop_instance_uid).where(Reception.outcome == "stored")).all()
        report = audit.verify(session, Checkpoint(state / "checkpoint.json"))
    assert acknowledged
    assert acknowledged.items() <= stored.items()
    assert stored == everything
    for sha256 in stored.values():
        spool.check(sha256)
    assert set(Counter(receptions).values()) == {1}
    assert report.broken is None
    scratch.sweep(state / "scratch")
    assert [left for left in (state / "scratch").iterdir() if left.is_dir()] == []
