"""Other systems store, search, retrieve and work through the list, with a client that is not ours."""

import io
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from requests.exceptions import HTTPError
from sqlalchemy import select
from starlette.testclient import TestClient

from app import worklist
from app.db import audit
from app.db.tables import AuditEvent, StoredInstance
from app.identity import SYSTEM
from app.wiring import Services
from dicom_io.archive import Query, instances
from dicom_io.dicomweb import WebArchive, WebRemote
from tests.app.films import CT_IMAGE, ROOT, film
from tests.web.server import Server

STUDY = f"{ROOT}.51"
JPEG2000 = Path(str(get_testdata_file("JPEG2000.dcm", download=False)))
KINDS = ["MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_dcmtk.dcm", "CT_small.dcm"]


@pytest.fixture(scope="module")
def web(server: Server) -> DICOMwebClient:
    return DICOMwebClient(f"{server.url}dicom-web")


@pytest.fixture(scope="module", autouse=True)
def stored(web: DICOMwebClient, tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    folder = tmp_path_factory.mktemp("films")
    films = [
        film(folder / str(n), n, study=51, series=1 + n // 3, StudyDate="20250317", AccessionNumber="A51",
             PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 192", StudyDescription="Thorax")
        for n in (1, 2, 3)
    ]  # fmt: skip
    films.append(film(folder / "ct", study=52, StudyDate="20260101", SOPClassUID=CT_IMAGE, Modality="CT"))
    packaged = [Path(str(get_testdata_file(name, download=False))) for name in KINDS]
    sent: list[Dataset] = [dcmread(path) for path in [*films, JPEG2000, *packaged]]
    said = web.store_instances(sent)
    assert len(said.ReferencedSOPSequence) == len(sent)
    assert "FailedSOPSequence" not in said
    return sent


def uids(found: list[dict[str, Any]], tag: str) -> set[str]:
    return {one[tag]["Value"][0] for one in found}


@pytest.mark.parametrize(
    ("filters", "studies"),
    [
        ({"PatientName": "mü*", "StudyDate": "20250101-20251231"}, {"51"}),
        ({"00100010": "Müller^J?rg"}, {"51"}),
        ({"AccessionNumber": "A51"}, {"51"}),
        ({"StudyDate": "20260101"}, {"52"}),
        ({"StudyDate": "-20251231", "PatientID": "P-17"}, {"51"}),
        ({"ModalitiesInStudy": "CT", "PatientID": "P-17"}, {"52"}),
        ({"StudyInstanceUID": f"{STUDY},{ROOT}.52"}, {"51", "52"}),
        ({"PatientID": "P_17"}, set()),
    ],
)
def test_studies_are_found(web: DICOMwebClient, filters: dict[str, str], studies: set[str]) -> None:
    found = web.search_for_studies(search_filters=filters)
    assert {uid.rpartition(".")[2] for uid in uids(found, "0020000D")} == studies


def test_what_is_found_says_what_it_is(web: DICOMwebClient, server: Server) -> None:
    [study] = (Dataset.from_json(one) for one in web.search_for_studies(search_filters={"StudyInstanceUID": STUDY}))
    assert (study.PatientName, study.StudyDescription) == ("Müller^Jörg", "Thorax")
    assert (study.NumberOfStudyRelatedSeries, study.NumberOfStudyRelatedInstances) == (2, 3)
    [plain] = httpx.get(f"{server.url}dicom-web/studies?StudyInstanceUID={STUDY}", trust_env=False).json()
    assert plain["00081190"]["Value"] == [f"{server.url}dicom-web/studies/{STUDY}"]
    assert len(web.search_for_series(STUDY)) == 2
    assert len(web.search_for_instances(STUDY, limit=2)) == 2
    assert len(web.search_for_instances(STUDY, limit=2, offset=2)) == 1


def test_instances_come_back_byte_for_byte(web: DICOMwebClient, stored: list[Dataset]) -> None:
    for sent in stored:
        ref = sent.StudyInstanceUID, sent.SeriesInstanceUID, sent.SOPInstanceUID
        found = web.retrieve_instance(*ref, media_types=(("application/dicom", "*"),))
        assert found.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
        assert found.PixelData == sent.PixelData
        assert found.PatientName == sent.PatientName
    assert len(web.retrieve_study(STUDY)) == 3
    assert len(web.retrieve_series(STUDY, f"{STUDY}.1")) == 2


def test_metadata_is_the_header_and_large_values_are_fetched_by_their_address(
    web: DICOMwebClient, stored: list[Dataset]
) -> None:
    [said] = (web.retrieve_instance_metadata(STUDY, f"{STUDY}.1", f"{STUDY}.1.1"),)
    header = Dataset.from_json(said, bulk_data_uri_handler=lambda _tag, _vr, _uri: None)
    assert header.PatientName == "Müller^Jörg"
    assert (header.Rows, header.Columns) == (stored[0].Rows, stored[0].Columns)
    assert said["7FE00010"]["BulkDataURI"].endswith(f"/instances/{STUDY}.1.1/frames/1")
    assert len(web.retrieve_study_metadata(STUDY)) == 3


def test_frames_are_the_kept_bytes(web: DICOMwebClient, stored: list[Dataset]) -> None:
    native, encoded = stored[0], stored[4]
    [frame] = web.retrieve_instance_frames(
        native.StudyInstanceUID, native.SeriesInstanceUID, native.SOPInstanceUID, [1]
    )
    assert frame == native.PixelData
    ref = encoded.StudyInstanceUID, encoded.SeriesInstanceUID, encoded.SOPInstanceUID
    [frame] = web.retrieve_instance_frames(*ref, [1], media_types=(("image/jp2", "1.2.840.10008.1.2.4.91"),))
    assert encoded.PixelData.endswith(frame.rstrip(b"\0") + b"\0") or frame in encoded.PixelData
    assert frame[:4] == b"\xff\x4f\xff\x51"


def test_rendered_pictures_take_window_and_viewport(server: Server) -> None:
    own = f"{server.url}dicom-web/studies/{STUDY}/series/{STUDY}.1/instances/{STUDY}.1.1"
    whole = httpx.get(f"{own}/rendered", headers={"Accept": "image/png"}, trust_env=False)
    assert whole.headers["content-type"] == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(whole.content)))
    assert picture.shape == (24, 32)
    dark = httpx.get(f"{own}/frames/1/rendered?window=100000,10", headers={"Accept": "image/png"}, trust_env=False)
    assert np.asarray(Image.open(io.BytesIO(dark.content))).max() == 0
    small = httpx.get(f"{own}/rendered?viewport=16,100&quality=60", headers={"Accept": "image/jpeg"}, trust_env=False)
    assert Image.open(io.BytesIO(small.content)).size == (16, 12)
    assert httpx.get(f"{own}/rendered?window=wide", trust_env=False).status_code == 400


