"""A started server that other applications talk to over real sockets, and the real client that they use."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import uvicorn
from dicomweb_client.api import DICOMwebClient

from app import config, wiring
from app.passwords import hash_password
from app.web.server import application
from app.wiring import Services

SECRET = "correct horse battery"
CLINICIAN, SENDER = f"orchestrator.{SECRET.replace(' ', '-')}", f"gateway.{SECRET.replace(' ', '-')}"
PASSWORD = "staple"


@dataclass(frozen=True)
class Served:
    """Where the server is, and the parts behind it."""

    url: str
    services: Services

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"

    def http(self, token: str | None = CLINICIAN) -> httpx.Client:
        """Plain HTTP as the program with this token, or as nobody."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.dicomweb, headers=headers, timeout=60, trust_env=False)

    def client(self, token: str = CLINICIAN) -> DICOMwebClient:
        """dicomweb-client as the program with this token."""
        session = requests.Session()
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {token}"
        return DICOMwebClient(self.dicomweb, session=session)


class _Running(uvicorn.Server):
    def __init__(self, services: Services, listener: socket.socket) -> None:
        super().__init__(uvicorn.Config("", log_config=None, access_log=False, ws="none", lifespan="on"))
        self._services, self._listener = services, listener
        self.ready = threading.Event()

    def run_here(self) -> None:
        async def serve() -> None:
            self.config = uvicorn.Config(application(self._services), log_config=None, access_log=False, ws="none")
            await self.serve(sockets=[self._listener])

        asyncio.run(serve())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Served]:
    """One server for all tests: each uses studies of its own."""
    folder = tmp_path_factory.mktemp("served")
    secret_hash = hash_password(SECRET.replace(" ", "-"))
    overrides: dict[str, dict[str, Any]] = {
        "storage": {
            "database_url": f"sqlite:///{folder}/hilum.db",
            "spool": folder / "spool",
            "checkpoint": folder / "checkpoint.json",
            "keep_free_bytes": 0,
        },
        "model": {"path": model_folder},
        "reading": {"workers": 1},
        "web": {
            "username": "kim",
            "password_hash": hash_password(PASSWORD),
            "max_upload_bytes": 64 << 20,
            "tokens": {
                "orchestrator": {"secret_hash": secret_hash, "roles": ["clinician"]},
                "gateway": {"secret_hash": secret_hash},
            },
        },
    }
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as kept:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        overrides["web"]["public_url"] = url  # dicomweb-client leaves the port out of its Host header
        services = kept.enter_context(wiring.services(config.load(overrides=overrides)))
        running = _Running(services, listener)
        thread = threading.Thread(target=running.run_here)
        thread.start()
        assert running.ready.wait(120)
        yield Served(url, services)
        running.should_exit = True
        thread.join(30)


@pytest.fixture
def client(served: Served) -> DICOMwebClient:
    """dicomweb-client as a program that may do all that a clinician may."""
    return served.client()


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    """The same in plain HTTP."""
    with served.http() as made:
        yield made
