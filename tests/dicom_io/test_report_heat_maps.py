"""Heat maps lie where the frame lies, with the values given; pictures of them show image, colours and notice."""

import dataclasses
from pathlib import Path

import highdicom
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread

from dicom_io.errors import EvidenceMissing, HeatMapUnfit, HeatMapUnplaced
from dicom_io.read import Sandbox, frames, read_instance
from dicom_io.report import (
    NOTICE,
    StudyFindings,
    can_be_mapped,
    key_object_note,
    parametric_maps,
    part10_bytes,
    secondary_capture,
)
from dicom_io.report.capture import picture
from dicom_io.report.parametric_map import on_frame
from dicom_io.types import Evidence
from tests.dicom_io.conftest import packaged
from tests.dicom_io.reports import (
    DEVICE,
    blank_frame,
    faults,
    heat_map,
    image_findings,
    study_findings,
    written,
)
from tests.dicom_io.test_report_measurements import mr_slice


@pytest.fixture(scope="module")
def ct(sandbox: Sandbox) -> Evidence:
    return sandbox.evidence(packaged("CT_small.dcm"))


def only_map(findings: StudyFindings, evidence: Evidence) -> Dataset:
    (made,) = parametric_maps(findings, [heat_map(evidence)])
    return made


def test_the_map_keeps_its_values_on_the_images_grid(ct: Evidence, tmp_path: Path) -> None:
    path = written(only_map(study_findings(ct), ct), tmp_path)
    assert not faults(path)
    values = heat_map(ct).values
    # Pillow's own stretch, which is what the viewer shows.
    expected = np.asarray(Image.fromarray(values).resize((128, 128), Image.Resampling.BILINEAR))
    read = highdicom.imread(path)
    assert np.array_equal(read.get_frames()[0], expected)
    assert values.min() <= expected.min() < 0 < expected.max() <= values.max()


def test_the_map_says_what_its_values_are_and_what_they_were_made_of(ct: Evidence, tmp_path: Path) -> None:
    made = dcmread(written(only_map(study_findings(ct), ct), tmp_path))
    shared = made.SharedFunctionalGroupsSequence[0]
    (mapping,) = shared.RealWorldValueMappingSequence
    (quantity,) = mapping.QuantityDefinitionSequence
    assert quantity.ConceptCodeSequence[0].CodeValue == "130402"  # PS3.16 CID 7180: Class activation
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped < 0 < mapping.DoubleFloatRealWorldValueLastValueMapped
    (derivation,) = made.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence
    assert derivation.SourceImageSequence[0].ReferencedSOPInstanceUID == ct.ref.sop_instance_uid
    assert made.ContentDescription == "Chest CT: COVID-19: COVID-19 pattern"
    assert NOTICE in made.ImageComments


def test_the_map_lies_where_the_slice_lies(ct: Evidence) -> None:
    made = only_map(study_findings(ct), ct)
    source = dcmread(packaged("CT_small.dcm"), stop_before_pixels=True)
    shared, own = made.SharedFunctionalGroupsSequence[0], made.PerFrameFunctionalGroupsSequence[0]
    assert made.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert own.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == source.ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == source.PixelSpacing
    assert shared.PixelMeasuresSequence[0].SliceThickness == source.SliceThickness


def test_a_series_becomes_one_map_in_the_order_of_its_slices(sandbox: Sandbox, tmp_path: Path) -> None:
    slices = [sandbox.evidence(mr_slice(tmp_path, n)) for n in (3, 0, 2, 1)]
    (made,) = parametric_maps(study_findings(*slices), [heat_map(one) for one in slices])
    assert not faults(written(made, tmp_path))
    assert made.NumberOfFrames == 4
    groups = made.PerFrameFunctionalGroupsSequence
    heights = [float(group.PlanePositionSequence[0].ImagePositionPatient[2]) for group in groups]
    assert heights == sorted(heights)
    sources = [group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID for group in groups]
    assert sources == [slices[n].ref.sop_instance_uid for n in (1, 3, 2, 0)]


