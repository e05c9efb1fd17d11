"""Start the real programs that tests talk to."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest


def require(binary: str) -> Path:
    """Where a program is; a test that needs one that is not installed is skipped by its name.

    With HILUM_REQUIRE_SERVICES=1 it fails instead, so that CI cannot lose tests quietly.
    """
    # Debian keeps PostgreSQL's programs out of PATH, by version.
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), *map(Path, os.get_exec_path())]
    for place in places:
        if os.access(place / binary, os.X_OK):
            return place / binary
    message = f"{binary} is not installed"
    if os.environ.get("HILUM_REQUIRE_SERVICES") == "1":
        pytest.fail(message)
    pytest.skip(message)


def dcmtk(name: str) -> Path:
    """A program of dcmtk: pynetdicom brings some of the same names, which an environment puts before them."""
    return next(path for path in (Path("/usr/bin") / name, require(name)) if path.is_file())


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PostgreSQL:
    """A server of our own on a loopback port, gone with everything in it after the tests."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._made = 0

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create(self, *, template: str = "template0") -> str:
        """A new database as a copy of another; its URL."""
        self._made += 1
        name = f"hilum_{self._made}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Databases left behind would be thousands of files to remove at the end."""
        self.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """PostgreSQL refuses to run as root, so root starts it as user postgres."""
    initdb, pg_ctl = require("initdb"), require("pg_ctl")
    as_root = os.geteuid() == 0
    prefix: list[str | Path] = [require("runuser"), "-u", "postgres", "--"] if as_root else []
    # Not under pytest's own folder, which user postgres may not enter.
    folder = Path(tempfile.mkdtemp(prefix="hilum-postgresql-"))
    if as_root:
        os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
    port = free_port()
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    data, log = folder / "data", folder / "log"
    try:
        _run([*prefix, initdb, "--pgdata", data, "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"])
        _run([*prefix, pg_ctl, "start", "--wait", "--pgdata", data, "--log", log, "--options", settings])
        try:
            yield PostgreSQL(port)
        finally:
            _run([*prefix, pg_ctl, "stop", "--mode=immediate", "--pgdata", data])
    finally:
        shutil.rmtree(folder)


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
