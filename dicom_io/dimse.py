"""Speak DIMSE to another application: ask whether it is there and what it has, get that, and give it files of ours.

PS3.4 Annexes A (Verification), B (Storage) and C (Query/Retrieve, Study Root), by pynetdicom.
"""

import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from pydicom import Dataset, dcmread
from pydicom.uid import UID
from pynetdicom import AE, _config, build_role, evt
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation

from dicom_io.archive import Match, Query, Stored, keep, match
from dicom_io.errors import PeerAnswerInvalid, PeerRefused, PeerUnreachable
from dicom_io.listener import Listener, Listening
from dicom_io.uids import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    STUDY_ROOT_FIND,
    STUDY_ROOT_GET,
    STUDY_ROOT_MOVE,
    TRANSFER_SYNTAXES,
    VERIFICATION,
)

ANSWER_SECONDS = 30.0
WARNINGS = range(0xB000, 0xC000)  # stored, with a remark (PS3.7 C.1)
NOT_TAKEN = "it takes no such object in this transfer syntax"
DUPLICATE = 0x0111  # it is there already: what was wanted
OUT_OF_RESOURCES = 0xA7  # the first byte of the status
CANNOT_UNDERSTAND = 0xC000
PENDING = frozenset({0xFF00, 0xFF01})  # PS3.4 C.4.1.1.4
SOME_FAILED = frozenset({0xB000, 0xA702})  # sub-operations with failures, and none that was done (PS3.4 C.4.2.1.5)
CONTEXTS_MOST = 128  # of one association, PS3.8 9.3.2.2
# For an archive that does not say of which class its instances are.
USUAL_CLASSES = [
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, for presentation
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.4",  # MR
]


Arrived = SimpleQueue[Path | PeerAnswerInvalid]  # what the threads of associations put away


@dataclass(frozen=True, slots=True)
class Remote:
    """Another application, and who we are to it."""

    ae_title: str
    host: str
    port: int
    calling_ae_title: str
    tls: ssl.SSLContext | None = None


def _context(path: Path) -> tuple[str, str]:
    meta = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).file_meta
    return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)


@contextmanager
def association(
    remote: Remote,
    contexts: Sequence[tuple[str, str | None]],
    *,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[EventHandlerType] = (),
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
        evt_handlers=list(handlers),
        tls_args=None if remote.tls is None else (remote.tls, remote.host),
    )
    if not opened.is_established:
        if opened.rejected_contexts:  # it talks to us, and not of this
            raise PeerRefused("the association", NOT_TAKEN)
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
    if status >> 8 == OUT_OF_RESOURCES:  # of resources: the same may be taken later
        raise PeerUnreachable(remote.ae_title)
    if status and status != DUPLICATE and status not in WARNINGS:
        raise PeerRefused(operation, f"status 0x{status:04X}")


