"""Grey frames: modality units, MONOCHROME1, padding, windows and LUTs. Expected values are worked out by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import booleans, floats, integers, sampled_from

from dicom_io.errors import BadAttribute, DicomError, PixelsNotRead
from dicom_io.types import Frame, Window
from dicom_io.voi import apply_voi
from tests.dicom_io import build
from tests.dicom_io.conftest import ReadFrames

RAMP = np.arange(0, 4096, 273, dtype=np.uint16).reshape(4, 4)  # 0, 273, ... 4095


def one(frames: list[Frame]) -> Frame:
    (frame,) = frames
    return frame


def lut(entries: list[int], *, first: int, bits: int, **more: Any) -> Any:
    item = build.item(LUTDescriptor=[len(entries), first, bits], **more)
    item.add_new("LUTData", "OW", np.array(entries, dtype="<u2").tobytes())
    item["LUTDescriptor"].VR = "US"
    return item


def test_values_are_in_modality_units(read_frames: ReadFrames) -> None:
    stored = np.array([[0, 1], [1000, 2000]], dtype=np.int16)
    frame = one(read_frames(stored, RescaleSlope="2", RescaleIntercept="-1024"))
    assert frame.pixels.tolist() == [[-1024, -1022], [976, 2976]]
    assert frame.pixels.dtype == np.float32


def test_a_slope_of_zero_is_refused_by_name(read_frames: ReadFrames) -> None:
    with pytest.raises(BadAttribute, match=r"\(0028,1053\) RescaleSlope is 0"):
        read_frames(RAMP, RescaleSlope="0", RescaleIntercept="0")


def test_signed_values_take_their_sign_from_the_stored_bits(read_frames: ReadFrames) -> None:
    # 12 bits: 0xFFF is -1, 0x800 is -2048; what lies above (an old overlay) is no part of the value.
    stored = np.array([[0x0FFF, 0x0800], [0xF7FF, 0x1001]], dtype=np.uint16)
    frame = one(read_frames(stored, BitsStored=12, HighBit=11, PixelRepresentation=1))
    assert frame.pixels.tolist() == [[-1, -2048], [2047, 1]]


def test_overlay_bits_above_the_stored_ones_are_left_out(read_frames: ReadFrames) -> None:
    frame = one(read_frames(RAMP | 0x8000, BitsStored=12, HighBit=11))
    assert np.array_equal(frame.pixels, RAMP)


def test_overlay_bits_below_a_high_bit_at_the_top_are_left_out(read_frames: ReadFrames) -> None:
    frame = one(read_frames((RAMP << 4) | 0x0003, BitsStored=12, HighBit=15))
    assert np.array_equal(frame.pixels, RAMP)


def test_monochrome1_is_turned_about_the_range_of_its_stored_bits(read_frames: ReadFrames) -> None:
    frame = one(read_frames(RAMP, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11))
    assert np.array_equal(frame.pixels, 4095 - RAMP.astype(np.float32))


def test_signed_monochrome1_is_turned_about_minus_one(read_frames: ReadFrames) -> None:
    stored = np.array([[-2048, -1], [0, 2047]], dtype=np.int16)
    frame = one(read_frames(stored, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11))
    assert frame.pixels.tolist() == [[2047, 0], [-1, -2048]]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    centre=floats(-500, 4500),
    width=floats(2, 5000),
    function=sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    slope=sampled_from([1.0, 0.5, 2.0]),
    intercept=integers(-1024, 1024),
    signed=booleans(),
)
def test_monochrome_twins_look_the_same(
    read_frames: ReadFrames,
    centre: float,
    width: float,
    function: str,
    slope: float,
    intercept: int,
    signed: bool,
) -> None:
    """A MONOCHROME1 image and the same image written as MONOCHROME2 give equal pixels, and equal display values."""
    low, high = (-2048, 2047) if signed else (0, 4095)
    stored = (RAMP.astype(np.int32) + low).astype(np.int16 if signed else np.uint16)
    centre, width = round(centre, 2), round(width, 2)
    both_ends = (low + high) * slope + 2 * intercept
    shared: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "RescaleSlope": slope, "RescaleIntercept": intercept}
    shared |= {"WindowWidth": width, "VOILUTFunction": function}
    first = one(read_frames(stored, PhotometricInterpretation="MONOCHROME1", WindowCenter=centre, **shared))
    turned_centre = round(both_ends - centre + (1 if function == "LINEAR" else 0), 6)
    second = one(
        read_frames((low + high - stored).astype(stored.dtype), WindowCenter=turned_centre, **shared),
    )
    assert np.array_equal(first.pixels, second.pixels)
    assert first.windows[0].centre == pytest.approx(second.windows[0].centre)
    assert np.allclose(apply_voi(first), apply_voi(second), atol=1e-4)


def test_presentation_lut_shape_inverse_turns_monochrome2_once(read_frames: ReadFrames) -> None:
    frame = one(read_frames(RAMP, PresentationLUTShape="INVERSE", BitsStored=12, HighBit=11))
    assert np.array_equal(frame.pixels, 4095 - RAMP.astype(np.float32))
    assert any("PresentationLUTShape" in note for note in frame.warnings)


def test_monochrome1_with_shape_inverse_is_turned_once_not_twice(read_frames: ReadFrames) -> None:
    frame = one(
        read_frames(
            RAMP,
            PhotometricInterpretation="MONOCHROME1",
            PresentationLUTShape="INVERSE",
            BitsStored=12,
            HighBit=11,
        )
    )
    assert np.array_equal(frame.pixels, 4095 - RAMP.astype(np.float32))


def test_padding_takes_the_smallest_valid_value(read_frames: ReadFrames) -> None:
    stored = np.array([[-2000, -2000], [10, 500]], dtype=np.int16)
    frame = one(read_frames(stored, PixelPaddingValue=-2000, RescaleSlope="1", RescaleIntercept="-1024"))
    assert frame.pixels.tolist() == [[-1014, -1014], [-1014, -524]]


def test_padding_range_is_padding_from_end_to_end(read_frames: ReadFrames) -> None:
    stored = np.array([[0, 3], [5, 4000]], dtype=np.uint16)
    frame = one(read_frames(stored, PixelPaddingValue=5, PixelPaddingRangeLimit=0))
    assert frame.pixels.tolist() == [[4000, 4000], [4000, 4000]]


def test_padding_of_monochrome1_does_not_shine(read_frames: ReadFrames) -> None:
    stored = np.array([[0, 0], [100, 4000]], dtype=np.uint16)
    frame = one(
        read_frames(stored, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11, PixelPaddingValue=0)
    )
    assert frame.pixels.tolist() == [[95, 95], [3995, 95]]


def test_a_frame_of_padding_alone_is_said_to_be_that(read_frames: ReadFrames) -> None:
    frame = one(read_frames(np.full((2, 2), 7, dtype=np.uint16), PixelPaddingValue=7))
    assert frame.pixels.tolist() == [[7, 7], [7, 7]]
    assert "every pixel of the frame is padding" in frame.warnings


def test_modality_lut_comes_before_rescale(read_frames: ReadFrames) -> None:
    stored = np.array([[0, 1], [2, 9]], dtype=np.uint16)
    sequence = [lut([100, 300, 700], first=0, bits=16)]
    frame = one(read_frames(stored, ModalityLUTSequence=sequence, RescaleSlope="5", RescaleIntercept="5"))
    assert frame.pixels.tolist() == [[100, 300], [700, 700]]


def test_monochrome1_under_a_modality_lut_is_turned_about_what_the_lut_can_give(read_frames: ReadFrames) -> None:
    stored = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    sequence = [lut([10, 20, 40, 80], first=0, bits=16)]
    frame = one(read_frames(stored, ModalityLUTSequence=sequence, PhotometricInterpretation="MONOCHROME1"))
    assert frame.pixels.tolist() == [[80, 70], [50, 10]]


def test_voi_lut_is_scaled_to_one(read_frames: ReadFrames) -> None:
    sequence = [lut([0, 1023, 4095], first=10, bits=12, LUTExplanation="HARD")]
    frame = one(read_frames(np.array([[10, 11], [12, 99]], dtype=np.uint8), VOILUTSequence=sequence))
    (voi,) = frame.voi_luts
    assert (voi.first_mapped, voi.explanation) == (10, "HARD")
    assert apply_voi(frame).ravel().tolist() == pytest.approx([0, 1023 / 4095, 1, 1])


def test_voi_lut_is_turned_with_monochrome1(read_frames: ReadFrames) -> None:
    """The darkest display value of the twin is the brightest here: entry for entry, 1 minus it, in reverse."""
    stored = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    sequence = [lut([0, 64, 255], first=0, bits=8)]
    frame = one(read_frames(stored, PhotometricInterpretation="MONOCHROME1", VOILUTSequence=sequence))
    assert frame.pixels.ravel().tolist() == [255, 254, 253, 0]
    # MONOCHROME1 shows the smallest output as white, so the display is 1 - LUT(stored).
    assert apply_voi(frame).ravel().tolist() == pytest.approx([1, 1 - 64 / 255, 0, 0])


def test_several_windows_come_with_their_names(read_frames: ReadFrames) -> None:
    frame = one(
        read_frames(
            RAMP, WindowCenter=[40, 600], WindowWidth=[400, 1600], WindowCenterWidthExplanation=["SOFT", "LUNG"]
        )
    )
    assert frame.windows == (Window(40, 400, "LINEAR", "SOFT"), Window(600, 1600, "LINEAR", "LUNG"))


def test_a_window_that_its_function_forbids_is_left_out_and_named(read_frames: ReadFrames) -> None:
    frame = one(read_frames(RAMP, WindowCenter=[40, 600], WindowWidth=[0, 1600]))
    assert [window.width for window in frame.windows] == [1600]
    assert any("(0028,1051) WindowWidth is 0.0" in note for note in frame.warnings)


def test_an_unknown_voi_function_leaves_its_windows_out(read_frames: ReadFrames) -> None:
    frame = one(read_frames(RAMP, WindowCenter=40, WindowWidth=400, VOILUTFunction="CUBIC"))
    assert frame.windows == ()
    assert any("VOILUTFunction" in note for note in frame.warnings)


def test_thirty_two_bit_values_keep_their_size(read_frames: ReadFrames) -> None:
    stored = np.array([[0, 2**20], [2**24, 2**32 - 1]], dtype=np.uint32)
    frame = one(read_frames(stored, RescaleSlope="0.5", RescaleIntercept="0"))
    assert frame.pixels.ravel().tolist() == [0, 2**19, 2**23, 2.0**31]


def test_packed_twelve_bit_values_are_unpacked(read_frames: ReadFrames) -> None:
    # PS3.5 8.1.1 (2004): 0x123 and 0xABC lie as 23 C1 AB.
    data = bytes.fromhex("23c1ab010080")
    frame = one(read_frames(np.zeros((2, 2), np.uint16), BitsAllocated=12, BitsStored=12, HighBit=11, PixelData=data))
    assert frame.pixels.ravel().tolist() == [0x123, 0xABC, 0x001, 0x800]


def test_single_bits_lie_across_frames_without_a_gap(read_frames: ReadFrames) -> None:
    bits = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 1, 0, 1, 0, 0, 0, 1], dtype=np.uint8)  # 2 frames of 9
    packed = np.packbits(bits, bitorder="little").tobytes()
    frames = read_frames(
        np.zeros((2, 1, 9), np.uint8), BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=packed + b"\0"
    )
    assert np.array_equal([frame.pixels for frame in frames], bits.reshape(2, 1, 9))


def test_floats_are_read_as_they_are_and_holes_become_the_smallest_value(read_frames: ReadFrames) -> None:
    values = np.array([[0.25, np.nan], [np.inf, -1.5]], dtype=np.float32)
    frame = one(
        read_frames(
            np.zeros((2, 2), np.uint32),
            PixelData=None,
            BitsStored=None,
            HighBit=None,
            PixelRepresentation=None,
            FloatPixelData=values.tobytes(),
        )
    )
    assert frame.pixels.tolist() == [[0.25, -1.5], [-1.5, -1.5]]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"Rows": None}, r"\(0028,0010\) Rows is absent"),
        ({"Columns": 0}, r"\(0028,0011\) Columns is 0"),
        ({"BitsStored": 17}, r"\(0028,0101\) BitsStored is 17"),
        ({"HighBit": 3}, r"\(0028,0102\) HighBit is 3"),
        ({"BitsAllocated": 24}, r"\(0028,0100\) BitsAllocated is 24"),
        ({"PixelRepresentation": 2}, r"\(0028,0103\) PixelRepresentation is 2"),
        ({"PhotometricInterpretation": None}, r"\(0028,0004\) PhotometricInterpretation is absent"),
        ({"SamplesPerPixel": 3}, r"\(0028,0002\) SamplesPerPixel is 3"),
    ],
)
def test_a_bad_attribute_is_named_with_its_value(
    read_frames: ReadFrames, attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadAttribute, match=message):
        read_frames(RAMP, **attributes)


def test_an_unknown_photometric_interpretation_is_refused(read_frames: ReadFrames) -> None:
    with pytest.raises(PixelsNotRead, match="HSV"):
        read_frames(RAMP, PhotometricInterpretation="HSV")


@pytest.mark.parametrize("slope", ["1e300", "1e308", "-1e38"])
def test_a_rescale_beyond_float32_is_refused(read_frames: ReadFrames, slope: str) -> None:
    with pytest.raises(BadAttribute, match="not finite"):
        read_frames(RAMP, RescaleSlope=slope, RescaleIntercept="0")


def test_a_turned_window_beyond_all_numbers_is_an_error_and_no_crash(read_frames: ReadFrames) -> None:
    with pytest.raises(DicomError) as caught:
        read_frames(
            np.zeros((2, 2), np.uint8),
            PhotometricInterpretation="MONOCHROME1",
            RescaleSlope="1e308",
            RescaleIntercept="1e308",
            WindowCenter="-1e308",
            WindowWidth="5",
        )
    assert caught.value.code in ("dicom.bad-attribute", "dicom.malformed")


def test_no_file_fills_an_answer_with_windows(read_frames: ReadFrames) -> None:
    frame = one(read_frames(RAMP, WindowCenter=[1] * 3000, WindowWidth=[2] * 3000))
    assert len(frame.windows) == 64
