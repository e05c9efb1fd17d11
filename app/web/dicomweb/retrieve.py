"""WADO-RS (PS3.18 10.4): give instances, their metadata, frames and pictures."""

import io
import mmap
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.encaps import get_frame
from sqlalchemy import select
from sqlalchemy.orm import selectinload

from app.db import audit
from app.db.queries import visible_studies
from app.db.tables import Series, StoredInstance, Study
from app.errors import NotFound
from app.identity import Actor
from app.receive import reopen
from app.spool import Spool
from app.web.dicomweb.answers import JSON, By, Uid, Using, accepts, address, dicom_json
from app.web.errors import MediaTypeRefused, RequestInvalid
from app.wiring import Services
from dicom_io.errors import NoPixels, NoSuchFrame
from dicom_io.read import frames
from dicom_io.types import Window
from dicom_io.uids import TRANSFER_SYNTAXES
from dicom_io.voi import eight_bits

router = APIRouter()

CHUNK_BYTES = 1 << 20
INLINE_BYTES = 4096  # larger values are given by their address (PS3.18 F.2.6)
FRAMES_MOST = 1000
SIDE_MOST = 8192
# Media types of encapsulated frames (PS3.18 Table 8.7.3-5).
FRAME_TYPES = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}


@router.get("/studies/{study}")
def study(study: Uid, request: Request, services: Using, actor: By) -> Response:
    """All instances of a study."""
    return _instances(request, services, _found(services, actor, study))


@router.get("/studies/{study}/metadata")
def study_metadata(study: Uid, request: Request, services: Using, actor: By) -> Response:
    """The headers of a study."""
    return _metadata(request, services, _found(services, actor, study))


@router.get("/studies/{study}/series/{series}")
def series(study: Uid, series: Uid, request: Request, services: Using, actor: By) -> Response:
    """All instances of a series."""
    return _instances(request, services, _found(services, actor, study, series))


@router.get("/studies/{study}/series/{series}/metadata")
def series_metadata(study: Uid, series: Uid, request: Request, services: Using, actor: By) -> Response:
    """The headers of a series."""
    return _metadata(request, services, _found(services, actor, study, series))


@router.get("/studies/{study}/series/{series}/instances/{instance}")
def instance(study: Uid, series: Uid, instance: Uid, request: Request, services: Using, actor: By) -> Response:
    """One instance."""
    return _instances(request, services, _found(services, actor, study, series, instance))


@router.get("/studies/{study}/series/{series}/instances/{instance}/metadata")
def metadata(study: Uid, series: Uid, instance: Uid, request: Request, services: Using, actor: By) -> Response:
    """The header of one instance."""
    return _metadata(request, services, _found(services, actor, study, series, instance))


@router.get("/studies/{study}/series/{series}/instances/{instance}/bulkdata/{tag}")
def bulk(study: Uid, series: Uid, instance: Uid, tag: str, request: Request, services: Using, actor: By) -> Response:
    """The value of one attribute that metadata gives by address."""
    accepts(request, "application/octet-stream", "multipart/related")
    [row] = _found(services, actor, study, series, instance)
    if not re.fullmatch(r"[0-9A-F]{8}", tag):
        raise RequestInvalid(f"{tag!r} is no tag")
    header = dcmread(services.spool.path(row.sha256))
    if int(tag, 16) not in header or not isinstance(header[int(tag, 16)].value, bytes):
        raise NotFound("attribute", tag)
    return _related([("application/octet-stream", header[int(tag, 16)].value)], "application/octet-stream")


@router.get("/studies/{study}/series/{series}/instances/{instance}/frames/{numbers}")
def raw_frames(
    study: Uid, series: Uid, instance: Uid, numbers: str, request: Request, services: Using, actor: By
) -> Response:
    """Frames as they are kept: encoded, or little endian."""
    [row] = _found(services, actor, study, series, instance)
    wanted = _numbers(numbers, row)
    syntax = TRANSFER_SYNTAXES[row.transfer_syntax_uid]
    kind = FRAME_TYPES.get(syntax.uid, "application/octet-stream")
    accepts(request, "multipart/related", kind)
    if syntax.deflated or not syntax.little_endian:
        raise MediaTypeRefused(f"frames of {syntax.name} are not given singly; fetch the instance")
    said = f"{kind}; transfer-syntax={syntax.uid}"
    parts = ((said, one) for one in _kept_frames(row, wanted, spool=services.spool, encapsulated=syntax.encapsulated))
    return _related(parts, kind)


