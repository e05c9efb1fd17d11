"""Keep what the network sends: a file is answered with success once it is in the spool and in the database."""

import logging
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from app.config import Pacs
from app.errors import ConfigInvalid
from app.identity import Actor
from app.pacs import commitment
from app.pacs.statuses import SUCCESS, status_of, status_of_error
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


def listening(pacs: Pacs) -> Listening:
    """The settings as the listener takes them. Raises ConfigInvalid."""
    return Listening(
        ae_title=pacs.ae_title,
        host=pacs.host,
        port=pacs.port or 0,
        calling_ae_titles=pacs.callers,
        maximum_associations=pacs.maximum_associations,
        maximum_associations_per_host=pacs.maximum_associations_per_host,
        maximum_pdu_bytes=pacs.maximum_pdu_bytes,
        greeting_seconds=pacs.greeting_seconds,
        idle_seconds=pacs.idle_seconds,
        tls=_tls(pacs),
    )


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


def _tls(pacs: Pacs) -> ssl.SSLContext | None:
    """BCP 195 (RFC 9325), as PS3.15 B.9 asks: TLS 1.2 or newer, and with an authority no caller without certificate."""
    if pacs.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(pacs.tls_certificate, pacs.tls_key)
        if pacs.tls_ca is not None:
            context.load_verify_locations(pacs.tls_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as exc:
        raise ConfigInvalid(f"pacs.tls_certificate, pacs.tls_key, pacs.tls_ca: {exc}") from exc
    return context
