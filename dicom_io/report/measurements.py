"""The findings as a TID 1500 Measurement Report (PS3.16), each with its probability, operating point and source image.

It is a Comprehensive 3D SR, the one that IHE AI Results names. Nothing in it would keep it from being an
Enhanced SR, but then one study's results would come in another object as soon as a finding has a place in the patient.
The content is made of highdicom's templates, the document around it on its base class: `highdicom.sr.Comprehensive3DSR`
copies the content three times, which takes most of the time of a series of 200 images, and copies the source's modules,
faults included.
"""

from collections.abc import Iterable

from highdicom import SOPClass
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
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
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian

from dicom_io.report.document import (
    PRIVATE_SCHEME,
    UNIT_PROBABILITY,
    base_arguments,
    complete,
    concept,
    label_concept,
    private,
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


def measurement_report(findings: StudyFindings) -> Dataset:
    """The report, complete and unverified; it lists every image that was looked at and every task, answered or not.

    A label that is normal is no finding and has no group; it shows as a member of the prediction set.
    """
    evidence = findings.evidence[0]
    made = SOPClass(
        study_instance_uid=evidence.ref.study_instance_uid,
        sop_class_uid=Comprehensive3DSRStorage,
        instance_number=1,
        modality="SR",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description="Hilum findings (research use only)",
        coding_schemes=[
            CodingSchemeIdentificationItem(
                designator=PRIVATE_SCHEME, name="Hilum private codes", responsible_organization="Hilum"
            )
        ],
        **base_arguments(findings, "sr", series_number=SERIES_NUMBER),
    )
    complete(made, findings)
    # SR Document Series and General (PS3.3 C.17.1, C.17.2).
    made.CompletionFlag, made.VerificationFlag, made.PreliminaryFlag = "COMPLETE", "UNVERIFIED", "PRELIMINARY"
    made.PerformedProcedureCodeSequence = []
    made.ReferencedPerformedProcedureStepSequence = []
    made.CurrentRequestedProcedureEvidenceSequence = [_evidence_item(findings)]
    made.update(_content(findings)[0])
    return made


def _evidence_item(findings: StudyFindings) -> Dataset:
    """Every image of the study that was looked at, by series (PS3.3 C.17.2)."""
    study = Dataset()
    study.StudyInstanceUID = findings.evidence[0].ref.study_instance_uid
    series: dict[str, list[Dataset]] = {}
    for one in findings.by_uid.values():
        instance = Dataset()
        instance.ReferencedSOPClassUID = one.ref.sop_class_uid
        instance.ReferencedSOPInstanceUID = one.ref.sop_instance_uid
        series.setdefault(one.ref.series_instance_uid, []).append(instance)
    study.ReferencedSeriesSequence = []
    for uid, instances in series.items():
        item = Dataset()
        item.SeriesInstanceUID = uid
        item.ReferencedSOPSequence = instances
        study.ReferencedSeriesSequence.append(item)
    return study


def _content(findings: StudyFindings) -> MeasurementReport:
    report = MeasurementReport(
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(
            CodedConcept(value="en", scheme_designator="RFC5646", meaning="English")
        ),
        observation_context=ObservationContext(observer_device_context=observer(findings)),
        procedure_reported=_procedures(findings.evidence[0]),
        imaging_measurements=[
            *(
                _finding_group(findings, image, answer, label)
                for image in findings.images
                for answer in image.answered
                for label in answer.labels
                if not label.normal
            ),
            *(_withheld_group(findings, withheld, images) for withheld, images in findings.withheld()),
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
    decision = (
        private("positive", "Positive: at or above the operating point")
        if label.positive
        else private("negative", "Below the operating point")
    )
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
            *(
                QualitativeEvaluation(
                    name=private("set-member", "Member of the conformal prediction set"),
                    value=label_concept(answer.task, member),
                )
                for member in answer.labels
                if member.in_prediction_set
            ),
        ],
        source_images=[_source(findings, image)],
    )


def _withheld_group(
    findings: StudyFindings, withheld: NotAnswered, images: Iterable[ImageFindings]
) -> MeasurementsAndQualitativeEvaluations:
    """A task that was not answered, or all of them, with the reason in words and the frames that it holds for."""
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
        source_images=[_source(findings, image) for image in images],
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