@router.get("/studies/{study}/series/{series}/instances/{instance}/rendered")
def rendered(study: Uid, series: Uid, instance: Uid, request: Request, services: Using, actor: By) -> Response:
    """The first frame as a picture."""
    [row] = _found(services, actor, study, series, instance)
    return _picture(request, services, row, 1)


@router.get("/studies/{study}/series/{series}/instances/{instance}/frames/{number}/rendered")
def rendered_frame(
    study: Uid, series: Uid, instance: Uid, number: str, request: Request, services: Using, actor: By
) -> Response:
    """One frame as a picture."""
    [row] = _found(services, actor, study, series, instance)
    return _picture(request, services, row, _numbers(number, row)[0])


def _found(
    services: Services, actor: Actor, study: str, series: str | None = None, instance: str | None = None
) -> list[StoredInstance]:
    """What the address names, its giving audited. Raises NotFound, also where the actor may not see it."""
    with services.sessions.begin() as session:
        row = session.scalar(
            visible_studies(actor)
            .where(Study.study_instance_uid == study)
            .options(selectinload(Study.series).selectinload(Series.instances))
        )
        found = [
            one
            for of_study in (row.series if row is not None else ())
            if series is None or of_study.series_instance_uid == series
            for one in of_study.instances
            if instance is None or one.sop_instance_uid == instance
        ]
        if row is None or not found:
            raise NotFound("study" if series is None else "series" if instance is None else "instance", study)
        detail = {"series": series, "instance": instance}
        audit.append(session, actor=actor, action="retrieve", subjects=[row], detail=detail, now=services.now)
        return list(session.scalars(select(StoredInstance).where(StoredInstance.id.in_([one.id for one in found]))))


def _instances(request: Request, services: Services, rows: Sequence[StoredInstance]) -> Response:
    """Files as they came (PS3.18 8.7.3.5.2): nothing is transcoded."""
    accepts(request, "multipart/related")
    wanted = re.findall(r"transfer-syntax=\"?([\w.*]+)", request.headers.get("accept", ""))
    for row in rows:
        if wanted and "*" not in wanted and row.transfer_syntax_uid not in wanted:
            raise MediaTypeRefused(
                f"an instance is kept in {row.transfer_syntax_uid} and is not transcoded; accept transfer-syntax=*"
            )
    parts = (("application/dicom", _file(services.spool, row)) for row in rows)
    return _related(parts, "application/dicom")


def _file(spool: Spool, row: StoredInstance) -> Iterator[bytes]:
    with spool.path(row.sha256).open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _metadata(request: Request, services: Services, rows: Sequence[StoredInstance]) -> Response:
    accepts(request, JSON, "application/json")
    return dicom_json(_header(request, services, row) for row in rows)


def _header(request: Request, services: Services, row: StoredInstance) -> dict[str, Any]:
    header = dcmread(services.spool.path(row.sha256), defer_size=INLINE_BYTES)
    study, series = str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
    own = address(request, "studies", study, "series", series, "instances", row.sop_instance_uid, "bulkdata")
    pixels = header.pop("PixelData", None)  # given as frames; its bytes stay where they are
    said: dict[str, Any] = header.to_json_dict(
        bulk_data_threshold=INLINE_BYTES,
        bulk_data_element_handler=lambda element: f"{own}/{element.tag:08X}",
        suppress_invalid_tags=True,
    )
    if pixels is not None:
        said["7FE00010"] = {"vr": "OW", "BulkDataURI": own.replace("/bulkdata", "/frames/1")}
    return said


def _numbers(numbers: str, row: StoredInstance) -> list[int]:
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", numbers):
        raise RequestInvalid(f"{numbers!r} is no list of frame numbers")
    wanted = [int(one) for one in numbers.split(",")]
    if len(wanted) > FRAMES_MOST:
        raise RequestInvalid(f"{len(wanted)} frames are asked for; at most {FRAMES_MOST} are given at a time")
    if row.number_of_frames == 0:
        raise NoPixels("the object carries no pixel data")
    for number in wanted:
        if not 1 <= number <= row.number_of_frames:
            raise NoSuchFrame(f"frame {number} was asked for; there are frames 1 to {row.number_of_frames}")
    return wanted


