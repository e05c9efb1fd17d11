"""STOW-RS (PS3.18 10.5): take instances in from other applications, each durable before it is acknowledged."""

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from app.identity import Actor
from app.pacs.statuses import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, status_of
from app.receive import NotReceived, Received, receive
from app.scratch import scratch_folder
from app.web.api import WRITE_BYTES, By, Using
from app.web.dicomweb.model import data_set
from app.web.dicomweb.multipart import MultipartReader, PartBegins, PartEnds, boundary_of, content_type
from app.web.dicomweb.request import At, Service, dicom_json, require_json
from app.web.errors import MediaNotTaken, MultipartBroken, UploadCut, UploadTooLarge
from app.wiring import Services
from dicom_io.types import InstanceRef

DICOM = "application/dicom"
PREAMBLE_BYTES, MAGIC = 128, b"DICM"

routes = APIRouter()


@routes.post("/studies")
@routes.post("/studies/{study}")
async def store(request: Request, services: Using, actor: By, at: At, service: Service) -> Response:
    """Store Instances: what became of each part is in the answer, as its Store Instances Response Module."""
    require_json(request)
    boundary = _boundary(request)
    most_bytes = services.settings.web.max_upload_bytes
    if int(request.headers.get("content-length") or 0) > most_bytes:
        raise UploadTooLarge(f"the message has more than {most_bytes} bytes")
    with ExitStack() as kept:
        folder = await asyncio.to_thread(kept.enter_context, scratch_folder(services.scratch))
        intake = _Intake(boundary, folder, services=services, actor=actor, study=at.study)
        try:
            await _read(request, intake, most_bytes=most_bytes)
            await asyncio.to_thread(intake.close)
        finally:
            await asyncio.to_thread(intake.abandon)
    return _answer(intake.outcomes, service=service)


class _Intake:
    """Takes a message apart, and hands each part over when its last byte has come. Used by one thread at a time."""

    def __init__(self, boundary: bytes, folder: Path, *, services: Services, actor: Actor, study: str | None) -> None:
        self.outcomes: list[Received | NotReceived | int] = []  # a failure reason for what is no Part 10 file
        self._reader = MultipartReader(boundary)
        self._path = folder / "part"
        self._file: BinaryIO | None = None
        self._services, self._actor, self._study = services, actor, study

    def feed(self, piece: bytes) -> None:
        """Raises MultipartBroken, MediaNotTaken, UploadTooLarge."""
        for found in self._reader.feed(piece):
            if isinstance(found, PartBegins):
                self._begin(found)
            elif isinstance(found, PartEnds):
                self._end()
            else:
                assert self._file is not None  # content comes between the two
                self._file.write(found)

    def close(self) -> None:
        """Raises MultipartBroken where the message is not whole, or holds nothing."""
        self._reader.close()
        if not self.outcomes:
            raise MultipartBroken("the message has no part")

    def abandon(self) -> None:
        """Close what a broken message has left open."""
        if self._file is not None:
            self._file.close()

    def _begin(self, part: PartBegins) -> None:
        if part.content_type is not None and part.content_type.media_type != DICOM:
            raise MediaNotTaken(f"a part is not of type {DICOM}")
        if len(self.outcomes) >= self._services.settings.reading.limits.archive_members:
            raise UploadTooLarge(f"the message has more than {len(self.outcomes)} parts")
        self._file = self._path.open("wb")

    def _end(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None
        self.outcomes.append(self._taken_in())
        self._path.unlink()

    def _taken_in(self) -> Received | NotReceived | int:
        with self._path.open("rb") as file:
            if not file.read(PREAMBLE_BYTES + len(MAGIC)).endswith(MAGIC):
                return CANNOT_UNDERSTAND  # PS3.10 7.1: a part is a file with preamble and prefix
        services = self._services
        (outcome,) = receive(
            [self._path],
            spool=services.spool,
            sandbox=services.sandbox,
            sessions=services.sessions,
            limits=services.settings.reading.limits,
            scratch=services.scratch,
            actor=self._actor,
            now=services.now,
            announced_study_uid=self._study,
            sent=True,
        )
        return outcome


def _boundary(request: Request) -> bytes:
    header = content_type(request.headers.get("content-type", ""))
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaNotTaken("a compressed message is not taken; send it without Content-Encoding")
    if header.media_type != "multipart/related" or header.parameters.get("type", DICOM).lower() != DICOM:
        raise MediaNotTaken(f'instances come as multipart/related; type="{DICOM}"')
    return boundary_of(header)


async def _read(request: Request, intake: _Intake, *, most_bytes: int) -> None:
    pending, total = bytearray(), 0
    try:
        async for piece in request.stream():
            pending += piece
            total += len(piece)
            if total > most_bytes:
                raise UploadTooLarge(f"the message has more than {most_bytes} bytes")
            if len(pending) >= WRITE_BYTES:
                await asyncio.to_thread(intake.feed, bytes(pending))
                pending.clear()
        await asyncio.to_thread(intake.feed, bytes(pending))
    except ClientDisconnect as exc:
        raise UploadCut("the connection ended before the message did") from exc


def _answer(outcomes: list[Received | NotReceived | int], *, service: str) -> Response:
    """Table 10.5.3-1 and Annex I.2."""
    stored = [outcome.instance.ref for outcome in outcomes if isinstance(outcome, Received)]
    failed = [(one.ref, status_of(one.code)) for one in outcomes if isinstance(one, NotReceived)]
    unnamed = [reason for ref, reason in failed if ref is None] + [one for one in outcomes if isinstance(one, int)]
    module = {
        "ReferencedSOPSequence": [_referenced(ref, service=service) for ref in stored],
        "FailedSOPSequence": [_failed(ref, reason) for ref, reason in failed if ref is not None],
        "OtherFailuresSequence": [{"FailureReason": reason} for reason in unnamed],
    }
    said: dict[str, object] = {keyword: items for keyword, items in module.items() if items}
    studies = {ref.study_instance_uid for ref in stored}
    if len(studies) == 1:
        said["RetrieveURL"] = f"{service}/studies/{studies.pop()}"
    return dicom_json(data_set(said), status=_status(len(stored), [reason for _, reason in failed], len(outcomes)))


def _status(stored: int, reasons: list[int], parts: int) -> int:
    if stored == parts:
        return 200
    if stored:
        return 202
    # Nothing was wrong with the instances: the sender keeps them and tries again.
    return 503 if len(reasons) == parts and set(reasons) == {OUT_OF_RESOURCES} else 409


def _referenced(ref: InstanceRef, *, service: str) -> dict[str, object]:
    series = f"{service}/studies/{ref.study_instance_uid}/series/{ref.series_instance_uid}"
    url = f"{series}/instances/{ref.sop_instance_uid}"
    return {
        "ReferencedSOPClassUID": ref.sop_class_uid,
        "ReferencedSOPInstanceUID": ref.sop_instance_uid,
        "RetrieveURL": url,
    }


def _failed(ref: InstanceRef, reason: int) -> dict[str, object]:
    return {
        "ReferencedSOPClassUID": ref.sop_class_uid,
        "ReferencedSOPInstanceUID": ref.sop_instance_uid,
        "FailureReason": reason,
    }
