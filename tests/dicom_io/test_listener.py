"""Hostile and slow peers cost the listener little, and never keep honest ones out."""

import resource
import socket
import ssl
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE
from pynetdicom.dsutils import encode

from dicom_io.listener import Caller, CommitmentRequest, Listener, Listening
from dicom_io.uids import VERIFICATION
from tests import services

PLAIN = Listening(
    ae_title="HILUM",
    host="127.0.0.1",
    port=0,
    calling_ae_titles=None,
    maximum_associations=20,
    maximum_associations_per_host=20,
    maximum_pdu_bytes=65_536,
    greeting_seconds=2.0,
    idle_seconds=2.0,
    tls=None,
)
MIB = 1 << 20


class Desk:
    """Takes everything, and remembers what."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, Caller, str]] = []
        self.asked: list[CommitmentRequest] = []

    def store(self, path: Path, caller: Caller, announced_uid: str) -> int:
        self.taken.append((path.stat().st_size, caller, announced_uid))
        return 0


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Desk()


@pytest.fixture
def listen(desk: Desk) -> Iterator[Callable[[Listening], Listener]]:
    with ExitStack() as stack:
        yield lambda listening: stack.enter_context(Listener(listening, store=desk.store, commit=desk.asked.append))


def echo(listener: Listener, *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [services.dcmtk("echoscu"), "-to", "5", "-aec", "HILUM", *options, "127.0.0.1", str(listener.port)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def opened(listener: Listener, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", listener.port), timeout=10)
    connection.sendall(sent)
    return connection


def ended(connection: socket.socket) -> bool:
    """Whether the other side closes within the socket's timeout."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def cut_off(connection: socket.socket, *, pieces: list[bytes], pause_seconds: float = 0.0) -> bool:
    """Whether the other side closes before all pieces are sent."""
    try:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_seconds)
    except OSError:
        return True
    return False


def emptied(listener: Listener) -> bool:
    """Whether all associations end within twenty seconds."""
    deadline = time.monotonic() + 20
    while listener.associations and time.monotonic() < deadline:
        time.sleep(0.05)
    return not listener.associations


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_half_open_sockets_keep_nobody_out_and_are_freed(listen: Callable[[Listening], Listener]) -> None:
    listener = listen(replace(PLAIN, greeting_seconds=4.0))
    with ExitStack() as stack:
        silent = [stack.enter_context(opened(listener, b"\x01\x00\x00\x00")) for _ in range(300)]
        assert echo(listener).returncode == 0
        assert all(ended(connection) for connection in silent)
    assert emptied(listener)


def test_a_length_of_four_gibibytes_is_not_believed(listen: Callable[[Listening], Listener]) -> None:
    listener = listen(PLAIN)
    before = resident_bytes()
    with opened(listener, b"\x01\x00\xff\xff\xff\xff") as connection:
        assert cut_off(connection, pieces=[bytes(MIB)] * 200)
    assert resident_bytes() - before < 64 * MIB
    assert echo(listener).returncode == 0


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 6, b"\x07\x00\x00\x00\x00\x04", b"\xff" * 64])
def test_what_is_no_association_request_is_closed_at_once(
    listen: Callable[[Listening], Listener], first: bytes
) -> None:
    listener = listen(replace(PLAIN, greeting_seconds=60.0))
    with opened(listener, first) as connection:
        assert ended(connection)
    assert echo(listener).returncode == 0


def test_a_request_that_comes_a_byte_at_a_time_is_given_up(listen: Callable[[Listening], Listener]) -> None:
    listener = listen(PLAIN)
    with opened(listener, b"\x01\x00\x00\x00\x00\xff") as connection:
        assert cut_off(connection, pieces=[b"\x00"] * 100, pause_seconds=0.2)
    assert echo(listener).returncode == 0


def test_a_silent_association_ends_and_a_busy_listener_takes_new_ones(
    listen: Callable[[Listening], Listener],
) -> None:
    listener = listen(replace(PLAIN, maximum_associations=2))
    entity = AE(ae_title="SILENT")
    entity.add_requested_context(VERIFICATION)
    held = [entity.associate("127.0.0.1", listener.port, ae_title="HILUM") for _ in range(2)]
    assert all(association.is_established for association in held)
    assert echo(listener).returncode != 0  # as many as may be
    assert emptied(listener)
    assert echo(listener).returncode == 0
    for association in held:
        association.abort()


