"""What all DICOMweb routes read from a request and write into an answer."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Response

from app.identity import Actor
from app.web.api import By, Using
from app.web.dicomweb.model import DataSet
from app.web.errors import NotAcceptable, NotAllowed, RequestInvalid

DICOM_JSON = "application/dicom+json"
_PARAMETER = re.compile(r';\s*([\w-]+)\s*=\s*("[^"]*"|[^;,\s]*)')


@dataclass(frozen=True, slots=True)
class Target:
    """The UIDs in a request's path."""

    study: str | None = None
    series: str | None = None
    instance: str | None = None
    workitem: str | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """One entry of an Accept header."""

    media_type: str  # of the parts, where they come in a multipart message
    transfer_syntax: str | None
    multipart: bool
    quality: float

    def takes(self, media_type: str) -> bool:
        """Whether the entry covers a media type."""
        kind, _, _ = media_type.partition("/")
        return self.media_type in ("*/*", f"{kind}/*", media_type)


def clinician(actor: By) -> Actor:
    """Whoever asks, if that role is theirs. Raises NotAllowed."""
    if not actor.may("clinician"):
        raise NotAllowed(f"{actor.name} has not the role clinician, which searching and retrieving take")
    return actor


Reader = Annotated[Actor, Depends(clinician)]


def is_uid(text: str) -> bool:
    """Digits and dots: what the reader takes for a UID, and nothing else that a path could hold."""
    return len(text) <= 64 and re.fullmatch(r"[0-9.]*[0-9][0-9.]*", text) is not None


def target(request: Request) -> Target:
    """The UIDs in the path. Raises RequestInvalid where one is none."""
    uids: dict[str, str | None] = {name: request.path_params.get(name) for name in Target.__dataclass_fields__}
    for name, uid in uids.items():
        if uid is not None and not is_uid(uid):
            raise RequestInvalid(f"the {name} in the path is no UID (PS3.5 9.1)")
    return Target(**uids)


At = Annotated[Target, Depends(target)]


def service_url(request: Request, services: Using) -> str:
    """Where this service is for whoever asks, without a slash at the end."""
    base = services.settings.web.public_url or str(request.base_url)
    return f"{base.rstrip('/')}/dicom-web"


Service = Annotated[str, Depends(service_url)]


def accepted(request: Request) -> list[Accepted]:
    """What the request takes, best first; the `accept` parameter goes over the header (PS3.18 8.3.3.1)."""
    text = request.query_params.get("accept") or request.headers.get("accept") or "*/*"
    entries = []
    for entry in re.findall(r'(?:[^,"]|"[^"]*")+', text):
        media_type = entry.partition(";")[0].strip().lower()
        parameters = {name.lower(): value.strip('"') for name, value in _PARAMETER.findall(entry)}
        try:
            quality = float(parameters.get("q", "1"))
        except ValueError:
            quality = 0.0
        multipart = media_type in ("multipart/related", "multipart/*")
        inner = parameters.get("type", "*/*").lower() if multipart else media_type
        either = multipart or media_type == "*/*"
        entries.append(Accepted(inner, parameters.get("transfer-syntax"), either, quality))
    return sorted((one for one in entries if one.quality > 0), key=lambda one: -one.quality)


def require_json(request: Request) -> None:
    """Raise NotAcceptable where the request takes no JSON."""
    if not any(one.takes(DICOM_JSON) or one.takes("application/json") for one in accepted(request)):
        raise NotAcceptable(f"this is answered in {DICOM_JSON} only")


def dicom_json(
    content: DataSet | Sequence[DataSet], *, status: int = 200, warnings: Iterable[str] = (), service: str = ""
) -> Response:
    """An answer in the DICOM JSON model."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")
    return warned(Response(body, status, media_type=DICOM_JSON), warnings, service=service)


def warned(response: Response, warnings: Iterable[str], *, service: str) -> Response:
    """Add Warning headers (PS3.18 8.4); our own sentences, all of them ASCII."""
    for text in warnings:
        response.headers.append("Warning", f"299 {service}: {text}")
    return response
