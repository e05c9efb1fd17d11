"""Tell a sender which of its instances are safe here: N-EVENT-REPORT of storage commitment (PS3.4 J.3.3)."""

import socket
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, build_role

from dicom_io.errors import PeerRefused, PeerUnreachable
from dicom_io.uids import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE

ALL_SAFE, SOME_FAILED = 1, 2  # Event Type ID
ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Committed:
    """The answer to one question."""

    transaction_uid: str
    safe: tuple[tuple[str, str], ...]  # (SOP Class UID, SOP Instance UID)
    failed: tuple[tuple[str, str, int], ...]  # with the Failure Reason of PS3.3 C.14.1.1


def report(committed: Committed, *, ae_title: str, peer_ae_title: str, host: str, port: int) -> None:
    """Send the answer over an association of our own, as the SCP. Raises PeerUnreachable and PeerRefused."""
    try:
        # pynetdicom leaves its socket open where nobody answers.
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
    except OSError as exc:
        raise PeerUnreachable(peer_ae_title) from exc
    entity = AE(ae_title=ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = ANSWER_SECONDS
    entity.add_requested_context(STORAGE_COMMITMENT)
    association = entity.associate(
        host, port, ae_title=peer_ae_title, ext_neg=[build_role(STORAGE_COMMITMENT, scp_role=True)]
    )
    if not association.is_established:
        raise PeerUnreachable(peer_ae_title)
    try:
        status, _ = association.send_n_event_report(
            _information(committed),
            SOME_FAILED if committed.failed else ALL_SAFE,
            UID(STORAGE_COMMITMENT),
            UID(STORAGE_COMMITMENT_INSTANCE),
        )
    finally:
        association.release()
    if "Status" not in status:
        raise PeerUnreachable(peer_ae_title)
    if status.Status != 0:
        raise PeerRefused("N-EVENT-REPORT", status.Status)


def _information(committed: Committed) -> Dataset:
    """PS3.4 Table J.3-5; a sequence without items is left out."""
    information = Dataset()
    information.TransactionUID = committed.transaction_uid
    if committed.safe:
        information.ReferencedSOPSequence = [_reference(*pair) for pair in committed.safe]
    if committed.failed:
        information.FailedSOPSequence = [_reference(*pair) for *pair, _ in committed.failed]
        for item, (*_, reason) in zip(information.FailedSOPSequence, committed.failed, strict=True):
            item.FailureReason = reason
    return information


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    return item
