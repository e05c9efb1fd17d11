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
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.vision_model.tiny import tiny_model
from tests.web.images import chest_film
from tests.web.server import ROOT, Server

KILLS = 20


def test_twenty_kills_during_uploads_and_stow_lose_and_double_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path, model_folder=tiny_model(tmp_path / "model"))
    rng = np.random.default_rng(20)
    uploaded: list[str] = []
    stowed: list[str] = []
    for _ in range(KILLS):
        server.start()
        before = len(uploaded) + len(stowed)
        senders = [
            threading.Thread(target=_send, args=(server.port, *how))
            for how in ((uploaded, _upload), (uploaded, _upload), (stowed, _stow))
        ]
        for sender in senders:
            sender.start()
        while len(uploaded) + len(stowed) == before and any(sender.is_alive() for sender in senders):
            time.sleep(0.01)  # the first answer of this life, so that each kill has something to lose
        time.sleep(float(rng.uniform(0, 0.3)))
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        for sender in senders:
            sender.join()
    stored = Counter(sop for (sop,) in _rows(tmp_path, "SELECT sop_instance_uid FROM instance"))
    assert len(uploaded) + len(stowed) >= KILLS
    assert uploaded
    assert stowed
    assert {*uploaded, *stowed} <= set(stored)
    assert max(stored.values()) == 1
    command = [sys.executable, "-c", "from app.cli import main; raise SystemExit(main())", "audit", "verify", "--files"]
    verified = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr


def _send(port: int, acknowledged: list[str], ask: Callable[[http.client.HTTPConnection], list[str]]) -> None:
    """Send films one after another until the server is gone; note the UIDs of those that it says it keeps."""
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            acknowledged += ask(connection)
        except (OSError, http.client.HTTPException, ValueError):
            return  # cut off: not acknowledged, whatever was kept
        finally:
            connection.close()


def _upload(connection: http.client.HTTPConnection) -> list[str]:
    """As the page does."""
    connection.request("POST", "/api/files?name=film.dcm", body=chest_film(age="045Y"))
    said = [json.loads(line) for line in connection.getresponse().read().splitlines()]
    return [one["sop_instance_uid"] for one in said if one.get("outcome") == "stored"]


def _stow(connection: http.client.HTTPConnection) -> list[str]:
    """STOW-RS (PS3.18 10.5)."""
    head = b"--edge\r\nContent-Type: application/dicom\r\n\r\n"
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=edge'}
    body = head + chest_film(age="045Y") + b"\r\n--edge--\r\n"
    connection.request("POST", "/dicom-web/studies", body=body, headers=headers)
    said = json.loads(connection.getresponse().read())
    return [one["00081155"]["Value"][0] for one in said["00081199"]["Value"]]  # Referenced SOP Sequence: what is kept


def _rows(folder: Path, query: str) -> Iterator[tuple[str]]:
    with sqlite3.connect(folder / "var/hilum.db") as database:
        yield from database.execute(query)
    database.close()
