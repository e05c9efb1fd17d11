"""What every retrieval does: find the rows, agree on a form, audit, and stream (PS3.18 10.4)."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app.db import audit, queries
from app.db.tables import Base, StoredInstance
from app.identity import Actor
from app.web.dicomweb import multipart
from app.web.dicomweb.multipart import Part
from app.web.dicomweb.request import Accepted, Target, accepted
from app.web.errors import NotAcceptable
from app.wiring import Services

STUDY = "/studies/{study}"
SERIES = STUDY + "/series/{series}"
INSTANCE = SERIES + "/instances/{instance}"


def rows_at(services: Services, actor: Actor, at: Target) -> list[StoredInstance]:
    """The stored files that a path names, in reading order. Raises NotFound."""
    assert at.study is not None  # every route has it
    with services.sessions() as session:
        return queries.stored(session, actor, study=at.study, series=at.series, instance=at.instance)


def agreed(request: Request, media_types: Sequence[str], transfer_syntaxes: Collection[str]) -> Accepted:
    """The entry of the Accept header that takes what there is. Raises NotAcceptable: nothing is transcoded.

    An entry that names no transfer syntax takes the stored one, which the answer names.
    """
    for one in accepted(request):
        stored = one.transfer_syntax in (None, "*") or set(transfer_syntaxes) == {one.transfer_syntax}
        if stored and any(one.takes(media_type) for media_type in media_types):
            return one
    kinds = " or ".join(media_types)
    syntaxes = ", ".join(sorted(transfer_syntaxes)) or "none"
    raise NotAcceptable(f"this is {kinds} in transfer syntax {syntaxes}; accept that, or transfer-syntax=*")


def note(services: Services, actor: Actor, at: Target, rows: Sequence[StoredInstance], *, form: str) -> None:
    """Audit a retrieval before its first byte leaves: who, of which study, series or instance, in which form."""
    row = rows[0]
    subject: Base = row if at.instance else row.series if at.series else row.series.study
    detail = {"form": form, "instances": len(rows)}
    with services.sessions.begin() as session:
        audit.append(session, actor=actor, action="retrieve", subjects=[subject], detail=detail, now=services.now)


def files_answer(parts: Sequence[Part], media_type: str, *, whole: bool) -> Response:
    """Parts whose sizes are known: as one multipart message, or the only one bare."""
    if not whole and len(parts) == 1:
        (part,) = parts
        headers = {"Content-Length": str(part.size_bytes)}
        return StreamingResponse(part.content, media_type=part.content_type, headers=headers)
    boundary = multipart.new_boundary()
    length = multipart.size_bytes(parts, boundary=boundary)
    return _message(multipart.written(parts, boundary=boundary), media_type, boundary, length=length)


def frames_answer(parts: Iterator[Part], media_type: str, *, whole: bool) -> Response:
    """Parts made one at a time. What keeps the first from being made is an error with a status of its own."""
    first = next(parts)
    if not whole:
        return Response(b"".join(first.content), media_type=first.content_type)
    boundary = multipart.new_boundary()
    return _message(multipart.written(itertools.chain([first], parts), boundary=boundary), media_type, boundary)


def _message(content: Iterable[bytes], media_type: str, boundary: str, *, length: int | None = None) -> Response:
    headers = {} if length is None else {"Content-Length": str(length)}
    kind = f'multipart/related; type="{media_type}"; boundary={boundary}'
    return StreamingResponse(content, media_type=kind, headers=headers)
