"""The page's own routes: take files in, list and open studies, diagnose, and send images and heat maps.

Files come as the bare body of a request and go to a scratch folder of their own, never through Gradio. What takes
long answers with JSON lines, one for each file or image, each written once it is durable.
"""

import asyncio
import json
import logging
import queue
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import exists, select
from starlette.requests import ClientDisconnect

from app.db import audit, queries
from app.db.tables import PredictionRow, Study
from app.diagnose import diagnose
from app.errors import NotFound
from app.evidence import check, evidence
from app.identity import Actor
from app.receive import NotReceived, Received, receive, reopen
from app.results import Diagnosed, NotDiagnosed
from app.scratch import scratch_folder
from app.web.errors import DOMAIN_ERRORS, UploadCut, UploadTooLarge, answer, told
from app.web.records import model_json, prediction_json, stated_age, studies_json, study_json
from app.web.samples import SAMPLES, sample_path
from app.web.viewer import MEDIA_TYPE, heat_shape, pack_frame, pack_heat
from app.wiring import Services
from dicom_io.read import frames

logger = logging.getLogger(__name__)

WRITE_BYTES = 1 << 20  # one trip to a thread for each, not one for each network packet
LONGEST_NAME_BYTES = 200
NAME_FOR_NOTHING = "upload"

LONGEST_PATH = 4096

Event = dict[str, Any]

api = APIRouter(prefix="/api")


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _actor(request: Request) -> Actor:
    actor: Actor = request.state.actor
    return actor


Using = Annotated[Services, Depends(_services)]
By = Annotated[Actor, Depends(_actor)]


@api.get("/model")
def model(services: Using) -> Event:
    """What the page needs to word the model's answers."""
    return model_json(services.model.manifest, services.model.provider)


@api.get("/samples")
def samples() -> list[dict[str, str]]:
    """The packaged samples."""
    return [{"name": one.name, "title": one.title, "detail": one.detail} for one in SAMPLES]


@api.get("/studies")
def studies(services: Using, actor: By) -> list[Event]:
    """The newest studies."""
    with services.sessions() as session:
        return studies_json(session, actor)


@api.get("/studies/{uid}")
def study(uid: str, services: Using, actor: By) -> Event:
    """One study with its images and their newest predictions; that it was opened is audited."""
    with services.sessions.begin() as session:
        row = queries.study(session, actor, uid)
        audit.append(session, actor=actor, action="view", subjects=[row], now=services.now)
        return study_json(session, row)


@api.post("/files")
async def files(
    request: Request, services: Using, actor: By, name: Annotated[str, Query(max_length=LONGEST_PATH)]
) -> Response:
    """Take one file or zip in; a line for each file in it."""
    kept = ExitStack()
    try:
        folder = await asyncio.to_thread(kept.enter_context, scratch_folder(services.scratch))
        path = folder / "upload" / file_name(name)
        await asyncio.to_thread(path.parent.mkdir)
        await _write_body(request, path, most_bytes=services.settings.web.max_upload_bytes)
    except BaseException:
        await asyncio.to_thread(kept.close)
        raise
    return await asyncio.to_thread(_lines, _received(services, path, actor=actor), kept)


@api.post("/samples/{name}")
def sample(name: str, services: Using, actor: By) -> Response:
    """Take a packaged sample in, as if it had been uploaded."""
    return _lines(_received(services, sample_path(name), actor=actor), ExitStack())


@api.post("/studies/{uid}/predictions")
def predictions(uid: str, services: Using, actor: By, age: str | None = None) -> Response:
    """Diagnose a study; the number of images first, then a line for each."""
    stated_age_years = stated_age(age)
    with services.sessions() as session:
        row = queries.study(session, actor, uid)
    return _lines(_diagnosed(services, row, actor=actor, stated_age_years=stated_age_years), ExitStack())


