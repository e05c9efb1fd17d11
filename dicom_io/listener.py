"""Storage SCP: take what modalities send, hand each file to a callable, and answer with the status it returns.

PS3.4 Annex B (Storage), A (Verification) and J (Storage Commitment) over PS3.8, by pynetdicom. In front of pynetdicom
stands a door of our own: it reads the first PDU of each connection, under a deadline and a size limit, before anything
is spent on an association. A stock server can be filled with half-open sockets, and believes the length that a PDU
states: 130 sockets with four bytes each keep everybody out, and one header of six bytes costs 600 MB.
"""

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.events import Event, EventHandlerType
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from dicom_io.uids import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    STORAGE_COMMITMENT,
    STORAGE_SOP_CLASSES,
    TRANSFER_SYNTAXES,
    VERIFICATION,
)

logger = logging.getLogger(__name__)

ASSOCIATE_RQ = 0x01  # PDU type, PS3.8 Table 9-11
PDU_HEADER_BYTES = 6
# 128 presentation contexts (all that PS3.8 allows) with every transfer syntax of our table take 150 kB.
ASSOCIATE_BYTES = 512 * 1024
# Of one message, its file apart: ten thousand references of a commitment request take 2 MB.
MESSAGE_BYTES = 16 * 1024 * 1024
RECEIVE_BYTES = 256 * 1024  # of one read; pynetdicom's own 4 kB costs more than the disk does
GREETINGS = 256  # connections that have not yet said who they are; the oldest makes room for a new one
STOP_SECONDS = 5.0

