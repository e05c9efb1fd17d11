"""Speak to another application: give it files as they are kept (PS3.4 Annex B), or what else an association is for."""

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import UID
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation

from dicom_io.errors import PeerRefused, PeerUnreachable
from dicom_io.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

ANSWER_SECONDS = 30.0
WARNINGS = range(0xB000, 0xC000)  # stored, with a remark (PS3.7 C.1)
SOP_CLASS_NOT_SUPPORTED = 0x0122  # PS3.7 C.5.10
DUPLICATE = 0x0111  # it is there already: what was wanted
CONTEXTS_MOST = 128  # of one association, PS3.8 9.3.2.2


@dataclass(frozen=True, slots=True)
class Remote:
    """Another application, and who we are to it."""

    ae_title: str
    host: str
    port: int
    calling_ae_title: str
    tls: ssl.SSLContext | None = None


def store(paths: Sequence[Path], *, remote: Remote) -> Iterator[Path]:
    """C-STORE of Part 10 files of ours, in this order; yields each once it is acknowledged.

    Raises PeerUnreachable, after which what was not yielded may or may not have arrived, and PeerRefused.
    """
    wanted = [_context(path) for path in paths]
    for start in range(0, len(paths), CONTEXTS_MOST):
        part = slice(start, start + CONTEXTS_MOST)
        with association(remote, list(dict.fromkeys(wanted[part]))) as opened:
            for path in paths[part]:
                try:
                    status = opened.send_c_store(dcmread(path)).get("Status")
                except ValueError as exc:  # no presentation context was accepted for it
                    raise PeerRefused("C-STORE", SOP_CLASS_NOT_SUPPORTED) from exc
                answered(status, "C-STORE", remote)
                yield path


def _context(path: Path) -> tuple[str, str]:
    meta = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).file_meta
    return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)


@contextmanager
def association(
    remote: Remote,
    contexts: Sequence[tuple[str, str | None]],
    *,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
) -> Iterator[Association]:
    """An association for (abstract syntax, transfer syntax; None: the usual ones), released at the end of the block.

    Raises PeerUnreachable, and PeerRefused where none of them is taken.
    """
    # What pynetdicom logs of its own accord names patients.
    _config.LOG_HANDLER_LEVEL = "none"
    try:
        # pynetdicom leaves its socket open where nobody answers.
        socket.create_connection((remote.host, remote.port), timeout=ANSWER_SECONDS).close()
    except OSError as exc:
        raise PeerUnreachable(remote.ae_title) from exc
    entity = AE(ae_title=remote.calling_ae_title)
    entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = ANSWER_SECONDS
    for sop_class, transfer_syntax in contexts:
        if transfer_syntax is None:
            entity.add_requested_context(sop_class)
        else:
            entity.add_requested_context(sop_class, transfer_syntax)
    opened = entity.associate(
        remote.host,
        remote.port,
        ae_title=remote.ae_title,
        ext_neg=list(roles),
        tls_args=None if remote.tls is None else (remote.tls, remote.host),
    )
    if not opened.is_established:
        if opened.rejected_contexts:  # it talks to us, and not of this
            raise PeerRefused("the association", SOP_CLASS_NOT_SUPPORTED)
        raise PeerUnreachable(remote.ae_title)
    try:
        yield opened
    finally:
        if opened.is_established:
            opened.release()


def answered(status: int | None, operation: str, remote: Remote) -> None:
    """Nothing where a request was done, or done with a warning. Raises PeerUnreachable and PeerRefused."""
    if status is None:  # the association ended first
        raise PeerUnreachable(remote.ae_title)
    if status >> 8 == 0xA7:  # out of resources: the same may be taken later
        raise PeerUnreachable(remote.ae_title)
    if status and status != DUPLICATE and status not in WARNINGS:
        raise PeerRefused(operation, status)
