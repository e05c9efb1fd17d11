"""A real archive takes every object over C-STORE and gives back what it took."""

import io
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from pydicom import dcmread

from dicom_io.read import Sandbox
from dicom_io.report import key_object_note, measurement_report, parametric_maps, secondary_capture
from tests.dicom_io.conftest import packaged
from tests.dicom_io.reports import blank_frame, heat_map, study_findings, written
from tests.services import free_port, require


@dataclass(frozen=True)
class Archive:
    """Orthanc's two doors."""

    dicom_port: int
    client: httpx.Client


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    """Orthanc on free loopback ports, empty."""
    http_port, dicom_port = free_port(), free_port()
    configuration = tmp_path / "orthanc.json"
    settings = {
        "Name": "tests",
        "StorageDirectory": str(tmp_path / "storage"),
        "IndexDirectory": str(tmp_path / "storage"),
        "HttpPort": http_port,
        "DicomPort": dicom_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
    }
    configuration.write_text(json.dumps(settings))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([require("Orthanc"), configuration], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=30) as client:
            _await_answer(client, process)
            yield Archive(dicom_port, client)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _await_answer(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            client.get("/system").raise_for_status()
        except httpx.TransportError:
            assert process.poll() is None, "Orthanc ended"
            assert time.monotonic() < deadline, "Orthanc did not come up"
            time.sleep(0.1)
        else:
            return


@pytest.mark.services
def test_orthanc_stores_and_returns_every_object(sandbox: Sandbox, archive: Archive, tmp_path: Path) -> None:
    ct = sandbox.evidence(packaged("CT_small.dcm"))
    findings = study_findings(ct)
    made = {
        "report": measurement_report(findings),
        "note": key_object_note(findings),
        "map": parametric_maps(findings, [heat_map(ct)])[0],
        "capture": secondary_capture(findings, heat_map(ct), blank_frame(ct)),
    }
    files = {kind: written(one, tmp_path, f"{kind}.dcm") for kind, one in made.items()}
    # DCMTK's own: pynetdicom installs a command of the same name.
    storescu = require("dcm2pnm").with_name("storescu")
    where = ["--required", "127.0.0.1", str(archive.dicom_port)]
    done = subprocess.run([storescu, *where, *files.values()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    for kind, path in files.items():
        stored = dcmread(path)
        (found,) = archive.client.post("/tools/lookup", content=stored.SOPInstanceUID).json()
        returned = dcmread(io.BytesIO(archive.client.get(f"{found['Path']}/file").content))
        assert returned == stored, kind
    (study,) = archive.client.get("/studies?expand").json()
    assert study["MainDicomTags"]["StudyInstanceUID"] == ct.ref.study_instance_uid
    assert len(study["Series"]) == 4