SUCCESS = 0x0000
NOT_AUTHORISED_COMMITMENT = 0x0110  # processing failure, PS3.7 C.5.9


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends."""

    ae_title: str
    host: str


@dataclass(frozen=True, slots=True)
class CommitmentRequest:
    """What a sender wants to be told is safe: PS3.4 Table J.3-2."""

    caller: Caller
    transaction_uid: str
    references: tuple[tuple[str, str], ...]  # (SOP Class UID, SOP Instance UID)


@dataclass(frozen=True, slots=True)
class Listening:
    """Where to listen, for whom, and how much of it is borne."""

    ae_title: str
    host: str
    port: int  # 0 takes a free one
    calling_ae_titles: frozenset[str] | None  # who may call; None: whoever knows our title
    maximum_associations: int
    maximum_associations_per_host: int
    maximum_pdu_bytes: int
    greeting_seconds: float  # from the connection to the whole A-ASSOCIATE-RQ, the TLS handshake included
    idle_seconds: float  # between two PDUs, and for the whole of each PDU
    tls: ssl.SSLContext | None


# (file, sender, SOP Instance UID that it announced) -> the status of PS3.4 Table B.2-1 that answers; the file is gone
# when the callable returns.
Store = Callable[[Path, Caller, str], int]
Commit = Callable[[CommitmentRequest], None]


class Listener:
    """A running Storage SCP; leaving the block ends it. Each association has a thread, in which `store` is called."""

    def __init__(self, listening: Listening, *, store: Store, commit: Commit) -> None:
        """Starts to listen. Raises OSError where the address cannot be had."""
        # What pynetdicom logs of its own accord names patients.
        _config.LOG_HANDLER_LEVEL = "none"
        # Files go to disk as they come in; a study of 2 GB would otherwise stand in memory.
        _config.STORE_RECV_CHUNKED_DATASET = True
        self._store, self._commit = store, commit
        entity = AE(ae_title=listening.ae_title)
        entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.maximum_associations = listening.maximum_associations
        entity.maximum_pdu_size = listening.maximum_pdu_bytes
        entity.require_called_aet = True
        entity.require_calling_aet = sorted(listening.calling_ae_titles or ())
        entity.network_timeout = listening.idle_seconds
        entity.acse_timeout = entity.dimse_timeout = listening.idle_seconds
        for uid in STORAGE_SOP_CLASSES:
            entity.add_supported_context(uid, list(TRANSFER_SYNTAXES))
        entity.add_supported_context(VERIFICATION)
        entity.add_supported_context(STORAGE_COMMITMENT)
        handlers: list[EventHandlerType] = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_N_ACTION, self._on_commitment),
            (evt.EVT_CONN_CLOSE, _remove_half_received),
        ]
        self._server = cast(
            _Door,
            entity.make_server(
                (listening.host, listening.port),
                ae_title=listening.ae_title,
                contexts=entity.supported_contexts,
                evt_handlers=handlers,
                server_class=_Door,
                listening=listening,
                request_handler=_Greeted,
            ),
        )
        entity._servers.append(self._server)  # noqa: SLF001  # shutdown() of a server takes it out of here
        self._thread = threading.Thread(target=self._server.serve_forever, name="dicom-listener", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The TCP port in use."""
        return int(self._server.server_address[1])

    @property
    def associations(self) -> int:
        """How many are open."""
        return len(self._server.active_associations)

    def close(self) -> None:
        """Take no new connection, and abort the open associations: what was acknowledged is safe with `store`."""
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort()
        for association in self._server.active_associations:
            association.join(STOP_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _on_store(self, event: Event) -> int:
        announced = event.request.AffectedSOPInstanceUID  # type: ignore[union-attr]  # of a C-STORE, which this is
        return self._store(event.dataset_path, _caller(event.assoc), str(announced))

    def _on_commitment(self, event: Event) -> tuple[int, Dataset | None]:
        """Accept a commitment request: it is answered later, by N-EVENT-REPORT (PS3.4 J.3.2)."""
        asked = event.action_information
        references = tuple(
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for item in asked.get("ReferencedSOPSequence", ())
        )
        if event.action_type != 1 or "TransactionUID" not in asked or not references:
            return NOT_AUTHORISED_COMMITMENT, None
        self._commit(CommitmentRequest(_caller(event.assoc), str(asked.TransactionUID), references))
        return SUCCESS, None


class _Door(ThreadedAssociationServer):
    """Accepts connections, and lets those in that say who they are in time."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, *arguments: Any, listening: Listening, **keywords: Any) -> None:
        self.listening = listening
        # Accepted socket -> what it is spoken to through, TLS or itself; in the order they came.
        self._waiting: dict[socket.socket, socket.socket] = {}
        self._waiting_lock = threading.Lock()
        super().__init__(*arguments, **keywords)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread; where too many say nothing, the one that has been silent longest goes."""
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._waiting_lock:
            self._waiting[request] = request
            oldest = self._waiting.pop(next(iter(self._waiting))) if len(self._waiting) > GREETINGS else None
        if oldest is not None:
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread wakes up and closes it
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """TLS and the first PDU, then the association."""
        connection: socket.socket = request
        connection.settimeout(self.listening.greeting_seconds)
        try:
            if self.listening.tls is not None:
                connection = self.listening.tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
                with self._waiting_lock:
                    self._waiting[request] = connection
            first_pdu = self._greeting(connection)
        except (OSError, ValueError) as problem:
            logger.info(
                "a connection from %s was closed before it became an association: %s", client_address[0], problem
            )
            self.shutdown_request(connection)
            return
        finally:
            with self._waiting_lock:
                self._waiting.pop(request, None)
        super().process_request_thread(_Greeting(connection, first_pdu), client_address)  # type: ignore[arg-type]  # a socket to all who ask

    def _greeting(self, connection: socket.socket) -> bytes:
        """The whole A-ASSOCIATE-RQ. Raises OSError and ValueError."""
        end = time.monotonic() + self.listening.greeting_seconds
        if isinstance(connection, ssl.SSLSocket):
            connection.do_handshake()
        header = _exactly(connection, PDU_HEADER_BYTES, end=end)
        length = int.from_bytes(header[2:], "big")
        if header[0] != ASSOCIATE_RQ:
            raise ValueError(f"its first PDU is of type 0x{header[0]:02X}, not A-ASSOCIATE-RQ")
        if length > ASSOCIATE_BYTES:
            raise ValueError(f"its A-ASSOCIATE-RQ states {length} bytes; {ASSOCIATE_BYTES} are taken")
        return header + _exactly(connection, length, end=end)


class _Greeting:
    """A connection with the first PDU that was read from it."""

    def __init__(self, connection: socket.socket, first_pdu: bytes) -> None:
        self.connection = connection
        self.first_pdu = first_pdu

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)


