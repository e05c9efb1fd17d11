"""Tell a sender which of its instances are safe here: N-EVENT-REPORT of storage commitment (PS3.4 J.3.3)."""

from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import build_role

from dicom_io.dimse import Remote, answered, association
from dicom_io.uids import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE

ALL_SAFE, SOME_FAILED = 1, 2  # Event Type ID


@dataclass(frozen=True, slots=True)
class Committed:
    """The answer to one question."""

    transaction_uid: str
    safe: tuple[tuple[str, str], ...]  # (SOP Class UID, SOP Instance UID)
    failed: tuple[tuple[str, str, int], ...]  # with the Failure Reason of PS3.3 C.14.1.1


def report(committed: Committed, *, remote: Remote) -> None:
    """Send the answer over an association of our own, as the SCP. Raises PeerUnreachable and PeerRefused."""
    roles = [build_role(STORAGE_COMMITMENT, scp_role=True)]
    with association(remote, [(STORAGE_COMMITMENT, None)], roles=roles) as opened:
        status, _ = opened.send_n_event_report(
            _information(committed),
            SOME_FAILED if committed.failed else ALL_SAFE,
            UID(STORAGE_COMMITMENT),
            UID(STORAGE_COMMITMENT_INSTANCE),
        )
        answered(status.get("Status"), "N-EVENT-REPORT", remote)


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
