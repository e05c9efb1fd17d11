"""The findings as a TID 1500 Measurement Report (PS3.16), each with its probability, operating point and source image.

It is a Comprehensive 3D SR, which IHE AI Results asks every receiver to take. Nothing in it would keep it from being an
Enhanced SR, but then one study's results would come in another object as soon as a finding has a place in the patient.
"""

from collections.abc import Iterable

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    ImageContentItem,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as PydicomCode

from dicom_io.report.document import (
    PRIVATE_SCHEME,
    UNIT_PROBABILITY,
    base_arguments,
    complete,
    concept,
    label_concept,
    private,
    reference_header,
)
from dicom_io.report.findings import (
    NOTICE,
    Device,
    ImageFindings,
    LabelFinding,
    NotAnswered,
    StudyFindings,
    TaskFindings,
)
from dicom_io.types import Evidence

SERIES_NUMBER = 9901
# PS3.16 CID 100; the study's own code is taken first.
_PROCEDURES = {
    "CR": codes.cid100.XRUnspecifiedBodyRegion,
    "CT": codes.cid100.CTUnspecifiedBodyRegion,
    "DX": codes.cid100.XRUnspecifiedBodyRegion,
    "MR": codes.cid100.MRIUnspecifiedBodyRegion,
    "NM": codes.cid100.NMUnspecifiedBodyRegion,
    "PT": codes.cid100.PETUnspecifiedBodyRegion,
}
# The values of CID 29 Acquisition Modality are those of (0008,0060).
_MODALITIES = {code.value: code for code in (getattr(codes.cid29, name) for name in codes.cid29.dir())}
_CONTAINS = RelationshipTypeValues.CONTAINS


class _Report(Comprehensive3DSR):
    """highdicom's document, with what it says of the patient left to `complete`."""

    def copy_patient_and_study_information(self, dataset: Dataset) -> None:
        """Nothing: whole modules, broken values included, would be copied, and only of SOP classes it knows."""


def measurement_report(findings: StudyFindings) -> Dataset:
    """The report, complete and unverified; it lists every image that was looked at and every task, answered or not."""
    made = _Report(
        evidence=[reference_header(one) for one in findings.evidence],
        content=_content(findings),
        instance_number=1,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description="Hilum findings (research use only)",
        coding_schemes=[
            CodingSchemeIdentificationItem(
                designator=PRIVATE_SCHEME, name="Hilum private codes", responsible_organization="Hilum"
            )
        ],
        **base_arguments(findings, "sr", series_number=SERIES_NUMBER),
    )
    complete(made, findings)
    return made


def _content(findings: StudyFindings) -> MeasurementReport:
    report = MeasurementReport(
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(
            CodedConcept(value="en", scheme_designator="RFC5646", meaning="English")
        ),
        observation_context=ObservationContext(observer_device_context=observer(findings)),
        procedure_reported=_procedures(findings.evidence[0]),
        imaging_measurements=[
            group
            for image in findings.images
            for group in (
                *(
                    _finding_group(findings, image, answer, label)
                    for answer in image.answered
                    for label in answer.labels
                ),
                *(_withheld_group(findings, image, withheld) for withheld in image.withheld),
            )
        ],
        title=codes.cid7021.ImagingMeasurementReport,
    )
    items = report[0].ContentSequence
    # TID 1500 is extensible. Both stand before the measurements, where a person reads them first.
    place = next(n for n, item in enumerate(items) if item.ValueType == "CONTAINER")
    items.insert(place, _image_library(findings.evidence))
    items.insert(place, TextContentItem(name=codes.DCM.Comment, value=NOTICE, relationship_type=_CONTAINS))
    return report


def observer(findings: StudyFindings) -> ObserverContext:
    """The device as the observer (TID 1004)."""
    device = findings.device
    return ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=findings.installation.uid("device"),
            name=device.name,
            manufacturer_name=device.manufacturer,
            model_name=f"{device.name} {device.version}",
            serial_number=findings.installation.serial_number,
        ),
    )


def _procedures(evidence: Evidence) -> list[CodedConcept | PydicomCode]:
    stated: list[CodedConcept | PydicomCode] = [concept(code) for code in evidence.procedures]
    return stated or [_PROCEDURES.get(evidence.modality or "", codes.cid100.ImagingProcedure)]


