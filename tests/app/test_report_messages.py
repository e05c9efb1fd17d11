"""Findings as HL7 v2 and FHIR: the libraries read back what was said."""

import dataclasses
import json
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Message
from hl7apy.parser import parse_message

from app.report_fhir import report_bundle
from app.report_hl7 import oru_r01
from dicom_io.read import Sandbox
from dicom_io.report import NOTICE, StudyFindings
from dicom_io.types import Evidence
from tests.dicom_io.conftest import packaged
from tests.dicom_io.reports import PROBABILITY, REASON, THRESHOLD, image_findings, study_findings


@pytest.fixture
def ct(sandbox: Sandbox) -> Evidence:
    return sandbox.evidence(packaged("CT_small.dcm"))


def message(findings: StudyFindings) -> Message:
    written = oru_r01(findings, sending_facility="Ward & Co", receiving_application="EHR").decode()
    return parse_message(written, validation_level=VALIDATION_LEVEL.TOLERANT)


def observations(parsed: Message) -> list[Any]:
    order = parsed.oru_r01_patient_result.oru_r01_order_observation
    return [group.obx for group in order.oru_r01_observation]


def test_an_oru_message_states_notice_findings_and_reasons(ct: Evidence) -> None:
    parsed = message(study_findings(ct))
    assert parsed.validate()
    assert parsed.msh.msh_9.to_er7() == "ORU^R01^ORU_R01"
    segments = observations(parsed)
    assert segments[0].obx_5.to_er7() == NOTICE
    (covid,) = [one for one in segments if one.obx_3.ce_1.to_er7() == "840539006"]
    assert float(covid.obx_5.to_er7()) == PROBABILITY
    assert covid.obx_7.to_er7() == f"<{THRESHOLD!r}"
    assert covid.obx_8.to_er7() == "A"
    assert any(REASON in one.obx_5.to_er7() for one in segments)
    assert {one.obx_11.to_er7() for one in segments} == {"P"}


def test_characters_that_mean_something_to_hl7_are_escaped(ct: Evidence) -> None:
    identity = {"PatientID": "A^1&2|3~4\\5", "PatientName": "O'Neil|x^Ann\r\nOBX=山田^太郎"}
    findings = study_findings(dataclasses.replace(ct, identity=identity))
    raw = oru_r01(findings, sending_facility="", receiving_application="").decode()
    assert raw.count("\r") == raw.count("\rPID") + raw.count("\rOBR") + raw.count("\rOBX") + 1
    patient = message(findings).oru_r01_patient_result.oru_r01_patient.pid
    assert patient.pid_3[0].cx_1.to_er7() == r"A\S\1\T\2\F\3\R\4\E\5"
    assert patient.pid_5[0].xpn_1.fn_1.to_er7() == r"O'Neil\F\x"
    assert patient.pid_5[0].xpn_2.to_er7() == "Ann OBX"
    assert [name.xpn_8.to_er7() for name in patient.pid_5] == ["A", "I"]
    assert patient.pid_5[1].xpn_1.fn_1.to_er7() == "山田"


def test_a_name_changes_places_of_prefix_and_suffix(ct: Evidence) -> None:
    identity = {"PatientName": "Adams^John^Robert^Rev.^B.A."}
    patient = message(study_findings(dataclasses.replace(ct, identity=identity)))
    name = patient.oru_r01_patient_result.oru_r01_patient.pid.pid_5
    # DICOM PS3.5 6.2.1.1's example; HL7 2.5.1 chapter 2A.89: family^given^middle^suffix^prefix.
    assert name.to_er7() == "Adams^John^Robert^B.A.^Rev.^^^A"


def test_several_images_are_stated_by_the_highest(ct: Evidence) -> None:
    many = dataclasses.replace(ct, number_of_frames=3)
    images = [image_findings(many, n, positive=n == 2) for n in (1, 2, 3)]
    findings = study_findings(many, images=images)
    values = [one.obx_5.to_er7() for one in observations(message(findings))]
    assert repr(PROBABILITY) in values
    assert "Chest CT: COVID-19: COVID-19 pattern: highest of 3 images, positive in 1" in values
    said = {one["id"]: one for one in resources(findings, "Observation")}.values()
    covid = next(one for one in said if one["code"].get("coding", [{}])[0].get("code") == "840539006")
    assert covid["valueQuantity"]["value"] == PROBABILITY
    assert [c["valueInteger"] for c in covid["component"] if "valueInteger" in c] == [3, 1]


def resources(findings: StudyFindings, kind: str) -> list[dict[str, Any]]:
    bundle = Bundle.model_validate_json(report_bundle(findings))
    everything = json.loads(bundle.model_dump_json())["entry"]
    return [entry["resource"] for entry in everything if entry["resource"]["resourceType"] == kind]


def test_a_bundle_states_notice_findings_and_reasons(ct: Evidence) -> None:
    findings = study_findings(ct)
    (report,) = resources(findings, "DiagnosticReport")
    assert report["conclusion"].startswith(NOTICE)
    assert "COVID-19 pattern, probability up to 97.1%" in report["conclusion"]
    assert REASON in report["conclusion"]
    assert report["status"] == "preliminary"
    covid, withheld = resources(findings, "Observation")
    assert covid["code"]["coding"][0]["system"] == "http://snomed.info/sct"
    assert covid["valueQuantity"]["value"] == PROBABILITY
    assert covid["component"][0]["valueQuantity"]["value"] == THRESHOLD
    assert covid["interpretation"][0]["coding"][0]["code"] == "POS"
    assert withheld["dataAbsentReason"]["text"] == REASON
    assert "valueQuantity" not in withheld


def test_a_bundle_refers_to_its_own_resources_only(ct: Evidence) -> None:
    bundle = json.loads(report_bundle(study_findings(ct)))
    held = {entry["request"]["url"] for entry in bundle["entry"]}
    named = set(strings(bundle, key="reference"))
    assert named
    assert named <= held


def test_the_study_and_the_device_are_named_by_their_uids(ct: Evidence) -> None:
    findings = study_findings(ct)
    (study,) = resources(findings, "ImagingStudy")
    assert study["identifier"][0]["value"] == f"urn:oid:{ct.ref.study_instance_uid}"
    assert study["series"][0]["instance"][0]["uid"] == ct.ref.sop_instance_uid
    assert study["started"] == "2004-01-19"
    (device,) = resources(findings, "Device")
    assert "0c93" * 16 in [version["value"] for version in device["version"]]


def test_a_retry_gives_the_same_messages(ct: Evidence) -> None:
    def made() -> tuple[bytes, bytes]:
        findings = study_findings(ct)
        return oru_r01(findings, sending_facility="A", receiving_application="B"), report_bundle(findings)

    assert made() == made()


def test_a_study_that_states_nothing_of_the_patient_is_reported(ct: Evidence) -> None:
    findings = study_findings(dataclasses.replace(ct, identity={}))
    assert message(findings).validate()
    (report,) = resources(findings, "DiagnosticReport")
    assert "identifier" not in report["subject"]


def strings(tree: object, *, key: str) -> list[str]:
    match tree:
        case dict():
            own = [tree[key]] if isinstance(tree.get(key), str) else []
            return [*own, *(found for value in tree.values() for found in strings(value, key=key))]
        case list():
            return [found for value in tree for found in strings(value, key=key)]
        case _:
            return []
