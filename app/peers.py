"""From a peer of the settings to the application that is spoken to."""

import ssl

from app.config import Pacs, Peer
from app.errors import ConfigInvalid
from dicom_io.dimse import Remote


def remote(peer: Peer, pacs: Pacs) -> Remote:
    """How to call a peer. Raises ConfigInvalid where a certificate cannot be used."""
    return Remote(
        ae_title=peer.ae_title,
        host=peer.host,
        port=peer.port,
        calling_ae_title=pacs.ae_title,
        tls=_client_tls(pacs) if peer.tls else None,
    )


def _client_tls(pacs: Pacs) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=pacs.tls_ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # BCP 195, RFC 9325
        if pacs.tls_certificate is not None:
            context.load_cert_chain(pacs.tls_certificate, pacs.tls_key)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigInvalid(f"pacs.tls_ca, pacs.tls_certificate, pacs.tls_key: {exc}") from exc
    return context
