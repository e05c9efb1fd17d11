"""The web application in this process, and a real server with a real browser."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from starlette.testclient import TestClient

from app import config, wiring
from app.web.guard import Guard
from app.web.server import application
from app.wiring import Services
from tests.services import require
from tests.vision_model.tiny import tiny_model
from tests.web.server import Server

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def client_of(services: Services, *, base_url: str = "http://127.0.0.1:7860") -> TestClient:
    """A client for an application of its own."""

    async def make() -> Guard:
        return application(services)

    # Gradio leaves an event loop open unless one runs, and Playwright's runs in this thread.
    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(lambda: asyncio.run(make())).result()
    return TestClient(made, base_url=base_url, raise_server_exceptions=False)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real model that takes every image for a chest X-ray."""
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def open_services(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Callable[..., Services]]:
    """Open services on a fresh state folder; keywords go into the settings' web section."""
    opened = []

    def make(**web: object) -> Services:
        folder = tmp_path_factory.mktemp("state")
        settings = config.load(
            overrides={
                "storage": {
                    "database_url": f"sqlite:///{folder}/hilum.db",
                    "spool": folder / "spool",
                    "checkpoint": folder / "checkpoint.json",
                    "keep_free_bytes": 0,
                },
                "model": {"path": model_folder},
                "reading": {"workers": 1},
                "web": web,
            }
        )
        context = wiring.services(settings)
        services = context.__enter__()
        opened.append(context)
        return services

    yield make
    for context in opened:
        context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def services(open_services: Callable[..., Services]) -> Services:
    """The parts behind `client`."""
    return open_services()


@pytest.fixture(scope="module")
def client(services: Services) -> TestClient:
    """A program that talks to the whole application, guard and Gradio included."""
    return client_of(services)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Server]:
    """`hilum serve` in a process of its own, with the tiny model."""
    with Server(tmp_path_factory.mktemp("served"), model_folder=model_folder) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, as the machine has it."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=require("chromium"), args=CHROMIUM_ARGUMENTS)
        yield chromium
        chromium.close()
