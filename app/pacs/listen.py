"""Keep what the network sends: a file is answered with success once it is in the spool and in the database."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from app.errors import ConfigInvalid
from app.identity import Actor
from app.pacs import commitment
from app.pacs.statuses import SUCCESS, status_of, status_of_error
from app.peers import listening
from app.receive import NotReceived, receive
from app.scratch import scratch_folder
from app.wiring import Services
from dicom_io.listener import Caller, CommitmentRequest, Listener, Listening

logger = logging.getLogger(__name__)


@contextmanager
def listener(services: Services) -> Iterator[Listener]:
    """The Storage SCP of these services, for as long as the block lasts.

    Raises ConfigInvalid where certificates or the address cannot be used.
    """
    pacs = services.settings.pacs
    # pynetdicom writes what comes in to temporary files. They hold patient data: they belong on the spool's disk, in a
    # folder that is swept when its process has died.
    with scratch_folder(services.scratch) as folder:
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            with _started(services, listening(pacs)) as started:
                logger.info("listening as %s on %s:%s", pacs.ae_title, pacs.host, started.port)
                yield started
        finally:
            tempfile.tempdir = before


def keep(path: Path, caller: Caller, announced_uid: str, *, services: Services) -> int:
    """Take one file in; the status that answers it. Nothing but success says that the file is safe."""
    actor = Actor(name=caller.ae_title, kind="ae", roles=frozenset())
    try:
        (arrival,) = receive(
            [path],
            spool=services.spool,
            sandbox=services.sandbox,
            sessions=services.sessions,
            limits=services.settings.reading.limits,
            scratch=services.scratch,
            actor=actor,
            now=services.now,
            announced_uid=announced_uid,
        )
    except SQLAlchemyError as error:
        logger.error("a file from %s was not taken: %s", caller.ae_title, type(error).__name__)
        return status_of_error(error)
    if isinstance(arrival, NotReceived):
        logger.warning("a file from %s was not taken: %s", caller.ae_title, arrival.code)
        return status_of(arrival.code)
    return SUCCESS


def _started(services: Services, chosen: Listening) -> Listener:
    def store(path: Path, caller: Caller, announced_uid: str) -> int:
        return keep(path, caller, announced_uid, services=services)

    def commit(request: CommitmentRequest) -> None:
        commitment.ask(request, sessions=services.sessions, now=services.now)

    try:
        return Listener(chosen, store=store, commit=commit)
    except OSError as exc:
        raise ConfigInvalid(f"pacs.host, pacs.port: {chosen.host}:{chosen.port} cannot be had: {exc.strerror}") from exc
