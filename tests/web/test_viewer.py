"""What is sent to the canvas is the frame."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from app.web.viewer import HEAT_LONG_SIDE, heat_shape, pack_frame, pack_heat
from dicom_io.types import Frame, InstanceRef, VoiLut, Window


def frame(pixels: NDArray[np.float32], **fields: Any) -> Frame:
    defaults: dict[str, Any] = {"spacing_mm": None, "windows": (), "voi_luts": ()}
    return Frame(ref=InstanceRef("1", "2", "3", "4"), number=1, pixels=pixels, decoder="test", **(defaults | fields))


def unpack(packed: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(packed[:4], "little")
    assert length % 4 == 0  # so that the samples are aligned
    return json.loads(packed[4 : 4 + length]), packed[4 + length :]


@pytest.mark.parametrize(
    "pixels",
    [
        np.array([[-1024, 0], [40, 3071]], np.float32),
        np.array([[7, 7], [7, 7]], np.float32),
        np.array([[0, 65535]], np.float32),
    ],
)
def test_whole_numbers_of_16_bits_arrive_exactly(pixels: NDArray[np.float32]) -> None:
    header, samples = unpack(pack_frame(frame(pixels)))
    stored = np.frombuffer(samples, "<u2").reshape(header["rows"], header["columns"])
    assert header["slope"] == 1
    np.testing.assert_array_equal(stored + header["intercept"], pixels)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-1e6, 1e6, width=32)))
def test_other_values_arrive_within_half_a_step_of_65535(pixels: NDArray[np.float32]) -> None:
    header, samples = unpack(pack_frame(frame(pixels)))
    stored = np.frombuffer(samples, "<u2").reshape(pixels.shape).astype(float)
    assert header["highest"] == stored.max()
    step = max(float(pixels.max()) - float(pixels.min()), 0.0) / 65535
    tolerance = max(step, header["slope"] if header["slope"] == 1 else 0) / 2 * (1 + 1e-6) + 1e-9
    assert np.abs(stored * header["slope"] + header["intercept"] - pixels).max() <= tolerance


def test_a_colour_frame_arrives_as_rgb_bytes() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.float32).reshape(2, 3, 3)
    header, samples = unpack(pack_frame(frame(pixels)))
    assert (header["kind"], header["rows"], header["columns"]) == ("rgb8", 2, 3)
    assert list(samples) == list(range(18))


def test_windows_and_lookup_tables_of_the_file_arrive_with_their_names() -> None:
    header, _ = unpack(
        pack_frame(
            frame(
                np.zeros((1, 1), np.float32),
                spacing_mm=(0.5, 0.25),
                windows=(Window(40, 400, "SIGMOID", "ABDOMEN"),),
                voi_luts=(VoiLut(-5, np.array([0, 0.5, 1], np.float32), "SOFT"),),
            )
        )
    )
    assert header["windows"] == [{"centre": 40, "width": 400, "function": "SIGMOID", "explanation": "ABDOMEN"}]
    assert header["spacing_mm"] == [0.5, 0.25]
    (lut,) = header["voi_luts"]
    assert (lut["first_mapped"], lut["explanation"]) == (-5, "SOFT")
    assert list(base64.b64decode(lut["entries"])) == [0, 128, 255]


def test_a_heat_map_keeps_its_signs_and_names_its_strongest_value() -> None:
    evidence = np.array([[0.5, -2.0, 1.0]], np.float32)
    header, samples = unpack(pack_heat(evidence))
    assert header == {"rows": 1, "columns": 3, "scale": 2.0}
    np.testing.assert_array_equal(np.frombuffer(samples, "<f4"), evidence[0])


@pytest.mark.parametrize(
    ("rows", "columns", "shape"), [(100, 50, (100, 50)), (2000, 1000, (384, 192)), (1, 9999, (1, 384))]
)
def test_a_heat_map_is_sent_no_finer_than_it_is(rows: int, columns: int, shape: tuple[int, int]) -> None:
    assert heat_shape(rows, columns) == shape
    assert max(heat_shape(rows, columns)) <= HEAT_LONG_SIDE
