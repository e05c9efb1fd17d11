"""Who may ask, from where, and what the browser may do with the answer."""

import base64
import hashlib
import re
from collections.abc import Callable

import pytest
from sqlalchemy import select
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from app.db.tables import AuditEvent
from app.passwords import hash_password
from app.web.errors import HostRefused, OriginRefused
from app.web.guard import check_host, check_origin
from app.wiring import Services
from tests.web.conftest import client_of

OURS = ("/api/model", "/api/studies", "/api/samples", "/hilum/reader.js", "/dicom-web/studies")
GRADIOS = ("/", "/config", "/theme.css")


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:7860", "127.0.0.1:7860", "127.8.9.1", "[::1]:7860", "LOCALHOST."]
)
def test_this_machines_own_names_are_served(host: str) -> None:
    check_host(host)


@pytest.mark.parametrize(
    "host", ["", "evil.example", "127.0.0.1.evil.example", "192.168.1.7:7860", "localhost.evil.example"]
)
def test_any_other_name_is_refused_without_a_login(host: str) -> None:
    with pytest.raises(HostRefused):
        check_host(host)


@pytest.mark.parametrize(
    "headers",
    [
        {},  # a program such as curl
        {"origin": "http://127.0.0.1:7860", "host": "127.0.0.1:7860"},
        {"sec-fetch-site": "same-origin", "origin": "https://hilum.hospital", "host": "127.0.0.1:7860"},
    ],
)
def test_changes_by_our_own_page_or_a_program_are_let_through(headers: dict[str, str]) -> None:
    check_origin(Headers(headers))


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example", "host": "127.0.0.1:7860"},
        {"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:7860"},
        {"origin": "null", "host": "127.0.0.1:7860"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:7860", "host": "127.0.0.1:7860"},
    ],
)
def test_changes_by_another_sites_page_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(OriginRefused):
        check_origin(Headers(headers))


def test_a_rebound_name_gets_no_route(client: TestClient) -> None:
    for path in (*OURS, *GRADIOS):
        answer = client.get(path, headers={"host": "evil.example"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (421, "web.host-refused"), path


def test_another_sites_form_changes_nothing(client: TestClient) -> None:
    foreign = {"origin": "http://evil.example"}
    for path in (
        "/api/files?name=x",
        "/api/samples/CT_small.dcm",
        "/api/studies/1/predictions",
        "/gradio_api/queue/join",
    ):
        assert client.post(path, headers=foreign).status_code == 403, path


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/file=/etc/hostname",
        "/gradio_api/proxy=http://example.com",
        "/gradio_api/info",
        "/gradio_api/run/verify",
        "/gradio_api/call/events",
        "/gradio_api/component_server",
        "/gradio_api/run-history/records",
        "/openapi.json",
        "/docs",
        "/monitoring",
        "/login",
    ],
)
def test_what_the_page_does_not_need_of_gradio_is_not_there(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
    assert client.post(path).status_code == 404


def test_no_answer_with_patients_in_it_is_kept_by_a_cache(client: TestClient) -> None:
    for path in (*OURS, *GRADIOS, "/api/studies/1.2.3", "/api/images/1.2.3/frames/1"):
        answer = client.get(path)
        assert answer.headers["cache-control"] == "no-store", path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_the_page_may_run_its_own_scripts_and_no_others(client: TestClient) -> None:
    page = client.get("/", headers={"accept-encoding": "gzip, br"})
    policy = page.headers["content-security-policy"]
    scripts = re.findall(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", page.text, re.DOTALL)
    assert scripts
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    (sources,) = re.findall(r"script-src ([^;]*);", policy)
    assert "unsafe" not in sources
    assert "http" not in policy


def test_the_page_names_no_other_host(client: TestClient) -> None:
    hosts = set(re.findall(r"(?:src|href)=[\"']?(https?:)?//([^/\"']+)", client.get("/").text))
    assert hosts == set()


@pytest.fixture(scope="module")
def behind(open_services: Callable[..., Services]) -> Services:
    return open_services(username="kim", password_hash=hash_password("correct horse"))


@pytest.fixture(scope="module")
def locked(behind: Services) -> TestClient:
    return client_of(behind, base_url="http://hilum.hospital")


@pytest.mark.parametrize("path", [*OURS, *GRADIOS, "/gradio_api/startup-events", "/api/studies/1/predictions"])
def test_with_a_password_every_route_asks_for_it(locked: TestClient, path: str) -> None:
    answer = locked.get(path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic ")
    assert locked.get(path, auth=("kim", "wrong")).status_code == 401
    assert locked.get(path, headers={"authorization": "Basic %%%"}).status_code == 401


def test_the_right_password_opens_under_any_name_and_is_audited(locked: TestClient, behind: Services) -> None:
    assert locked.get("/api/studies", auth=("kim", "correct horse")).json() == []
    assert locked.get("/api/studies", auth=("Kim", "correct horse")).status_code == 401
    with behind.sessions() as session:
        events = session.execute(select(AuditEvent.action, AuditEvent.actor)).all()
    assert events == [("login", "kim")]
