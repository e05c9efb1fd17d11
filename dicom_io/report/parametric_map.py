"""Heat maps as Parametric Map objects (PS3.3 A.75): float32 values on the pixel grid of the frames they explain.

Built on highdicom's base class and content items rather than its `ParametricMap`, which takes no source without a frame
of reference (0.28.2), so no radiograph. Such an image gets a frame of reference that it shares with nothing, with the
origin at its first pixel, which a frame of reference is free to choose, and the directions that its
Patient Orientation states. Where it states none, no map can be written without inventing left and right: dciodvfy asks
every map for its planes. The secondary capture is then what remains.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import SOPClass
from highdicom.pm import RealWorldValueMapping
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import ParametricMapStorage
from pydicom.valuerep import format_number_as_ds

from dicom_io.errors import HeatMapUnfit, HeatMapUnplaced
from dicom_io.report.document import base_arguments, complete, region_concept
from dicom_io.report.findings import NOTICE, HeatMap, StudyFindings
from dicom_io.types import Evidence

SERIES_NUMBER = 9902
DERIVATION = "What each place adds to the label's logit over the task's other labels (class activation)"
_DIRECTIONS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
_PLANE_POSITION = 0x00209113, 0x00200032  # functional group and index pointer: Image Position (Patient)
_STACK_POSITION = 0x00209111, 0x00209057  # In-Stack Position Number


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a frame lies: in the source's frame of reference, or in one of its own."""

    shared: bool  # in the source's, as its header says
    position_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing_mm: tuple[float, float] | None
    thickness_mm: float | None


def can_be_mapped(evidence: Evidence, frame_number: int) -> bool:
    """Whether the header says enough of the frame's directions for a parametric map."""
    return _place(evidence, frame_number) is not None


def parametric_maps(findings: StudyFindings, heat_maps: Iterable[HeatMap]) -> list[Dataset]:
    """Parametric maps of all heat maps: one for each label and series, or each image where its planes are its own.

    Raises EvidenceMissing, HeatMapUnfit, and HeatMapUnplaced where `can_be_mapped` says no.
    """
    groups: dict[tuple[str, ...], list[HeatMap]] = {}
    for heat_map in heat_maps:
        findings.finding_of(heat_map)
        evidence = findings.frame_of(heat_map.sop_instance_uid, heat_map.frame_number)
        if _placed(evidence, heat_map).shared:
            grid = f"{evidence.rows}x{evidence.columns}"
            apart = (evidence.ref.series_instance_uid, evidence.frame_of_reference_uid or "", grid)
        else:
            apart = (evidence.ref.sop_instance_uid, "", "")
        groups.setdefault((heat_map.task, heat_map.label, *apart), []).append(heat_map)
    return [
        _parametric_map(findings, group, parts=key, instance_number=number)
        for number, (key, group) in enumerate(groups.items(), start=1)
    ]


def on_frame(heat_map: HeatMap, *, rows: int | None, columns: int | None) -> NDArray[np.float32]:
    """The map in pixels of its frame, (rows, columns): bilinear, the inverse of the stretch that the model saw.

    Raises HeatMapUnfit.
    """
    if not rows or not columns:
        raise HeatMapUnfit("the image's header has no (0028,0010) Rows or (0028,0011) Columns to lay the map over")
    values = np.asarray(heat_map.values, np.float32)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise HeatMapUnfit(f"the map has the shape {values.shape}, or values that are not finite")
    top, left, height, width = heat_map.box or (0, 0, rows, columns)
    if min(top, left) < 0 or min(height, width) < 1 or top + height > rows or left + width > columns:
        raise HeatMapUnfit(f"the map's box {heat_map.box} does not lie in a frame of {rows} x {columns} pixels")
    placed = np.zeros((rows, columns), np.float32)
    stretched = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
    placed[top : top + height, left : left + width] = np.asarray(stretched)
    return placed


def _place(evidence: Evidence, frame_number: int) -> _Place | None:
    plane = evidence.planes[frame_number - 1] if frame_number <= len(evidence.planes) else None
    if plane is not None and evidence.frame_of_reference_uid is not None:
        return _Place(
            shared=True,
            position_mm=plane.position_mm,
            orientation=plane.orientation,
            spacing_mm=plane.spacing_mm,
            thickness_mm=plane.thickness_mm,
        )
    # Letters such as FR say that the row runs between two axes, and not at which angle.
    row, column = (_DIRECTIONS.get(letters) for letters in evidence.patient_orientation or ("", ""))
    if row is None or column is None or np.dot(row, column) != 0:
        return None
    return _Place(
        shared=False,
        position_mm=(0.0, 0.0, 0.0),
        orientation=(*row, *column),
        spacing_mm=evidence.spacing_mm,
        thickness_mm=None,
    )


