"""What the routes of DICOMweb share: who asks, the DICOM JSON model, and addresses of our own."""

from collections.abc import Iterable
from datetime import date
from typing import Annotated, Any

from fastapi import Depends, Path, Request
from fastapi.responses import JSONResponse
from pydicom import Dataset

from app.identity import Actor
from app.web.errors import MediaTypeRefused
from app.wiring import Services

JSON = "application/dicom+json"
Uid = Annotated[str, Path(pattern=r"^[0-9.]{1,64}$")]


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _actor(request: Request) -> Actor:
    actor: Actor = request.state.actor
    return actor


Using = Annotated[Services, Depends(_services)]
By = Annotated[Actor, Depends(_actor)]


def dicom_json(datasets: Iterable[Dataset | dict[str, Any]], *, warning: str | None = None) -> JSONResponse:
    """A list of data sets (PS3.18 Annex F)."""
    body = [one if isinstance(one, dict) else one.to_json_dict(suppress_invalid_tags=True) for one in datasets]
    headers = {} if warning is None else {"Warning": f'299 hilum "{warning}"'}
    return JSONResponse(body, media_type=JSON, headers=headers)


def accepts(request: Request, *kinds: str) -> str:
    """The first of our media types that the caller takes. Raises MediaTypeRefused."""
    wanted = [one.split(";")[0].strip().lower() for one in request.headers.get("accept", "*/*").split(",")]
    for kind in kinds:
        family = f"{kind.split('/')[0]}/*"
        if any(one in {kind, family, "*/*", ""} for one in wanted):
            return kind
    raise MediaTypeRefused(f"this answer comes as {' or '.join(kinds)}; the request accepts {', '.join(wanted)}")


def day(value: date | None) -> str:
    """A DA value; empty for none."""
    return "" if value is None else f"{value:%Y%m%d}"


def address(request: Request, *parts: str) -> str:
    """The URL of something below /dicom-web as the caller reaches it."""
    return "/".join([str(request.base_url).rstrip("/"), "dicom-web", *parts])
