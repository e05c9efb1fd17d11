"""What all our objects have in common: whose they are, who made them and when, and how codes are written."""

from datetime import datetime, timedelta, timezone
from typing import Any

from highdicom.sr import CodedConcept
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as PydicomCode

from dicom_io.report.findings import LabelFinding, StudyFindings
from dicom_io.types import IDENTITY, Code, Evidence

# As for reading: what pydicom warns of it quotes, patients' names included, and a sender's fault is not ours to mend.
pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE

PRIVATE_SCHEME = "99HILUM"
UNIT_PROBABILITY = PydicomCode("{0:1}", "UCUM", "range: 0:1")
_MEANING_MAX = 64  # CodeMeaning is LO
_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
# An anatomic region where the file has only (0018,0015) Body Part Examined; PS3.16 Annex L lists the pairs.
_REGIONS = {
    "ABDOMEN": codes.SCT.Abdomen,
    "BRAIN": codes.SCT.Brain,
    "BREAST": codes.SCT.Breast,
    "CHEST": PydicomCode("43799004", "SCT", "Thoracic cavity"),
    "HAND": codes.SCT.Hand,
    "HEAD": codes.SCT.Head,
    "KNEE": codes.SCT.Knee,
    "LUNG": codes.SCT.Lung,
    "PELVIS": codes.SCT.Pelvis,
    "SKIN": codes.SCT.Skin,
    "WRIST": PydicomCode("74670003", "SCT", "Wrist"),
}
_ANY_REGION = PydicomCode("38866009", "SCT", "Body Part")


def base_arguments(findings: StudyFindings, kind: str, *parts: str, series_number: int) -> dict[str, Any]:
    """The arguments that highdicom's classes share, for the object of one kind that `parts` names."""
    device = findings.device
    return {
        "series_instance_uid": findings.series_uid(kind),
        "series_number": series_number,
        "sop_instance_uid": findings.instance_uid(kind, *parts),
        "manufacturer": device.manufacturer,
        "manufacturer_model_name": device.name,
        "software_versions": [device.version, f"{device.model_name} {device.model_version}"[:_MEANING_MAX]],
        "device_serial_number": findings.installation.serial_number,
        "specific_character_set": "ISO_IR 192",
    }


def reference_header(evidence: Evidence) -> Dataset:
    """What highdicom asks of a source: its UIDs, and empty Type 2 attributes that `complete` fills in.

    highdicom would log values that are the sender's, patients' names among them, and copies whole modules, faults
    included; so it is not given them.
    """
    header = Dataset()
    header.SOPClassUID = evidence.ref.sop_class_uid
    header.SOPInstanceUID = evidence.ref.sop_instance_uid
    header.StudyInstanceUID = evidence.ref.study_instance_uid
    header.SeriesInstanceUID = evidence.ref.series_instance_uid
    if evidence.rows and evidence.columns:
        header.Rows, header.Columns = evidence.rows, evidence.columns
    for keyword in _TYPE_2:
        setattr(header, keyword, None)
    return header


def complete(made: Dataset, findings: StudyFindings) -> None:
    """Write into a made object whose it is, and the time of the findings in place of the clock's."""
    source = findings.evidence[0]
    made.StudyInstanceUID = source.ref.study_instance_uid
    for keyword in IDENTITY:
        value = source.identity.get(keyword)
        if value is not None or keyword in _TYPE_2:
            setattr(made, keyword, value)
    at = local_time(findings)
    for keyword in ("InstanceCreation", "Series", "Content"):
        if keyword == "Content" and "ContentDate" not in made:
            continue
        setattr(made, f"{keyword}Date", at.strftime("%Y%m%d"))
        setattr(made, f"{keyword}Time", at.strftime("%H%M%S"))
    for equipment in made.get("ContributingEquipmentSequence", []):  # highdicom names itself
        equipment.ContributionDateTime = at.strftime("%Y%m%d%H%M%S")
    if source.timezone_offset is not None:
        made.TimezoneOffsetFromUTC = source.timezone_offset


def local_time(findings: StudyFindings) -> datetime:
    """The time of the findings, in the study's own offset from UTC where that is stated (PS3.3 C.12.1)."""
    stated = findings.evidence[0].timezone_offset
    if stated is None:
        return findings.at
    minutes = int(stated[1:3]) * 60 + int(stated[3:5])
    return findings.at.astimezone(timezone(timedelta(minutes=minutes if stated[0] == "+" else -minutes)))


def private(value: str, meaning: str) -> CodedConcept:
    """A concept of our own scheme. Values stay what they mean for ever; meanings may be reworded."""
    return CodedConcept(value=value, scheme_designator=PRIVATE_SCHEME, meaning=meaning[:_MEANING_MAX])


def concept(code: Code) -> CodedConcept:
    """A code of the evidence's."""
    return CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning[:_MEANING_MAX])


def label_concept(task: str, finding: LabelFinding) -> CodedConcept:
    """The code of a label; one of our scheme, `task/label`, where it has none."""
    if finding.code is None:
        return private(f"{task}/{finding.label}", finding.display)
    # A meaning is for people to read (PS3.3 8.3): one that is too long gives way to the words on the screen.
    fits = len(finding.code.meaning) <= _MEANING_MAX
    meaning = finding.code.meaning if fits else finding.display[:_MEANING_MAX]
    return CodedConcept(value=finding.code.value, scheme_designator=finding.code.scheme, meaning=meaning)


def region_concept(evidence: Evidence) -> CodedConcept:
    """The anatomic region that the image shows, as near as its header says."""
    if evidence.anatomic_region is not None:
        return concept(evidence.anatomic_region)
    return CodedConcept(*_REGIONS.get((evidence.body_part or "").upper(), _ANY_REGION))
