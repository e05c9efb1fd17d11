"""Multi-frame objects: functional groups, offset tables, fragments; and the distance between pixels."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_io.errors import CannotDecode, Malformed, Truncated
from dicom_io.read import Sandbox, frames, read_instance
from dicom_io.types import Window
from tests.dicom_io import build
from tests.dicom_io.build import functional_group, item
from tests.dicom_io.conftest import ReadFrames, packaged, read_bytes

RLE, JPEG = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50"
STACK = np.arange(12, dtype=np.uint16).reshape(3, 2, 2)


def rle(plane: bytes) -> bytes:
    """One literal run in one segment (PS3.5 Annex G)."""
    return struct.pack("<16I", 1, 64, *[0] * 14) + bytes([len(plane) - 1]) + plane


def raw_fragments(*fragments: bytes, table: bytes = b"", end: bytes = b"\xfe\xff\xdd\xe0\0\0\0\0") -> bytes:
    """Encapsulated Pixel Data with any fragments and any offset table."""
    items = [b"\xfe\xff\x00\xe0" + struct.pack("<I", len(content)) + content for content in (table, *fragments)]
    return b"".join(items) + end


def encapsulated_file(count: int, pixel_data: bytes, *, transfer_syntax: str = RLE) -> bytes:
    made = build.data_set(np.zeros((2, 2), np.uint8), NumberOfFrames=count, PixelData=b"\0\0")
    uid = transfer_syntax.encode() + b"\0" * (len(transfer_syntax) % 2)
    native = build.element(0x0002, 0x0010, b"UI", b"1.2.840.10008.1.2.1\0")
    content = build.part10(made).replace(native, build.element(0x0002, 0x0010, b"UI", uid), 1)
    head, _, _ = content.rpartition(build.element(0x7FE0, 0x10, b"OB", b"\0\0"))
    assert head
    return head + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + pixel_data


def enhanced(*, shared: Dataset | None = None, per_frame: list[Dataset] | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4.1"}
    if shared is not None:
        made["SharedFunctionalGroupsSequence"] = [shared]
    if per_frame is not None:
        made["PerFrameFunctionalGroupsSequence"] = per_frame
    return made


def transformation(slope: float, intercept: float) -> Dataset:
    return item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")


def test_each_frame_has_its_own_rescale_and_window(read_frames: ReadFrames) -> None:
    per_frame = [
        functional_group(
            PixelValueTransformationSequence=transformation(n + 1, -n),
            FrameVOILUTSequence=item(WindowCenter=10 * n, WindowWidth=20),
        )
        for n in range(3)
    ]
    found = read_frames(STACK, **enhanced(per_frame=per_frame))
    for n, frame in enumerate(found):
        assert np.array_equal(frame.pixels, STACK[n] * (n + 1.0) - n)
        assert frame.windows == (Window(10 * n, 20),)


def test_shared_groups_hold_where_a_frame_has_none_of_its_own(read_frames: ReadFrames) -> None:
    shared = functional_group(
        PixelValueTransformationSequence=transformation(10, 0), PixelMeasuresSequence=item(PixelSpacing=[0.5, 0.25])
    )
    own = functional_group(PixelValueTransformationSequence=transformation(2, 1))
    found = read_frames(STACK, **enhanced(shared=shared, per_frame=[own, Dataset(), Dataset()]))
    assert np.array_equal(found[0].pixels, STACK[0] * 2.0 + 1)
    assert np.array_equal(found[1].pixels, STACK[1] * 10.0)
    assert {frame.spacing_mm for frame in found} == {(0.5, 0.25)}


def test_fewer_groups_than_frames_is_no_end(read_frames: ReadFrames) -> None:
    own = functional_group(PixelValueTransformationSequence=transformation(2, 0))
    found = read_frames(STACK, **enhanced(per_frame=[own]))
    assert np.array_equal(found[0].pixels, STACK[0] * 2.0)
    assert np.array_equal(found[2].pixels, STACK[2])


def test_position_and_orientation_come_from_the_groups(sandbox: Sandbox, tmp_path: Path) -> None:
    shared = functional_group(PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]))
    per_frame = [functional_group(PlanePositionSequence=item(ImagePositionPatient=[0, 0, n])) for n in (5, 6, 7)]
    made = build.data_set(STACK, **enhanced(shared=shared, per_frame=per_frame))
    instance = read_instance(build.write(tmp_path, build.part10(made)), sandbox=sandbox)
    assert instance.position_mm == (0, 0, 5)
    assert instance.orientation == (1, 0, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, None),
        ({"PixelSpacing": [0.5, 0.25], "ImagerPixelSpacing": [9, 9]}, (0.5, 0.25)),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, (0.2, 0.1)),
        ({"NominalScannedPixelSpacing": [0.3, 0.3]}, (0.3, 0.3)),
        ({"PixelSpacing": [0, 0.5]}, None),
        ({"PixelSpacing": [-1, 1], "ImagerPixelSpacing": [0.2, 0.1]}, (0.2, 0.1)),
    ],
)
def test_spacing_is_what_the_file_states_or_none(
    read_frames: ReadFrames, attributes: dict[str, Any], expected: tuple[float, float] | None
) -> None:
    (frame,) = read_frames(np.zeros((2, 2), np.uint8), **attributes)
    assert frame.spacing_mm == expected


def region(x_cm: float, y_cm: float, *, units: int = 3) -> Dataset:
    return item(PhysicalUnitsXDirection=units, PhysicalUnitsYDirection=units, PhysicalDeltaX=x_cm, PhysicalDeltaY=y_cm)


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ([region(0.02, 0.03)], (0.3, 0.2)),
        ([region(0.02, 0.02), region(0.02, 0.02)], (0.2, 0.2)),
        ([region(0.02, 0.02), region(0.05, 0.05)], None),
        ([region(0.02, 0.02), region(1, 1, units=4)], (0.2, 0.2)),
        ([region(1, 1, units=4)], None),
    ],
)
def test_ultrasound_regions_give_spacing_where_they_agree(
    read_frames: ReadFrames, regions: list[Dataset], expected: tuple[float, float] | None
) -> None:
    (frame,) = read_frames(np.zeros((2, 2), np.uint8), SequenceOfUltrasoundRegions=regions)
    assert frame.spacing_mm == (pytest.approx(expected) if expected else None)


def test_frames_are_found_by_the_offset_table(sandbox: Sandbox, tmp_path: Path) -> None:
    first, second = rle(bytes([1, 2, 3, 4])), rle(bytes([5, 6, 7, 8]))
    # Two fragments for the first frame, one for the second.
    table = struct.pack("<II", 0, len(first) + 16)
    content = encapsulated_file(2, raw_fragments(first[:64], first[64:], second, table=table))
    found = read_bytes(content, sandbox=sandbox, folder=tmp_path)
    assert [frame.pixels.ravel().tolist() for frame in found] == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_a_wrong_offset_table_is_not_believed(sandbox: Sandbox, tmp_path: Path) -> None:
    planes = [rle(bytes([n] * 4)) for n in (1, 2)]
    content = encapsulated_file(2, raw_fragments(*planes, table=struct.pack("<II", 0, 3)))
    found = read_bytes(content, sandbox=sandbox, folder=tmp_path)
    assert [frame.pixels[0, 0] for frame in found] == [1, 2]


def test_many_fragments_of_one_frame_are_joined(sandbox: Sandbox, tmp_path: Path) -> None:
    whole = rle(bytes([9, 8, 7, 6]))
    content = encapsulated_file(1, raw_fragments(*(whole[n : n + 10] for n in range(0, len(whole), 10))))
    (frame,) = read_bytes(content, sandbox=sandbox, folder=tmp_path)
    assert frame.pixels.ravel().tolist() == [9, 8, 7, 6]


def test_fragments_that_cannot_be_divided_are_an_error(sandbox: Sandbox, tmp_path: Path) -> None:
    content = encapsulated_file(2, raw_fragments(*[rle(bytes(4))] * 3))
    with pytest.raises(CannotDecode, match="3 fragments cannot be divided into 2 frames"):
        read_bytes(content, sandbox=sandbox, folder=tmp_path)


def test_a_missing_frame_is_named_and_the_others_read(sandbox: Sandbox, tmp_path: Path) -> None:
    content = encapsulated_file(3, raw_fragments(*[rle(bytes(4))] * 2))
    instance = read_instance(build.write(tmp_path, content), sandbox=sandbox)
    assert len(list(frames(instance, sandbox=sandbox, numbers=[1, 2]))) == 2
    with pytest.raises(Truncated, match="frame 3 is not in the file; it holds 2 of 3"):
        next(frames(instance, sandbox=sandbox, numbers=[3]))


def test_a_missing_last_delimiter_does_no_harm(sandbox: Sandbox, tmp_path: Path) -> None:
    content = encapsulated_file(1, raw_fragments(rle(bytes([1, 2, 3, 4])), end=b""))
    (frame,) = read_bytes(content, sandbox=sandbox, folder=tmp_path)
    assert frame.pixels.ravel().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("pixel_data", "error"),
    [
        (b"", Truncated),
        (raw_fragments(), Truncated),
        (b"\x08\x00\x05\x00rubbish!", Malformed),
        (b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0" + struct.pack("<I", 1000) + b"cut", Truncated),
    ],
)
def test_broken_encapsulation_is_an_error(
    sandbox: Sandbox, tmp_path: Path, pixel_data: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        read_bytes(encapsulated_file(1, pixel_data), sandbox=sandbox, folder=tmp_path)


def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(sandbox: Sandbox, tmp_path: Path) -> None:
    soi_sof = bytes.fromhex("ffd8ffc0000b08ffffffff01011100")
    content = encapsulated_file(1, raw_fragments(soi_sof + b"\0"), transfer_syntax=JPEG)
    with pytest.raises(CannotDecode, match="65535 x 65535 x 1; the header says 2 x 2 x 1"):
        read_bytes(content, sandbox=sandbox, folder=tmp_path)


def test_every_frame_of_a_long_object_reads_alone_and_out_of_order(sandbox: Sandbox) -> None:
    instance = read_instance(packaged("examples_ybr_color.dcm"), sandbox=sandbox)
    assert instance.number_of_frames == 30
    found = list(frames(instance, sandbox=sandbox, numbers=[30, 1, 17]))
    assert [frame.number for frame in found] == [30, 1, 17]
    assert not np.array_equal(found[0].pixels, found[1].pixels)