def _kept_frames(row: StoredInstance, numbers: Sequence[int], *, spool: Spool, encapsulated: bool) -> Iterator[bytes]:
    """Each frame's bytes, out of the file and without the rest of it."""
    path = spool.path(row.sha256)
    header = dcmread(path, defer_size=INLINE_BYTES)
    element = header.get_item("PixelData")
    assert isinstance(element, RawDataElement)  # there are frames, or `_numbers` would have refused
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if encapsulated:
            for number in numbers:
                mapped.seek(element.value_tell)
                yield get_frame(mapped, number - 1, number_of_frames=row.number_of_frames)
            return
        size = _frame_bytes(header)
        for number in numbers:
            start = element.value_tell + (number - 1) * size
            yield mapped[start : start + size]


def _frame_bytes(header: Dataset) -> int:
    bits = int(header.Rows) * int(header.Columns) * int(header.SamplesPerPixel) * int(header.BitsAllocated)
    if bits % 8:
        raise MediaTypeRefused("frames of this image do not end at a byte and are not given singly; fetch the instance")
    if header.PhotometricInterpretation == "YBR_FULL_422":
        return bits // 8 // 3 * 2
    return bits // 8


def _picture(request: Request, services: Services, row: StoredInstance, number: int) -> Response:
    """PS3.18 8.3.5: `window` is centre,width[,function], `viewport` width,height, `quality` 1 to 100."""
    kind = accepts(request, "image/png", "image/jpeg")
    query = request.query_params
    quality, viewport = query.get("quality", "90"), query.get("viewport")
    if not re.fullmatch(r"[0-9]{1,3}", quality) or not 1 <= int(quality) <= 100:
        raise RequestInvalid(f"quality is {quality!r}; 1 to 100 is needed")
    opened = reopen(row, spool=services.spool, sandbox=services.sandbox).instance
    frame = next(frames(opened, sandbox=services.sandbox, numbers=[number]))
    picture = Image.fromarray(eight_bits(frame, _window(query.get("window"))))
    if viewport is not None:
        match = re.fullmatch(r"([0-9]{1,4}),([0-9]{1,4})", viewport)
        if match is None or not 0 < max(int(match[1]), int(match[2])) <= SIDE_MOST or "0" in match.groups():
            raise RequestInvalid(f"viewport is {viewport!r}; width,height up to {SIDE_MOST} are needed")
        scale = min(int(match[1]) / picture.width, int(match[2]) / picture.height)
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    content = io.BytesIO()
    picture.save(content, kind.removeprefix("image/").upper(), quality=int(quality))
    return Response(content.getvalue(), media_type=kind)


def _window(text: str | None) -> Window | None:
    if text is None:
        return None
    functions = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}
    number = r"(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)"
    match = re.fullmatch(rf"{number},{number}(?:,([a-z-]+))?", text)
    function = functions.get(match[3] or "linear") if match else None
    if match is None or function is None or float(match[2]) < 1:
        raise RequestInvalid(f"window is {text!r}; centre,width[,function] with a width of at least 1 is needed")
    return Window(float(match[1]), float(match[2]), function)  # type: ignore[arg-type]  # one of the table's values


def _related(parts: "Iterator[tuple[str, Any]] | list[tuple[str, Any]]", kind: str) -> Response:
    """A multipart/related answer (PS3.18 8.6.1.2), written as it is read."""
    boundary = secrets.token_hex(16)

    def message() -> Iterator[bytes]:
        for part_kind, content in parts:
            yield f"--{boundary}\r\nContent-Type: {part_kind}\r\n\r\n".encode()
            if isinstance(content, bytes):
                yield content
            else:
                yield from content
            yield b"\r\n"
        yield f"--{boundary}--\r\n".encode()

    return StreamingResponse(message(), media_type=f'multipart/related; type="{kind}"; boundary={boundary}')
