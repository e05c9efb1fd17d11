"""STOW-RS (PS3.18 10.5): take instances in as any other road does, and say what became of each."""

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydicom import Dataset
from python_multipart.multipart import MultipartParser
from starlette.requests import ClientDisconnect

from app.identity import Actor
from app.pacs.statuses import status_of
from app.receive import NotReceived, Received, receive
from app.scratch import scratch_folder
from app.web.dicomweb.answers import JSON, By, Uid, Using, accepts, address
from app.web.errors import MediaTypeRefused, MultipartInvalid, UploadCut, UploadTooLarge
from app.wiring import Services
from dicom_io.errors import DicomError
from dicom_io.read import read_instance
from dicom_io.types import InstanceRef

router = APIRouter()

PARTS_MOST = 10_000
HEADERS_MOST_BYTES = 16_384  # of one part
OTHER_STUDY = 0x0110  # processing failure: the instance belongs to another study than the address names


@router.post("/studies")
async def store(request: Request, services: Using, actor: By) -> Response:
    """Store instances of any study."""
    return await _store(request, services, actor, study=None)


@router.post("/studies/{study}")
async def store_in_study(study: Uid, request: Request, services: Using, actor: By) -> Response:
    """Store instances of one study; those of another are refused."""
    return await _store(request, services, actor, study=study)


async def _store(request: Request, services: Services, actor: Actor, *, study: str | None) -> Response:
    accepts(request, JSON, "application/json")
    boundary = _boundary(request.headers.get("content-type", ""))
    with ExitStack() as kept:
        folder = await asyncio.to_thread(kept.enter_context, scratch_folder(services.scratch))
        parts = _Parts(folder, boundary)
        received = 0
        try:
            async for chunk in request.stream():
                received += len(chunk)
                if received > services.settings.web.max_upload_bytes:
                    raise UploadTooLarge("the message is larger than web.max_upload_bytes; send it in parts")
                await asyncio.to_thread(parts.write, chunk)
        except ClientDisconnect as exc:
            raise UploadCut(f"the message was cut off after {received} bytes; send it again") from exc
        files = parts.finished()
        return await asyncio.to_thread(_received, request, services, actor, files, study)


def _boundary(content_type: str) -> bytes:
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    kind = str(header.get_param("type") or "application/dicom").lower()
    if header.get_content_type() != "multipart/related" or kind != "application/dicom":
        raise MediaTypeRefused('instances are stored as multipart/related; type="application/dicom"')
    if boundary is None:
        raise MultipartInvalid("the Content-Type of the message names no boundary")
    return boundary.encode()


class _Parts:
    """Puts each part of a message into a file of its own, as it comes."""

    def __init__(self, folder: Path, boundary: bytes) -> None:
        self.files: list[Path] = []
        self._folder = folder
        self._open = self._whole = False
        self._header_bytes = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_header_field": self._header,
                "on_header_value": self._header,
                "on_end": self._finish,
            },
        )

    def write(self, chunk: bytes) -> None:
        """Raises MultipartInvalid."""
        try:
            self._parser.write(chunk)
        except ValueError as exc:
            raise MultipartInvalid("the message is no multipart message, or a broken one") from exc

    def finished(self) -> list[Path]:
        """The files, once the last boundary has come. Raises MultipartInvalid."""
        if not self._whole or not self.files:
            raise MultipartInvalid("the message ends before its last boundary, or holds no part")
        return self.files

    def _begin(self) -> None:
        if len(self.files) == PARTS_MOST:
            raise MultipartInvalid(f"the message has more than {PARTS_MOST} parts")
        self._header_bytes = 0
        self.files.append(self._folder / f"{len(self.files)}.dcm")

    def _header(self, _content: bytes, start: int, end: int) -> None:
        self._header_bytes += end - start
        if self._header_bytes > HEADERS_MOST_BYTES:
            raise MultipartInvalid("the headers of a part are too long")

    def _data(self, content: bytes, start: int, end: int) -> None:
        with self.files[-1].open("ab") as file:
            file.write(content[start:end])

    def _end(self) -> None:
        self.files[-1].touch()

    def _finish(self) -> None:
        self._whole = True


def _received(request: Request, services: Services, actor: Actor, files: list[Path], study: str | None) -> Response:
    """The Store Instances Response Module (PS3.18 Annex I)."""
    refs = {file.name: _ref(file, services) for file in files}
    foreign = [ref for ref in refs.values() if ref is not None and study not in {None, ref.study_instance_uid}]
    stored: list[Dataset] = []
    failed = [_item(ref, FailureReason=OTHER_STUDY) for ref in foreign]
    for arrival in receive(
        [file for file in files if refs[file.name] not in foreign],
        spool=services.spool,
        sandbox=services.sandbox,
        sessions=services.sessions,
        limits=services.settings.reading.limits,
        scratch=services.scratch,
        actor=replace(actor, kind="ae"),  # a system sends: its studies are diagnosed once they are complete
        now=services.now,
    ):
        if isinstance(arrival, NotReceived):
            failed.append(_item(refs[arrival.name], FailureReason=status_of(arrival.code)))
        else:
            stored.append(_stored(request, arrival))
    said = Dataset()
    if stored:
        said.ReferencedSOPSequence = stored
    if failed:
        said.FailedSOPSequence = failed
    status = 200 if not failed else 202 if stored else 409
    body: dict[str, Any] = said.to_json_dict()
    return JSONResponse(body, status, media_type=JSON)


def _ref(file: Path, services: Services) -> InstanceRef | None:
    """What the file says that it is; None for one that cannot be read, which `receive` refuses with its reason."""
    try:
        return read_instance(file, sandbox=services.sandbox).ref
    except DicomError:
        return None


def _stored(request: Request, arrival: Received) -> Dataset:
    ref = arrival.instance.ref
    parts = ("studies", ref.study_instance_uid, "series", ref.series_instance_uid, "instances", ref.sop_instance_uid)
    return _item(ref, RetrieveURL=address(request, *parts))


def _item(ref: InstanceRef | None, **more: object) -> Dataset:
    item = Dataset()
    if ref is not None:
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ref.sop_class_uid, ref.sop_instance_uid
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return item
