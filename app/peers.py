"""From a peer of the settings to the application, the archive or the system that is spoken to."""

import base64
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from app.config import FhirPeer, Pacs, Peer, WebPeer
from app.errors import ConfigInvalid
from app.outlets import FhirRemote, Hl7Remote, send_fhir, send_hl7
from dicom_io.archive import Archive
from dicom_io.dicomweb import WebArchive, WebRemote
from dicom_io.dimse import DimseArchive, Remote
from dicom_io.errors import PeerRefused
from dicom_io.listener import Listening


def archive(name: str, pacs: Pacs) -> Archive:
    """The archive of that name. Raises ConfigInvalid where there is none, or a certificate cannot be used."""
    if name in pacs.web_peers:
        return WebArchive(_web_remote(name, pacs.web_peers[name]))
    if name not in pacs.peers:
        known = ", ".join(sorted([*pacs.peers, *pacs.web_peers])) or "none"
        raise ConfigInvalid(f"no peer is named {name} in pacs.peers or pacs.web_peers; named there: {known}")
    peer = pacs.peers[name]
    return DimseArchive(remote(peer, pacs), move_to=_move_to(peer, pacs))


def remote(peer: Peer, pacs: Pacs) -> Remote:
    """How to call a peer. Raises ConfigInvalid where a certificate cannot be used."""
    return Remote(
        ae_title=peer.ae_title,
        host=peer.host,
        port=peer.port,
        calling_ae_title=pacs.ae_title,
        tls=_client_tls(pacs) if peer.tls else None,
    )


def destination(name: str, pacs: Pacs) -> Callable[[Path], None]:
    """What gives one file of results to that peer, and raises PeerError leaves where it does not take it.

    Raises ConfigInvalid where a certificate cannot be used.
    """
    if name in pacs.hl7_peers:
        hl7 = pacs.hl7_peers[name]
        system = Hl7Remote(name, hl7.host, hl7.port, _client_tls(pacs) if hl7.tls else None)
        return lambda path: send_hl7(path.read_bytes(), system)
    if name in pacs.fhir_peers:
        fhir = pacs.fhir_peers[name]
        server = FhirRemote(name, fhir.url, _authorisation(fhir), _trusted(f"fhir_peers.{name}", fhir))
        return lambda path: send_fhir(path.read_bytes(), server)
    kept_by = archive(name, pacs)

    def store(path: Path) -> None:
        for answer in kept_by.store([path]):
            if answer.outcome == "refused":
                raise PeerRefused("the result", answer.status)

    return store


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
        tls=_server_tls(pacs),
    )


def _move_to(peer: Peer, pacs: Pacs) -> Listening | None:
    if peer.move_ae_title is None:
        return None
    return replace(
        listening(pacs),
        ae_title=peer.move_ae_title,
        port=peer.move_port,
        calling_ae_titles=frozenset({peer.ae_title}),
        tls=None,
    )


def _web_remote(name: str, peer: WebPeer) -> WebRemote:
    return WebRemote(
        name=name, url=peer.url, authorisation=_authorisation(peer), tls=_trusted(f"web_peers.{name}", peer)
    )


def _authorisation(peer: WebPeer | FhirPeer) -> str | None:
    if peer.username is not None:
        return "Basic " + base64.b64encode(f"{peer.username}:{peer.password}".encode()).decode()
    return None if peer.token is None else f"Bearer {peer.token}"


def _trusted(key: str, peer: WebPeer | FhirPeer) -> ssl.SSLContext | None:
    try:
        return None if peer.ca is None else ssl.create_default_context(cafile=peer.ca)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigInvalid(f"pacs.{key}.ca: {exc}") from exc


def _client_tls(pacs: Pacs) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=pacs.tls_ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # BCP 195, RFC 9325
        if pacs.tls_certificate is not None:
            context.load_cert_chain(pacs.tls_certificate, pacs.tls_key)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigInvalid(f"pacs.tls_ca, pacs.tls_certificate, pacs.tls_key: {exc}") from exc
    return context


def _server_tls(pacs: Pacs) -> ssl.SSLContext | None:
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