def test_one_host_cannot_have_all_associations(listen: Callable[[Listening], Listener]) -> None:
    listener = listen(replace(PLAIN, maximum_associations_per_host=1, idle_seconds=20.0))
    entity = AE(ae_title="GREEDY")
    entity.add_requested_context(VERIFICATION)
    first = entity.associate("127.0.0.1", listener.port, ae_title="HILUM")
    assert first.is_established
    assert echo(listener).returncode != 0
    first.release()
    assert emptied(listener)
    assert echo(listener).returncode == 0


def store_request(uid: str) -> bytes:
    """The command set of a C-STORE-RQ, implicit VR little endian (PS3.7 Table 9.3-1)."""
    command = Dataset()
    command.AffectedSOPClassUID, command.AffectedSOPInstanceUID = CTImageStorage, uid
    command.CommandField, command.MessageID, command.Priority, command.CommandDataSetType = 0x0001, 1, 0, 0x0001
    command.CommandGroupLength = len(encode(command, is_implicit_vr=True, is_little_endian=True) or b"")
    return encode(command, is_implicit_vr=True, is_little_endian=True) or b""


def data_pdu(fragment: bytes, *, control: int) -> bytes:
    """A P-DATA-TF of one fragment (PS3.8 9.3.5); control 1 is a command, 2 the last fragment."""
    value = struct.pack(">IBB", len(fragment) + 2, 1, control) + fragment
    return struct.pack(">BBI", 4, 0, len(value)) + value


@contextmanager
def spoken(listener: Listener) -> Iterator[socket.socket]:
    """The socket of an association for CT images; its own side notices its end, and does nothing else."""
    entity = AE("TEST")
    entity.add_requested_context(CTImageStorage)
    association = entity.associate("127.0.0.1", listener.port, ae_title="HILUM")
    assert association.is_established
    assert association.dul.socket is not None
    connection = association.dul.socket.socket
    assert connection is not None
    try:
        yield connection
    finally:
        association.join(20)
        connection.close()


@pytest.mark.parametrize("control", [1, 0])
def test_a_message_without_an_end_is_cut_off(
    listen: Callable[[Listening], Listener], control: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_io.listener.MESSAGE_BYTES", MIB)
    listener = listen(PLAIN)
    with spoken(listener) as connection:
        assert cut_off(connection, pieces=[data_pdu(bytes(60_000), control=control)] * 400, pause_seconds=0.01)
    assert emptied(listener)
    assert echo(listener).returncode == 0


def test_half_a_file_does_not_outlive_its_association(
    listen: Callable[[Listening], Listener], desk: Desk, tmp_path: Path
) -> None:
    listener = listen(PLAIN)
    with spoken(listener) as connection:
        connection.sendall(data_pdu(store_request("1.2.3"), control=3) + data_pdu(bytes(60_000), control=0))
        deadline = time.monotonic() + 10
        while sum(p.stat().st_size for p in tmp_path.iterdir()) < 60_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(list(tmp_path.iterdir())) == 1
        connection.shutdown(socket.SHUT_RDWR)
    assert emptied(listener)
    assert not list(tmp_path.iterdir())
    assert not desk.taken


def test_128_presentation_contexts_are_taken(listen: Callable[[Listening], Listener]) -> None:
    listener = listen(PLAIN)
    entity = AE(ae_title="MANY")
    for number in range(127):
        entity.add_requested_context(f"1.2.3.{number}", [f"1.2.840.10008.1.2.4.{n}" for n in range(50, 70)])
    entity.add_requested_context(VERIFICATION)
    association = entity.associate("127.0.0.1", listener.port, ae_title="HILUM")
    assert association.is_established
    assert association.send_c_echo().Status == 0
    association.release()


def test_nothing_but_tls_is_spoken_where_a_certificate_is_set(
    listen: Callable[[Listening], Listener], tmp_path: Path
) -> None:
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    listener = listen(replace(PLAIN, tls=context))
    assert echo(listener).returncode != 0
    trusted = echo(listener, "+tla", "+cf", certificate)
    assert trusted.returncode == 0, trusted.stderr
    stalled = opened(listener, b"\x16\x03\x01")  # the beginning of a handshake, and no more
    assert echo(listener, "+tla", "+cf", certificate).returncode == 0
    assert ended(stalled)
    stalled.close()


def test_callers_without_a_certificate_are_refused_where_an_authority_is_set(
    listen: Callable[[Listening], Listener], tmp_path: Path
) -> None:
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    listener = listen(replace(PLAIN, tls=context))
    assert echo(listener, "+tla", "+cf", certificate).returncode != 0
    known = echo(listener, "+tls", key, certificate, "+cf", certificate)
    assert known.returncode == 0, known.stderr


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for the loopback address, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(pem))
    paths[1].write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    )
    return paths
