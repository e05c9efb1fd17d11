"""Put the web application together: our routes, Gradio's page, and the guard before both."""

import os
from importlib.resources import files

import gradio as gr
from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from app.db import audit
from app.identity import Actor
from app.web.api import api, problem
from app.web.dicomweb import dicomweb
from app.web.errors import DOMAIN_ERRORS
from app.web.guard import Guard
from app.web.theme import theme
from app.web.ui import HEAD, page
from app.wiring import Services

CACHE_SECONDS = (3600, 3600)  # Gradio looks for old files of its own this often; ours never reach it
ASSETS = files("app.web").joinpath("assets")


def application(services: Services) -> Guard:
    """The ASGI application; `services` stay open for as long as it runs."""
    web = services.settings.web
    # Gradio reads both when a request comes; nothing of ours is uploaded to it, and nothing may leave this machine.
    os.environ["GRADIO_TEMP_DIR"] = str(services.scratch / "gradio")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

    def signed_in(actor: Actor) -> None:
        with services.sessions.begin() as session:
            audit.append(session, actor=actor, action="login", now=services.now)

    app = FastAPI(title="Hilum", docs_url=None, redoc_url=None, openapi_url=None, root_path=web.root_path)
    for error in (*DOMAIN_ERRORS, Exception):
        app.add_exception_handler(error, problem)
    app.state.services = services
    app.include_router(api)
    app.include_router(dicomweb)
    app.mount("/hilum", StaticFiles(directory=str(ASSETS)))
    blocks = page(services)
    blocks.delete_cache = CACHE_SECONDS
    whole = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        root_path=web.root_path or None,
        theme=theme(),
        head=HEAD,
        favicon_path=str(ASSETS.joinpath("favicon.svg")),
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=1,  # byte: images come by our own route
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )
    return Guard(whole, web=web, signed_in=signed_in)
