"""DICOMweb for other applications (PS3.18): store, search and retrieve, and the worklist."""

from fastapi import APIRouter, Response

from app.errors import NotFound
from app.web.dicomweb import qido, rendered, stow, ups, wado

dicomweb = APIRouter(prefix="/dicom-web")
for part in (stow, qido, wado, rendered, ups):
    dicomweb.include_router(part.routes)


@dicomweb.api_route("/{_rest:path}", methods=["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def nothing(_rest: str) -> Response:
    """Nothing under this prefix is left to the page, whose routes would answer with something else."""
    raise NotFound("DICOMweb resource", "of this path and method")