def test_a_multi_frame_source_is_mapped_frame_by_frame(sandbox: Sandbox, tmp_path: Path) -> None:
    """A made enhanced object; the packaged files have none with planes."""
    ct = sandbox.evidence(packaged("CT_small.dcm"))
    (plane,) = ct.planes
    assert plane is not None
    planes = tuple(dataclasses.replace(plane, position_mm=(0.0, 0.0, 5.0 * n)) for n in range(6))
    many = dataclasses.replace(ct, number_of_frames=6, planes=planes)
    findings = study_findings(many, images=[image_findings(many, 2), image_findings(many, 5)])
    (made,) = parametric_maps(findings, [heat_map(many, 5), heat_map(many, 2)])
    groups = made.PerFrameFunctionalGroupsSequence
    sources = [group.DerivationImageSequence[0].SourceImageSequence[0] for group in groups]
    assert [source.ReferencedFrameNumber for source in sources] == [2, 5]
    assert [group.PlanePositionSequence[0].ImagePositionPatient[2] for group in groups] == [5, 20]
    assert highdicom.imread(written(made, tmp_path)).get_frames().shape == (2, 128, 128)


@pytest.fixture
def radiograph(ct: Evidence) -> Evidence:
    """A film: no frame of reference and no plane, but directions."""
    return dataclasses.replace(
        ct,
        ref=dataclasses.replace(ct.ref, sop_class_uid="1.2.840.10008.5.1.4.1.1.1"),
        modality="CR",
        body_part="CHEST",
        frame_of_reference_uid=None,
        planes=(None,),
        patient_orientation=("L", "F"),
    )


def test_a_radiograph_lies_in_a_frame_of_reference_of_its_own(radiograph: Evidence, tmp_path: Path) -> None:
    made = only_map(study_findings(radiograph), radiograph)
    assert not faults(written(made, tmp_path))
    shared = made.SharedFunctionalGroupsSequence[0]
    # Rows run to the patient's left (+x), columns to the feet (-z): PS3.3 C.7.6.2.1.1.
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == [1, 0, 0, 0, 0, -1]
    assert shared.FrameAnatomySequence[0].AnatomicRegionSequence[0].CodeMeaning == "Thoracic cavity"
    again = only_map(study_findings(radiograph), radiograph)
    assert made.FrameOfReferenceUID == again.FrameOfReferenceUID
    another = dataclasses.replace(radiograph, ref=dataclasses.replace(radiograph.ref, sop_instance_uid="1.2.3"))
    assert only_map(study_findings(another), another).FrameOfReferenceUID != made.FrameOfReferenceUID


@pytest.mark.parametrize("orientation", [None, ("A", "FR"), ("L", "R")])
def test_without_directions_there_is_no_map(radiograph: Evidence, orientation: tuple[str, str] | None) -> None:
    image = dataclasses.replace(radiograph, patient_orientation=orientation)
    assert not can_be_mapped(image, 1)
    with pytest.raises(HeatMapUnplaced):
        parametric_maps(study_findings(image), [heat_map(image)])
    assert secondary_capture(study_findings(image), heat_map(image), blank_frame(image)).Rows > 0


def test_a_map_over_a_part_of_the_frame_leaves_the_rest_at_zero(ct: Evidence) -> None:
    part = dataclasses.replace(heat_map(ct), values=np.ones((3, 3), np.float32), box=(10, 20, 30, 40))
    placed = on_frame(part, rows=128, columns=128)
    assert placed[10:40, 20:60].min() == 1
    assert placed.sum() == 30 * 40


@pytest.mark.parametrize(
    "change",
    [
        {"values": np.zeros(4, np.float32)},
        {"values": np.full((2, 2), np.nan, np.float32)},
        {"box": (100, 0, 40, 10)},
        {"box": (0, 0, 0, 10)},
    ],
    ids=["line", "nan", "outside", "empty"],
)
def test_a_map_that_does_not_fit_is_refused(ct: Evidence, change: dict[str, object]) -> None:
    unfit = dataclasses.replace(heat_map(ct), **change)  # type: ignore[arg-type]
    with pytest.raises(HeatMapUnfit):
        parametric_maps(study_findings(ct), [unfit])


def test_a_map_of_something_that_is_not_said_is_refused(ct: Evidence) -> None:
    with pytest.raises(EvidenceMissing):
        parametric_maps(study_findings(ct), [dataclasses.replace(heat_map(ct), label="measles")])
    headless = dataclasses.replace(ct, rows=None)
    with pytest.raises(HeatMapUnfit, match="Rows"):
        parametric_maps(study_findings(headless), [heat_map(headless)])


def test_a_lossy_source_makes_a_lossy_map(ct: Evidence, tmp_path: Path) -> None:
    lossy = dataclasses.replace(ct, lossy=True, lossy_ratios=(20.0,), lossy_methods=("ISO_10918_1",))
    for made in (
        only_map(study_findings(lossy), lossy),
        secondary_capture(study_findings(lossy), heat_map(lossy), blank_frame(lossy)),
    ):
        assert not faults(written(made, tmp_path))
        assert (made.LossyImageCompression, made.LossyImageCompressionMethod) == ("01", "ISO_10918_1")