@api.get("/images/{uid}/frames/{number}")
def image(uid: str, number: int, services: Using, actor: By) -> Response:
    """One frame for the canvas."""
    with services.sessions() as session:
        row = queries.instance(session, actor, uid)
    instance = reopen(row, spool=services.spool, sandbox=services.sandbox).instance
    frame = next(frames(instance, sandbox=services.sandbox, numbers=[number]))
    return Response(pack_frame(frame), media_type=MEDIA_TYPE)


@api.get("/predictions/{uid}/heat")
def heat(uid: str, task: str, label: str, services: Using, actor: By) -> Response:
    """Where a recorded finding comes from."""
    row = _answered(services, actor, uid, task=task, label=label)
    shape = heat_shape(row.preprocessing["rows"], row.preprocessing["columns"])
    found = evidence(
        row,
        task=task,
        label=label,
        shape=shape,
        model=services.model,
        spool=services.spool,
        sandbox=services.sandbox,
    )
    return Response(pack_heat(found), media_type=MEDIA_TYPE)


@api.post("/predictions/{uid}/check")
def checked(uid: str, task: str, label: str, services: Using, actor: By) -> Response:
    """Hold a heat map against covering the image: a line for each batch of runs, then what was found."""
    row = _answered(services, actor, uid, task=task, label=label)
    return _lines(_checked(services, row, task=task, label=label), ExitStack())


def file_name(name: str) -> str:
    """The last part of the name that the browser gave, as a name that any disk takes."""
    last = re.split(r"[/\\]", name)[-1]
    printable = "".join(letter for letter in last if letter.isprintable())
    cut = printable.encode("utf-8", "replace")[:LONGEST_NAME_BYTES].decode("utf-8", "ignore")
    return cut if cut.strip(". ") else NAME_FOR_NOTHING


async def _write_body(request: Request, path: Path, *, most_bytes: int) -> None:
    """Put a request's body into a file. Raises UploadTooLarge as soon as that is known, and UploadCut."""
    announced = request.headers.get("content-length", "")
    expected = int(announced) if announced.isdecimal() else None
    too_large = UploadTooLarge(f"the upload is larger than web.max_upload_bytes ({most_bytes}); send it in parts")
    if expected is not None and expected > most_bytes:
        raise too_large
    written = 0
    waiting = bytearray()
    with path.open("wb", buffering=0) as file:
        try:
            async for chunk in request.stream():
                waiting += chunk
                if written + len(waiting) > most_bytes:
                    raise too_large
                if len(waiting) >= WRITE_BYTES:
                    written += len(waiting)
                    await asyncio.to_thread(file.write, bytes(waiting))
                    waiting.clear()
        except ClientDisconnect as exc:
            raise UploadCut(f"the upload was cut off after {written} bytes; send it again") from exc
        written += len(waiting)
        await asyncio.to_thread(file.write, bytes(waiting))
    if expected is not None and written != expected:
        raise UploadCut(f"the upload was cut off after {written} of {expected} bytes; send it again")


def _answered(services: Services, actor: Actor, uid: str, *, task: str, label: str) -> PredictionRow:
    """The prediction, if it answered with this label: a withheld answer has no map either."""
    with services.sessions() as session:
        row = queries.prediction(session, actor, uid).row
        if not any((one.task, one.label) == (task, label) for one in row.findings):
            raise NotFound("finding", f"{task} {label} of prediction {uid}")
    return row


def _checked(services: Services, row: PredictionRow, *, task: str, label: str) -> Iterator[Event]:
    heard: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(
            check,
            row,
            task=task,
            label=label,
            model=services.model,
            spool=services.spool,
            sandbox=services.sandbox,
            heard=lambda done, runs: heard.put({"done": done, "runs": runs}),
        )
        found.add_done_callback(lambda _: heard.put(None))
        yield from iter(heard.get, None)
    verification = found.result()
    yield {
        "rank_correlation": verification.rank_correlation,
        "drop_at_strongest": verification.drop_at_strongest,
        "weaker_elsewhere": verification.weaker_elsewhere,
    }


