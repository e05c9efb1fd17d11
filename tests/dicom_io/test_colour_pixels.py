"""Colour frames: RGB in 0..255 exactly once converted, from every layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_io.read import Sandbox, frames, read_instance
from tests.dicom_io.conftest import ReadFrames, packaged

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]], dtype=np.uint8)


def first_frame(name: str, sandbox: Sandbox) -> NDArray[np.float32]:
    instance = read_instance(packaged(name), sandbox=sandbox)
    return next(frames(instance, sandbox=sandbox)).pixels


def palette(entries: list[int], *, bits: int) -> dict[str, Any]:
    made: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for n, colour in enumerate(("Red", "Green", "Blue")):
        made[f"{colour}PaletteColorLookupTableDescriptor"] = [len(entries), 0, bits]
        made[f"{colour}PaletteColorLookupTableData"] = np.array(np.roll(entries, n), dtype="<u2").tobytes()
    return made


def test_rgb_is_taken_as_it_is(read_frames: ReadFrames) -> None:
    (frame,) = read_frames(COLOURS)
    assert np.array_equal(frame.pixels, COLOURS)
    assert frame.windows == ()


def test_colour_by_plane_is_the_same_picture(read_frames: ReadFrames) -> None:
    (frame,) = read_frames(COLOURS, PlanarConfiguration=1, PixelData=COLOURS.transpose(2, 0, 1).tobytes())
    assert np.array_equal(frame.pixels, COLOURS)


def test_big_endian_words_of_bytes_are_swapped_back(read_frames: ReadFrames) -> None:
    # PS3.5 8.1.1: OW in big endian holds two 8-bit samples a word, the first one in its low byte.
    (frame,) = read_frames(COLOURS, transfer_syntax="1.2.840.10008.1.2.2")
    assert np.array_equal(frame.pixels, COLOURS)


def test_sixteen_bit_colour_is_scaled_to_255(read_frames: ReadFrames) -> None:
    (frame,) = read_frames(COLOURS.astype(np.uint16) * 257)
    assert np.allclose(frame.pixels, COLOURS, atol=1e-3)


def test_ybr_full_becomes_the_colours_of_the_standards_equations(read_frames: ReadFrames) -> None:
    # PS3.3 C.7.6.3.1.2 for pure red, green and blue and for grey 128.
    ybr = np.array([[[76, 85, 255], [150, 44, 21]], [[29, 255, 107], [128, 128, 128]]], dtype=np.uint8)
    (frame,) = read_frames(ybr, PhotometricInterpretation="YBR_FULL")
    expected = [[[254, 0, 0], [0, 255, 1]], [[0, 0, 254], [128, 128, 128]]]
    assert np.allclose(frame.pixels, expected, atol=1)


def test_ybr_full_422_shares_chroma_between_two_pixels(read_frames: ReadFrames) -> None:
    data = bytes([100, 200, 128, 128, 50, 60, 128, 128])  # Y1 Y2 Cb Cr, twice
    (frame,) = read_frames(np.zeros((2, 2, 3), np.uint8), PhotometricInterpretation="YBR_FULL_422", PixelData=data)
    assert frame.pixels[..., 0].ravel().tolist() == [100, 200, 50, 60]


@pytest.mark.parametrize(("bits", "top"), [(8, 255), (16, 65535)])
def test_palette_entries_become_colours(read_frames: ReadFrames, bits: int, top: int) -> None:
    indices = np.array([[0, 1], [2, 9]], dtype=np.uint8)
    (frame,) = read_frames(indices, **palette([0, top // 3, top], bits=bits))
    assert np.allclose(frame.pixels[0, 1], [85, 0, 255], atol=0.01)
    assert np.array_equal(frame.pixels[1, 1], frame.pixels[1, 0])


def test_sixteen_bit_palette_with_eight_bit_entries_is_not_black(read_frames: ReadFrames) -> None:
    (frame,) = read_frames(np.array([[0, 1], [2, 2]], dtype=np.uint8), **palette([0, 85, 255], bits=16))
    assert frame.pixels[0, 1].tolist() == [85, 0, 255]


def test_segmented_palette_is_expanded(read_frames: ReadFrames) -> None:
    # PS3.3 C.7.9.2: a discrete segment 0, a linear one up to 90 in 3 steps, then an indirect copy of the discrete one.
    words = [0, 1, 0, 1, 3, 90, 2, 1, 0, 0]
    made: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        made[f"{colour}PaletteColorLookupTableDescriptor"] = [5, 0, 16]
        made[f"Segmented{colour}PaletteColorLookupTableData"] = np.array(words, dtype="<u2").tobytes()
    (frame,) = read_frames(np.array([[0, 1, 2], [3, 4, 4]], dtype=np.uint8), **made)
    assert frame.pixels[..., 0].tolist() == [[0, 30, 60], [90, 0, 0]]


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_rle.dcm",
        "SC_rgb_rle_16bit.dcm",
        "SC_rgb_rle_32bit.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",
        "SC_rgb_dcmtk_+eb+cy+n2.dcm",
        "SC_rgb_dcmtk_+eb+cy+s2.dcm",
        "SC_rgb_dcmtk_+eb+cy+s4.dcm",
        "SC_rgb_jpeg_lossy_gdcm.dcm",
    ],
)
def test_one_picture_in_many_encodings_keeps_its_colours(sandbox: Sandbox, name: str) -> None:
    """pydicom's colour bars: red, green, blue, black and greys, written by other programs in other ways."""
    pixels = first_frame(name, sandbox)
    bars = {5: (255, 0, 0), 15: (255, 128, 128), 25: (0, 255, 0), 45: (0, 0, 255), 65: (0, 0, 0), 75: (64, 64, 64)}
    for row, colour in bars.items():
        assert np.allclose(pixels[row, 50], colour, atol=6), (row, pixels[row, 50])


def test_jpeg_markers_settle_what_the_header_says_wrongly(sandbox: Sandbox) -> None:
    """A JFIF marker means YCbCr, and an Adobe marker says which; the colours are those of the uncompressed twin."""
    compressed, plain = first_frame("SC_rgb_jpeg.dcm", sandbox), first_frame("SC_rgb_jpeg_dcmd.dcm", sandbox)
    assert np.abs(compressed - plain).max() <= 4


def test_every_frame_of_a_colour_object_is_decoded_alone(sandbox: Sandbox) -> None:
    instance = read_instance(packaged("SC_rgb_rle_2frame.dcm"), sandbox=sandbox)
    both = list(frames(instance, sandbox=sandbox))
    assert [frame.number for frame in both] == [1, 2]
    (second,) = frames(instance, sandbox=sandbox, numbers=[2])
    assert np.array_equal(second.pixels, both[1].pixels)


def test_path_of_the_packaged_files_is_inside_the_package() -> None:
    assert "site-packages" in Path(packaged("SC_rgb_rle.dcm")).parts
