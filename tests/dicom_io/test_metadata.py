"""Data sets are said in the DICOM JSON model without losing a value, and stored frames are what the file holds."""

import struct
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from dicom_io import wire
from dicom_io.errors import NoPixels, NoSuchFrame, NoSuchValue, SandboxAnswerRefused, Truncated
from dicom_io.sandbox import Sandbox
from tests.dicom_io.build import data_set, element, encapsulated, item, part10, write

URL = "http://localhost/bulkdata"
PIXELS = np.arange(2 * 3 * 4, dtype=np.uint16).reshape(2, 3, 4)
LONG = bytes(range(256)) * 5


def said(content: bytes, *, sandbox: Sandbox, folder: Path) -> wire.Message:
    return sandbox.metadata(write(folder, content), bulk_url=URL)


def test_values_of_each_kind_are_said_as_the_standard_does(sandbox: Sandbox, tmp_path: Path) -> None:
    dataset = data_set(
        PIXELS,
        SpecificCharacterSet="ISO_IR 100",
        PatientName="Müller^Jörg",
        PixelSpacing=[0.5, 0.25],
        ReferencedImageSequence=[item(ReferencedSOPInstanceUID="1.2.3")],
        LossyImageCompressionRatio="",
    )
    dataset.add_new(0x00189087, "FD", float("nan"))
    dataset.add_new(0x00420011, "OB", b"\x01\x02")
    found = said(part10(dataset), sandbox=sandbox, folder=tmp_path)
    assert found["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
    assert found["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Müller^Jörg"}]}
    assert found["00280030"] == {"vr": "DS", "Value": [0.5, 0.25]}
    assert found["00081140"] == {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.3"]}}]}
    assert found["00282112"] == {"vr": "DS"}
    assert found["00189087"] == {"vr": "FD", "Value": ["NaN"]}
    assert found["00420011"] == {"vr": "OB", "InlineBinary": "AQI="}
    assert found["7FE00010"] == {"vr": "OW", "BulkDataURI": f"{URL}/7FE00010"}
    assert not any(tag.startswith("0002") for tag in found)


def test_a_value_that_its_kind_does_not_allow_comes_as_the_bytes_it_is(sandbox: Sandbox, tmp_path: Path) -> None:
    broken = element(0x0020, 0x0013, b"IS", b"many")
    content = part10(data_set(PIXELS))
    place = content.index(element(0x0028, 0x0002, b"US", struct.pack("<H", 1)))
    found = said(content[:place] + broken + content[place:], sandbox=sandbox, folder=tmp_path)
    assert found["00200013"] == {"vr": "UN", "InlineBinary": "bWFueQ=="}
    assert found["00280010"] == {"vr": "US", "Value": [3]}


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_long_binary_values_are_left_out_and_given_out_in_little_endian(
    sandbox: Sandbox, tmp_path: Path, syntax: str
) -> None:
    curve = item()
    curve.add_new(0x54001010, "OW", LONG)
    dataset = data_set(PIXELS)
    dataset.WaveformSequence = [item(), curve]
    dataset.add_new(0x00420011, "OB", LONG)
    file = write(tmp_path, part10(dataset, transfer_syntax=syntax))
    found = sandbox.metadata(file, bulk_url=URL)
    assert found["00420011"] == {"vr": "OB", "BulkDataURI": f"{URL}/00420011"}
    nested = found["54000100"]["Value"][1]["54001010"]
    assert nested == {"vr": "OW", "BulkDataURI": f"{URL}/54000100/1/54001010"}
    assert sandbox.bulk_value(file, "00420011") == LONG
    swapped = np.frombuffer(LONG, np.uint16).byteswap().tobytes()
    # pydicom writes the bytes of OW as they are, so that in big endian the words are the other way round.
    assert sandbox.bulk_value(file, "54000100/1/54001010") == (swapped if syntax == uid.ExplicitVRBigEndian else LONG)


def test_a_value_too_long_to_be_parsed_is_read_when_asked_for(sandbox: Sandbox, tmp_path: Path) -> None:
    huge = bytes(17 << 20)
    dataset = data_set(PIXELS)
    dataset.add_new(0x00420011, "OB", huge)
    file = write(tmp_path, part10(dataset))
    assert sandbox.metadata(file, bulk_url=URL)["00420011"] == {"vr": "OB", "BulkDataURI": f"{URL}/00420011"}
    assert sandbox.bulk_value(file, "00420011") == huge


@pytest.mark.parametrize(
    "place",
    ["", "x", "00420011", "00100010", "00081140/0/00081155", "54000100", "/", "../1", "1" * 99, "00081140/-1/1"],
)
def test_a_place_that_holds_no_bulk_data_is_refused(sandbox: Sandbox, tmp_path: Path, place: str) -> None:
    file = write(tmp_path, part10(data_set(PIXELS, PatientName="A^B")))
    with pytest.raises(NoSuchValue):
        sandbox.bulk_value(file, place)


def test_native_frames_come_in_little_endian(sandbox: Sandbox, tmp_path: Path) -> None:
    little = write(tmp_path, part10(data_set(PIXELS)))
    assert [sandbox.stored_frame(little, number) for number in (1, 2)] == [one.tobytes() for one in PIXELS]
    dataset = data_set(PIXELS)
    dataset.PixelData = PIXELS.astype(">u2").tobytes()
    big = write(tmp_path, part10(dataset, transfer_syntax=uid.ExplicitVRBigEndian), "big.dcm")
    assert sandbox.stored_frame(big, 2) == PIXELS[1].tobytes()


def test_frames_of_single_bits_begin_with_a_byte_of_their_own(sandbox: Sandbox, tmp_path: Path) -> None:
    bits = np.array([1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0], np.uint8)  # three frames of five
    dataset = data_set(np.zeros((3, 1, 5), np.uint8), BitsAllocated=1, BitsStored=1, HighBit=0)
    dataset.PixelData = np.packbits(bits, bitorder="little").tobytes()
    file = write(tmp_path, part10(dataset))
    assert [sandbox.stored_frame(file, number) for number in (1, 2, 3)] == [b"\x0d", b"\x19", b"\x0d"]


def test_encapsulated_frames_are_their_fragments(sandbox: Sandbox, tmp_path: Path) -> None:
    frames = [b"\xff\xd8first\x00", b"\xff\xd8second"]
    dataset = data_set(np.zeros((2, 3, 4), np.uint8))
    file = write(tmp_path, encapsulated(dataset, frames, transfer_syntax=uid.JPEGBaseline8Bit))
    assert [sandbox.stored_frame(file, number) for number in (1, 2)] == frames


def test_frames_that_are_not_there_are_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    file = write(tmp_path, part10(data_set(PIXELS)))
    for number in (0, 3, -1):
        with pytest.raises(NoSuchFrame):
            sandbox.stored_frame(file, number)
    short = write(tmp_path, part10(data_set(PIXELS))[:-8], "short.dcm")
    with pytest.raises(Truncated):
        sandbox.stored_frame(short, 2)
    bare = data_set(PIXELS)
    del bare.PixelData
    with pytest.raises(NoPixels):
        sandbox.stored_frame(write(tmp_path, part10(bare), "bare.dcm"), 1)


@pytest.mark.parametrize("text", [b"[]", b"{", b'{"x": {"vr": "CS"}}', b'{"00100010": {}}', b'{"00100010": []}'])
def test_an_answer_of_a_decoder_that_is_no_data_set_is_refused(text: bytes) -> None:
    with pytest.raises(SandboxAnswerRefused):
        wire.data_set_from(*wire.content_message(text))


def test_content_travels_whatever_its_length() -> None:
    for length in range(9):
        content = bytes(range(200, 200 + length))
        assert wire.content_from(*wire.content_message(content)) == content
    with pytest.raises(SandboxAnswerRefused):
        wire.content_from({"content_bytes": 9}, wire.content_message(b"1234")[1])


def test_what_is_said_can_be_read_by_pydicom(sandbox: Sandbox, tmp_path: Path) -> None:
    dataset = data_set(PIXELS, PatientName="A^B", WindowCenter=[1.5, 2])
    found = said(part10(dataset), sandbox=sandbox, folder=tmp_path)
    read = Dataset.from_json(found, bulk_data_uri_handler=lambda *_: dataset.PixelData)
    del dataset.file_meta
    assert read == dataset