def _received(services: Services, path: Path, *, actor: Actor) -> Iterator[Event]:
    arrivals = receive(
        [path],
        spool=services.spool,
        sandbox=services.sandbox,
        sessions=services.sessions,
        limits=services.settings.reading.limits,
        scratch=services.scratch,
        actor=actor,
        now=services.now,
    )
    for arrival in arrivals:
        if isinstance(arrival, NotReceived):
            yield {"name": arrival.name, "outcome": arrival.outcome, "error": told(arrival.code, arrival.message)}
        else:
            yield {
                "name": arrival.name,
                "outcome": arrival.outcome,
                "study_instance_uid": arrival.instance.ref.study_instance_uid,
                "sop_instance_uid": arrival.instance.ref.sop_instance_uid,
                "diagnosed": _is_diagnosed(services, arrival),
            }


def _is_diagnosed(services: Services, arrival: Received) -> bool:
    """Whether the model that is loaded now has already read this image."""
    mine = PredictionRow.model_sha256 == services.model.manifest.graph_sha256
    with services.sessions() as session:
        return bool(session.scalar(select(exists().where(PredictionRow.instance_id == arrival.instance_id, mine))))


def _diagnosed(services: Services, study: Study, *, actor: Actor, stated_age_years: float | None) -> Iterator[Event]:
    settings = services.settings.diagnose
    frames_by_series: dict[int, int] = {}
    received: list[Received] = []
    for row in (instance for series in study.series for instance in series.instances):
        try:
            received.append(reopen(row, spool=services.spool, sandbox=services.sandbox))
        except DOMAIN_ERRORS as error:
            yield {"sop_instance_uid": row.sop_instance_uid, "error": told(error.code, str(error))}
            continue
        frames_by_series[row.series_id] = frames_by_series.get(row.series_id, 0) + row.number_of_frames
    yield {"images": sum(min(count, settings.frames_per_series) for count in frames_by_series.values())}
    results = diagnose(
        received,
        model=services.model,
        sandbox=services.sandbox,
        sessions=services.sessions,
        actor=actor,
        now=services.now,
        batch_size=settings.batch_size,
        frames_per_series=settings.frames_per_series,
        stated_age_years=stated_age_years,
    )
    for result in results:
        event = _result(services, result, actor=actor)
        if event is not None:
            yield event


def _result(services: Services, result: Diagnosed | NotDiagnosed, *, actor: Actor) -> Event | None:
    """One line for an image; None for an object that holds no image, such as a report."""
    if isinstance(result, NotDiagnosed):
        if result.has_no_image:
            return None
        sop_instance_uid = result.received.instance.ref.sop_instance_uid
        return {"sop_instance_uid": sop_instance_uid, "error": told(result.code, result.message)}
    assert result.trace is not None  # diagnose() was given sessions, so each result is recorded
    assert result.trace.prediction_id is not None
    with services.sessions() as session:
        said = prediction_json(queries.prediction(session, actor, result.trace.prediction_id))
    return {
        "sop_instance_uid": result.image.received.instance.ref.sop_instance_uid,
        "frame": result.image.frame_number,
        "prediction": said,
    }


def _lines(events: Iterator[Event], kept: ExitStack) -> Response:
    """JSON lines. An error before the first line has its own status; later ones end the answer with `failed`."""
    try:
        first = next(events, None)
    except Exception:
        kept.close()
        raise

    def lines() -> Iterator[str]:
        with kept:
            if first is None:
                return
            yield f"{json.dumps(first)}\n"
            try:
                for event in events:
                    yield f"{json.dumps(event)}\n"
            except Exception as error:  # noqa: BLE001 (the status line is already sent; the page must still hear of it)
                yield f"{json.dumps({'failed': answer(error)[1]['error']})}\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


def problem(_request: Request, error: Exception) -> JSONResponse:
    """Answer an error by the table."""
    status, body = answer(error)
    return JSONResponse(body, status)