def test_our_own_client_reads_our_own_server(server: Server, tmp_path: Path) -> None:
    archive = WebArchive(WebRemote("hilum", f"{server.url}dicom-web"))
    archive.echo()
    paths = list(archive.fetch(list(instances(archive, STUDY)), tmp_path))
    assert len(paths) == 3
    assert [match.patient_name for match in archive.find(Query(study_instance_uid=STUDY))] == ["Müller^Jörg"]
    [again] = archive.store(paths[:1])
    assert again.outcome == "stored"


def test_what_is_not_there_is_404_and_what_cannot_be_asked_400(server: Server) -> None:
    base = f"{server.url}dicom-web"

    def status(path: str, accept: str = "*/*") -> int:
        return httpx.get(f"{base}/{path}", headers={"Accept": accept}, trust_env=False).status_code

    assert status("studies/1.2.3") == 404
    assert status(f"studies/{STUDY}/series/1.2.3/metadata") == 404
    assert status("studies/..%2F..%2Fetc/metadata") in {400, 404, 422}
    assert status("studies?StudyDate=2025") == 400
    assert status("studies?limit=-1") == 400
    assert status(f"studies/{STUDY}", "application/pdf") == 406
    kept = dcmread(JPEG2000, stop_before_pixels=True)
    assert status(f"studies/{kept.StudyInstanceUID}", 'multipart/related; type="application/dicom"; '
                  "transfer-syntax=1.2.840.10008.1.2.1") == 406  # fmt: skip
    assert status(f"studies/{STUDY}/series/{STUDY}.1/instances/{STUDY}.1.1/frames/2") in {404, 422}
    assert status("studies?PatientID=nobody") == 204
    unmatched = httpx.get(f"{base}/studies?PatientWeight=80", trust_env=False)
    assert "PatientWeight" in unmatched.headers["warning"]


