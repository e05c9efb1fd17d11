"""What was stored comes back bit for bit, whole, as metadata, bulk data or frames, and to nobody who may not see it."""

from hashlib import sha256
from pathlib import Path

import httpx
import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRBigEndian, JPEGBaseline8Bit
from sqlalchemy import select

from app.db.tables import AuditEvent, AuditSubject, Study
from dicom_io.read import frames, read_instance
from tests.dicom_io.build import data_set
from tests.dicom_io.build import part10 as built
from tests.web.dicomweb.conftest import Served
from tests.web.dicomweb.objects import MULTIPART, image, message, packaged, part10, path, uids

ANY = (("application/dicom", "*"),)
COMPRESSED = (
    "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "JPEGLSNearLossless_08.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
)


def parts_of(answer: httpx.Response) -> list[tuple[str, bytes]]:
    """Content types and contents, by the boundary and nothing of our own parser."""
    boundary = answer.headers["content-type"].partition("boundary=")[2].encode()
    pieces = answer.content.split(b"--" + boundary)
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    found = []
    for piece in pieces[1:-1]:
        head, _, content = piece.partition(b"\r\n\r\n")
        (kind,) = [line for line in head.decode().split("\r\n") if line.startswith("Content-Type: ")]
        found.append((kind.removeprefix("Content-Type: "), content.removesuffix(b"\r\n")))
    return found


def sent(http: httpx.Client, *files: bytes) -> None:
    answer = http.post("/studies", content=message(*files), headers={"Content-Type": MULTIPART})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_bigendian.dcm", "CT_small.dcm", *COMPRESSED])
def test_the_file_comes_back_bit_for_bit(http: httpx.Client, client: DICOMwebClient, name: str) -> None:
    dataset = image(name)
    content = part10(dataset)
    sent(http, content)
    syntax = dataset.file_meta.TransferSyntaxUID
    ((kind, got),) = parts_of(http.get(path(dataset)))
    assert kind == f"application/dicom; transfer-syntax={syntax}"
    assert got == content
    retrieved = client.retrieve_instance(*uids(dataset), media_types=ANY)
    assert retrieved.file_meta.TransferSyntaxUID == syntax
    assert retrieved.PixelData == dataset.PixelData


def test_dicom_io_reads_what_comes_back_as_it_read_what_was_sent(
    http: httpx.Client, served: Served, tmp_path: Path
) -> None:
    sandbox = served.services.sandbox
    for name in ("MR_small.dcm", *COMPRESSED):
        dataset = image(name)
        before, after = tmp_path / "before.dcm", tmp_path / "after.dcm"
        before.write_bytes(part10(dataset))
        sent(http, before.read_bytes())
        after.write_bytes(parts_of(http.get(path(dataset)))[0][1])
        (first, second) = (
            list(frames(read_instance(file, sandbox=sandbox), sandbox=sandbox)) for file in (before, after)
        )
        assert [one.pixels.tobytes() for one in first] == [one.pixels.tobytes() for one in second]


def test_a_series_and_a_study_come_whole(http: httpx.Client, client: DICOMwebClient) -> None:
    first = image()
    second = image("MR_small_RLE.dcm", like=first)
    sent(http, part10(first), part10(second))
    answer = http.get(f"/studies/{first.StudyInstanceUID}")
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert sorted(content for _, content in parts_of(answer)) == sorted([part10(first), part10(second)])
    for datasets in (
        client.retrieve_study(first.StudyInstanceUID, media_types=ANY),
        client.retrieve_series(*uids(first)[:2], media_types=ANY),
    ):
        assert {one.SOPInstanceUID for one in datasets} == {first.SOPInstanceUID, second.SOPInstanceUID}


def test_one_instance_comes_bare_where_that_is_asked_for(http: httpx.Client) -> None:
    dataset = image()
    sent(http, part10(dataset))
    answer = http.get(path(dataset), headers={"Accept": "application/dicom; transfer-syntax=*"})
    assert answer.headers["content-type"].startswith("application/dicom; transfer-syntax=")
    assert answer.content == part10(dataset)


@pytest.mark.parametrize(
    "accept",
    [
        'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1',
        'multipart/related; type="application/dicom+xml"',
        "application/zip",
        "application/dicom;q=0",
    ],
)
def test_what_is_stored_otherwise_is_not_transcoded(http: httpx.Client, accept: str) -> None:
    dataset = image("MR_small_RLE.dcm")
    sent(http, part10(dataset))
    answer = http.get(path(dataset), headers={"Accept": accept})
    assert (answer.status_code, answer.json()["error"]["code"]) == (406, "web.not-acceptable")
    stored = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.5'
    assert http.get(path(dataset), headers={"Accept": f"{accept}, {stored}"}).status_code == 200


