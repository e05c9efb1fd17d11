"""Diagnose what other processes take in, until told to stop."""

import argparse
import signal
import threading


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """`hilum worker` has no options of its own."""


def run(args: argparse.Namespace) -> int:
    """Work through the worklist; returns after SIGINT or SIGTERM, with the batch under way recorded."""
    from app import worker
    from app.config import load
    from app.wiring import services

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())
    with services(load(args.config), upgrade=True) as running:
        worker.run(running, stop)
    return 0
