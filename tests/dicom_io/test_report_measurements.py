"""The TID 1500 report says what was found, of which image, by which software, and reads back the same."""

import dataclasses
import io
import subprocess
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes

from dicom_io.errors import EvidenceMissing, EvidenceMixed, MissingUid, NothingToReport
from dicom_io.read import Sandbox
from dicom_io.report import (
    NOTICE,
    Installation,
    StudyFindings,
    key_object_note,
    measurement_report,
    part10_bytes,
)
from dicom_io.types import Evidence
from dicom_io.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from tests.dicom_io import build
from tests.dicom_io.conftest import packaged
from tests.dicom_io.reports import (
    AT,
    OOD,
    PROBABILITY,
    REASON,
    THRESHOLD,
    faults,
    image_findings,
    study_findings,
    written,
)
from tests.dicom_io.test_character_sets import NAMES, charset_file
from tests.services import require


@pytest.fixture(scope="module")
def ct(sandbox: Sandbox) -> Evidence:
    return sandbox.evidence(packaged("CT_small.dcm"))


def read_back(findings: StudyFindings, folder: Path) -> highdicom.sr.Comprehensive3DSR:
    read = highdicom.sr.srread(written(measurement_report(findings), folder))
    assert isinstance(read, highdicom.sr.Comprehensive3DSR)
    return read


def groups_of(findings: StudyFindings, folder: Path) -> list[highdicom.sr.MeasurementsAndQualitativeEvaluations]:
    content = read_back(findings, folder).content
    assert isinstance(content, highdicom.sr.MeasurementReport)
    return content.get_image_measurement_groups()


def coded(value: object) -> str:
    assert isinstance(value, highdicom.sr.CodedConcept)
    return value.value


def dumped(path: Path) -> str:
    """The report as DCMTK shows it to a person."""
    done = subprocess.run([require("dsrdump"), "+Pl", path], capture_output=True, text=True, check=True)
    return done.stdout


def test_probabilities_and_operating_points_are_those_given(ct: Evidence, tmp_path: Path) -> None:
    normal, covid, withheld = groups_of(study_findings(ct), tmp_path)
    numbers = {m.name.meaning: m.value for m in covid.get_measurements()}
    assert numbers["Probability"] == PROBABILITY
    assert numbers["Operating point: least probability that is positive"] == THRESHOLD
    assert numbers["Distance from the training images"] == OOD
    assert {m.unit.value for m in covid.get_measurements()[:2]} == {"{0:1}"}
    assert normal.get_measurements(codes.DCM.Probability)[0].value == 1 - PROBABILITY
    assert not withheld.get_measurements(codes.DCM.Probability)


def test_a_label_with_a_code_is_coded_by_it_and_another_by_ours(ct: Evidence, tmp_path: Path) -> None:
    normal, covid, _ = groups_of(study_findings(ct), tmp_path)
    assert covid.finding_type is not None
    assert (covid.finding_type.scheme_designator, covid.finding_type.value) == ("SCT", "840539006")
    assert covid.finding_type.meaning == "COVID-19 pattern"  # the code's own meaning has 65 characters, one too many
    assert normal.finding_type is not None
    assert (normal.finding_type.scheme_designator, normal.finding_type.value) == ("99HILUM", "ct-covid/not-covid")
    (scheme,) = measurement_report(study_findings(ct)).CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99HILUM"


def test_decision_and_prediction_set_are_said_of_each_label(ct: Evidence, tmp_path: Path) -> None:
    said = [
        {e.name.value: coded(e.value) for e in group.get_qualitative_evaluations()}
        for group in groups_of(study_findings(ct), tmp_path)
    ]
    yes, no = codes.cid230.Yes.value, codes.cid230.No.value
    assert said == [
        {"decision": "normal", "in-set": no},
        {"decision": "positive", "in-set": yes},
        {"decision": "gate.age-outside"},
    ]
    below = groups_of(study_findings(ct, images=[image_findings(ct, positive=False)]), tmp_path)[1]
    assert coded(below.get_qualitative_evaluations()[0].value) == "negative"


def test_the_algorithm_is_named_with_its_digest(ct: Evidence) -> None:
    root = measurement_report(study_findings(ct))
    texts = [item.TextValue for item in walk(root) if item.ValueType == "TEXT"]
    assert f"graph SHA-256 {'0c93' * 16}" in texts
    assert f"threshold set {'6245' * 16}" in texts
    assert {"hilum-vits14", "0.1.1"} <= set(texts)
    assert "prediction sets hold the true label in 90% of cases" in texts