def _placed(evidence: Evidence, heat_map: HeatMap) -> _Place:
    place = _place(evidence, heat_map.frame_number)
    if place is None:
        raise HeatMapUnplaced("neither the image's planes nor its (0020,0020) PatientOrientation say how it lies")
    return place


def _parametric_map(
    findings: StudyFindings, heat_maps: list[HeatMap], *, parts: Sequence[str], instance_number: int
) -> Dataset:
    evidence = findings.by_uid[heat_maps[0].sop_instance_uid]
    _, answer, label = findings.finding_of(heat_maps[0])
    frames = [(one, _placed(findings.by_uid[one.sop_instance_uid], one)) for one in heat_maps]
    shared = frames[0][1].shared
    frames.sort(key=lambda frame: _along_normal(frame[1]) if shared else frame[0].frame_number)
    pixels = np.stack([on_frame(one, rows=evidence.rows, columns=evidence.columns) for one, _ in frames])
    made = SOPClass(
        study_instance_uid=evidence.ref.study_instance_uid,
        sop_class_uid=ParametricMapStorage,
        instance_number=instance_number,
        modality="OT",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_description="Hilum heat maps (research use only)",
        **base_arguments(findings, "parametric map", *parts, series_number=SERIES_NUMBER),
    )
    complete(made, findings)
    made.ImageType = ["DERIVED", "PRIMARY", "VOLUME" if shared else "STATIC", "QUANTITY"]
    made.ContentLabel = "HEAT_MAP"
    made.ContentDescription = f"{answer.display}: {label.display}"[:64]
    made.ContentCreatorName = None
    made.ContentQualification = "RESEARCH"
    made.ImageComments = NOTICE
    made.DerivationDescription = DERIVATION
    made.PixelPresentation = "MONOCHROME"
    made.PresentationLUTShape = "IDENTITY"
    made.BurnedInAnnotation = "NO"
    made.RecognizableVisualFeatures = "NO"
    put_lossy(made, evidence)
    made.AcquisitionContextSequence = []
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated = 32
    made.NumberOfFrames, made.Rows, made.Columns = pixels.shape
    made.FloatPixelData = np.ascontiguousarray(pixels, "<f4").tobytes()
    made.PositionReferenceIndicator = None
    own = findings.installation.uid("frame of reference", evidence.ref.sop_instance_uid)
    made.FrameOfReferenceUID = evidence.frame_of_reference_uid if shared else own
    _put_dimensions(made, findings, shared=shared, parts=parts)
    _put_sources(made, findings, [one for one, _ in frames])
    _put_groups(made, findings, frames, pixels=pixels)
    return made


def _along_normal(place: _Place) -> float:
    normal = np.cross(place.orientation[:3], place.orientation[3:])
    return float(np.dot(normal, place.position_mm))


def put_lossy(made: Dataset, evidence: Evidence) -> None:
    """Once lossy, always lossy (PS3.3 C.7.6.1.1.5)."""
    made.LossyImageCompression = "01" if evidence.lossy else "00"
    if evidence.lossy_ratios and len(evidence.lossy_ratios) == len(evidence.lossy_methods):
        made.LossyImageCompressionRatio = _decimals(evidence.lossy_ratios)
        made.LossyImageCompressionMethod = list(evidence.lossy_methods)


def source_item(evidence: Evidence, frame_number: int, *, spatial_locations_preserved: bool) -> Dataset:
    """The frame that something was derived from (PS3.3 C.7.6.16.2.6)."""
    item = Dataset()
    item.ReferencedSOPClassUID = evidence.ref.sop_class_uid
    item.ReferencedSOPInstanceUID = evidence.ref.sop_instance_uid
    if evidence.number_of_frames > 1:
        item.ReferencedFrameNumber = frame_number
    item.PurposeOfReferenceCodeSequence = [CodedConcept(*codes.DCM.SourceImageForImageProcessingOperation)]
    item.SpatialLocationsPreserved = "YES" if spatial_locations_preserved else "NO"
    return item


def _put_dimensions(made: Dataset, findings: StudyFindings, *, shared: bool, parts: Sequence[str]) -> None:
    organization = Dataset()
    organization.DimensionOrganizationUID = findings.instance_uid("dimension organization", *parts)
    made.DimensionOrganizationSequence = [organization]
    group, pointer = _PLANE_POSITION if shared else _STACK_POSITION
    index = Dataset()
    index.DimensionOrganizationUID = organization.DimensionOrganizationUID
    index.FunctionalGroupPointer, index.DimensionIndexPointer = Tag(group), Tag(pointer)
    index.DimensionDescriptionLabel = "Image Position (Patient)" if shared else "In-Stack Position Number"
    made.DimensionIndexSequence = [index]