def test_metadata_says_the_data_set_and_where_its_bulk_is(
    http: httpx.Client, client: DICOMwebClient, served: Served
) -> None:
    dataset = image("CT_small.dcm", PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 100")
    dataset.add_new(0x00420011, "OB", bytes(range(256)) * 8)
    sent(http, part10(dataset))
    said = client.retrieve_instance_metadata(*uids(dataset))
    url = f"{served.dicomweb}{path(dataset)}/bulkdata"
    assert said["7FE00010"] == {"vr": "OW", "BulkDataURI": f"{url}/7FE00010"}
    assert said["00420011"] == {"vr": "OB", "BulkDataURI": f"{url}/00420011"}
    assert client.retrieve_bulkdata(f"{url}/7FE00010") == [dataset.PixelData]
    assert client.retrieve_bulkdata(f"{url}/00420011") == [bytes(range(256)) * 8]
    assert said["00100010"]["Value"] == [{"Alphabetic": "Müller^Jörg"}]
    assert said["00080005"]["Value"] == ["ISO_IR 192"]
    read = Dataset.from_json(said, bulk_data_uri_handler=lambda *_: b"")
    for tag in ("Rows", "ImagePositionPatient", "PixelSpacing", "OtherPatientIDsSequence", "SOPInstanceUID"):
        assert read[tag] == dataset[tag], tag
    assert http.get(f"{path(dataset)}/bulkdata/00100010").status_code == 404
    assert http.get(f"{path(dataset)}/bulkdata/x/../y").status_code == 404


def test_metadata_of_a_series_and_a_study_lists_their_instances(http: httpx.Client, client: DICOMwebClient) -> None:
    first = image()
    sent(http, part10(first), part10(image(like=first)), part10(image(like=first)))
    assert len(client.retrieve_study_metadata(first.StudyInstanceUID)) == 3
    of_series = client.retrieve_series_metadata(*uids(first)[:2])
    assert len({one["00080018"]["Value"][0] for one in of_series}) == 3
    assert http.get(f"{path(first)}/metadata", headers={"Accept": "application/dicom+xml"}).status_code == 406


@pytest.mark.parametrize("name", COMPRESSED)
def test_frames_are_the_codestreams_that_are_stored(http: httpx.Client, client: DICOMwebClient, name: str) -> None:
    dataset = image(name)
    sent(http, part10(dataset))
    syntax = dataset.file_meta.TransferSyntaxUID
    expected = next(generate_frames(dataset.PixelData, number_of_frames=1))
    assert client.retrieve_instance_frames(*uids(dataset), [1]) == [expected]
    ((kind, content),) = parts_of(http.get(f"{path(dataset)}/frames/1"))
    assert kind.endswith(f"; transfer-syntax={syntax}")
    assert kind.startswith("image/")
    assert content == expected
    octets = 'multipart/related; type="application/octet-stream"; transfer-syntax='
    assert http.get(f"{path(dataset)}/frames/1", headers={"Accept": f"{octets}*"}).content.count(expected) == 1
    plain = http.get(f"{path(dataset)}/frames/1", headers={"Accept": f"{octets}1.2.840.10008.1.2.1"})
    assert plain.status_code == 406


def test_native_frames_are_little_endian_whatever_the_file_is(http: httpx.Client, client: DICOMwebClient) -> None:
    values = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)
    for number, syntax in enumerate(("1.2.840.10008.1.2.1", ExplicitVRBigEndian, "1.2.840.10008.1.2.1.99")):
        dataset = data_set(values, SOPInstanceUID=f"1.2.3.{number}", StudyInstanceUID="1.2.30")
        dataset.SeriesInstanceUID = "1.2.31"
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = values.astype(">u2").tobytes()
        sent(http, built(dataset, transfer_syntax=syntax))
        got = client.retrieve_instance_frames(
            *uids(dataset), [3, 1], media_types=(("application/octet-stream", "1.2.840.10008.1.2.1"),)
        )
        assert got == [values[2].tobytes(), values[0].tobytes()]
        assert b"".join(client.retrieve_bulkdata(f"{client.base_url}{path(dataset)}/bulkdata/7FE00010")) == (
            values.tobytes()
        )


@pytest.mark.parametrize(
    ("numbers", "status"), [("0", 404), ("2", 404), ("1,2", 404), ("a", 400), ("1,,1", 400), ("-1", 400), ("1;1", 400)]
)
def test_frames_that_are_not_there_are_refused(http: httpx.Client, numbers: str, status: int) -> None:
    dataset = image()
    sent(http, part10(dataset))
    assert http.get(f"{path(dataset)}/frames/{numbers}").status_code == status


