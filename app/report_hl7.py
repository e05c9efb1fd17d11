"""A study's findings as an HL7 v2.5.1 ORU^R01 message, for systems that show results and know no DICOM.

Needs the extra `hl7`. hl7apy checks the message against the standard's own tables.
"""

from collections.abc import Iterator
from typing import Any

from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Message

from dicom_io.report import NOTICE, StudyFindings, StudyStatement
from dicom_io.report.document import PRIVATE_SCHEME, label_concept, local_time

VERSION = "2.5.1"
_ESCAPES = {"|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\", "\\": "\\E\\"}
_NAME_FORMS = ("A", "I", "P")  # HL7 table 0465: alphabetic, ideographic, phonetic, in the order of DICOM's groups


def oru_r01(findings: StudyFindings, *, sending_facility: str, receiving_application: str) -> bytes:
    """The message in UTF-8, segments ended by carriage returns.

    It states the highest probability of each label over the study's frames, and every reason for giving no answer. The
    same work item gives the same bytes, control id included. Lengths are not held to: a patient id is not cut.
    """
    message = Message("ORU_R01", version=VERSION, validation_level=VALIDATION_LEVEL.TOLERANT)
    at = local_time(findings).strftime("%Y%m%d%H%M%S%z")
    header = message.msh
    header.msh_3.hd_1 = "HILUM"
    header.msh_4.hd_1 = _line(sending_facility)
    header.msh_5.hd_1 = _line(receiving_application)
    header.msh_7.ts_1 = at
    header.msh_9 = "ORU^R01^ORU_R01"
    # ST of 20 characters: the end of the UID, in which any two messages differ.
    header.msh_10 = findings.instance_uid("hl7").rpartition(".")[2][-20:]
    header.msh_11 = "P"
    header.msh_18 = "UNICODE UTF-8"
    result = message.add_group("ORU_R01_PATIENT_RESULT")
    _write_patient(result.add_group("ORU_R01_PATIENT").add_segment("PID"), findings)
    order = result.add_group("ORU_R01_ORDER_OBSERVATION")
    _write_order(order.obr, findings, at=at)
    for number, observation in enumerate(_observations(findings), start=1):
        segment = order.add_group("ORU_R01_OBSERVATION").add_segment("OBX")
        segment.obx_1 = str(number)
        _write_observation(segment, observation)
        segment.obx_11 = "P"  # preliminary: no person has verified it
        segment.obx_14.ts_1 = at
        segment.obx_18.ei_1 = findings.installation.serial_number
        segment.obx_18.ei_2 = _line(f"{findings.device.name} {findings.device.version}")
    message.validate()
    return f"{message.to_er7()}\r".encode()


def _write_patient(patient: Any, findings: StudyFindings) -> None:
    identity = findings.evidence[0].identity
    identifier = patient.add_field("pid_3")
    # PID-3 and PID-5 are required; two quotation marks stand for no value, U for a name that is not stated.
    identifier.cx_1 = _line(identity.get("PatientID", "")) or '""'
    if "IssuerOfPatientID" in identity:
        identifier.cx_4.hd_1 = _line(identity["IssuerOfPatientID"])
    for form, group in zip(_NAME_FORMS, identity.get("PatientName", "").split("="), strict=False):
        if group:
            # PS3.5 6.2: family, given, middle, prefix, suffix; HL7's XPN has suffix before prefix.
            family, given, middle, prefix, suffix = (*group.split("^"), "", "", "", "", "")[:5]
            name = patient.add_field("pid_5")
            name.xpn_1.fn_1 = _line(family)
            name.xpn_2, name.xpn_3, name.xpn_4, name.xpn_5 = (_line(p) for p in (given, middle, suffix, prefix))
            name.xpn_8 = form
    if not identity.get("PatientName"):
        patient.add_field("pid_5").xpn_7 = "U"
    if "PatientBirthDate" in identity:
        patient.pid_7.ts_1 = identity["PatientBirthDate"]
    if "PatientSex" in identity:
        patient.pid_8 = identity["PatientSex"]


def _write_order(order: Any, findings: StudyFindings, *, at: str) -> None:
    source = findings.evidence[0]
    order.obr_1 = "1"
    # The filler order number names this result; the accession number is the order's (IHE RAD-4).
    order.obr_3.ei_1 = findings.instance_uid("sr").rpartition(".")[2]
    order.obr_3.ei_2 = "HILUM"
    order.obr_4.ce_1, order.obr_4.ce_2, order.obr_4.ce_3 = "findings", "Findings by Hilum", PRIVATE_SCHEME
    study_day, study_time = source.identity.get("StudyDate"), source.identity.get("StudyTime", "")
    if study_day is not None:
        order.obr_7.ts_1 = study_day + study_time[:6]
    order.obr_18 = _line(source.identity.get("AccessionNumber", ""))
    order.obr_22.ts_1 = at
    order.obr_24 = "RAD"
    order.obr_25 = "P"


def _observations(findings: StudyFindings) -> Iterator[str | tuple[str, str, str, str] | StudyStatement]:
    """The notice first, then what the rest is about, then what is said."""
    yield NOTICE
    device = findings.device
    yield f"model {device.model_name} {device.model_version}, graph SHA-256 {device.graph_sha256}"
    yield f"threshold set {device.threshold_set}"
    study_uid = findings.evidence[0].ref.study_instance_uid
    yield ("113014", "DICOM Study", "DCM", study_uid)
    for said in findings.statements():
        yield said
        if said.frames > 1:
            display = f"{said.answer.display}: {said.label.display}"
            yield f"{display}: highest of {said.frames} images, positive in {said.positive_frames}"
    for withheld, images in findings.withheld():
        what = withheld.task or "all tasks"
        yield f"Not answered ({what}, {len(images)} of {len(findings.images)} images): {withheld.reason}"


def _write_observation(segment: Any, observation: str | tuple[str, str, str, str] | StudyStatement) -> None:
    code = segment.obx_3
    match observation:
        case str():
            segment.obx_2 = "TX"
            code.ce_1, code.ce_2, code.ce_3 = "note", "Note", PRIVATE_SCHEME
            segment.obx_5 = _line(observation)
        case (value, meaning, scheme, uid):
            segment.obx_2 = "ST"
            code.ce_1, code.ce_2, code.ce_3 = value, meaning, scheme
            segment.obx_5 = uid
        case StudyStatement(answer=answer, label=label):
            named = label_concept(answer.task, label)
            segment.obx_2 = "NM"
            code.ce_1, code.ce_2, code.ce_3 = _line(named.value), _line(named.meaning), named.scheme_designator
            segment.obx_4 = _line(answer.task)[:20]
            segment.obx_5 = repr(label.probability)
            segment.obx_6.ce_1, segment.obx_6.ce_2, segment.obx_6.ce_3 = "{0:1}", "probability", "UCUM"
            segment.obx_7 = f"<{label.threshold!r}"
            if label.positive:
                segment.obx_8 = "A"


def _line(text: str) -> str:
    """One line with HL7's own characters escaped (2.5.1 chapter 2.7): a line's end would end the segment."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return "".join(_ESCAPES.get(character, character) for character in plain)