def test_the_device_is_the_observer(ct: Evidence, tmp_path: Path) -> None:
    content = read_back(study_findings(ct), tmp_path).content
    assert isinstance(content, highdicom.sr.MeasurementReport)
    (observer,) = content.get_observer_contexts(observer_type=codes.DCM.Device)
    device = observer.observer_identifying_attributes
    assert isinstance(device, highdicom.sr.DeviceObserverIdentifyingAttributes)
    assert (device.name, device.manufacturer_name, device.model_name) == ("Hilum", "Hilum", "Hilum 0.1.0")
    assert device.uid.startswith("2.25.")
    assert device.serial_number


def test_dcmtk_shows_finding_reason_and_notice(ct: Evidence, tmp_path: Path) -> None:
    shown = dumped(written(measurement_report(study_findings(ct)), tmp_path))
    assert '"COVID-19 pattern"' in shown
    assert REASON in shown
    assert NOTICE in shown
    assert "Verification Flag   : UNVERIFIED" in shown
    assert "Completion Flag     : COMPLETE" in shown


def test_a_frame_is_named_where_there_are_several(sandbox: Sandbox, tmp_path: Path) -> None:
    many = sandbox.evidence(packaged("rtdose.dcm"))
    images = [image_findings(many, 1), image_findings(many, 15)]
    referenced = [
        group.source_images[0].referenced_frame_numbers
        for group in groups_of(study_findings(many, images=images), tmp_path)
    ]
    assert referenced == [[1], [1], [1], [15], [15], [15]]
    single = groups_of(study_findings(sandbox.evidence(packaged("MR_small.dcm"))), tmp_path)[0]
    assert single.source_images[0].referenced_frame_numbers is None


def test_a_study_without_any_answer_is_reported_with_its_reason(ct: Evidence, tmp_path: Path) -> None:
    silent = dataclasses.replace(image_findings(ct), answered=())
    path = written(measurement_report(study_findings(ct, images=[silent])), tmp_path)
    assert not faults(path)
    assert REASON in dumped(path)


def test_every_image_that_was_looked_at_is_listed(sandbox: Sandbox, tmp_path: Path) -> None:
    """A series of 20 slices of which one has something to say."""
    slices = [sandbox.evidence(mr_slice(tmp_path, n)) for n in range(20)]
    path = written(measurement_report(study_findings(*slices, images=[image_findings(slices[7])])), tmp_path)
    assert not faults(path)
    (study,) = dcmread(path).CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    listed = {item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence}
    assert listed == {one.ref.sop_instance_uid for one in slices}


def test_a_retry_gives_the_same_bytes_and_another_work_item_other_uids(ct: Evidence) -> None:
    first, again = (part10_bytes(measurement_report(study_findings(ct))) for _ in range(2))
    assert first == again
    other = measurement_report(study_findings(ct, work_item="work item 2"))
    made = dcmread(io.BytesIO(first))
    assert made.SOPInstanceUID != other.SOPInstanceUID
    assert made.SeriesInstanceUID != other.SeriesInstanceUID


def test_all_outputs_of_a_work_item_have_uids_of_their_own(ct: Evidence) -> None:
    findings = study_findings(ct)
    made = [measurement_report(findings), key_object_note(findings)]
    assert len({one.SOPInstanceUID for one in made} | {one.SeriesInstanceUID for one in made}) == 4


def tracking_uids(findings: StudyFindings, folder: Path) -> list[str | None]:
    return [group.tracking_uid for group in groups_of(findings, folder)]


def of_patient(evidence: Evidence, patient_id: str | None, *, study: str) -> Evidence:
    identity = {k: v for k, v in evidence.identity.items() if k != "PatientID"}
    return dataclasses.replace(
        evidence,
        ref=dataclasses.replace(evidence.ref, study_instance_uid=study),
        identity=identity if patient_id is None else identity | {"PatientID": patient_id},
    )


def test_a_finding_keeps_its_tracking_uid_over_studies_of_one_patient_only(ct: Evidence, tmp_path: Path) -> None:
    first = tracking_uids(study_findings(of_patient(ct, "4711", study="1.2.3")), tmp_path)
    prior = tracking_uids(study_findings(of_patient(ct, "4711", study="1.2.4"), work_item="an older one"), tmp_path)
    other = tracking_uids(study_findings(of_patient(ct, "4712", study="1.2.5")), tmp_path)
    assert first == prior
    assert len(set(first)) == 3
    assert not set(first) & set(other)


def test_without_a_patient_id_tracking_ends_with_the_study(ct: Evidence, tmp_path: Path) -> None:
    one, two = (tracking_uids(study_findings(of_patient(ct, None, study=uid)), tmp_path) for uid in ("1.2.3", "1.2.4"))
    assert not set(one) & set(two)


def test_uids_follow_from_the_installations_key_and_do_not_show_the_patient(ct: Evidence, tmp_path: Path) -> None:
    findings = study_findings(of_patient(ct, "4711", study="1.2.3"))
    elsewhere = dataclasses.replace(findings, installation=Installation(key=b"another"))
    ours, theirs = tracking_uids(findings, tmp_path), tracking_uids(elsewhere, tmp_path)
    assert not set(ours) & set(theirs)
    assert not any("4711" in (uid or "") for uid in ours)
    assert all(len(uid or "") <= 64 for uid in ours)