KIND = 'multipart/related; type="application/dicom"; boundary=b'


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/dicom", b"DICM", 406),
        ('multipart/related; type="application/dicom"', b"", 400),
        ('multipart/related; type="application/dicom+xml"; boundary=b', b"--b--", 406),
        (KIND, b"no boundary", 400),
        (KIND, b"--b\r\n\r\ncut in the mid", 400),
        (KIND, b"--b\r\n" + b"X: " + b"y" * 20_000 + b"\r\n\r\n\r\n--b--\r\n", 400),
        (KIND, b"--b\r\nContent-Type: application/dicom\r\n\r\nno DICOM\r\n--b--\r\n", 409),
    ],
)
def test_what_cannot_be_stored_says_so_and_the_server_goes_on(
    server: Server, kind: str, body: bytes, status: int
) -> None:
    answer = httpx.post(f"{server.url}dicom-web/studies", content=body, headers={"Content-Type": kind}, trust_env=False)
    assert answer.status_code == status
    if status == 409:
        said = Dataset.from_json(answer.json())
        assert said.FailedSOPSequence[0].FailureReason == 0xC001


def test_of_two_objects_one_is_kept_and_the_other_is_named(web: DICOMwebClient, tmp_path: Path) -> None:
    """Another object under a known UID is set aside; the good one beside it is stored: 202."""
    other = dcmread(film(tmp_path, 1, study=51, PatientID="another"))
    good = dcmread(film(tmp_path, 9, study=51))
    said = web.store_instances([other, good], study_instance_uid=STUDY)
    assert [one.ReferencedSOPInstanceUID for one in said.ReferencedSOPSequence] == [f"{STUDY}.1.9"]
    [failed] = said.FailedSOPSequence
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (f"{STUDY}.1.1", 0x0111)
    with pytest.raises(HTTPError, match="409"):
        web.store_instances([dcmread(film(tmp_path, 1, study=53))], study_instance_uid=STUDY)


def test_the_same_instance_sent_twice_at_once_is_stored_once(web: DICOMwebClient, tmp_path: Path) -> None:
    one = dcmread(film(tmp_path, study=54))
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: web.store_instances([one]), range(2)))
    assert all(len(said.ReferencedSOPSequence) == 1 for said in answers)
    assert len(web.search_for_instances(f"{ROOT}.54")) == 1


# The worklist, in this process: its clock is ours.


NUMBERS = itertools.count(61, 2)


@dataclass(frozen=True)
class Waiting:
    """Work items of two studies, and the first study's number."""

    first: int
    uids: list[str]


@pytest.fixture
def items(services: Services, client: TestClient, tmp_path: Path) -> Iterator[Waiting]:
    """Two studies that came over STOW-RS and are quiet."""
    first = next(NUMBERS)
    for study in (first, first + 1):
        body = b"--b\r\nContent-Type: application/dicom\r\n\r\n"
        body += film(tmp_path, study=study).read_bytes() + b"\r\n--b--\r\n"
        assert client.post("/dicom-web/studies", content=body, headers={"Content-Type": KIND}).status_code == 200
    yield Waiting(first, worklist.schedule(services.sessions, quiet_seconds=0, now=services.now))
    while worklist.claim(services.sessions, actor=SYSTEM, holder="end", lease_seconds=1e6, now=services.now):
        pass


def state(client: TestClient, uid: str, word: str, transaction: str | None = "1.2.3") -> Any:
    said = Dataset()
    said.ProcedureStepState = word
    if transaction is not None:
        said.TransactionUID = transaction
    return client.put(f"/dicom-web/workitems/{uid}/state", content=json.dumps(said.to_json_dict()))


