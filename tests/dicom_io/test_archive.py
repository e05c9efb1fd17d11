"""One contract for every way of speaking to an archive, held against a real Orthanc."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from dicom_io.archive import Archive, Match, Query, instances, priors
from dicom_io.dicomweb import WebArchive, WebRemote
from dicom_io.dimse import DimseArchive, Remote
from dicom_io.errors import PeerAnswerInvalid, PeerRefused, PeerUnreachable
from dicom_io.listener import Listening
from tests import services
from tests.app.films import CT_IMAGE, ROOT, film

STUDY = f"{ROOT}.71"
MOVE_TITLE = "HILUM_MOVE"
UTF8 = "ISO_IR 192"


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Orthanc]:
    """An archive with two studies of one patient, and one of another, in JPEG 2000."""
    folder = tmp_path_factory.mktemp("films")
    for number in (1, 2, 3):
        film(
            folder / "first", number, study=71, series=1 + number // 3, StudyDate="20250317", AccessionNumber="A71",
            PatientID="P-7", PatientName="Müller^Jörg", SpecificCharacterSet=UTF8, StudyDescription="Thorax",
        )  # fmt: skip
    film(folder / "second", study=72, StudyDate="20260101", PatientID="P-7", PatientName="Müller^Jörg",
         SpecificCharacterSet=UTF8, Modality="CT", SOPClassUID=CT_IMAGE)  # fmt: skip
    with services.orthanc() as server:
        files = [*sorted(folder.rglob("*.dcm")), Path(str(get_testdata_file("JPEG2000.dcm", download=False)))]
        sent = list(dimse(server).store(files))
        assert [one.outcome for one in sent] == ["stored"] * 5
        yield server


def dimse(server: services.Orthanc, **changes: object) -> DimseArchive:
    known = {"ae_title": server.ae_title, "host": "127.0.0.1", "port": server.port, "calling_ae_title": "HILUM"}
    return DimseArchive(Remote(**{**known, **changes}))  # type: ignore[arg-type]  # a test's own words


def web(server: services.Orthanc) -> WebArchive:
    return WebArchive(WebRemote("ORTHANC", f"{server.url}/dicom-web"))


def moving(server: services.Orthanc) -> DimseArchive:
    port = services.free_port()
    known = {"AET": MOVE_TITLE, "Host": "127.0.0.1", "Port": port}
    httpx.put(f"{server.url}/modalities/hilum", json=known, trust_env=False).raise_for_status()
    receiver = Listening(
        ae_title=MOVE_TITLE,
        host="127.0.0.1",
        port=port,
        calling_ae_titles=frozenset({server.ae_title}),
        maximum_associations=4,
        maximum_associations_per_host=4,
        maximum_pdu_bytes=131_072,
        greeting_seconds=5,
        idle_seconds=30,
        tls=None,
    )
    return DimseArchive(dimse(server).remote, move_to=receiver)


WAYS: dict[str, Callable[[services.Orthanc], Archive]] = {"C-GET": dimse, "C-MOVE": moving, "DICOMweb": web}


@pytest.fixture(params=WAYS)
def archive(request: pytest.FixtureRequest, orthanc: services.Orthanc) -> Archive:
    return WAYS[request.param](orthanc)


def test_it_answers(archive: Archive) -> None:
    archive.echo()


@pytest.mark.parametrize(
    ("query", "studies"),
    [
        (Query(patient_id="P-7"), {"71", "72"}),
        (Query(accession_number="A71"), {"71"}),
        (Query(patient_name="M*"), {"71", "72"}),
        (Query(patient_name="Schmidt*"), set()),
        (Query(study_instance_uid=STUDY), {"71"}),
        (Query(study_dates=(date(2025, 3, 17), date(2025, 3, 17))), {"71"}),
        (Query(patient_id="P-7", study_dates=(date(2025, 12, 31), None)), {"72"}),
        (Query(patient_id="P-7", study_dates=(None, date(2025, 12, 31))), {"71"}),
        (Query(patient_id="P-7", modality="CT"), {"72"}),
    ],
)
def test_studies_are_found_by_every_key(archive: Archive, query: Query, studies: set[str]) -> None:
    assert {match.study_instance_uid.rpartition(".")[2] for match in archive.find(query)} == studies


@pytest.mark.parametrize("way", [dimse, moving])
def test_a_name_in_utf_8_is_found_over_dimse(
    way: Callable[[services.Orthanc], Archive], orthanc: services.Orthanc
) -> None:
    """Not over QIDO-RS: the DICOMweb plugin of Debian 12 takes nothing out of percent signs, curl's umlaut included."""
    assert len(list(way(orthanc).find(Query(patient_name="Mü*")))) == 2


