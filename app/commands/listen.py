"""Take what the DICOM network sends, until told to stop; `hilum worker` or `hilum serve` diagnoses it."""

import argparse
import signal
import threading


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """`hilum listen` has no options of its own."""


def run(args: argparse.Namespace) -> int:
    """Listen; returns after SIGINT or SIGTERM. Raises ConfigInvalid without a port."""
    from app.config import load
    from app.errors import ConfigInvalid
    from app.pacs.listen import listener
    from app.wiring import services

    settings = load(args.config)
    if settings.pacs.port is None:
        raise ConfigInvalid("pacs.port is not set, so there is nothing to listen on; 11112 is usual")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())
    with services(settings, upgrade=True) as running, listener(running) as started:
        print(
            f"{settings.pacs.ae_title} listens on {settings.pacs.host}:{started.port} (research use only)", flush=True
        )
        stop.wait()
    return 0
