"""What the header yields: identity, patient, place in the series, and what is wrong with it."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom_io.errors import BadAttribute, BadUid, DicomError, IsDirectory, MissingUid, NoPixels, NoSuchFrame
from dicom_io.header import age_years
from dicom_io.read import Sandbox, frames, read_instance
from dicom_io.types import Instance
from tests.dicom_io import build
from tests.dicom_io.conftest import packaged

PIXELS = np.zeros((2, 3), np.uint16)


@pytest.fixture
def read_header(sandbox: Sandbox, tmp_path: Path) -> Any:
    def read(**attributes: Any) -> Instance:
        path = build.write(tmp_path, build.part10(build.data_set(PIXELS, **attributes)))
        return read_instance(path, sandbox=sandbox)

    return read


def with_raw_uid(tag: tuple[int, int], value: bytes) -> bytes:
    """A file in which one UID is written byte for byte, so that no writer mends it."""
    content = build.part10(build.data_set(PIXELS))
    known = {
        (0x0020, 0x000D): build.STUDY,
        (0x0020, 0x000E): build.SERIES,
        (0x0008, 0x0018): "1.2.826.0.1.3680043.10.1.3",
    }
    old = build.element(*tag, b"UI", known[tag].encode() + b"\0" * (len(known[tag]) % 2))
    start, found, end = content.rpartition(old)
    assert found
    return start + build.element(*tag, b"UI", value) + end


def test_the_header_yields_who_what_and_where(read_header: Any) -> None:
    instance = read_header(
        PatientName="Doe^Jane",
        PatientID="17",
        PatientSex="F",
        PatientBirthDate="19800229",
        StudyDate="20200229",
        StudyDescription="Chest",
        AccessionNumber="A1",
        BodyPartExamined="CHEST",
        ViewPosition="PA",
        ImageLaterality="L",
        InstanceNumber=4,
        SeriesNumber=2,
        SeriesDescription="pa",
        Manufacturer="Maker",
        ImagePositionPatient=[1, 2, 3],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
    )
    assert instance.ref.study_instance_uid == build.STUDY
    assert (instance.patient.name, instance.patient.patient_id, instance.patient.sex) == ("Doe^Jane", "17", "F")
    assert instance.patient.birth_date == date(1980, 2, 29)
    assert instance.patient.age_years == pytest.approx(40)
    assert (instance.body_part, instance.view_position, instance.laterality) == ("CHEST", "PA", "L")
    assert (instance.rows, instance.columns, instance.number_of_frames) == (2, 3, 1)
    assert (instance.instance_number, instance.series_number) == (4, 2)
    assert instance.position_mm == (1, 2, 3)
    assert instance.orientation == (1, 0, 0, 0, 1, 0)
    assert instance.study_date == date(2020, 2, 29)
    assert instance.transfer_syntax_uid == "1.2.840.10008.1.2.1"
    assert instance.warnings == ()


def test_what_is_missing_is_none(read_header: Any) -> None:
    instance = read_header()
    patient = instance.patient
    assert (patient.name, patient.patient_id, patient.birth_date, patient.sex, patient.age_years) == (None,) * 5
    assert (instance.body_part, instance.view_position, instance.position_mm, instance.study_date) == (None,) * 4


def test_no_patient_field_shows_in_a_repr(read_header: Any) -> None:
    shown = repr(read_header(PatientName="Doe^Jane", PatientID="secret-17", PatientBirthDate="19800229"))
    assert "Doe" not in shown
    assert "secret" not in shown
    assert "1980" not in shown


@pytest.mark.parametrize(
    ("stated", "years"),
    [("018M", 1.5), ("003Y", 3.0), ("026W", 0.498), ("010D", 0.0274), ("099Y", 99.0), ("3Y", 3.0)],
)
def test_age_is_read_in_every_unit(stated: str, years: float) -> None:
    assert age_years(stated, birth_date=None, study_date=None) == pytest.approx(years, abs=1e-3)


@pytest.mark.parametrize("stated", [None, "", "Y003", "000", "12", "3 Y", "-03Y", "٣٣Y"])
def test_age_comes_from_dates_where_it_is_not_stated(stated: str | None) -> None:
    born, studied = date(2018, 1, 1), date(2020, 7, 1)
    assert age_years(stated, birth_date=born, study_date=studied) == pytest.approx(2.5, abs=0.01)
    assert age_years(stated, birth_date=born, study_date=None) is None
    assert age_years(stated, birth_date=studied, study_date=born) is None


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"])
def test_a_missing_uid_is_an_error_that_names_it(sandbox: Sandbox, tmp_path: Path, keyword: str) -> None:
    made = build.data_set(PIXELS)
    delattr(made, keyword)
    content = build.part10(made)
    # The file meta information could stand in for two of them.
    content = content.replace(b"\x02\x00\x02\x00UI", b"\x02\x00\x02\x01UI").replace(
        b"\x02\x00\x03\x00UI", b"\x02\x00\x03\x01UI"
    )
    with pytest.raises(MissingUid, match=keyword):
        read_instance(build.write(tmp_path, content), sandbox=sandbox)


def test_the_file_meta_information_stands_in_with_a_warning(sandbox: Sandbox, tmp_path: Path) -> None:
    made = build.data_set(PIXELS)
    content = build.part10(made)
    uid = build.element(0x0008, 0x0018, b"UI", b"1.2.826.0.1.3680043.10.1.3")
    assert content.count(uid) == 1
    instance = read_instance(build.write(tmp_path, content.replace(uid, b"")), sandbox=sandbox)
    assert instance.ref.sop_instance_uid == "1.2.826.0.1.3680043.10.1.3"
    assert any("MediaStorageSOPInstanceUID" in note for note in instance.warnings)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (b"../../etc/passwd", BadUid),
        (b"1.2;rm -rf /", BadUid),
        (b"1.2.\xd9\xa3\xd9\xa4", BadUid),
        (b"1" * 66, BadUid),
        (b"1." * 512, BadUid),
        (b"..", BadUid),
        (b"1.2/3\0", BadUid),
        (b"", MissingUid),
        (b"\0\0", MissingUid),
        (b"    ", MissingUid),
    ],
)
@pytest.mark.parametrize("tag", [(0x0020, 0x000D), (0x0020, 0x000E)])
def test_a_uid_that_could_be_a_path_or_a_command_is_refused(
    sandbox: Sandbox, tmp_path: Path, tag: tuple[int, int], value: bytes, error: type[DicomError]
) -> None:
    with pytest.raises(error):
        read_instance(build.write(tmp_path, with_raw_uid(tag, value)), sandbox=sandbox)


def test_a_leading_zero_in_a_uid_is_only_a_warning(sandbox: Sandbox, tmp_path: Path) -> None:
    path = build.write(tmp_path, with_raw_uid((0x0020, 0x000D), b"1.02.3\0\0"))
    instance = read_instance(path, sandbox=sandbox)
    assert instance.ref.study_instance_uid == "1.02.3"
    assert any("leading zero" in note for note in instance.warnings)


def test_a_dicomdir_is_no_image(sandbox: Sandbox) -> None:
    with pytest.raises(IsDirectory):
        read_instance(packaged("dicomdirtests") / "DICOMDIR", sandbox=sandbox)


@pytest.mark.parametrize("name", ["rtplan.dcm", "test-SR.dcm", "waveform_ecg.dcm"])
def test_objects_without_pixels_have_no_frames(sandbox: Sandbox, name: str) -> None:
    instance = read_instance(packaged(name), sandbox=sandbox)
    assert instance.number_of_frames == 0
    with pytest.raises(NoPixels):
        next(frames(instance, sandbox=sandbox))


@pytest.mark.parametrize("number", [0, -1, 2])
def test_a_frame_that_is_not_there_is_an_error(sandbox: Sandbox, number: int) -> None:
    instance = read_instance(packaged("CT_small.dcm"), sandbox=sandbox)
    with pytest.raises(NoSuchFrame):
        next(frames(instance, sandbox=sandbox, numbers=[number]))


def test_a_number_of_frames_that_is_none_is_an_error(sandbox: Sandbox) -> None:
    with pytest.raises(BadAttribute, match=r"\(0028,0008\) NumberOfFrames"):
        read_instance(packaged("badVR.dcm"), sandbox=sandbox)


@pytest.mark.parametrize("name", ["ExplVR_LitEndNoMeta.dcm", "ExplVR_BigEndNoMeta.dcm", "rtstruct.dcm"])
def test_files_without_preamble_are_read_and_marked(sandbox: Sandbox, name: str) -> None:
    instance = read_instance(packaged(name), sandbox=sandbox)
    assert any("no preamble" in note for note in instance.warnings)


def test_no_file_fills_an_answer_with_one_text(sandbox: Sandbox, tmp_path: Path) -> None:
    content = build.part10(build.data_set(PIXELS, StudyDescription="X"))
    long = build.element(0x0008, 0x1030, b"UT", b"Y" * (12 << 20))
    content = content.replace(build.element(0x0008, 0x1030, b"LO", b"X "), long)
    assert long in content
    instance = read_instance(build.write(tmp_path, content), sandbox=sandbox)
    assert instance.study_description == "Y" * 1024


@pytest.mark.parametrize("name", ["brain 1;rm -rf.dcm", "Übersicht.dcm", "\udcff\udcfe.dcm", "line\nbreak.dcm"])
def test_files_are_read_under_any_name(sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    path = build.write(tmp_path, build.part10(build.data_set(PIXELS)), name)
    assert read_instance(path, sandbox=sandbox).path == path


def test_a_path_that_no_system_allows_is_an_error(sandbox: Sandbox) -> None:
    with pytest.raises(DicomError):
        read_instance(Path("a\0b"), sandbox=sandbox)


def test_reading_a_header_again_gives_the_same(sandbox: Sandbox, tmp_path: Path) -> None:
    content = build.part10(build.data_set(PIXELS, PatientName="NAME"))
    content = content.replace(b"PN\x04\0NAME", b"PN\x04\0\xc8\xe2\xe0\xed")
    path = build.write(tmp_path, content)
    first, second = (read_instance(path, sandbox=sandbox) for _ in range(2))
    assert first == second
    assert any("PatientName" in note for note in first.warnings)
