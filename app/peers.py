"""From a peer of the settings to the application, or the archive, that is spoken to."""

import base64
import ssl

from app.config import Pacs, Peer, WebPeer
from app.errors import ConfigInvalid
from dicom_io.archive import Archive
from dicom_io.dicomweb import WebArchive, WebRemote
from dicom_io.dimse import DimseArchive, Remote
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


def _move_to(peer: Peer, pacs: Pacs) -> Listening | None:
    if peer.move_ae_title is None:
        return None
    return Listening(
        ae_title=peer.move_ae_title,
        host=pacs.host,
        port=peer.move_port,
        calling_ae_titles=frozenset({peer.ae_title}),
        maximum_associations=pacs.maximum_associations,
        maximum_associations_per_host=pacs.maximum_associations_per_host,
        maximum_pdu_bytes=pacs.maximum_pdu_bytes,
        greeting_seconds=pacs.greeting_seconds,
        idle_seconds=pacs.idle_seconds,
        tls=None,
    )


def _web_remote(name: str, peer: WebPeer) -> WebRemote:
    authorisation = None if peer.token is None else f"Bearer {peer.token}"
    if peer.username is not None:
        authorisation = "Basic " + base64.b64encode(f"{peer.username}:{peer.password}".encode()).decode()
    try:
        tls = None if peer.ca is None else ssl.create_default_context(cafile=peer.ca)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigInvalid(f"pacs.web_peers.{name}.ca: {exc}") from exc
    return WebRemote(name=name, url=peer.url, authorisation=authorisation, tls=tls)


def _client_tls(pacs: Pacs) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=pacs.tls_ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # BCP 195, RFC 9325
        if pacs.tls_certificate is not None:
            context.load_cert_chain(pacs.tls_certificate, pacs.tls_key)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigInvalid(f"pacs.tls_ca, pacs.tls_certificate, pacs.tls_key: {exc}") from exc
    return context
