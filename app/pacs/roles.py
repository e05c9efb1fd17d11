"""The PACS roles that run beside the page in one process."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from app import worker
from app.pacs.listen import listener
from app.wiring import Services


@contextmanager
def all_roles(services: Services) -> Iterator[None]:
    """The listener, where a port is configured, and the worker; leaving waits for the batch that is under way."""
    stop = threading.Event()
    working = threading.Thread(target=worker.run, args=(services, stop), name="worker", daemon=True)
    with ExitStack() as running:
        if services.settings.pacs.port is not None:
            running.enter_context(listener(services))
        working.start()
        try:
            yield
        finally:
            stop.set()
            working.join()
