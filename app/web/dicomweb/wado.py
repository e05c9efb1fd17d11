"""WADO-RS (PS3.18 10.4): give out instances, metadata, bulk data and frames as they are stored."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from app.db.tables import StoredInstance
from app.errors import SpoolDamaged
from app.web.api import Using
from app.web.dicomweb.multipart import Part
from app.web.dicomweb.request import DICOM_JSON, At, Reader, Service, require_json
from app.web.dicomweb.retrieve import INSTANCE, SERIES, STUDY, agreed, files_answer, frames_answer, note, rows_at
from app.web.errors import RequestInvalid
from app.wiring import Services
from dicom_io.errors import NoSuchFrame
from dicom_io.read import no_frames
from dicom_io.uids import EXPLICIT_VR_LITTLE_ENDIAN, TRANSFER_SYNTAXES

DICOM, OCTETS = "application/dicom", "application/octet-stream"
CHUNK_BYTES = 1 << 20
FRAMES_MOST = 10_000  # of one request
PIXEL_PLACES = frozenset({"7FE00008", "7FE00009", "7FE00010"})
# PS3.18 Table 8.7.3-5: how the codestream of a frame is named when it stands alone.
FRAME_MEDIA_TYPES = {
    "1.2.840.10008.1.2.1.98": OCTETS,
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.53": "image/jpeg",
    "1.2.840.10008.1.2.4.55": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.92": "image/jpx",
    "1.2.840.10008.1.2.4.93": "image/jpx",
    "1.2.840.10008.1.2.4.110": "image/jxl",
    "1.2.840.10008.1.2.4.111": "image/jxl",
    "1.2.840.10008.1.2.4.112": "image/jxl",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
    "1.2.840.10008.1.2.8.1": "application/x-deflate",
}

routes = APIRouter()


@routes.get(STUDY)
@routes.get(SERIES)
@routes.get(INSTANCE)
def instances(request: Request, services: Using, actor: Reader, at: At) -> Response:
    """The files as they were received."""
    rows = rows_at(services, actor, at)
    form = agreed(request, [DICOM], {row.transfer_syntax_uid for row in rows})
    parts = [_file(services, row) for row in rows]
    note(services, actor, at, rows, form="instances")
    return files_answer(parts, DICOM, whole=form.multipart)


@routes.get(STUDY + "/metadata", dependencies=[Depends(require_json)])
@routes.get(SERIES + "/metadata", dependencies=[Depends(require_json)])
@routes.get(INSTANCE + "/metadata", dependencies=[Depends(require_json)])
def metadata(services: Using, actor: Reader, at: At, service: Service) -> Response:
    """The data sets in the DICOM JSON model, one after the other as they are read."""
    rows = rows_at(services, actor, at)
    data_sets = (_metadata(services, row, service) for row in rows)
    first = next(data_sets)  # an error here has its own status
    note(services, actor, at, rows, form="metadata")
    return StreamingResponse(_listed(itertools.chain([first], data_sets)), media_type=DICOM_JSON)


@routes.get(INSTANCE + "/frames/{numbers}")
def frames(numbers: str, request: Request, services: Using, actor: Reader, at: At) -> Response:
    """Frames as they are stored: codestreams, or native samples in little endian."""
    rows = rows_at(services, actor, at)
    (row,) = rows
    wanted = frame_numbers(numbers, row)
    media_type, transfer_syntax = _frame_form(row)
    # A codestream is octets too, for whoever takes its transfer syntax by name or any.
    form = agreed(request, [media_type, OCTETS], {transfer_syntax})
    whole = form.multipart or len(wanted) > 1
    answer = frames_answer(_frames(services, row, wanted), media_type, whole=whole)
    note(services, actor, at, rows, form="frames")
    return answer


@routes.get(INSTANCE + "/bulkdata/{place:path}")
def bulk_data(place: str, request: Request, services: Using, actor: Reader, at: At) -> Response:
    """A value that the metadata left out; the pixels come frame by frame."""
    rows = rows_at(services, actor, at)
    (row,) = rows
    if place.upper() in PIXEL_PLACES:
        media_type, transfer_syntax = _frame_form(row)
        form = agreed(request, [media_type, OCTETS], {transfer_syntax})
        parts = _frames(services, row, range(1, row.number_of_frames + 1))
        whole = form.multipart or row.number_of_frames > 1
    else:
        form = agreed(request, [OCTETS], {EXPLICIT_VR_LITTLE_ENDIAN.uid})
        value = services.sandbox.bulk_value(services.spool.path(row.sha256), place.upper())
        media_type, parts, whole = OCTETS, iter([Part(OCTETS, [value], len(value))]), form.multipart
    answer = frames_answer(parts, media_type, whole=whole)
    note(services, actor, at, rows, form="bulk data")
    return answer


def frame_numbers(text: str, row: StoredInstance) -> list[int]:
    """`1,2,3`, each of them a frame of the object. Raises RequestInvalid, NoPixels, PixelsMissing, NoSuchFrame."""
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", text):
        raise RequestInvalid("frames are numbers from 1, with commas between them")
    numbers = [int(one) for one in text.split(",")]
    if len(numbers) > FRAMES_MOST:
        raise RequestInvalid(f"at most {FRAMES_MOST} frames are given out at a time")
    if not row.number_of_frames:
        raise no_frames(row.sop_class_uid)
    for number in numbers:
        if not 1 <= number <= row.number_of_frames:
            raise NoSuchFrame(f"frame {number} was asked for; there are frames 1 to {row.number_of_frames}")
    return numbers


def _frame_form(row: StoredInstance) -> tuple[str, str]:
    """Media type and transfer syntax of one frame alone (PS3.18 8.7.3.3)."""
    if not row.number_of_frames:
        raise no_frames(row.sop_class_uid)
    syntax = TRANSFER_SYNTAXES[row.transfer_syntax_uid]
    if not syntax.encapsulated:
        return OCTETS, EXPLICIT_VR_LITTLE_ENDIAN.uid
    return FRAME_MEDIA_TYPES.get(syntax.uid, OCTETS), syntax.uid


def _frames(services: Services, row: StoredInstance, numbers: Sequence[int]) -> Iterator[Part]:
    media_type, transfer_syntax = _frame_form(row)
    path = services.spool.path(row.sha256)
    for number in numbers:
        content = services.sandbox.stored_frame(path, number)
        yield Part(f"{media_type}; transfer-syntax={transfer_syntax}", [content], len(content))


def _file(services: Services, row: StoredInstance) -> Part:
    services.spool.path(row.sha256)  # raises NotInSpool now, while an error can still be answered
    kind = f"{DICOM}; transfer-syntax={row.transfer_syntax_uid}"
    return Part(kind, _bytes(services, row.sha256), row.size_bytes)


def _bytes(services: Services, sha256: str) -> Iterator[bytes]:
    """A kept file's bytes. Where they have changed on disk, the answer breaks off and is not whole."""
    digest, held = hashlib.sha256(), b""
    with services.spool.path(sha256).open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            yield held
            held = chunk
    if digest.hexdigest() != sha256:
        raise SpoolDamaged(sha256)
    yield held


def _metadata(services: Services, row: StoredInstance, service: str) -> dict[str, Any]:
    series = row.series
    of_series = f"{service}/studies/{series.study.study_instance_uid}/series/{series.series_instance_uid}"
    bulk_url = f"{of_series}/instances/{row.sop_instance_uid}/bulkdata"
    return services.sandbox.metadata(services.spool.path(row.sha256), bulk_url=bulk_url)


def _listed(data_sets: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    before = "["
    for one in data_sets:
        yield f"{before}{json.dumps(one, ensure_ascii=False, separators=(',', ':'))}".encode("utf-8", "replace")
        before = ","
    yield b"]"