@dataclass(frozen=True, slots=True)
class DimseArchive:
    """An archive that speaks DIMSE; see `archive.Archive`. It gives by C-GET.

    Where `move_to` is set it gives by C-MOVE, to a receiver of ours that it knows by this title and address.
    """

    remote: Remote
    move_to: Listening | None = None

    def echo(self) -> None:
        """As Archive: C-ECHO."""
        with association(self.remote, [(VERIFICATION, None)]) as opened:
            answered(opened.send_c_echo().get("Status"), "C-ECHO", self.remote)

    def find(self, query: Query) -> Iterator[Match]:
        """As Archive: C-FIND."""
        identifier = query.keys()
        identifier.QueryRetrieveLevel = query.level
        identifier.SpecificCharacterSet = "ISO_IR 192"
        with association(self.remote, [(STUDY_ROOT_FIND, None)]) as opened:
            for status, found in opened.send_c_find(identifier, STUDY_ROOT_FIND):
                if status.get("Status") not in PENDING:
                    answered(status.get("Status"), "C-FIND", self.remote)
                elif found is None:
                    raise PeerAnswerInvalid("an answer to C-FIND cannot be read")
                else:
                    yield match(found, query.level)

    def fetch(self, instances: Sequence[Match], folder: Path) -> Iterator[Path]:
        """As Archive: C-GET or C-MOVE of a list of instances for each series."""
        by_series: dict[tuple[str, str], list[Match]] = {}
        for one in instances:
            by_series.setdefault((one.study_instance_uid, one.series_instance_uid or ""), []).append(one)
        for (study, series), members in by_series.items():
            wanted = Dataset()
            wanted.QueryRetrieveLevel = "IMAGE"
            wanted.StudyInstanceUID, wanted.SeriesInstanceUID = study, series
            wanted.SOPInstanceUID = [str(one.sop_instance_uid) for one in members]
            if self.move_to is None:
                yield from self._get(wanted, {one.sop_class_uid for one in members}, folder)
            else:
                yield from self._move(wanted, self.move_to, folder)

    def store(self, paths: Sequence[Path]) -> Iterator[Stored]:
        """As Archive: C-STORE, each file in its own transfer syntax."""
        wanted = [_context(path) for path in paths]
        for start in range(0, len(paths), CONTEXTS_MOST):
            part = slice(start, start + CONTEXTS_MOST)
            with association(self.remote, list(dict.fromkeys(wanted[part]))) as opened:
                for path in paths[part]:
                    yield self._store(path, opened)

    def _store(self, path: Path, opened: Association) -> Stored:
        try:
            status = opened.send_c_store(dcmread(path)).get("Status")
        except ValueError:  # no presentation context was accepted for it
            return Stored(path, "refused", NOT_TAKEN)
        if status is None or status >> 8 == OUT_OF_RESOURCES:
            raise PeerUnreachable(self.remote.ae_title)
        remark = f"status 0x{status:04X}"
        if status == DUPLICATE or status in WARNINGS:
            return Stored(path, "warning", remark)
        return Stored(path, "refused" if status else "stored", remark)

    def _get(self, wanted: Dataset, sop_classes: set[str | None], folder: Path) -> Iterator[Path]:
        # One context for each syntax: the archive then gives what it has as it has it, and transcodes nothing.
        classes = [uid for uid in sop_classes if uid is not None] or USUAL_CLASSES
        contexts = [(uid, syntax) for uid in classes for syntax in TRANSFER_SYNTAXES][: CONTEXTS_MOST - 1]
        arrived: Arrived = SimpleQueue()
        with association(
            self.remote,
            [(STUDY_ROOT_GET, None), *contexts],
            roles=[build_role(uid, scp_role=True) for uid in classes],
            handlers=[(evt.EVT_C_STORE, _keeper(folder, arrived))],
        ) as opened:
            responses = opened.send_c_get(wanted, STUDY_ROOT_GET)
            yield from self._retrieved(responses, "C-GET", arrived)

    def _move(self, wanted: Dataset, move_to: Listening, folder: Path) -> Iterator[Path]:
        arrived: Arrived = SimpleQueue()
        listener = Listener(
            move_to, store=lambda path, _caller, uid: _kept(_chunks(path), uid, folder, arrived), commit=lambda _: None
        )
        with listener, association(self.remote, [(STUDY_ROOT_MOVE, None)]) as opened:
            responses = opened.send_c_move(wanted, move_to.ae_title, STUDY_ROOT_MOVE)
            yield from self._retrieved(responses, "C-MOVE", arrived)

    def _retrieved(
        self,
        responses: Iterator[tuple[Dataset, Dataset | None]],
        operation: str,
        arrived: Arrived,
    ) -> Iterator[Path]:
        """What has come after each response; of sub-operations that failed nothing comes."""
        for status, _ in responses:
            while not arrived.empty():
                came = arrived.get()
                if isinstance(came, PeerAnswerInvalid):
                    raise came
                yield came
            code = status.get("Status")
            if code not in PENDING and code not in SOME_FAILED:
                answered(code, operation, self.remote)


def _keeper(folder: Path, arrived: Arrived) -> Callable[[evt.Event], int]:
    def keep_one(event: evt.Event) -> int:
        announced = str(event.request.AffectedSOPInstanceUID)  # type: ignore[union-attr]  # of a C-STORE, which this is
        if _config.STORE_RECV_CHUNKED_DATASET:  # set by a listener in this process
            try:
                return _kept(_chunks(event.dataset_path), announced, folder, arrived)
            finally:
                event.dataset_path.unlink()  # pynetdicom does so for a listener, not for who asked with C-GET
        return _kept([event.encoded_dataset()], announced, folder, arrived)

    return keep_one


def _kept(chunks: Iterable[bytes], announced: str, folder: Path, arrived: Arrived) -> int:
    try:
        arrived.put(keep(chunks, folder, named=announced))
    except PeerAnswerInvalid as error:
        arrived.put(error)
        return CANNOT_UNDERSTAND
    except OSError:
        return OUT_OF_RESOURCES << 8
    return 0


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk
