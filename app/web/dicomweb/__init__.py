"""DICOMweb for other systems (PS3.18): store, search, retrieve, and the worklist of studies to be diagnosed."""

from fastapi import APIRouter

from app.web.dicomweb import retrieve, search, store, workitems

dicomweb = APIRouter(prefix="/dicom-web")
for part in (store, search, retrieve, workitems):
    dicomweb.include_router(part.router)
