"""Run `hilum serve` as its users do, and stop and start it at will."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.services import free_port

COMMAND = [sys.executable, "-c", "from app.cli import main; raise SystemExit(main())", "serve"]
ROOT = Path(__file__).parents[2]


class Server:
    """One server on one state folder; the port stays when it is started again."""

    def __init__(self, folder: Path, *, model_folder: Path | None) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("HILUM__")}
        self._environment["PYTHONPATH"] = str(ROOT)
        if model_folder is not None:
            self._environment["HILUM__MODEL__PATH"] = str(model_folder)
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start, and wait for the line that says where the page is."""
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [*COMMAND, "--port", str(self.port)],
                cwd=self.folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert self.url in line, self.log()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; the exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        status = self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return status

    def log(self) -> str:
        """What the server has said on stderr."""
        return (self.folder / "log").read_text()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.stop()
