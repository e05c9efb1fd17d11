"""Give results to systems that keep no DICOM: HL7 v2 over MLLP, FHIR over HTTP."""

import socket
import ssl
import time
from dataclasses import dataclass, field

import httpx

from dicom_io.errors import PeerAnswerInvalid, PeerRefused, PeerUnreachable

# Minimal Lower Layer Protocol, release 1 (HL7 v3 transport specification, and IHE ITI TF-2 C.2.1).
BEGIN, END = b"\x0b", b"\x1c\r"
ANSWER_SECONDS = 30.0
LARGEST_ANSWER_BYTES = 1 << 20
ACCEPTED = frozenset({"AA", "CA"})  # HL7 table 0008
REFUSED = frozenset({"AE", "AR", "CE", "CR"})
# Statuses after which the same request may be taken: RFC 9110 15.5.9, RFC 8470, RFC 6585, and the server's own errors.
LATER = frozenset({408, 425, 429}) | frozenset(range(500, 600))


@dataclass(frozen=True, slots=True)
class Hl7Remote:
    """Where an HL7 v2 system listens."""

    name: str  # what messages call it
    host: str
    port: int
    tls: ssl.SSLContext | None


@dataclass(frozen=True, slots=True)
class FhirRemote:
    """The base address of a FHIR server, and what lets us in."""

    name: str
    url: str
    authorisation: str | None = field(repr=False)
    tls: ssl.SSLContext | None


def send_hl7(message: bytes, remote: Hl7Remote) -> None:
    """Send a message and wait until it is acknowledged (HL7 2.5.1 chapter 2.9.2).

    Raises PeerUnreachable, PeerRefused with the text of the refusal, and PeerAnswerInvalid.
    """
    end = time.monotonic() + ANSWER_SECONDS
    try:
        with socket.create_connection((remote.host, remote.port), timeout=ANSWER_SECONDS) as plain:
            connection = plain if remote.tls is None else remote.tls.wrap_socket(plain, server_hostname=remote.host)
            with connection:
                connection.sendall(BEGIN + message + END)
                answer = bytearray()
                while END not in answer:
                    connection.settimeout(max(end - time.monotonic(), 0.001))
                    chunk = connection.recv(4096)
                    if not chunk:
                        raise ConnectionError("it closed before it answered")
                    answer += chunk
                    if len(answer) > LARGEST_ANSWER_BYTES:
                        raise PeerAnswerInvalid(f"an acknowledgement has more than {LARGEST_ANSWER_BYTES >> 20} MiB")
    except OSError as exc:
        raise PeerUnreachable(remote.name) from exc
    code, control_id, text = _acknowledged(bytes(answer))
    if control_id != _fields(message, "MSH")[9]:
        raise PeerAnswerInvalid("an acknowledgement is not of the message that was sent")
    if code in REFUSED:
        raise PeerRefused("ORU^R01", f"{code} {text}".strip())
    if code not in ACCEPTED:
        raise PeerAnswerInvalid(f"an acknowledgement states {code!r}, which HL7 table 0008 does not have")


def send_fhir(bundle: bytes, remote: FhirRemote) -> None:
    """Have a server take a transaction, all of it or nothing (FHIR R4 3.1.0.11).

    Raises PeerUnreachable and PeerRefused.
    """
    headers = {"Accept": "application/fhir+json", "Content-Type": "application/fhir+json"}
    if remote.authorisation is not None:
        headers["Authorization"] = remote.authorisation
    try:
        answer = httpx.post(
            remote.url,
            content=bundle,
            headers=headers,
            timeout=ANSWER_SECONDS,
            follow_redirects=False,  # patient data goes to the named server only
            trust_env=False,
            verify=remote.tls if remote.tls is not None else True,
        )
    except httpx.HTTPError as exc:
        raise PeerUnreachable(remote.name) from exc
    if answer.status_code in LATER:
        raise PeerUnreachable(remote.name)
    if not answer.is_success:
        raise PeerRefused("POST of a FHIR transaction", f"HTTP {answer.status_code}")


def _acknowledged(answer: bytes) -> tuple[str, str, str]:
    """Acknowledgement code, control id and text of an ACK. Raises PeerAnswerInvalid."""
    fields = _fields(answer[answer.find(BEGIN) + 1 : answer.find(END)], "MSA")
    if len(fields) < 3:
        raise PeerAnswerInvalid("what came is no acknowledgement")
    return fields[1], fields[2], fields[3] if len(fields) > 3 else ""


def _fields(message: bytes, segment: str) -> list[str]:
    """The fields of the first such segment, its name first; of MSH the second is MSH-2. Empty where there is none."""
    text = message.decode("utf-8", "replace")
    separator = text[3:4] or "|"
    rows = (row.split(separator) for row in text.replace("\n", "\r").split("\r"))
    return next((row for row in rows if row[0] == segment), [])