def _put_sources(made: Dataset, findings: StudyFindings, heat_maps: list[HeatMap]) -> None:
    """Common Instance Reference (PS3.3 C.12.2): every image that a frame was derived from."""
    series: dict[str, dict[str, Dataset]] = {}
    for heat_map in heat_maps:
        ref = findings.by_uid[heat_map.sop_instance_uid].ref
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ref.sop_class_uid, ref.sop_instance_uid
        series.setdefault(ref.series_instance_uid, {})[ref.sop_instance_uid] = item
    referenced = []
    for uid, instances in series.items():
        one = Dataset()
        one.SeriesInstanceUID = uid
        one.ReferencedInstanceSequence = list(instances.values())
        referenced.append(one)
    made.ReferencedSeriesSequence = referenced


def _put_groups(
    made: Dataset, findings: StudyFindings, frames: list[tuple[HeatMap, _Place]], *, pixels: NDArray[np.float32]
) -> None:
    """The functional groups (PS3.3 A.75.5): what holds for all frames once, the rest frame by frame."""
    evidence = findings.by_uid[frames[0][0].sop_instance_uid]
    shared = Dataset()
    shared.FrameAnatomySequence = [_anatomy(evidence)]
    shared.ParametricMapFrameTypeSequence = [_item(FrameType=list(made.ImageType))]
    shared.PixelValueTransformationSequence = [_item(RescaleIntercept=0, RescaleSlope=1, RescaleType="US")]
    # The map has no natural range: black and white lie symmetrically about 0, which speaks neither for nor against.
    # LINEAR would need a width of at least 1 (PS3.3 C.11.2.1.2); LINEAR_EXACT takes any over 0.
    reach = max(float(np.abs(pixels).max()), 1e-6)
    shared.FrameVOILUTSequence = [
        _item(WindowCenter=0, WindowWidth=format_number_as_ds(2 * reach), VOILUTFunction="LINEAR_EXACT")
    ]
    shared.RealWorldValueMappingSequence = [
        RealWorldValueMapping(
            lut_label="CLASS_ACTIVATION",
            lut_explanation="Contribution to the logit",
            unit=codes.UCUM.NoUnits,
            value_range=(float(pixels.min()), float(pixels.max())),
            slope=1.0,
            intercept=0.0,
            quantity_definition=codes.cid7180.ClassActivation,
        )
    ]
    measures = [_measures(place) for _, place in frames]
    orientations = [_item(ImageOrientationPatient=_decimals(place.orientation)) for _, place in frames]
    one_measure = all(one == measures[0] for one in measures)
    one_orientation = all(one == orientations[0] for one in orientations)
    if one_measure:
        shared.PixelMeasuresSequence = [measures[0]]
    if one_orientation:
        shared.PlaneOrientationSequence = [orientations[0]]
    made.SharedFunctionalGroupsSequence = [shared]

    per_frame = []
    for n, (heat_map, place) in enumerate(frames):
        group = _item(
            FrameContentSequence=[_item(StackID="1", InStackPositionNumber=n + 1, DimensionIndexValues=[n + 1])],
            PlanePositionSequence=[_item(ImagePositionPatient=_decimals(place.position_mm))],
            DerivationImageSequence=[_derivation(findings, heat_map)],
        )
        if not one_measure:
            group.PixelMeasuresSequence = [measures[n]]
        if not one_orientation:
            group.PlaneOrientationSequence = [orientations[n]]
        per_frame.append(group)
    made.PerFrameFunctionalGroupsSequence = per_frame


def _item(**attributes: object) -> Dataset:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


def _anatomy(evidence: Evidence) -> Dataset:
    # U stands for a part that is not one of a pair; the enumeration has no word for a side that is not known.
    return _item(AnatomicRegionSequence=[region_concept(evidence)], FrameLaterality=evidence.laterality or "U")


def _measures(place: _Place) -> Dataset:
    item = Dataset()
    if place.spacing_mm is not None:
        item.PixelSpacing = _decimals(place.spacing_mm)
    if place.thickness_mm is not None:
        item.SliceThickness = format_number_as_ds(place.thickness_mm)
    return item


def _decimals(values: Iterable[float]) -> list[str]:
    return [format_number_as_ds(float(one)) for one in values]


def _derivation(findings: StudyFindings, heat_map: HeatMap) -> Dataset:
    evidence = findings.by_uid[heat_map.sop_instance_uid]
    return _item(
        DerivationDescription=DERIVATION,
        DerivationCodeSequence=[CodedConcept(*codes.DCM.UnspecifiedMethodOfCalculation)],
        SourceImageSequence=[source_item(evidence, heat_map.frame_number, spatial_locations_preserved=True)],
    )
