"""Files made to do harm: they are refused with a code, and the decoding process stays small and alive."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import get_frame

from dicom_io.errors import (
    CannotDecode,
    DicomError,
    Malformed,
    NestingTooDeep,
    NotDicom,
    TooLarge,
    TransferSyntaxNotRead,
    Truncated,
)
from dicom_io.limits import MIB, Limits
from dicom_io.read import Sandbox, frames, read_instance
from tests.dicom_io import build
from tests.dicom_io.conftest import packaged, read_bytes
from tests.dicom_io.test_frames_of_many import encapsulated_file, raw_fragments

UNDEFINED = 0xFFFFFFFF
SMALL = build.data_set(np.zeros((2, 2), np.uint8))


def process_memory(sandbox: Sandbox) -> int:
    """Most bytes that the process has ever held resident."""
    worker = sandbox._idle[-1]
    assert worker is not None
    rows = Path(f"/proc/{worker.process_id}/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmHWM")) * 1024


def with_syntax(content: bytes, transfer_syntax: str) -> bytes:
    uid = transfer_syntax.encode() + b"\0" * (len(transfer_syntax) % 2)
    native = build.element(0x0002, 0x0010, b"UI", b"1.2.840.10008.1.2.1\0")
    assert native in content
    return content.replace(native, build.element(0x0002, 0x0010, b"UI", uid), 1)


def data_set_start(content: bytes) -> int:
    return content.index(b"\x08\x00\x16\x00UI")


def deflated(data_set: bytes) -> bytes:
    whole = with_syntax(build.part10(SMALL), "1.2.840.10008.1.2.1.99")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return whole[: data_set_start(whole)] + packer.compress(data_set) + packer.flush()


def deflate_bomb() -> bytes:
    """522 kB that inflate to 512 MiB: 1.09 GB resident in a plain header-only read with pydicom 3.0.2."""
    padding = struct.pack("<HH2sHI", 0x0009, 0x1010, b"OB", 0, 512 * MIB)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    plain = build.part10(SMALL)
    packed = packer.compress(plain[data_set_start(plain) :] + padding)
    packed += b"".join(packer.compress(bytes(MIB)) for _ in range(512)) + packer.flush()
    whole = with_syntax(plain, "1.2.840.10008.1.2.1.99")
    return whole[: data_set_start(whole)] + packed


def nested(depth: int, *, undefined: bool = True) -> bytes:
    """A file with sequences inside sequences."""
    if undefined:
        opening = struct.pack("<HH2sHI", 0x0008, 0x1115, b"SQ", 0, UNDEFINED) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
        sequence = opening * depth + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * depth
    else:
        sequence = b""
        for _ in range(depth):
            item = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(sequence)) + sequence
            sequence = struct.pack("<HH2sHI", 0x0008, 0x1115, b"SQ", 0, len(item)) + item
    content = build.part10(SMALL)
    at = content.index(b"\x20\x00\x0d\x00UI")
    return content[:at] + sequence + content[at:]


def test_a_deflate_bomb_is_refused_early_and_small(limits: Limits, tmp_path: Path) -> None:
    path = build.write(tmp_path, deflate_bomb())
    assert path.stat().st_size < 540_000
    with Sandbox(workers=1, limits=limits) as sandbox:
        with pytest.raises(TooLarge, match="inflates from"):
            read_instance(path, sandbox=sandbox)
        assert process_memory(sandbox) < 200 * MIB


def test_a_deflated_file_that_is_cut_is_truncated(sandbox: Sandbox, tmp_path: Path) -> None:
    content = packaged("image_dfl.dcm").read_bytes()
    with pytest.raises(DicomError) as caught:
        read_bytes(content[: len(content) // 2], sandbox=sandbox, folder=tmp_path)
    assert caught.value.code == "dicom.truncated"


def test_a_file_that_is_not_deflated_though_it_says_so_is_malformed(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(Malformed):
        read_bytes(with_syntax(build.part10(SMALL), "1.2.840.10008.1.2.1.99"), sandbox=sandbox, folder=tmp_path)


def test_a_deflated_file_reads(sandbox: Sandbox, tmp_path: Path) -> None:
    plain = build.part10(SMALL)
    (frame,) = read_bytes(deflated(plain[data_set_start(plain) :]), sandbox=sandbox, folder=tmp_path)
    assert frame.pixels.shape == (2, 2)


def test_an_rle_bomb_gives_no_more_than_its_frame(limits: Limits, tmp_path: Path) -> None:
    """6 MB of run lengths that would be 400 MB: 1.24 GB resident in pydicom 3.0.2."""
    runs = b"\x81\x00" * 3_000_000
    content = encapsulated_file(1, raw_fragments(struct.pack("<16I", 1, 64, *[0] * 14) + runs))
    with Sandbox(workers=1, limits=limits) as sandbox:
        try:
            (frame,) = read_bytes(content, sandbox=sandbox, folder=tmp_path)
        except CannotDecode:
            pass
        else:
            assert frame.pixels.shape == (2, 2)
        assert process_memory(sandbox) < 200 * MIB


def test_a_deflated_frame_gives_no_more_than_its_frame(limits: Limits, tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(bytes(256 * MIB)) + packer.flush()
    content = encapsulated_file(1, raw_fragments(packed), transfer_syntax="1.2.840.10008.1.2.8.1")
    with Sandbox(workers=1, limits=limits) as sandbox:
        (frame,) = read_bytes(content, sandbox=sandbox, folder=tmp_path)
        assert frame.pixels.shape == (2, 2)
        assert process_memory(sandbox) < 200 * MIB


def test_the_largest_frame_that_a_header_can_state_is_refused(limits: Limits, tmp_path: Path) -> None:
    made = build.data_set(np.zeros((2, 2), np.uint16), Rows=65535, Columns=65535, NumberOfFrames=1000)
    with Sandbox(workers=1, limits=limits) as sandbox:
        with pytest.raises(TooLarge, match="65535 x 65535"):
            read_instance(build.write(tmp_path, build.part10(made)), sandbox=sandbox)
        assert process_memory(sandbox) < 200 * MIB


@pytest.mark.parametrize("undefined", [True, False])
def test_fifty_nested_sequences_are_read(sandbox: Sandbox, tmp_path: Path, undefined: bool) -> None:
    path = build.write(tmp_path, nested(50, undefined=undefined))
    assert read_instance(path, sandbox=sandbox).number_of_frames == 1


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("depth", [65, 200, 5_000])
def test_deeper_nesting_is_refused(sandbox: Sandbox, tmp_path: Path, depth: int, undefined: bool) -> None:
    """Orthanc 1.10.1 dies of the last one; pydicom raises RecursionError from the second on."""
    with pytest.raises(NestingTooDeep, match="more than 64 deep"):
        read_instance(build.write(tmp_path, nested(depth, undefined=undefined)), sandbox=sandbox)


def test_deep_nesting_in_the_file_meta_information_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    opening = struct.pack("<HH2sHI", 0x0002, 0x0102, b"SQ", 0, UNDEFINED) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    content = build.part10(SMALL)
    start = data_set_start(content)
    with pytest.raises(NestingTooDeep):
        read_instance(build.write(tmp_path, content[:start] + opening * 5000 + content[start:]), sandbox=sandbox)


def test_too_many_elements_are_refused(tmp_path: Path) -> None:
    content = build.part10(SMALL)
    at = content.index(b"\x20\x00\x0d\x00UI")
    path = build.write(tmp_path, content[:at] + build.element(0x0009, 0x1010, b"LO", b"") * 2000 + content[at:])
    with (
        Sandbox(workers=1, limits=Limits(element_count=1000)) as sandbox,
        pytest.raises(TooLarge, match="1000 elements"),
    ):
        read_instance(path, sandbox=sandbox)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"D",
        b"\0" * 200,
        b"PK\x03\x04" + bytes(300),
        b"%PDF-1.7 " * 30,
        b"\x89PNG\r\n\x1a\n" + bytes(300),
        b"\xff" * 500,
    ],
    ids=["empty", "one byte", "zeros", "zip", "pdf", "png", "ones"],
)
def test_other_files_are_not_dicom(sandbox: Sandbox, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(NotDicom):
        read_instance(build.write(tmp_path, content), sandbox=sandbox)


def test_a_preamble_with_nothing_after_it_is_an_error(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(DicomError):
        read_instance(build.write(tmp_path, b"\0" * 128 + b"DICM"), sandbox=sandbox)


@pytest.mark.parametrize("transfer_syntax", ["1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.4.110"])
def test_pixels_of_other_transfer_syntaxes_are_named(sandbox: Sandbox, tmp_path: Path, transfer_syntax: str) -> None:
    content = encapsulated_file(1, raw_fragments(bytes(10)), transfer_syntax=transfer_syntax)
    instance = read_instance(build.write(tmp_path, content), sandbox=sandbox)
    with pytest.raises(TransferSyntaxNotRead, match=transfer_syntax):
        next(frames(instance, sandbox=sandbox))


def test_an_unknown_transfer_syntax_is_named(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(TransferSyntaxNotRead, match=r"1\.2\.3\.4"):
        read_instance(build.write(tmp_path, with_syntax(build.part10(SMALL), "1.2.3.4")), sandbox=sandbox)


def test_no_error_quotes_the_patient(sandbox: Sandbox, tmp_path: Path) -> None:
    """Values of every field are replaced by a canary in turn; no message may carry it."""
    content = build.part10(
        build.data_set(
            np.zeros((2, 2), np.uint8),
            PatientName="CANARY^X",
            PatientID="CANARY12",
            PatientBirthDate="19800101",
            StudyDescription="CANARY34",
            InstanceNumber=1,
            WindowCenter=1,
            WindowWidth=10,
            RescaleSlope=1,
            RescaleIntercept=0,
        )
    )
    rng = np.random.default_rng(11)
    start = data_set_start(content)
    for _ in range(150):
        broken = bytearray(content)
        for place in rng.integers(start, len(broken), 6):
            broken[place] = rng.integers(0, 256)
        try:
            read_bytes(bytes(broken), sandbox=sandbox, folder=tmp_path)
        except DicomError as exc:
            assert "CANARY" not in str(exc)  # noqa: PT017


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_a_file_cut_anywhere_is_an_error_with_a_code(sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    content = packaged(name).read_bytes()
    # Every element ends at an even place (PS3.5 7.1.1). The last bytes are padding after the pixels.
    header = content.index(b"\xe0\x7f\x10\x00")
    for cut in [*range(2, header + 14, 2), *np.linspace(header, len(content) - 300, 61).astype(int)]:
        with pytest.raises(DicomError) as caught:
            read_bytes(content[:cut], sandbox=sandbox, folder=tmp_path)
        assert caught.value.code in {
            "dicom.cannot-decode",
            "dicom.missing-uid",
            "dicom.not-dicom",
            "dicom.pixels-missing",
            "dicom.transfer-syntax-missing",
            "dicom.transfer-syntax-not-read",
            "dicom.truncated",
        }


@pytest.mark.parametrize(
    "name", ["SC_rgb_jpeg_dcmtk.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPGExtended.dcm", "MR_small_jp2klossless.dcm"]
)
def test_a_codestream_cut_inside_its_fragment_never_gives_half_a_picture(
    sandbox: Sandbox, tmp_path: Path, name: str
) -> None:
    """The JPEG decoder alone would fill the rest with grey."""
    whole = dcmread(packaged(name))
    codestream = get_frame(whole.PixelData, 0, number_of_frames=1)
    for part in (0.99, 0.9, 0.5):
        cut = codestream[: int(len(codestream.rstrip(b"\0\xff\xd9")) * part) // 2 * 2]
        content = build.encapsulated(whole, [cut], transfer_syntax=whole.file_meta.TransferSyntaxUID)
        with pytest.raises((Truncated, CannotDecode)):
            read_bytes(content, sandbox=sandbox, folder=tmp_path)
