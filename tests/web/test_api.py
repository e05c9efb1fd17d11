"""Files come in, are diagnosed and can be looked at, over HTTP."""

import io
import json
import zipfile
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.pixels.processing import apply_modality_lut
from sqlalchemy import func, select
from starlette.testclient import TestClient

from app.db import audit
from app.db.checkpoint import Checkpoint
from app.db.tables import AuditEvent, PredictionRow, Reception
from app.web.api import file_name
from app.web.samples import SAMPLES
from app.wiring import Services
from tests.web.conftest import client_of
from tests.web.images import HEAD_CT, SMALL_CT, chest_film, packaged, series_zip
from tests.web.test_viewer import unpack


def send(client: TestClient, body: bytes, name: str = "image.dcm") -> list[dict[str, Any]]:
    answer = client.post("/api/files", params={"name": name}, content=body)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def diagnose(client: TestClient, study: str, **query: str) -> list[dict[str, Any]]:
    answer = client.post(f"/api/studies/{study}/predictions", params=query)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def error_code(answer: Any) -> str:
    code: str = answer.json()["error"]["code"]
    return code


def test_an_upload_is_stored_once_and_listed(client: TestClient, services: Services) -> None:
    body = packaged(SMALL_CT).read_bytes()
    (stored,) = send(client, body)
    (again,) = send(client, body, "copy.dcm")
    assert (stored["outcome"], again["outcome"]) == ("stored", "duplicate")
    listed = [
        one for one in client.get("/api/studies").json() if one["study_instance_uid"] == stored["study_instance_uid"]
    ]
    assert [(one["modalities"], one["images"], one["state"]) for one in listed] == [(["CT"], 1, "unread")]
    with services.sessions() as session:
        outcomes = session.scalars(select(Reception.outcome).order_by(Reception.id)).all()
    assert outcomes[-2:] == ["stored", "duplicate"]


def test_a_zip_is_answered_file_by_file_and_what_is_bad_in_it_is_said(client: TestClient) -> None:
    archive = io.BytesIO(series_zip(3))
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr("notes.txt", "not an image")
    events = send(client, archive.getvalue(), "study.zip")
    assert sorted(event["outcome"] for event in events) == ["refused", "stored", "stored", "stored"]
    (refused,) = (event["error"] for event in events if "error" in event)
    assert (refused["code"], refused["sentence"][:23]) == ("dicom.not-dicom", "This is not a DICOM fil")


def test_nothing_of_an_upload_stays_in_the_scratch_folder(client: TestClient, services: Services) -> None:
    send(client, b"no image at all", "letter.pdf")
    left = [path for path in services.scratch.rglob("*") if path.is_file() and path.name != ".lock"]
    assert left == []


def test_an_upload_over_the_limit_is_refused_before_it_is_read(open_services: Any) -> None:
    services = open_services(max_upload_bytes=1000)
    small = client_of(services)
    assert error_code(small.post("/api/files?name=x", content=b"0" * 1001)) == "web.upload-too-large"
    chunks = small.post("/api/files?name=x", content=iter([b"0" * 600, b"0" * 600]))  # no Content-Length
    assert (chunks.status_code, error_code(chunks)) == (413, "web.upload-too-large")
    with services.sessions() as session:
        assert session.scalar(select(func.count(Reception.id))) == 0


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("film.dcm", "film.dcm"),
        ("../../etc/passwd", "passwd"),
        ("C:\\scans\\film.dcm", "film.dcm"),
        ("a\x00b\nc", "abc"),
        ("..", "upload"),
        ("folder/", "upload"),
        ("ü" * 300, "ü" * 100),
    ],
)
def test_a_file_is_kept_for_a_moment_under_a_harmless_name(given: str, kept: str) -> None:
    assert file_name(given) == kept


def test_a_film_without_an_age_is_asked_for_one_and_answered_with_it(client: TestClient) -> None:
    (stored,) = send(client, chest_film())
    study = stored["study_instance_uid"]
    count, first = diagnose(client, study)
    assert count == {"images": 1}
    assert first["prediction"]["asks_age"]
    assert first["prediction"]["findings"] == []
    assert {one["code"] for one in first["prediction"]["withheld"]} == {"gate.age-unknown"}

    _, second = diagnose(client, study, age="43")
    said = second["prediction"]
    assert said["stated_age_years"] == 43
    assert not said["asks_age"]
    assert {finding["task"] for finding in said["findings"]} == {"cxr-pneumonia-adult"}
    assert sum(finding["probability"] for finding in said["findings"]) == pytest.approx(1)

    reopened = client.get(f"/api/studies/{study}").json()
    assert reopened["series"][0]["images"][0]["prediction"] == said


@pytest.mark.parametrize("age", ["old", "-1", "130", "nan", "inf"])
def test_an_impossible_age_is_refused(client: TestClient, age: str) -> None:
    (stored,) = send(client, chest_film())
    answer = client.post(f"/api/studies/{stored['study_instance_uid']}/predictions", params={"age": age})
    assert (answer.status_code, error_code(answer)) == (400, "web.request-invalid")