class _Greeted(RequestHandler):
    """Makes the association of a connection that has been let in."""

    server: _Door

    def _create_association(self) -> Association:
        greeting, listening = self.request, self.server.listening
        assert isinstance(greeting, _Greeting)
        self.request = greeting.connection
        self.request.settimeout(listening.idle_seconds)
        association = super()._create_association()
        bounded = association.dul.socket
        assert bounded is not None
        # pynetdicom makes the socket inside that method and puts its first event out there: it can only be given bounds
        # afterwards.
        bounded.__class__ = _BoundedSocket
        assert isinstance(bounded, _BoundedSocket)
        bounded.first_pdu = bytearray(greeting.first_pdu)
        bounded.largest = listening.maximum_pdu_bytes + PDU_HEADER_BYTES
        bounded.seconds = listening.idle_seconds
        association.dimse.__class__ = _BoundedMessages
        return association

    def handle(self) -> None:
        """Start the association, unless its host has as many as one may have."""
        host = self.client_address[0]
        own = [a for a in self.server.active_associations if a.requestor.address == host]
        if len(own) >= self.server.listening.maximum_associations_per_host:
            logger.warning("%s has %s associations, as many as one host may have; another was closed", host, len(own))
            self.server.shutdown_request(self.request)
            return
        super().handle()


class _BoundedSocket(AssociationSocket):
    """pynetdicom's socket, which reads no PDU that is larger than was agreed, nor one that comes a byte at a time."""

    first_pdu: bytearray
    largest: int
    seconds: float

    @property
    def ready(self) -> bool:
        """Whether there is something to read."""
        return bool(self.first_pdu) or super().ready

    def recv(self, nr_bytes: int) -> bytearray:
        """The next bytes of the first PDU, or of the network. Raises OSError, which closes the connection."""
        if self.first_pdu:
            taken = self.first_pdu[:nr_bytes]
            del self.first_pdu[:nr_bytes]
            return taken
        if nr_bytes > self.largest:
            raise OSError(f"a PDU states {nr_bytes} bytes; {self.largest} were agreed")
        assert self.socket is not None
        return bytearray(_exactly(self.socket, nr_bytes, end=time.monotonic() + self.seconds))


class _BoundedMessages(DIMSEServiceProvider):
    """pynetdicom's messages, which it gathers in memory for as long as a peer says that more of one follows."""

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Add to the message; one that grows beyond MESSAGE_BYTES ends the association."""
        super().receive_primitive(primitive)
        message = self.message
        if message is None:
            return
        held = message.encoded_command_set.tell() + (message.data_set.tell() if message.data_set else 0)
        if held > MESSAGE_BYTES:
            logger.warning("a message of more than %s bytes ended the association that it came on", MESSAGE_BYTES)
            self.message = None
            self.dul.event_queue.put("Evt19")  # as pynetdicom itself answers a message that it cannot decode


def _remove_half_received(event: Event) -> None:
    """Remove the file whose rest will never come."""
    message = event.assoc.dimse.message
    if message is not None and message._data_set_file is not None:  # noqa: SLF001  # pynetdicom tells it nowhere else
        message._data_set_file.close()  # noqa: SLF001
        Path(message._data_set_file.name).unlink(missing_ok=True)  # noqa: SLF001


def _exactly(connection: socket.socket, count: int, *, end: float) -> bytes:
    """So many bytes, all of them before `end`. Raises OSError."""
    received = bytearray()
    while len(received) < count:
        if time.monotonic() > end:
            raise TimeoutError(f"{count} bytes did not come in time")
        chunk = connection.recv(min(RECEIVE_BYTES, count - len(received)))
        if not chunk:
            raise ConnectionError(f"the other side closed after {len(received)} of {count} bytes")
        received += chunk
    return bytes(received)


def _caller(association: Association) -> Caller:
    return Caller(ae_title=association.requestor.ae_title.strip(), host=association.requestor.address or "")
