"""A real archive takes every object over C-STORE and gives back what it took."""

import io
import subprocess
from pathlib import Path

import pytest
from pydicom import dcmread

from dicom_io.read import Sandbox
from dicom_io.report import key_object_note, measurement_report, parametric_maps, secondary_capture
from tests import services
from tests.dicom_io.conftest import packaged
from tests.dicom_io.reports import blank_frame, heat_map, study_findings, written


@pytest.mark.services
def test_orthanc_stores_and_returns_every_object(sandbox: Sandbox, tmp_path: Path) -> None:
    ct = sandbox.evidence(packaged("CT_small.dcm"))
    findings = study_findings(ct)
    made = [
        measurement_report(findings),
        key_object_note(findings),
        *parametric_maps(findings, [heat_map(ct)]),
        secondary_capture(findings, heat_map(ct), blank_frame(ct)),
    ]
    files = [written(one, tmp_path, f"{n}.dcm") for n, one in enumerate(made)]
    # DCMTK's own: pynetdicom installs a command of the same name.
    storescu = services.require("dcm2pnm").with_name("storescu")
    with services.orthanc() as archive:
        where = ["--required", "--call", archive.ae_title, "127.0.0.1", str(archive.port)]
        done = subprocess.run([storescu, *where, *files], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        held = archive.instances()
    assert len(held) == 4
    for path in files:
        sent = dcmread(path)
        assert dcmread(io.BytesIO(held[sent.SOPInstanceUID])) == sent, sent.SOPClassUID.name