def test_an_outside_worker_finds_claims_and_completes_a_study(
    client: TestClient, services: Services, items: Waiting
) -> None:
    found = client.get("/dicom-web/workitems", params={"ProcedureStepState": "SCHEDULED"}).json()
    assert uids(found, "00080018") >= set(items.uids)
    uid = items.uids[0]
    assert state(client, uid, "COMPLETED").status_code == 409  # not yet IN PROGRESS
    assert state(client, uid, "IN PROGRESS", None).status_code == 400
    assert state(client, uid, "IN PROGRESS").status_code == 200
    second = state(client, uid, "IN PROGRESS", "1.2.4")
    assert (second.status_code, "already IN PROGRESS" in second.json()["error"]["message"]) == (409, True)
    [whole] = (Dataset.from_json(one) for one in client.get(f"/dicom-web/workitems/{uid}").json())
    assert whole.ProcedureStepState == "IN PROGRESS"
    assert "TransactionUID" not in whole
    [given] = whole.InputInformationSequence
    assert given.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == f"{ROOT}.{items.first}.1.1"
    assert state(client, uid, "COMPLETED", "1.2.4").status_code == 409

    def update(reference: str, transaction: str) -> int:
        outputs = Dataset()
        outputs.UnifiedProcedureStepPerformedProcedureSequence = [Dataset()]
        outputs.UnifiedProcedureStepPerformedProcedureSequence[0].OutputInformationSequence = [Dataset()]
        [output] = outputs.UnifiedProcedureStepPerformedProcedureSequence[0].OutputInformationSequence
        output.ReferencedSOPSequence = [Dataset()]
        output.ReferencedSOPSequence[0].ReferencedSOPClassUID = CT_IMAGE
        output.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = reference
        address = f"/dicom-web/workitems/{uid}?transaction-uid={transaction}"
        return client.post(address, content=json.dumps(outputs.to_json_dict())).status_code

    assert update("1.2.3.4.5", "1.2.3") == 400  # not stored here
    assert update(f"{ROOT}.{items.first + 1}.1.1", "1.2.4") == 409
    assert update(f"{ROOT}.{items.first + 1}.1.1", "1.2.3") == 200
    assert state(client, uid, "COMPLETED").status_code == 200
    again = state(client, uid, "COMPLETED")
    assert (again.status_code, "already in the requested state" in again.headers["warning"]) == (200, True)
    assert update(f"{ROOT}.{items.first + 1}.1.1", "1.2.3") == 409  # may no longer be updated
    [done] = (Dataset.from_json(one) for one in client.get(f"/dicom-web/workitems/{uid}").json())
    [performed] = done.UnifiedProcedureStepPerformedProcedureSequence
    [made] = performed.OutputInformationSequence[0].ReferencedSOPSequence
    assert made.ReferencedSOPInstanceUID == f"{ROOT}.{items.first + 1}.1.1"
    with services.sessions() as session:
        assert audit.verify(session, None).broken is None


def test_of_two_claimants_at_once_one_wins_and_our_own_worker_stays_away(
    client: TestClient, services: Services, items: Waiting
) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda n: state(client, items.uids[0], "IN PROGRESS", f"1.2.{n}").status_code, range(4))
        )
    assert sorted(answers) == [200, 409, 409, 409]
    ours = worklist.claim(services.sessions, actor=SYSTEM, holder="us", lease_seconds=60, now=services.now)
    assert ours is not None
    assert ours.uid == items.uids[1]


def test_a_scheduled_item_is_withdrawn_and_a_held_one_is_not(client: TestClient, items: Waiting) -> None:
    assert client.post(f"/dicom-web/workitems/{items.uids[0]}/cancelrequest").status_code == 202
    assert state(client, items.uids[0], "IN PROGRESS").status_code == 409
    assert state(client, items.uids[1], "IN PROGRESS").status_code == 200
    assert client.post(f"/dicom-web/workitems/{items.uids[1]}/cancelrequest").status_code == 409
    assert state(client, items.uids[1], "CANCELED").status_code == 200
    assert state(client, "1.2.3", "IN PROGRESS").status_code == 404
    assert client.put(f"/dicom-web/workitems/{items.uids[1]}/state", content=b"not json").status_code == 400


def test_every_giving_is_audited(client: TestClient, services: Services, items: Waiting) -> None:
    assert client.get(f"/dicom-web/studies/{ROOT}.{items.first}/metadata").status_code == 200
    with services.sessions() as session:
        newest = session.scalars(select(AuditEvent).order_by(AuditEvent.sequence.desc())).first()
        row = session.scalar(
            select(StoredInstance).where(StoredInstance.sop_instance_uid == f"{ROOT}.{items.first}.1.1")
        )
    assert newest is not None
    assert newest.action == "retrieve"
    assert row is not None
    assert row.received_from == "local"