def test_an_object_without_pixels_has_no_frames(http: httpx.Client) -> None:
    dataset = image("reportsi.dcm")
    sent(http, part10(dataset))
    assert http.get(path(dataset)).status_code == 200
    answer = http.get(f"{path(dataset)}/frames/1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "dicom.no-pixels")


def test_an_image_that_came_without_its_pixels_says_so(http: httpx.Client) -> None:
    dataset = image()
    del dataset.PixelData
    sent(http, part10(dataset))
    answer = http.get(f"{path(dataset)}/frames/1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "dicom.pixels-missing")


@pytest.mark.parametrize(
    "target",
    [
        "/studies/..%2F..%2Fetc%2Fpasswd",
        "/studies/1.2%00",
        "/studies/%2e%2e/series/1",
        "/studies/" + "1" * 65,
        "/studies/1.2;rm/metadata",
        "/studies/1.2/series/a/instances/1",
        "/workitems/%2e%2e%2f1",
    ],
)
def test_a_path_that_holds_anything_but_uids_leads_nowhere(http: httpx.Client, target: str) -> None:
    answer = http.get(target)
    assert answer.status_code in (400, 404)
    assert answer.json().get("error", {}).get("code") in ("web.request-invalid", "record.not-found", None)


def test_an_instance_is_not_found_under_another_series_or_study(http: httpx.Client) -> None:
    dataset, other = image(), image()
    sent(http, part10(dataset), part10(other))
    study, series, instance = uids(dataset)
    for wrong in (
        f"/studies/{other.StudyInstanceUID}/series/{series}/instances/{instance}",
        f"/studies/{study}/series/{other.SeriesInstanceUID}/instances/{instance}",
    ):
        assert http.get(wrong).status_code == 404


def test_a_retrieval_is_audited_with_who_what_and_how(http: httpx.Client, served: Served) -> None:
    dataset = image()
    sent(http, part10(dataset))
    http.get(f"/studies/{dataset.StudyInstanceUID}")
    http.get(f"{path(dataset)}/frames/1")
    with served.services.sessions() as session:
        study = session.scalars(select(Study).where(Study.study_instance_uid == dataset.StudyInstanceUID)).one()
        newest = select(AuditEvent).where(AuditEvent.action == "retrieve").order_by(AuditEvent.sequence.desc())
        frames_event, study_event = session.scalars(newest.limit(2)).all()
        subjects = select(AuditSubject.table_name, AuditSubject.row_id)
        (subject,) = session.execute(subjects.where(AuditSubject.sequence == study_event.sequence)).all()
    assert (frames_event.actor, frames_event.detail) == ("orchestrator", {"form": "frames", "instances": 1})
    assert (study_event.actor, study_event.detail) == ("orchestrator", {"form": "instances", "instances": 1})
    assert tuple(subject) == ("study", study.id)


def test_a_file_that_has_changed_on_disk_is_not_given_out_whole(http: httpx.Client, served: Served) -> None:
    dataset = image()
    content = part10(dataset)
    sent(http, content)
    kept = served.services.spool.path(sha256(content).hexdigest())
    kept.chmod(0o600)
    kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(httpx.RemoteProtocolError):
        http.get(path(dataset))


def test_the_real_files_come_back_bit_for_bit(http: httpx.Client) -> None:
    shared = Path(__file__).resolve().parents[4] / "shared" / "data" / "dicom"
    if not shared.is_dir():
        pytest.skip(f"the shared files are not at {shared}")
    tried = 0
    for file in sorted(shared.rglob("*.dcm"))[::8]:
        answer = http.post("/studies", content=message(file.read_bytes()), headers={"Content-Type": MULTIPART})
        if answer.status_code != 200:
            assert answer.status_code == 409, answer.text
            continue
        said = answer.json()["00081199"]["Value"][0]
        ((_, content),) = parts_of(http.get(said["00081190"]["Value"][0]))
        assert content == file.read_bytes(), file.name
        tried += 1
    assert tried > 5


def test_jpeg_frames_are_called_jpeg(client: DICOMwebClient, http: httpx.Client) -> None:
    dataset = image("SC_rgb_jpeg_dcmtk.dcm")
    assert dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    sent(http, part10(dataset))
    (frame,) = client.retrieve_instance_frames(*uids(dataset), [1], media_types=(("image/jpeg", JPEGBaseline8Bit),))
    assert frame.startswith(b"\xff\xd8")
    assert dcmread(packaged("SC_rgb_jpeg_dcmtk.dcm")).PixelData.count(frame) == 1
