"""What other applications store is durable before it is acknowledged, once, and nothing broken gets in."""

import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from io import BytesIO

import httpx
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import uid
from pydicom.dataset import Dataset
from sqlalchemy import func, select

from app.db import audit
from app.db.tables import AuditEvent, Reception, StoredInstance
from app.db.work import AwaitedStudy
from tests.web.dicomweb.conftest import CLINICIAN, PASSWORD, SECRET, SENDER, Served
from tests.web.dicomweb.objects import MULTIPART, image, message, part10, path, uids


def stored_bytes(served: Served, dataset: Dataset) -> bytes:
    with served.services.sessions() as session:
        wanted = select(StoredInstance).where(StoredInstance.sop_instance_uid == dataset.SOPInstanceUID)
        row = session.scalars(wanted).one()
    return served.services.spool.path(row.sha256).read_bytes()


def post(http: httpx.Client, *files: bytes, to: str = "/studies") -> httpx.Response:
    return http.post(to, content=message(*files), headers={"Content-Type": MULTIPART})


def test_the_real_client_stores_and_the_answer_names_what_is_kept(client: DICOMwebClient, served: Served) -> None:
    first = image()
    second = image(like=first)
    answer = client.store_instances([first, second])
    assert "FailedSOPSequence" not in answer
    assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == [
        first.SOPInstanceUID,
        second.SOPInstanceUID,
    ]
    assert answer.RetrieveURL == f"{served.dicomweb}/studies/{first.StudyInstanceUID}"
    assert answer.ReferencedSOPSequence[0].RetrieveURL == served.dicomweb + path(first)
    assert stored_bytes(served, first) == part10(first)
    with served.services.sessions() as session:
        row = session.scalars(select(StoredInstance).where(StoredInstance.sop_instance_uid == uids(first)[2])).one()
        assert row.received_from == "orchestrator"
        assert session.get(AwaitedStudy, row.series.study_id) is not None
        assert audit.verify(session, None).broken is None


def test_the_same_instance_from_two_senders_at_once_is_stored_once(served: Served) -> None:
    dataset = image()
    content = part10(dataset)

    def send(_number: int) -> int:
        with served.http() as http:
            return post(http, content).status_code

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(send, range(8))) == [200] * 8
    with served.services.sessions() as session:
        digest = sha256(content).hexdigest()
        outcomes = session.scalars(select(Reception.outcome).where(Reception.sha256 == digest)).all()
        stored = select(func.count()).where(StoredInstance.sop_instance_uid == dataset.SOPInstanceUID)
        assert session.scalar(stored) == 1
    assert sorted(outcomes) == ["duplicate"] * 7 + ["stored"]


def test_another_object_under_a_known_uid_is_refused_and_the_first_one_stays(
    http: httpx.Client, served: Served
) -> None:
    dataset = image()
    first = part10(dataset)
    assert post(http, first).status_code == 200
    dataset.PatientID = "another"
    answer = post(http, part10(dataset))
    assert answer.status_code == 409
    (failed,) = Dataset.from_json(answer.json()).FailedSOPSequence
    assert (failed.FailureReason, failed.ReferencedSOPInstanceUID) == (0x0111, dataset.SOPInstanceUID)
    assert stored_bytes(served, dataset) == first