def _image_library(evidence: Iterable[Evidence]) -> ContainerContentItem:
    """Every image that was looked at (TID 1600), a group a modality."""
    library = ContainerContentItem(name=codes.DCM.ImageLibrary, relationship_type=_CONTAINS)
    library.ContentSequence = ContentSequence()
    groups: dict[str | None, ContainerContentItem] = {}
    for one in evidence:
        if one.modality not in groups:
            group = ContainerContentItem(name=codes.DCM.ImageLibraryGroup, relationship_type=_CONTAINS)
            group.ContentSequence = ContentSequence()
            modality = _MODALITIES.get(one.modality or "")
            if modality is not None:
                group.ContentSequence.append(
                    CodeContentItem(
                        name=codes.DCM.Modality,
                        value=modality,
                        relationship_type=RelationshipTypeValues.HAS_ACQ_CONTEXT,
                    )
                )
            groups[one.modality] = group
            library.ContentSequence.append(group)
        groups[one.modality].ContentSequence.append(
            ImageContentItem(
                name=PydicomCode("260753009", "SCT", "Source"),
                referenced_sop_class_uid=one.ref.sop_class_uid,
                referenced_sop_instance_uid=one.ref.sop_instance_uid,
                relationship_type=_CONTAINS,
            )
        )
    return library


def _finding_group(
    findings: StudyFindings, image: ImageFindings, answer: TaskFindings, label: LabelFinding
) -> MeasurementsAndQualitativeEvaluations:
    """One label of one task in one frame (TID 1501)."""
    if label.normal:
        decision = private("normal", "Normal label: never counts as a positive finding")
    elif label.positive:
        decision = private("positive", "Positive: at or above the operating point")
    else:
        decision = private("negative", "Below the operating point")
    parameters = _parameters(findings.device, answer.task)
    if answer.coverage is not None:
        parameters.append(f"prediction sets hold the true label in {answer.coverage:.0%} of cases")
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=findings.tracking_uid(answer.task, label.label), identifier=f"{answer.display}: {label.display}"
        ),
        algorithm_id=_algorithm(findings.device, parameters),
        finding_type=label_concept(answer.task, label),
        measurements=[
            Measurement(name=codes.DCM.Probability, value=label.probability, unit=UNIT_PROBABILITY),
            Measurement(
                name=private("operating-point", "Operating point: least probability that is positive"),
                value=label.threshold,
                unit=UNIT_PROBABILITY,
            ),
            *_distance(answer.ood_score, answer.ood_threshold),
        ],
        qualitative_evaluations=[
            QualitativeEvaluation(name=private("decision", "Decision"), value=decision),
            QualitativeEvaluation(
                name=private("in-set", "Member of the conformal prediction set"),
                value=codes.cid230.Yes if label.in_prediction_set else codes.cid230.No,
            ),
        ],
        source_images=[_source(findings, image)],
    )


def _withheld_group(
    findings: StudyFindings, image: ImageFindings, withheld: NotAnswered
) -> MeasurementsAndQualitativeEvaluations:
    """A task that was not answered, or the whole frame, with the reason in words."""
    what = withheld.task or "all tasks"
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=findings.tracking_uid(what, None), identifier=f"{what}: not answered"
        ),
        algorithm_id=_algorithm(findings.device, _parameters(findings.device, what)),
        measurements=_distance(withheld.ood_score, withheld.ood_threshold),
        qualitative_evaluations=[
            QualitativeEvaluation(
                name=private("decision", "Decision"), value=private(withheld.code, "No answer is given")
            )
        ],
        source_images=[_source(findings, image)],
    )
    reason = TextContentItem(
        name=private("reason", "Reason for giving no answer"), value=withheld.reason, relationship_type=_CONTAINS
    )
    group[0].ContentSequence.append(reason)
    return group


def _distance(score: float | None, threshold: float | None) -> list[Measurement]:
    """How far the image is from those that the task was trained on, and how far it may be."""
    named = (
        (score, private("ood-score", "Distance from the training images")),
        (threshold, private("ood-threshold", "Largest distance that is answered")),
    )
    return [Measurement(name=name, value=value, unit=codes.UCUM.NoUnits) for value, name in named if value is not None]


def _parameters(device: Device, task: str) -> list[str]:
    return [f"graph SHA-256 {device.graph_sha256}", f"threshold set {device.threshold_set}", f"task {task}"]


def _algorithm(device: Device, parameters: list[str]) -> AlgorithmIdentification:
    """TID 4019."""
    return AlgorithmIdentification(
        name=device.model_name, version=device.model_version, parameters=parameters, manufacturer=device.manufacturer
    )


def _source(findings: StudyFindings, image: ImageFindings) -> SourceImageForMeasurementGroup:
    evidence = findings.frame_of(image.sop_instance_uid, image.frame_number)
    return SourceImageForMeasurementGroup(
        referenced_sop_class_uid=evidence.ref.sop_class_uid,
        referenced_sop_instance_uid=evidence.ref.sop_instance_uid,
        referenced_frame_numbers=[image.frame_number] if evidence.number_of_frames > 1 else None,
    )
