"""Start the real programs that tests talk to."""

import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
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


class Orthanc:
    """A PACS on loopback ports; what it holds outlives `stop` and `start`."""

    def __init__(self, folder: Path, *, ae_title: str = "ORTHANC") -> None:
        self.ae_title = ae_title
        self.port, self.http_port = free_port(), free_port()
        self._program = require("Orthanc")
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        plugins = [*Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so*")][:1]
        settings = {
            "Name": ae_title,
            "DicomAet": ae_title,
            "DicomPort": self.port,
            "HttpPort": self.http_port,
            "DicomServerEnabled": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowMove": True,
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(plugin) for plugin in plugins],
            "OverwriteInstances": False,
        }
        self._settings = folder / "orthanc.json"
        self._settings.write_text(json.dumps(settings), encoding="utf-8")

    @property
    def url(self) -> str:
        """Where its REST API is."""
        return f"http://127.0.0.1:{self.http_port}"

    def start(self) -> None:
        """Returns once it answers."""
        with (self._folder / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(self._settings)], cwd=self._folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (self._folder / "orthanc.log").read_text(errors="replace")
            try:
                httpx.get(f"{self.url}/system", timeout=5, trust_env=False).raise_for_status()
            except httpx.HTTPError:
                time.sleep(0.1)
            else:
                return
        pytest.fail("Orthanc did not answer within a minute")

    def stop(self) -> None:
        """As when a PACS is down."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def instances(self) -> dict[str, bytes]:
        """SOP Instance UID -> the file, of all that it holds."""
        with httpx.Client(base_url=self.url, timeout=30, trust_env=False) as client:
            found = {}
            for name in client.get("/instances").json():
                tags = client.get(f"/instances/{name}/simplified-tags").json()
                found[tags["SOPInstanceUID"]] = client.get(f"/instances/{name}/file").content
            return found


@contextmanager
def orthanc() -> Iterator[Orthanc]:
    """An Orthanc of our own, gone with everything in it after the tests."""
    folder = Path(tempfile.mkdtemp(prefix="hilum-orthanc-"))
    server = Orthanc(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