def test_what_is_found_says_whose_and_what_it_is(archive: Archive) -> None:
    [study] = archive.find(Query(study_instance_uid=STUDY))
    assert (study.patient_id, study.patient_name, study.study_date) == ("P-7", "Müller^Jörg", date(2025, 3, 17))
    assert (study.accession_number, study.description, study.instances) == ("A71", "Thorax", 3)
    assert study.modalities == ("DX",)
    assert "Müller" not in repr(study)
    assert {s.instances for s in archive.find(Query("SERIES", study_instance_uid=STUDY))} == {1, 2}


def test_more_than_a_page_of_matches_is_found_once_each(
    archive: Archive, orthanc: services.Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_io.dicomweb.PAGE", 2)
    found = [match.sop_instance_uid for match in instances(archive, STUDY)]
    assert len(found) == len(set(found)) == 3


def test_a_study_is_fetched_as_it_was_sent(archive: Archive, tmp_path: Path) -> None:
    wanted = list(instances(archive, STUDY))
    paths = list(archive.fetch(wanted, tmp_path))
    assert sorted(path.name for path in paths) == sorted(f"{m.sop_instance_uid}.dcm" for m in wanted)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for path in paths:
        found = dcmread(path)
        sent = dcmread(film(tmp_path / "again", int(found.InstanceNumber), PatientID="P-7"))
        assert found.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
        assert np.array_equal(found.pixel_array, sent.pixel_array)
        assert found.PatientName == "Müller^Jörg"


def test_priors_are_the_earlier_studies_of_the_same_patient(archive: Archive) -> None:
    [newer] = archive.find(Query(study_instance_uid=f"{ROOT}.72"))
    assert [match.study_instance_uid for match in priors(archive, newer, most=5)] == [STUDY]
    assert priors(archive, newer, most=0) == []
    [older] = archive.find(Query(study_instance_uid=STUDY))
    assert priors(archive, older, most=5) == []


def test_a_compressed_instance_comes_back_as_it_is(archive: Archive, tmp_path: Path) -> None:
    sent = dcmread(str(get_testdata_file("JPEG2000.dcm", download=False)))
    [path] = archive.fetch(list(instances(archive, str(sent.StudyInstanceUID))), tmp_path)
    found = dcmread(path)
    assert found.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
    assert found.PixelData == sent.PixelData


def test_what_is_not_there_is_left_out(archive: Archive, tmp_path: Path) -> None:
    gone = Match(STUDY, f"{STUDY}.1", f"{STUDY}.1.99", None, None, None, None, None, None, None, (), None, None)
    try:
        assert list(archive.fetch([gone], tmp_path)) == []
    except PeerRefused:  # what this Orthanc says over DIMSE, where others say success with nothing done
        assert isinstance(archive, DimseArchive)
    assert list(tmp_path.iterdir()) == []
    assert list(archive.find(Query(study_instance_uid="1.2.3"))) == []


def test_what_is_stored_twice_is_no_error(archive: Archive, tmp_path: Path) -> None:
    one = film(tmp_path, study=73, PatientID="P-8")
    for _ in range(2):
        [answer] = archive.store([one])
        assert answer.outcome in {"stored", "warning"}
    assert len(list(instances(archive, f"{ROOT}.73"))) == 1


@pytest.mark.parametrize("kind", ["dimse", "web"])
def test_nobody_there_is_unreachable(kind: str, tmp_path: Path) -> None:
    port = services.free_port()
    remote = Remote(ae_title="NOBODY", host="127.0.0.1", port=port, calling_ae_title="HILUM")
    nobody = WebArchive(WebRemote("NOBODY", f"http://127.0.0.1:{port}")) if kind == "web" else DimseArchive(remote)
    for ask in (nobody.echo, lambda: list(nobody.find(Query())), lambda: list(nobody.store([film(tmp_path)]))):
        with pytest.raises(PeerUnreachable):
            ask()


def test_an_archive_that_never_answers_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_io.dimse.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("dicom_io.dicomweb.ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for one in (
            DimseArchive(Remote(ae_title="SILENT", host="127.0.0.1", port=port, calling_ae_title="HILUM")),
            WebArchive(WebRemote("SILENT", f"http://127.0.0.1:{port}")),
        ):
            with pytest.raises(PeerUnreachable):
                one.echo()


def test_a_web_service_that_wants_a_login_refuses(tmp_path: Path) -> None:
    with answering(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n") as url, pytest.raises(PeerRefused):
        WebArchive(WebRemote("LOCKED", url)).echo()


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[1]", b"not json", b'[{"0020000D": {"vr": "UI", "Value": ["../../etc"]}}]', b"[{}]"],
)
def test_what_is_no_answer_to_a_search_is_said_to_be_none(body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with answering(head + body) as url, pytest.raises(PeerAnswerInvalid):
        list(WebArchive(WebRemote("ODD", url)).find(Query()))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/dicom", b"DICM"),
        ('multipart/related; type="application/dicom"; boundary=b', b"--b\r\n\r\nnothing\r\n--b--\r\n"),
        ('multipart/related; type="application/dicom"; boundary=b', b"--b\r\n\r\ncut"),
        ('multipart/related; type="application/dicom"; boundary=b', b"no boundary at all"),
        ('multipart/related; type="application/dicom"', b""),
    ],
)
def test_what_is_no_instance_leaves_no_file(tmp_path: Path, kind: str, body: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    asked = Match(STUDY, f"{STUDY}.1", f"{STUDY}.1.1", None, None, None, None, None, None, None, (), None, None)
    with answering(head + body) as url, pytest.raises(PeerAnswerInvalid):
        list(WebArchive(WebRemote("ODD", url)).fetch([asked], tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_another_instance_than_was_asked_for_is_not_kept(tmp_path: Path) -> None:
    content = film(tmp_path / "in").read_bytes()
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--b--\r\n"
    head = (
        b'HTTP/1.1 200 OK\r\nContent-Type: multipart/related; type="application/dicom"; boundary=b\r\n'
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    asked = Match(STUDY, f"{STUDY}.1", f"{STUDY}.1.1", None, None, None, None, None, None, None, (), None, None)
    (tmp_path / "out").mkdir()
    with answering(head + body) as url, pytest.raises(PeerAnswerInvalid, match="another instance came"):
        list(WebArchive(WebRemote("ODD", url)).fetch([asked], tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_dcmtk_takes_what_we_send(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    port = services.free_port()
    command: list[str | Path] = [services.dcmtk("storescp"), "-od", tmp_path / "kept", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        remote = Remote(ae_title="STORESCP", host="127.0.0.1", port=port, calling_ae_title="HILUM")
        there = DimseArchive(remote)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                there.echo()
                break
            except PeerUnreachable:
                time.sleep(0.05)
        compressed = Path(str(get_testdata_file("JPEG2000.dcm", download=False)))
        answers = list(there.store([film(tmp_path / "in"), compressed]))
        process.terminate()
    # storescp's own default takes no JPEG 2000: that file is refused, and nothing is recompressed quietly.
    assert [answer.outcome for answer in answers] == ["stored", "refused"]
    assert len(list((tmp_path / "kept").iterdir())) == 1


class answering:  # noqa: N801  # reads as a sentence
    """A web service that says one thing to whoever asks, and whose words are no HTTP library's."""

    def __init__(self, said: bytes) -> None:
        self._said = said
        self._server = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(self._said)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()