def test_of_a_message_the_good_parts_are_kept_and_the_bad_ones_named(http: httpx.Client, served: Served) -> None:
    dataset = image()
    good = part10(dataset)
    answer = post(http, b"no DICOM at all", good, good[: len(good) // 2], b"")
    said = Dataset.from_json(answer.json())
    assert answer.status_code == 202
    assert [item.ReferencedSOPInstanceUID for item in said.ReferencedSOPSequence] == [dataset.SOPInstanceUID]
    assert len(said.get("OtherFailuresSequence", [])) + len(said.get("FailedSOPSequence", [])) == 3
    assert all(0xA700 <= item.FailureReason <= 0xCFFF for item in said.OtherFailuresSequence)
    assert stored_bytes(served, dataset) == good


def test_a_zip_is_no_instance(http: httpx.Client) -> None:
    archive = BytesIO()
    dataset = image()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("inside.dcm", part10(dataset))
    answer = post(http, archive.getvalue())
    assert answer.status_code == 409
    assert Dataset.from_json(answer.json()).OtherFailuresSequence[0].FailureReason == 0xC000
    assert http.get(path(dataset)).status_code == 404


def test_an_instance_of_another_study_than_the_one_named_is_refused(http: httpx.Client) -> None:
    dataset = image()
    answer = post(http, part10(dataset), to="/studies/1.2.3")
    assert answer.status_code == 409
    assert Dataset.from_json(answer.json()).FailedSOPSequence[0].FailureReason == 0xA900
    assert http.get(path(dataset)).status_code == 404
    assert post(http, part10(dataset), to=f"/studies/{dataset.StudyInstanceUID}").status_code == 200


@pytest.mark.parametrize(
    ("content_type", "body", "status", "code"),
    [
        ("multipart/related; type=application/dicom", b"x", 400, "web.multipart-broken"),
        ('multipart/related; type="application/dicom"; boundary="a\tb"', b"x", 400, "web.multipart-broken"),
        (MULTIPART, b"", 400, "web.multipart-broken"),
        (MULTIPART, b"--a-boundary--", 400, "web.multipart-broken"),
        (MULTIPART, b"--a-boundary\r\nContent-Type: application/dicom\r\n\r\nabc", 400, "web.multipart-broken"),
        (MULTIPART, b"--a-boundary and more\r\n", 400, "web.multipart-broken"),
        (MULTIPART, b"--a-boundary\r\n" + b"x: y\r\n" * 10_000, 400, "web.multipart-broken"),
        (MULTIPART, b"--another\r\n\r\nabc\r\n--another--", 400, "web.multipart-broken"),
        (MULTIPART, message(b"<a/>", headers="Content-Type: application/dicom+xml"), 415, "web.media-not-taken"),
        ('multipart/related; type="application/dicom+xml"; boundary=b', b"x", 415, "web.media-not-taken"),
        ("application/dicom", b"x", 415, "web.media-not-taken"),
        ("", b"x", 415, "web.media-not-taken"),
    ],
)
def test_a_message_that_is_not_one_is_refused_with_its_code(
    http: httpx.Client, content_type: str, body: bytes, status: int, code: str
) -> None:
    answer = http.post("/studies", content=body, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_compressed_or_an_oversized_message_is_not_read(http: httpx.Client) -> None:
    packed = http.post("/studies", content=b"x", headers={"Content-Type": MULTIPART, "Content-Encoding": "gzip"})
    assert packed.status_code == 415

    def endless() -> Iterator[bytes]:
        yield b"--a-boundary\r\n\r\n"
        for _ in range(80):
            yield bytes(1 << 20)

    assert http.post("/studies", content=endless(), headers={"Content-Type": MULTIPART}).status_code == 413


def test_xml_is_not_spoken(http: httpx.Client) -> None:
    headers = {"Content-Type": MULTIPART, "Accept": "application/dicom+xml"}
    answer = http.post("/studies", content=message(part10(image())), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (406, "web.not-acceptable")


def test_compressed_objects_are_stored_as_they_are(client: DICOMwebClient, served: Served) -> None:
    for name in ("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "JPEGLSNearLossless_08.dcm"):
        dataset = image(name)
        client.store_instances([dataset])
        assert stored_bytes(served, dataset) == part10(dataset)


def test_nobody_unknown_stores_or_reads(served: Served) -> None:
    dataset = image()
    for token in (None, "gateway.wrong", "nobody.x", "gateway"):
        with served.http(token) as http:
            assert post(http, part10(dataset)).status_code == 401, token
            assert http.get("/studies").status_code == 401, token
            assert http.get("/workitems").status_code == 401, token


def test_a_program_without_a_role_may_store_and_nothing_else(served: Served) -> None:
    dataset = image()
    with served.http(SENDER) as http:
        assert post(http, part10(dataset)).status_code == 200
        for what in ("/studies", "/series", "/instances", path(dataset), f"{path(dataset)}/metadata", "/workitems"):
            answer = http.get(what)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "web.not-allowed"), what


def test_a_program_may_show_its_token_as_name_and_password_and_a_person_their_own(served: Served) -> None:
    with httpx.Client(base_url=served.dicomweb, timeout=60, trust_env=False) as http:
        token = ("orchestrator", SECRET.replace(" ", "-"))
        assert http.get("/studies?limit=1", auth=token).status_code in (200, 204)
        assert http.get("/studies?limit=1", auth=("kim", PASSWORD)).status_code in (200, 204)
        assert http.get("/studies?limit=1", auth=("kim", token[1])).status_code == 401
    with served.services.sessions() as session:
        logins = session.execute(
            select(AuditEvent.actor, AuditEvent.actor_kind).where(AuditEvent.action == "login")
        ).all()
    assert {("orchestrator", "ae"), ("kim", "user")} <= {(name, kind) for name, kind in logins}


def test_a_program_does_not_open_the_page_nor_its_api(served: Served) -> None:
    headers = {"Authorization": f"Bearer {CLINICIAN}"}
    with httpx.Client(base_url=served.url, headers=headers, timeout=60, trust_env=False) as http:
        for what in ("/", "/config", "/api/studies", "/api/samples"):
            assert http.get(what).status_code == 403, what


def test_the_transfer_syntax_of_a_part_is_not_believed_but_read(client: DICOMwebClient, http: httpx.Client) -> None:
    dataset = image("MR_small_RLE.dcm")
    headers = "Content-Type: application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
    body = message(part10(dataset), headers=headers)
    assert http.post("/studies", content=body, headers={"Content-Type": MULTIPART}).status_code == 200
    assert client.retrieve_instance(*uids(dataset)).file_meta.TransferSyntaxUID == uid.RLELossless