def test_a_heat_map_is_there_for_an_answer_and_not_for_what_was_withheld(client: TestClient) -> None:
    (stored,) = send(client, chest_film(age="043Y"))
    _, event = diagnose(client, stored["study_instance_uid"])
    said = event["prediction"]
    address = f"/api/predictions/{said['prediction_id']}/heat"
    for finding in said["findings"]:
        answer = client.get(address, params={"task": finding["task"], "label": finding["label"]})
        header, samples = unpack(answer.content)
        assert len(samples) == header["rows"] * header["columns"] * 4
    withheld = {"task": "cxr-pneumonia-child", "label": "pneumonia"}
    assert error_code(client.get(address, params=withheld)) == "record.not-found"


def test_a_heat_map_is_checked_by_covering_the_image(client: TestClient) -> None:
    (stored,) = send(client, chest_film(age="043Y"))
    _, event = diagnose(client, stored["study_instance_uid"])
    said = event["prediction"]
    address = f"/api/predictions/{said['prediction_id']}/check"
    answer = client.post(address, params={"task": "cxr-pneumonia-adult", "label": "pneumonia"})
    *progress, found = [json.loads(line) for line in answer.text.splitlines()]
    assert progress[-1] == {"done": progress[-1]["runs"], "runs": progress[-1]["runs"]}
    assert -1 <= found["rank_correlation"] <= 1
    assert 0 <= found["weaker_elsewhere"] <= 1
    withheld = {"task": "cxr-pneumonia-child", "label": "pneumonia"}
    assert error_code(client.post(address, params=withheld)) == "record.not-found"


def test_an_image_arrives_as_pydicom_reads_it(client: TestClient) -> None:
    (stored,) = send(client, packaged(SMALL_CT).read_bytes())
    header, samples = unpack(client.get(f"/api/images/{stored['sop_instance_uid']}/frames/1").content)
    expected = pydicom.dcmread(packaged(SMALL_CT))
    values = (
        np.frombuffer(samples, "<u2").reshape(header["rows"], header["columns"]) * header["slope"] + header["intercept"]
    )
    np.testing.assert_array_equal(values, apply_modality_lut(expected.pixel_array, expected))
    beyond = client.get(f"/api/images/{stored['sop_instance_uid']}/frames/2")
    assert (beyond.status_code, error_code(beyond)) == (404, "dicom.no-such-frame")


def test_every_sample_is_in_the_installed_package_and_is_taken_in(client: TestClient) -> None:
    for sample in SAMPLES:
        answer = client.post(f"/api/samples/{sample.name}")
        (event,) = (json.loads(line) for line in answer.text.splitlines())
        assert event["outcome"] in {"stored", "duplicate"}, sample
    assert error_code(client.post("/api/samples/UN_sequence.dcm")) == "web.sample-missing"
    assert client.post("/api/samples/..%2f..%2fetc%2fpasswd").status_code == 404


def test_what_is_not_there_is_said_in_one_way(client: TestClient) -> None:
    for path in ("/api/studies/1.2.3", "/api/images/1.2.3/frames/1", "/api/predictions/0/heat?task=a&label=b"):
        answer = client.get(path)
        assert (answer.status_code, error_code(answer)) == (404, "record.not-found"), path


def test_opening_a_study_is_audited_and_the_whole_trail_holds(client: TestClient, services: Services) -> None:
    (stored,) = send(client, packaged(HEAD_CT).read_bytes())
    diagnose(client, stored["study_instance_uid"])
    client.get(f"/api/studies/{stored['study_instance_uid']}")
    with services.sessions() as session:
        assert session.scalars(select(AuditEvent.action).order_by(AuditEvent.sequence.desc())).first() == "view"
        report = audit.verify(session, Checkpoint(services.settings.storage.checkpoint))
    assert report.broken is None


def test_an_image_that_this_model_has_read_is_not_read_again(client: TestClient, services: Services) -> None:
    body = chest_film(age="050Y")
    (stored,) = send(client, body)
    assert not stored["diagnosed"]
    diagnose(client, stored["study_instance_uid"])
    (again,) = send(client, body)
    assert again["diagnosed"]


def test_a_stored_file_that_is_gone_is_said_for_its_image_and_the_others_go_on(
    client: TestClient, services: Services
) -> None:
    events = send(client, series_zip(2), "two.zip")
    with services.sessions() as session:
        sha256 = session.scalars(
            select(Reception.sha256).where(Reception.sop_instance_uid == events[0]["sop_instance_uid"])
        ).one()
        before = session.scalar(select(func.count(PredictionRow.id)))
    assert sha256 is not None
    services.spool.path(sha256).unlink()
    gone, count, other = diagnose(client, events[0]["study_instance_uid"])
    assert (gone["error"]["code"], count) == ("spool.missing", {"images": 1})
    assert other["sop_instance_uid"] == events[1]["sop_instance_uid"]
    with services.sessions() as session:
        assert session.scalar(select(func.count(PredictionRow.id))) == (before or 0) + 1
