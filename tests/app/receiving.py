"""Receive folders in processes that a test may kill: `python -m tests.app.receiving DATABASE_URL STATE_FOLDER`.

For each folder named on stdin a child is forked (nothing has to be imported again), which prints its process id and
then the SOP Instance UID and SHA-256 of each file that `receive` acknowledges. `gone` follows when it has ended.
"""

import os
import sys
from pathlib import Path

from app.db.session import engine, sessions
from app.identity import LOCAL_USER
from app.receive import Received, receive
from app.spool import Spool
from app.wiring import utc_now
from dicom_io.limits import Limits
from dicom_io.sandbox import Sandbox


def take_in(folder: Path, *, database_url: str, state: Path) -> None:
    with Sandbox(workers=1, limits=Limits()) as sandbox:
        arrivals = receive(
            [folder],
            spool=Spool(state / "spool"),
            sandbox=sandbox,
            sessions=sessions(engine(database_url), checkpoint=state / "checkpoint.json"),
            limits=Limits(),
            scratch=state / "scratch",
            actor=LOCAL_USER,
            now=utc_now,
        )
        for arrival in arrivals:
            assert isinstance(arrival, Received), arrival
            say(arrival.instance.ref.sop_instance_uid, arrival.sha256)


def say(*words: str) -> None:
    """One write a line: a killed process leaves no half of one."""
    os.write(sys.stdout.fileno(), f"{' '.join(words)}\n".encode())


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            say("pid", str(os.getpid()))
            take_in(Path(line.strip()), database_url=sys.argv[1], state=Path(sys.argv[2]))
            os._exit(0)
        os.waitpid(child, 0)
        say("gone")