def test_a_picture_shows_the_image_and_beside_it_the_colours(sandbox: Sandbox, ct: Evidence, tmp_path: Path) -> None:
    (frame,) = frames(read_instance(packaged("CT_small.dcm"), sandbox=sandbox), sandbox=sandbox)
    made = secondary_capture(study_findings(ct), heat_map(ct), frame)
    path = written(made, tmp_path)
    assert not faults(path)
    shown = dcmread(path).pixel_array
    grey = np.ptp(shown.astype(int), axis=-1) == 0
    left, right = shown.shape[1] // 4, shown.shape[1] * 5 // 8
    rows = slice(120, 500)
    assert grey[rows, :left].all()  # the plain image has no colour
    assert (~grey[rows, right:]).mean() > 0.2
    top_left, lower_right = shown[200, 540].astype(int), shown[420, 740].astype(int)
    assert top_left[2] > top_left[0]  # blue: against
    assert lower_right[0] > lower_right[2]  # red: for


def test_a_picture_differs_by_what_is_said(ct: Evidence) -> None:
    """Label, probability and decision are drawn: the pixels of the header change with them."""
    image = image_findings(ct)
    answer, label = image.answered[0], image.answered[0].labels[1]
    drawn = [
        picture(blank_frame(ct), heat_map(ct), answer=answer, label=said, device=DEVICE)
        for said in (
            label,
            dataclasses.replace(label, display="Something else"),
            dataclasses.replace(label, probability=0.6),
            dataclasses.replace(label, positive=False),
        )
    ]
    headers = {one[:95].tobytes() for one in drawn}
    assert len(headers) == 4
    assert len({one[95:].tobytes() for one in drawn}) == 1


def test_the_notice_is_burned_in_below_the_image(ct: Evidence) -> None:
    image = image_findings(ct)
    shown = picture(
        blank_frame(ct), heat_map(ct), answer=image.answered[0], label=image.answered[0].labels[1], device=DEVICE
    )
    yellow = (shown[..., 0] > 200) & (shown[..., 1] > 150) & (shown[..., 2] < 90)
    rows, columns = np.nonzero(yellow)
    assert rows.min() > shown.shape[0] - 50
    assert np.ptp(columns) > 300  # a line of text, not a speck


@pytest.mark.parametrize("stated", ["YES", "NO", None])
def test_burned_in_annotation_is_what_the_source_states(ct: Evidence, stated: str | None) -> None:
    source = dataclasses.replace(ct, burned_in=stated)
    made = secondary_capture(study_findings(source), heat_map(source), blank_frame(source))
    assert made.get("BurnedInAnnotation") == stated


def test_the_patient_is_not_drawn(ct: Evidence) -> None:
    other = dataclasses.replace(ct, identity={"PatientName": "Somebody^Else", "PatientID": "4711"})
    one, two = (secondary_capture(study_findings(e), heat_map(e), blank_frame(e)) for e in (ct, other))
    assert one.PixelData == two.PixelData


def test_a_retry_gives_the_same_bytes(ct: Evidence) -> None:
    def made() -> list[bytes]:
        findings = study_findings(ct)
        capture = secondary_capture(findings, heat_map(ct), blank_frame(ct))
        return [part10_bytes(one) for one in (*parametric_maps(findings, [heat_map(ct)]), capture)]

    assert made() == made()


def test_a_frame_of_another_image_is_refused(ct: Evidence) -> None:
    with pytest.raises(HeatMapUnfit):
        secondary_capture(study_findings(ct), heat_map(ct), dataclasses.replace(blank_frame(ct), number=2))


def test_the_note_points_at_positive_frames_only(sandbox: Sandbox, tmp_path: Path) -> None:
    many = sandbox.evidence(packaged("rtdose.dcm"))
    images = [image_findings(many, n, positive=n in {4, 9}) for n in (1, 4, 9)]
    path = written(key_object_note(study_findings(many, images=images)), tmp_path)
    assert not faults(path)
    note = highdicom.ko.KeyObjectSelectionDocument.from_dataset(dcmread(path))
    assert (note.ConceptNameCodeSequence[0].CodeValue, note.Modality) == ("113000", "KO")
    (reference,) = note.content.get_references()
    assert reference.referenced_sop_instance_uid == many.ref.sop_instance_uid
    assert reference.referenced_frame_numbers == [4, 9]
    texts = [item.TextValue for item in note.ContentSequence if item.ValueType == "TEXT"]
    assert any(NOTICE in text and "COVID-19 pattern" in text for text in texts)