def test_parts_of_a_uid_are_kept_apart() -> None:
    installation = Installation(key=b"key")
    assert installation.uid("a", "bc") != installation.uid("ab", "c")
    assert "key" not in repr(installation)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_any_character_set_survives(sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    findings = study_findings(with_frames(sandbox.evidence(charset_file(name))))
    for made in (measurement_report(findings), key_object_note(findings)):
        read = dcmread(written(made, tmp_path))
        assert read.SpecificCharacterSet == "ISO_IR 192"
        assert str(read.PatientName) == NAMES[name]


def with_frames(evidence: Evidence) -> Evidence:
    """The character set files carry no pixels."""
    return dataclasses.replace(evidence, number_of_frames=max(evidence.number_of_frames, 1))


def test_what_the_source_does_not_state_stays_empty(sandbox: Sandbox, tmp_path: Path) -> None:
    bare = sandbox.evidence(build.write(tmp_path, build.part10(build.data_set(np.zeros((4, 4), np.uint8)))))
    path = written(measurement_report(study_findings(bare)), tmp_path)
    assert not faults(path)
    made = dcmread(path)
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"):
        assert keyword in made
        assert not made[keyword].value
    assert not made.AccessionNumber
    assert "PatientAge" not in made


def test_values_of_the_source_that_are_not_allowed_are_left_out(sandbox: Sandbox, tmp_path: Path) -> None:
    broken = build.data_set(np.zeros((4, 4), np.uint8))
    broken.PatientSex, broken.StudyTime, broken.PatientAge = "unknown", "25:61", "old"
    broken.FrameOfReferenceUID = "not a uid"
    broken.StudyDate = "2026.01.02"
    evidence = sandbox.evidence(build.write(tmp_path, build.part10(broken)))
    path = written(measurement_report(study_findings(evidence)), tmp_path)
    assert not faults(path)
    made = dcmread(path)
    assert (made.PatientSex, made.StudyTime, made.StudyDate) == ("", "", "20260102")


def test_a_source_without_its_uids_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    nameless = build.data_set(np.zeros((4, 4), np.uint8), StudyInstanceUID=None)
    with pytest.raises(MissingUid):
        sandbox.evidence(build.write(tmp_path, build.part10(nameless)))


def test_the_time_is_that_of_the_findings_in_the_studys_own_zone(ct: Evidence) -> None:
    made = measurement_report(study_findings(ct))  # the file states -0500
    local = AT.astimezone(timezone(timedelta(hours=-5)))
    assert (made.ContentDate, made.ContentTime) == (local.strftime("%Y%m%d"), local.strftime("%H%M%S"))
    assert made.TimezoneOffsetFromUTC == "-0500"
    elsewhere = dataclasses.replace(
        study_findings(dataclasses.replace(ct, timezone_offset=None)), at=datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
    )
    assert measurement_report(elsewhere).ContentTime == "070809"


def test_the_file_says_who_wrote_it(ct: Evidence) -> None:
    meta = dcmread(io.BytesIO(part10_bytes(measurement_report(study_findings(ct))))).file_meta
    assert meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationVersionName == IMPLEMENTATION_VERSION_NAME
    assert len(IMPLEMENTATION_VERSION_NAME) <= 16


def test_findings_that_cannot_be_reported_say_why(ct: Evidence) -> None:
    other_study = of_patient(ct, "4711", study="1.2.3")
    with pytest.raises(NothingToReport):
        study_findings(ct, images=[])
    with pytest.raises(EvidenceMissing):
        study_findings(ct, images=[dataclasses.replace(image_findings(ct), sop_instance_uid="1.2.3")])
    with pytest.raises(EvidenceMissing):
        study_findings(ct, images=[image_findings(ct, 2)])
    with pytest.raises(EvidenceMixed):
        study_findings(ct, other_study)
    with pytest.raises(NothingToReport):
        key_object_note(study_findings(ct, images=[image_findings(ct, positive=False)]))


def mr_slice(folder: Path, number: int) -> Path:
    """One slice of a series, made from the packaged MR."""
    one = dcmread(packaged("MR_small.dcm"))
    one.SOPInstanceUID = f"{one.SOPInstanceUID}.{number}"
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    one.InstanceNumber = number + 1
    one.ImagePositionPatient = [-83.9, -91.2, 6.6 + 0.8 * number]
    path = folder / f"slice {number}.dcm"
    one.save_as(path)
    return path


def walk(item: Dataset) -> list[Dataset]:
    """A content item and all below it."""
    return [item, *(below for child in item.get("ContentSequence", []) for below in walk(child))]
