"""The PACS roles that run beside something else in one process."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from app import worker
from app.pacs.listen import listener
from app.wiring import Services


@contextmanager
def working(services: Services, *, enabled: bool = True) -> Iterator[None]:
    """A worker thread for as long as the block lasts; leaving it waits for the batch that is under way."""
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(services, stop), name="worker", daemon=True)
    if enabled:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if enabled:
            thread.join()


@contextmanager
def all_roles(services: Services) -> Iterator[None]:
    """The listener, where a port is configured, and the worker."""
    with ExitStack() as running:
        if services.settings.pacs.port is not None:
            running.enter_context(listener(services))
        running.enter_context(working(services))
        yield
