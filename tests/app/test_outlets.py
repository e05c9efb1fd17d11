"""Results for systems that keep no DICOM arrive once, wait while nobody answers, and tell why they were refused."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import pytest
from hl7apy.parser import parse_message
from pydicom import dcmread
from sqlalchemy import select

from app import worker
from app.cli import main
from app.config import FhirPeer, Hl7Peer, Pacs, Settings, WebPeer, load
from app.db import audit
from app.db.queries import study_lines
from app.db.work import Publication
from app.errors import ConfigInvalid
from app.identity import LOCAL_USER
from app.outlets import BEGIN, END, FhirRemote, Hl7Remote, send_fhir, send_hl7
from app.pacs.listen import listener
from app.wiring import Services
from dicom_io.errors import PeerAnswerInvalid, PeerRefused, PeerUnreachable
from tests import services as programs
from tests.app.conftest import Desk, on_sqlite, services_of
from tests.app.films import film
from tests.app.test_loop import later, send

MESSAGE = b"MSH|^~\\&|HILUM|||EHR|20260102||ORU^R01^ORU_R01|4711|P|2.5.1\rPID|1\r"


class Hl7System:
    """Listens for messages over MLLP, and says to each what it is told to say."""

    def __init__(self, port: int = 0, *, answer: str = "AA", text: str = "") -> None:
        self.answer, self.text = answer, text
        self.heard: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", port))
        self.port = int(self._server.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                received = bytearray()
                while END not in received:
                    if not (chunk := connection.recv(65536)):
                        break
                    received += chunk
                    if not received.startswith(BEGIN):
                        break
                if not received.endswith(END):
                    continue
                message = bytes(received).removeprefix(BEGIN).removesuffix(END)
                self.heard.append(message)
                if self.answer == "nothing":
                    continue
                control_id = "other" if self.answer == "another's" else message.split(b"\r")[0].split(b"|")[9].decode()
                code = "AA" if self.answer == "another's" else self.answer
                told = f"MSH|^~\\&|EHR|||HILUM|20260102||ACK|1|P|2.5.1\rMSA|{code}|{control_id}|{self.text}\r"
                connection.sendall(BEGIN + told.encode() + END)

    @property
    def remote(self) -> Hl7Remote:
        return Hl7Remote("ehr", "127.0.0.1", self.port, tls=None)


class FhirServer:
    """Takes transactions as a FHIR server does: a resource is PUT under its id."""

    def __init__(self, port: int = 0, *, status: int = 200) -> None:
        self.status = status
        self.resources: dict[str, dict[str, Any]] = {}
        self.asked: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append({key.lower(): value for key, value in self.headers.items()})
                if outer.status == 200:
                    for entry in json.loads(body)["entry"]:
                        outer.resources[entry["request"]["url"]] = entry["resource"]
                self.send_response(outer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/fhir"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def outbox(services: Services) -> list[Publication]:
    with services.sessions() as session:
        return list(session.scalars(select(Publication).order_by(Publication.id)))


@pytest.fixture(scope="module")
def orthanc() -> Iterator[programs.Orthanc]:
    with programs.orthanc() as server:
        yield server


def services_with(desk: Desk, **peers: Any) -> Services:
    return services_of(desk, Settings(pacs=Pacs(port=0, calling_ae_titles=("STORESCU",), quiet_seconds=5, **peers)))


@pytest.mark.parametrize("answer", ["AA", "CA"])
def test_an_accepted_message_was_framed_and_sent_once(answer: str) -> None:
    with Hl7System(answer=answer) as system:
        send_hl7(MESSAGE, system.remote)
    assert system.heard == [MESSAGE]


@pytest.mark.parametrize("answer", ["AE", "AR", "CE", "CR"])
def test_a_refusal_says_why(answer: str) -> None:
    refused = pytest.raises(PeerRefused, match=f"{answer} unknown patient")
    with Hl7System(answer=answer, text="unknown patient") as system, refused:
        send_hl7(MESSAGE, system.remote)


def test_what_is_no_answer_to_this_message_is_none() -> None:
    with Hl7System(answer="nothing") as system, pytest.raises(PeerUnreachable):
        send_hl7(MESSAGE, system.remote)
    for answer in ("another's", "??"):
        with Hl7System(answer=answer) as system, pytest.raises(PeerAnswerInvalid):
            send_hl7(MESSAGE, system.remote)
    with pytest.raises(PeerUnreachable):
        send_hl7(MESSAGE, Hl7Remote("ehr", "127.0.0.1", programs.free_port(), tls=None))
    with Hl7System() as system, pytest.raises(PeerUnreachable):  # it speaks no TLS
        send_hl7(MESSAGE, replace(system.remote, tls=ssl.create_default_context()))


@pytest.mark.parametrize(
    ("status", "raised"),
    [(400, PeerRefused), (422, PeerRefused), (302, PeerRefused)]
    + [(status, PeerUnreachable) for status in (408, 425, 429, 500, 503)],
)
def test_a_fhir_servers_status_says_whether_to_try_again(status: int, raised: type[Exception]) -> None:
    with FhirServer(status=status) as server, pytest.raises(raised):
        send_fhir(b'{"entry": []}', FhirRemote("ehr", server.url, "Bearer secret", tls=None))
    assert server.asked[0]["authorization"] == "Bearer secret"
    assert server.asked[0]["content-type"] == "application/fhir+json"


@on_sqlite
def test_a_study_comes_back_over_stow_hl7_and_fhir(desk: Desk, orthanc: programs.Orthanc, tmp_path: Path) -> None:
    before = set(orthanc.instances())
    with Hl7System() as system, FhirServer() as server:
        services = services_with(
            desk,
            web_peers={"archive": WebPeer(url=f"{orthanc.url}/dicom-web", deliver=("sr", "key-objects"))},
            hl7_peers={"ehr": Hl7Peer(host="127.0.0.1", port=system.port, receiving_application="EHR")},
            fhir_peers={"hub": FhirPeer(url=server.url, username="hilum", password="secret")},
        )
        with listener(services) as running:
            send(running.port, film(tmp_path / "in", PatientAge="043Y", PatientName="Müller^Jörg"))
        done = worker.once(later(services, 10), holder="test")
    rows = outbox(services)
    assert {row.state for row in rows} == {"SENT"}
    assert done.sent == len(rows)
    new = [dcmread(BytesIO(content)) for uid, content in orthanc.instances().items() if uid not in before]
    assert {str(one.SOPInstanceUID) for one in new} == {r.sop_instance_uid for r in rows if r.destination == "archive"}
    (message,) = system.heard
    parsed = parse_message(message.decode())
    assert parsed.msh.msh_5.to_er7() == "EHR"
    assert "Müller" in message.decode()
    (report,) = [one for one in server.resources.values() if one["resourceType"] == "DiagnosticReport"]
    assert report["status"] == "preliminary"
    assert server.asked[0]["authorization"].startswith("Basic ")
    with services.sessions() as session:
        assert audit.verify(session, None).broken is None


@on_sqlite
def test_with_everybody_away_results_wait_and_then_arrive_once_and_in_order(
    desk: Desk, orthanc: programs.Orthanc, tmp_path: Path
) -> None:
    before = set(orthanc.instances())
    hl7_port, fhir_port = programs.free_port(), programs.free_port()
    services = services_with(
        desk,
        web_peers={"archive": WebPeer(url=f"{orthanc.url}/dicom-web", deliver=("sr",))},
        hl7_peers={"ehr": Hl7Peer(host="127.0.0.1", port=hl7_port)},
        fhir_peers={"hub": FhirPeer(url=f"http://127.0.0.1:{fhir_port}/fhir")},
    )
    orthanc.stop()
    try:
        with listener(services) as running:
            for study in (51, 52, 53):
                send(running.port, film(tmp_path / str(study), study=study))
        for _ in range(4):
            assert worker.once(later(services, 10), holder="test").sent == 0
    finally:
        orthanc.start()
    waiting = outbox(services)
    assert {(row.state, row.error_code) for row in waiting} == {
        ("PENDING", "dicom.peer-unreachable"),
        ("PENDING", None),
    }
    with Hl7System(hl7_port) as system, FhirServer(fhir_port) as server:
        assert worker.once(later(services, 700), holder="test").sent == len(waiting) == 9
        assert worker.once(later(services, 1400), holder="test").sent == 0
    assert {row.state for row in outbox(services)} == {"SENT"}
    of_archive = {row.sop_instance_uid for row in waiting if row.destination == "archive"}
    assert set(orthanc.instances()) - before == of_archive
    order = [row.sha256 for row in waiting if row.destination == "ehr"]
    assert system.heard == [services.spool.path(sha256).read_bytes() for sha256 in order]
    reports = [one for one in server.resources.values() if one["resourceType"] == "DiagnosticReport"]
    assert len(reports) == len(server.asked) == 3


@on_sqlite
def test_what_a_system_refuses_is_set_aside_with_its_words(desk: Desk, tmp_path: Path) -> None:
    with Hl7System(answer="AE", text="no such order") as system:
        services = services_with(desk, hl7_peers={"ehr": Hl7Peer(host="127.0.0.1", port=system.port)})
        with listener(services) as running:
            send(running.port, film(tmp_path / "in"))
        assert worker.once(later(services, 10), holder="test").sent == 0
        assert worker.once(later(services, 700), holder="test").sent == 0
    (row,) = outbox(services)
    assert (row.state, row.error_code) == ("FAILED", "dicom.peer-refused")
    assert row.error_message == "ORU^R01 was refused (AE no such order)"
    assert len(system.heard) == 1
    with services.sessions() as session:
        (line,) = study_lines(session, LOCAL_USER, limit=9)
    assert (line.road, line.hindrance) == ("results-refused", "ehr: ORU^R01 was refused (AE no such order)")


@on_sqlite
def test_what_was_refused_is_listed_and_sent_once_more_when_it_is_asked_for(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Hl7System(answer="AE", text="no such order") as system:
        services = services_with(desk, hl7_peers={"ehr": Hl7Peer(host="127.0.0.1", port=system.port)})
        with listener(services) as running:
            send(running.port, film(tmp_path / "in"), film(tmp_path / "in" / "two", study=2))
        assert worker.once(later(services, 10), holder="test").sent == 0
        assert worker.once(later(services, 10), holder="test").sent == 0
        monkeypatch.setenv("HILUM__STORAGE__DATABASE_URL", str(services.engine.url))
        monkeypatch.setenv("HILUM__STORAGE__CHECKPOINT", str(desk.sessions.kw["info"]["checkpoint"].path))
        monkeypatch.setattr("app.wiring.utc_now", services.now)
        assert main(["outbox", "list", "--json"]) == 0
        listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(one["state"], one["kind"], one["error"]["code"]) for one in listed] == [
            ("FAILED", "hl7", "dicom.peer-refused")
        ] * 2
        assert main(["outbox", "retry"]) == 1
        assert "name the results" in capsys.readouterr().err
        assert main(["outbox", "retry", "999"]) == 1
        assert "record.not-found" in capsys.readouterr().err
        system.answer = "AA"
        assert main(["outbox", "retry", str(listed[0]["number"])]) == 0
        assert worker.once(later(services, 700), holder="test").sent == 1
        assert main(["outbox", "retry", "--destination", "ehr"]) == 0
        assert worker.once(later(services, 700), holder="test").sent == 1
    assert main(["outbox", "list"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["outbox", "list", "--all"]) == 0
    assert capsys.readouterr().out.count("SENT") == 2
    with services.sessions() as session:
        assert audit.verify(session, None).broken is None


def test_one_name_means_one_peer_and_extras_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigInvalid, match="ehr names more than one peer"):
        load(overrides={"pacs": {"hl7_peers": {"ehr": {"host": "h"}}, "fhir_peers": {"ehr": {"url": "http://h"}}}})
    monkeypatch.setattr("app.config.find_spec", lambda _name: None)
    with pytest.raises(ConfigInvalid, match=r"pip install 'hilum\[hl7\]'"):
        load(overrides={"pacs": {"hl7_peers": {"ehr": {"host": "h"}}}})
    with pytest.raises(ConfigInvalid, match=r"pip install 'hilum\[fhir\]'"):
        load(overrides={"pacs": {"fhir_peers": {"hub": {"url": "http://h"}}}})
