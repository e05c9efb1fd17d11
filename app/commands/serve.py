"""Serve the page and its API until told to stop."""

import argparse
import signal
import socket

import uvicorn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`hilum serve`'s options."""
    parser.add_argument("--host", help="address to listen on (default: web.host of the settings, 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (default: web.port, 7860)")


def run(args: argparse.Namespace) -> int:
    """Bring the database up to date, then serve; returns after SIGINT or SIGTERM, with running requests ended."""
    from app.config import load
    from app.pacs.roles import all_roles
    from app.web.server import application
    from app.wiring import services

    asked = {name: value for name, value in (("host", args.host), ("port", args.port)) if value is not None}
    settings = load(args.config, overrides={"web": asked} if asked else None)
    with (
        services(settings, upgrade=True) as running,
        _listening(settings.web.host, settings.web.port) as listener,
        all_roles(running),
    ):
        config = uvicorn.Config(
            application(running),
            access_log=False,  # addresses hold study UIDs
            log_config=None,
            server_header=False,
            root_path=settings.web.root_path,
            # Work that is under way may take so long to end; Gradio's event streams never end by themselves.
            timeout_graceful_shutdown=5,
            proxy_headers=False,
            ws="none",
        )
        # When it has ended, uvicorn raises the signal that ended it once more: by then there is nothing left to stop.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda _number, _frame: None)
        _Announcing(config).run(sockets=[listener])
    return 0


class _Announcing(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where the page is, once it is there."""
        await super().startup(sockets)
        for listener in sockets or []:
            print(f"Hilum is at {_address(listener)} (research use only, not for diagnostic use)", flush=True)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
