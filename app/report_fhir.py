"""A study's findings as a FHIR bundle: DiagnosticReport, Observations, ImagingStudy and Device.

Needs the extra `fhir`. Written as R4B, whose form of these resources R4 servers take as well. Every resource has an id
that follows from the work item and is PUT under it, so that sending the bundle again changes nothing.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any

from fhir.resources.R4B.bundle import Bundle

from dicom_io.report import NOTICE, NotAnswered, StudyFindings, StudyStatement
from dicom_io.report.document import PRIVATE_SCHEME, label_concept, local_time
from dicom_io.types import Evidence

_DICOM_UID = "urn:dicom:uid"
_UCUM = "http://unitsofmeasure.org"
# The systems that HL7 gives to DICOM's scheme designators (PS3.16 8).
_SYSTEMS = {
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "LN": "http://loinc.org",
    "RADLEX": "http://radlex.org",
    "SCT": "http://snomed.info/sct",
    PRIVATE_SCHEME: "urn:hilum:codes",
}


def report_bundle(findings: StudyFindings) -> bytes:
    """The transaction as UTF-8 JSON, checked by fhir.resources.

    Observations state the highest probability of each label over the study's frames. The report is preliminary, since
    no person has verified it.
    """
    study, device = _imaging_study(findings), _device(findings)
    observations = [
        *(_observation(findings, said) for said in findings.statements()),
        *(_not_answered(findings, withheld, images=len(images)) for withheld, images in findings.withheld()),
    ]
    resources = [device, study, *observations, _report(findings, observations)]
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [
            {
                "fullUrl": f"urn:uuid:{resource['id']}",
                "resource": resource,
                "request": {"method": "PUT", "url": f"{resource['resourceType']}/{resource['id']}"},
            }
            for resource in resources
        ],
    }
    return Bundle.model_validate(bundle).model_dump_json().encode()


def _id(findings: StudyFindings, kind: str, *parts: str) -> str:
    """The UUID whose decimal form is the UID of this part of the work item."""
    return str(uuid.UUID(int=int(findings.instance_uid(f"fhir {kind}", *parts).removeprefix("2.25."))))


def _device_id(findings: StudyFindings) -> str:
    """One Device for each installation and version of model and software."""
    device = findings.device
    parts = ("fhir device", device.version, device.graph_sha256, device.threshold_set)
    return str(uuid.UUID(int=int(findings.installation.uid(*parts).removeprefix("2.25."))))


def _study_id(findings: StudyFindings) -> str:
    return _id(findings, "study", findings.evidence[0].ref.study_instance_uid)


def _device(findings: StudyFindings) -> dict[str, Any]:
    device = findings.device
    versions = {
        "software": device.version,
        "model": f"{device.model_name} {device.model_version}",
        "graph SHA-256": device.graph_sha256,
        "threshold set": device.threshold_set,
    }
    return {
        "resourceType": "Device",
        "id": _device_id(findings),
        "identifier": [{"system": _DICOM_UID, "value": f"urn:oid:{findings.installation.uid('device')}"}],
        "status": "active",
        "manufacturer": device.manufacturer,
        "serialNumber": findings.installation.serial_number,
        "deviceName": [{"name": device.name, "type": "model-name"}],
        "version": [{"type": {"text": what}, "value": value} for what, value in versions.items()],
        "note": [{"text": NOTICE}],
    }


def _subject(evidence: Evidence) -> dict[str, Any]:
    """The patient by identifier: which resource that is, the receiver knows."""
    patient_id = evidence.identity.get("PatientID")
    if patient_id is None:
        return {"display": "The images state no patient id"}
    identifier: dict[str, Any] = {"value": patient_id}
    if "IssuerOfPatientID" in evidence.identity:
        identifier |= {"assigner": {"display": evidence.identity["IssuerOfPatientID"]}}
    return {"type": "Patient", "identifier": identifier}


def _imaging_study(findings: StudyFindings) -> dict[str, Any]:
    """The study as far as it was looked at."""
    source = findings.evidence[0]
    series: dict[str, list[Evidence]] = {}
    for one in findings.evidence:
        series.setdefault(one.ref.series_instance_uid, []).append(one)
    study: dict[str, Any] = {
        "resourceType": "ImagingStudy",
        "id": _study_id(findings),
        "identifier": [{"system": _DICOM_UID, "value": f"urn:oid:{source.ref.study_instance_uid}"}],
        "status": "available",
        "subject": _subject(source),
        "series": [
            {
                "uid": uid,
                "modality": {"system": _SYSTEMS["DCM"], "code": instances[0].modality or "OT"},
                "instance": [
                    {
                        "uid": one.ref.sop_instance_uid,
                        "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{one.ref.sop_class_uid}"},
                    }
                    for one in instances
                ],
            }
            for uid, instances in series.items()
        ],
    }
    started = _study_day(source)
    if started is not None:
        study["started"] = started
    accession = source.identity.get("AccessionNumber")
    if accession is not None:
        study["identifier"].append(_accession(accession))
    return study


def _study_day(evidence: Evidence) -> str | None:
    """The day only: a FHIR time needs the offset from UTC, which few studies state."""
    stated = evidence.identity.get("StudyDate")
    return None if stated is None else date(int(stated[:4]), int(stated[4:6]), int(stated[6:])).isoformat()


def _accession(value: str) -> dict[str, Any]:
    coding = {"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}
    return {"type": {"coding": [coding]}, "value": value}


def _common(findings: StudyFindings, *, tracking: tuple[str, str | None]) -> dict[str, Any]:
    """What every Observation says: of whom, of which images, by which device, when, and how it is tracked."""
    imaging = {"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "imaging"}
    return {
        "resourceType": "Observation",
        "identifier": [{"system": _DICOM_UID, "value": f"urn:oid:{findings.tracking_uid(*tracking)}"}],
        "status": "preliminary",
        "category": [{"coding": [imaging]}],
        "subject": _subject(findings.evidence[0]),
        "derivedFrom": [{"reference": f"ImagingStudy/{_study_id(findings)}"}],
        "device": {"reference": f"Device/{_device_id(findings)}"},
        "issued": local_time(findings).isoformat(),
    }


def _observation(findings: StudyFindings, said: StudyStatement) -> dict[str, Any]:
    answer, label = said.answer, said.label
    code = label_concept(answer.task, label)
    system = _SYSTEMS.get(code.scheme_designator, f"urn:dicom:scheme:{code.scheme_designator}")
    observation = _common(findings, tracking=(answer.task, label.label)) | {
        "id": _id(findings, "observation", answer.task, label.label),
        "code": {
            "coding": [{"system": system, "code": code.value, "display": code.meaning}],
            "text": f"{answer.display}: {label.display}",
        },
        "valueQuantity": _probability(label.probability),
        "component": [
            _component("operating-point", "Least probability that is positive", _probability(label.threshold)),
            _component("in-set", "Member of the conformal prediction set", label.in_prediction_set),
            _component("frames", "Images answered", said.frames),
            _component("positive-frames", "Images with a probability at or above it", said.positive_frames),
        ],
        "note": [{"text": NOTICE}],
    }
    if label.positive:
        positive = {
            "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation",
            "code": "POS",
            "display": "Positive",
        }
        observation["interpretation"] = [{"coding": [positive], "text": "at or above the operating point"}]
    return observation


def _not_answered(findings: StudyFindings, withheld: NotAnswered, *, images: int) -> dict[str, Any]:
    what = withheld.task or "all tasks"
    absent = {"system": "http://terminology.hl7.org/CodeSystem/data-absent-reason", "code": "not-performed"}
    return _common(findings, tracking=(what, None)) | {
        "id": _id(findings, "withheld", what, withheld.code, withheld.reason),
        "code": {"text": what},
        "dataAbsentReason": {
            "coding": [absent, {"system": _SYSTEMS[PRIVATE_SCHEME], "code": withheld.code}],
            "text": withheld.reason,
        },
        "note": [{"text": f"{images} of {len(findings.images)} images. {NOTICE}"}],
    }


def _probability(value: float) -> dict[str, Any]:
    return {"value": value, "unit": "probability", "system": _UCUM, "code": "{0:1}"}


def _component(code: str, display: str, value: dict[str, Any] | int) -> dict[str, Any]:
    named = {"coding": [{"system": _SYSTEMS[PRIVATE_SCHEME], "code": code, "display": display}], "text": display}
    match value:
        case bool():
            return {"code": named, "valueBoolean": value}
        case int():
            return {"code": named, "valueInteger": value}
        case _:
            return {"code": named, "valueQuantity": value}


def _report(findings: StudyFindings, observations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    source = findings.evidence[0]
    radiology = {"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD", "display": "Radiology"}
    report: dict[str, Any] = {
        "resourceType": "DiagnosticReport",
        "id": _id(findings, "report"),
        "identifier": [{"system": _DICOM_UID, "value": f"urn:oid:{findings.instance_uid('sr')}"}],
        "status": "preliminary",
        "category": [{"coding": [radiology]}],
        "code": {"coding": [{"system": _SYSTEMS["LN"], "code": "18748-4", "display": "Diagnostic imaging study"}]},
        "subject": _subject(source),
        "issued": local_time(findings).isoformat(),
        "result": [{"reference": f"Observation/{one['id']}"} for one in observations],
        "imagingStudy": [{"reference": f"ImagingStudy/{_study_id(findings)}"}],
        "conclusion": " ".join(_sentences(findings)),
    }
    accession, day = source.identity.get("AccessionNumber"), _study_day(source)
    if accession is not None:
        report["basedOn"] = [{"type": "ServiceRequest", "identifier": _accession(accession)}]
    if day is not None:
        report["effectiveDateTime"] = day
    return report


def _sentences(findings: StudyFindings) -> Iterable[str]:
    """The report for a person, notice first."""
    yield f"{NOTICE}."
    positive = [said for said in findings.statements() if said.positive_frames]
    for said in positive:
        yield f"{said.answer.display}: {said.label.display}, probability up to {said.label.probability:.1%}."
    if not positive:
        yield "No finding is at or above its operating point."
    for withheld, _ in findings.withheld():
        yield f"Not answered: {withheld.reason}"
