"""WADO-RS rendered (PS3.18 10.4.1.1.3): frames as PNG or JPEG pictures for programs that show and do not decode.

Nothing is written into the picture: it is the original image, and no answer of ours.
"""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from PIL import Image

from app.db.tables import StoredInstance
from app.receive import reopen
from app.web.api import Using
from app.web.dicomweb.multipart import Part
from app.web.dicomweb.request import At, Reader, Service, accepted, warned
from app.web.dicomweb.retrieve import INSTANCE, frames_answer, note, rows_at
from app.web.dicomweb.wado import frame_numbers
from app.web.errors import NotAcceptable, RequestInvalid
from app.wiring import Services
from dicom_io.read import frames
from dicom_io.types import Frame, VoiFunction, Window
from dicom_io.voi import eight_bits, turned_window

JPEG, PNG = "image/jpeg", "image/png"
QUALITY = 90
SIDE_MOST, PIXELS_MOST = 16_384, 64 << 20
FUNCTIONS: dict[str, VoiFunction] = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}
NOT_DONE = ("annotation", "iccprofile", "presentationUID")

routes = APIRouter()


@dataclass(frozen=True, slots=True)
class Viewport:
    """A region of the image in pixels, and the box that it is scaled to fit (8.3.5.1.3)."""

    width: int
    height: int
    left: int
    top: int
    columns: int | None  # None: to the right edge; below 0: mirrored
    rows: int | None


@dataclass(frozen=True, slots=True)
class Drawing:
    """How a frame is to be drawn; None: as the file says."""

    media_type: str
    window: Window | None
    viewport: Viewport | None
    quality: int


@routes.get(INSTANCE + "/rendered")
@routes.get(INSTANCE + "/frames/{numbers}/rendered")
def rendered(
    request: Request, services: Using, actor: Reader, at: At, service: Service, numbers: str | None = None
) -> Response:
    """One picture, or one for each frame asked for. Without numbers, an image of a single frame."""
    rows = rows_at(services, actor, at)
    (row,) = rows
    if numbers is None and row.number_of_frames > 1:
        raise NotAcceptable(f"the image has {row.number_of_frames} frames; ask for frames/NUMBER/rendered")
    wanted = frame_numbers(numbers or "1", row)
    drawing = drawing_of(request)
    pictures = _pictures(services, row, wanted, drawing)
    answer = frames_answer(pictures, drawing.media_type, whole=len(wanted) > 1)
    note(services, actor, at, rows, form="rendered")
    ignored = [name for name in NOT_DONE if name in request.query_params]
    return warned(answer, [f"The {name} parameter is not supported." for name in ignored], service=service)


def drawing_of(request: Request) -> Drawing:
    """The rendering parameters of a request (8.3.5). Raises NotAcceptable, RequestInvalid."""
    asked = request.query_params
    media_type = next((kind for one in accepted(request) for kind in (JPEG, PNG) if one.takes(kind)), None)
    if media_type is None:
        raise NotAcceptable(f"pictures are {JPEG} or {PNG}")
    quality = asked.get("quality", str(QUALITY))
    if not re.fullmatch(r"[1-9][0-9]?|100", quality):
        raise RequestInvalid("quality is a whole number from 1 to 100")
    window = _window(asked["window"]) if "window" in asked else None
    viewport = _viewport(asked["viewport"]) if "viewport" in asked else None
    return Drawing(media_type, window, viewport, int(quality))


def drawn(frame: Frame, drawing: Drawing) -> bytes:
    """One frame as a file of the asked kind. Raises RequestInvalid for a region outside the image."""
    window = drawing.window
    if window is not None and frame.turned_about is not None:
        window = turned_window(window, frame.turned_about)
    picture = Image.fromarray(_in_viewport(eight_bits(frame, window), drawing.viewport))
    written = io.BytesIO()
    if drawing.viewport is not None:
        picture = _scaled(picture, drawing.viewport)
    if drawing.media_type == PNG:
        picture.save(written, "PNG")
    else:
        picture.save(written, "JPEG", quality=drawing.quality)
    return written.getvalue()


def _pictures(services: Services, row: StoredInstance, numbers: Sequence[int], drawing: Drawing) -> Iterator[Part]:
    instance = reopen(row, spool=services.spool, sandbox=services.sandbox).instance
    for frame in frames(instance, sandbox=services.sandbox, numbers=numbers):
        content = drawn(frame, drawing)
        yield Part(drawing.media_type, [content], len(content))


def _window(text: str) -> Window:
    """`centre,width,function` (8.3.5.1.4)."""
    parts = text.split(",")
    try:
        centre, width = float(parts[0]), float(parts[1])
        function = FUNCTIONS[parts[2].lower()] if len(parts) > 2 else "LINEAR"
        if (
            len(parts) > 3
            or not np.isfinite([centre, width]).all()
            or not width >= (1 if function == "LINEAR" else 1e-6)
        ):
            raise ValueError("window")
    except (IndexError, KeyError, ValueError) as exc:
        names = ", ".join(FUNCTIONS)
        raise RequestInvalid(
            f"window is CENTRE,WIDTH,FUNCTION: two numbers, the width at least 1, and {names}"
        ) from exc
    return Window(centre=centre, width=width, function=function)


def _viewport(text: str) -> Viewport:
    """`width,height` and, if wanted, `left,top,columns,rows` of the region (8.3.5.1.3)."""
    fields = (text.split(",") + [""] * 4)[:6]
    try:
        if text.count(",") not in (1, 2, 3, 4, 5):
            raise ValueError("viewport")
        width, height = int(fields[0]), int(fields[1])
        left, top = (int(one or 0) for one in fields[2:4])
        columns, rows = (int(one) if one else None for one in fields[4:6])
        if not (0 < width <= SIDE_MOST and 0 < height <= SIDE_MOST and width * height <= PIXELS_MOST):
            raise ValueError("viewport")
    except ValueError as exc:
        raise RequestInvalid("viewport is WIDTH,HEIGHT or WIDTH,HEIGHT,LEFT,TOP,COLUMNS,ROWS in pixels") from exc
    return Viewport(width, height, left, top, columns, rows)


def _in_viewport(levels: NDArray[np.uint8], viewport: Viewport | None) -> NDArray[np.uint8]:
    """The region, mirrored where its columns or rows are below 0."""
    if viewport is None:
        return levels
    rows, columns = levels.shape[:2]
    width = columns - viewport.left if viewport.columns is None else viewport.columns
    height = rows - viewport.top if viewport.rows is None else viewport.rows
    right, bottom = viewport.left + abs(width), viewport.top + abs(height)
    if not (0 <= viewport.left < right <= columns and 0 <= viewport.top < bottom <= rows):
        raise RequestInvalid(f"the viewport's region is not inside the image of {columns} x {rows} pixels")
    region = levels[viewport.top : bottom, viewport.left : right]
    region = region[:, ::-1] if width < 0 else region
    return np.ascontiguousarray(region[::-1] if height < 0 else region)


def _scaled(picture: Image.Image, viewport: Viewport) -> Image.Image:
    """As large as fits the box with its shape kept."""
    factor = min(viewport.width / picture.width, viewport.height / picture.height)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)
