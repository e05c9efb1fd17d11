"""What the server has acknowledged is there after `kill -9`, and nothing is there twice."""

import http.client
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.vision_model.tiny import tiny_model
from tests.web.images import chest_film
from tests.web.server import ROOT, Server

KILLS = 20
SENDERS = 2


def test_twenty_kills_during_uploads_lose_and_double_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path, model_folder=tiny_model(tmp_path / "model"))
    rng = np.random.default_rng(20)
    acknowledged: list[str] = []
    for _ in range(KILLS):
        server.start()
        before = len(acknowledged)
        senders = [threading.Thread(target=_send, args=(server.port, acknowledged)) for _ in range(SENDERS)]
        for sender in senders:
            sender.start()
        while len(acknowledged) == before and any(sender.is_alive() for sender in senders):
            time.sleep(0.01)  # the first answer of this life, so that each kill has something to lose
        time.sleep(float(rng.uniform(0, 0.3)))
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        for sender in senders:
            sender.join()
    stored = Counter(sop for (sop,) in _rows(tmp_path, "SELECT sop_instance_uid FROM instance"))
    assert len(acknowledged) >= KILLS
    assert set(acknowledged) <= set(stored)
    assert max(stored.values()) == 1
    command = [sys.executable, "-c", "from app.cli import main; raise SystemExit(main())", "audit", "verify", "--files"]
    verified = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr


def _send(port: int, acknowledged: list[str]) -> None:
    """Send films one after another until the server is gone; note the UIDs of those that it says it keeps."""
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("POST", "/api/files?name=film.dcm", body=chest_film(age="045Y"))
            for line in connection.getresponse().read().splitlines():
                said = json.loads(line)
                if said.get("outcome") == "stored":
                    acknowledged.append(said["sop_instance_uid"])
        except (OSError, http.client.HTTPException, ValueError):
            return  # cut off: not acknowledged, whatever was kept
        finally:
            connection.close()


def _rows(folder: Path, query: str) -> Iterator[tuple[str]]:
    with sqlite3.connect(folder / "var/hilum.db") as database:
        yield from database.execute(query)
    database.close()
