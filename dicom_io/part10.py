"""Open one file and parse its data set up to the pixels. Runs in the decoding process only."""

import io
import logging
import os
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from dicom_io.errors import (
    DicomError,
    FileUnreadable,
    Malformed,
    NestingTooDeep,
    NotDicom,
    TooLarge,
    TransferSyntaxMissing,
    TransferSyntaxNotRead,
    Truncated,
)
from dicom_io.limits import Limits
from dicom_io.nesting import LONG_VRS, UNDEFINED_LENGTH, Encoding, scan
from dicom_io.uids import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TRANSFER_SYNTAXES,
    TransferSyntax,
)

# Values are checked where they are used; pydicom's own warnings would quote them, patient names included.
pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
logging.getLogger("pydicom").disabled = True

_PIXEL_KEYWORDS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
# Values over this are left in the file until asked for: none that this reader uses is as large.
_DEFER_BYTES = 16 << 20
_TEXTS = ("PatientName", "PatientID", "StudyDescription", "SeriesDescription", "Manufacturer")


@dataclass(frozen=True, slots=True)
class PixelElement:
    """Where the pixels lie in the stream; `length` is None for fragments."""

    keyword: str
    vr: str | None  # None in implicit VR
    offset: int
    length: int | None


@dataclass(slots=True)
class Part10:
    """An open file: its parsed data set, and the stream from which frames are taken one at a time."""

    path: Path
    stream: BinaryIO
    size: int  # of the stream, after inflating
    meta: Dataset
    dataset: Dataset
    syntax: TransferSyntax
    implicit_vr: bool  # as found, which some files declare wrongly
    pixels: PixelElement | None
    texts: dict[str, bytes]  # values of text attributes as they were written, before they are decoded
    warnings: list[str] = field(default_factory=list)
    frame_offsets: list[list[tuple[int, int]]] | None = None  # filled when the first encapsulated frame is asked for

    def close(self) -> None:
        """Close the file."""
        self.stream.close()


def open_part10(path: Path, *, limits: Limits) -> Part10:
    """Parse a file with or without preamble and file meta information, under every cap of `limits`.

    Raises FileUnreadable, NotDicom, TooLarge, Malformed and its leaves, TransferSyntaxMissing, TransferSyntaxNotRead.
    """
    stream = _open_regular(path, limits=limits)
    try:
        return _parse(path, stream, limits=limits)
    except (DicomError, MemoryError):
        stream.close()
        raise
    except RecursionError as exc:
        stream.close()
        raise NestingTooDeep(f"sequences are nested more than {limits.sequence_depth} deep") from exc
    except struct.error as exc:
        stream.close()
        raise Truncated("the file ends inside an element") from exc
    except Exception as exc:
        stream.close()
        raise Malformed(f"the data set cannot be parsed ({type(exc).__name__})") from exc


def _open_regular(path: Path, *, limits: Limits) -> BinaryIO:
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as exc:
        raise FileUnreadable(f"the file cannot be opened ({getattr(exc, 'strerror', None) or 'bad name'})") from exc
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise FileUnreadable("not a regular file")
    if status.st_size > limits.file_bytes:
        os.close(descriptor)
        raise TooLarge(f"the file has {status.st_size} bytes; at most {limits.file_bytes} are read")
    return os.fdopen(descriptor, "rb")


def _parse(path: Path, stream: BinaryIO, *, limits: Limits) -> Part10:
    notes: list[str] = []
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if stream.read(132)[128:] != b"DICM":
        _check_bare_start(stream)
        stream.seek(0)
        notes.append("the file has no preamble")
    meta = _read_meta(stream)
    stated = str(meta.get("TransferSyntaxUID") or "").strip(" \0")
    if stated:
        syntax = TRANSFER_SYNTAXES.get(stated)
        if syntax is None:
            raise TransferSyntaxNotRead(
                f"(0002,0010) TransferSyntaxUID is {stated[:64]!r}, which this reader does not know"
            )
    else:
        syntax = _syntax_from_bytes(stream)
        notes.append(f"no transfer syntax is stated; the bytes are {syntax.name}")
    if syntax.deflated:
        stream, size = _inflate(stream, limits=limits)
    start = stream.tell()
    implicit = _found_implicit(stream, syntax)
    if implicit != syntax.implicit_vr:
        notes.append(f"the data set is not in the stated {syntax.name}: its VRs are {'im' if implicit else 'ex'}plicit")
    encoding = Encoding(implicit_vr=implicit, little_endian=syntax.little_endian)
    scan(stream, start=start, end=size, encoding=encoding, limits=limits)
    stream.seek(start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = read_dataset(stream, implicit, syntax.little_endian, stop_when=_at_pixels, defer_size=_DEFER_BYTES)
    pixels = _pixel_element(stream, encoding)
    if not dataset and pixels is None:
        raise NotDicom("no data element could be read")
    return Part10(
        path=path,
        stream=stream,
        size=size,
        meta=meta,
        dataset=dataset,
        syntax=syntax,
        implicit_vr=implicit,
        pixels=pixels,
        texts=_written_texts(dataset),
        warnings=notes,
    )


def _check_bare_start(stream: BinaryIO) -> None:
    """A file without "DICM" must begin with an element of a group that begins data sets: 0002, 0004 or 0008."""
    stream.seek(0)
    head = stream.read(8)
    if len(head) < 8:
        raise NotDicom("the file is too short to hold a data element")
    for order in "<>":
        group, element = struct.unpack(f"{order}HH", head[:4])
        if group in (0x0002, 0x0004, 0x0008) and element <= 0x3000:
            return
    raise NotDicom('no "DICM" after the preamble, and the first bytes are no data element')


def _read_meta(stream: BinaryIO) -> Dataset:
    start = stream.tell()
    head = stream.read(2)
    stream.seek(start)
    if head != b"\x02\x00":
        return Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_dataset(stream, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 0x0002)  # noqa: FBT003


def _syntax_from_bytes(stream: BinaryIO) -> TransferSyntax:
    """Settle byte order and VR from the first element; only native encodings can be settled so (PS3.5 10.1)."""
    start = stream.tell()
    head = stream.read(8)
    stream.seek(start)
    if len(head) < 8:
        raise TransferSyntaxMissing("(0002,0010) TransferSyntaxUID is absent and there is no data set")
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    little_group, big_group = struct.unpack("<H", head[:2])[0], struct.unpack(">H", head[:2])[0]
    if explicit:
        return EXPLICIT_VR_LITTLE_ENDIAN if little_group < big_group else EXPLICIT_VR_BIG_ENDIAN
    if little_group < big_group and struct.unpack("<I", head[4:])[0] < 1 << 20:
        return IMPLICIT_VR_LITTLE_ENDIAN
    raise TransferSyntaxMissing(
        "(0002,0010) TransferSyntaxUID is absent and the data set does not begin like an uncompressed one"
    )


def _inflate(stream: BinaryIO, *, limits: Limits) -> tuple[BinaryIO, int]:
    """Inflate a deflated data set (PS3.5 A.5) under the cap; the result never holds more than the cap allows."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    start = stream.tell()
    whole = io.BytesIO()
    packed_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(start)
    allowed = min(limits.inflated_bytes, max(limits.inflate_free_bytes, limits.inflate_ratio * packed_bytes))
    try:
        while not inflater.eof and (packed := stream.read(1 << 16)):
            while packed:
                whole.write(inflater.decompress(packed, 1 << 20))
                if whole.tell() > allowed:
                    raise TooLarge(f"the deflated data set inflates from {packed_bytes} to more than {allowed} bytes")
                packed = inflater.unconsumed_tail
    except zlib.error as exc:
        raise Malformed("the deflated data set cannot be inflated") from exc
    if not inflater.eof:
        raise Truncated("the deflated data set ends before its last block")
    stream.close()
    size = whole.tell()
    whole.seek(0)
    return whole, size


def _found_implicit(stream: BinaryIO, syntax: TransferSyntax) -> bool:
    """Whether VRs are implicit, as the first element shows; some writers state the other."""
    start = stream.tell()
    vr = stream.read(6)[4:6]
    stream.seek(start)
    if len(vr) < 2:
        return syntax.implicit_vr
    return not (vr.isalpha() and vr.isupper())


def _written_texts(dataset: Dataset) -> dict[str, bytes]:
    elements = ((keyword, dataset.get_item(keyword)) for keyword in _TEXTS if keyword in dataset)
    return {keyword: one.value for keyword, one in elements if one is not None and isinstance(one.value, bytes)}


def _at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return int(tag) in _PIXEL_KEYWORDS


def _pixel_element(stream: BinaryIO, encoding: Encoding) -> PixelElement | None:
    """Read the header of the pixel element at which parsing stopped; None at the end of the data set."""
    order = encoding.order
    head = stream.read(12)
    if len(head) < 8:
        return None
    group, element = struct.unpack(f"{order}HH", head[:4])
    keyword = _PIXEL_KEYWORDS.get(group << 16 | element)
    if keyword is None:
        return None
    start = stream.tell() - len(head)
    vr: str | None = None
    if encoding.implicit_vr:
        length, offset = struct.unpack(f"{order}I", head[4:8])[0], start + 8
    elif head[4:6] in LONG_VRS:
        vr, offset = head[4:6].decode(), start + 12
        if len(head) < 12:
            raise Truncated(f"the file ends inside the header of {keyword}")
        length = struct.unpack(f"{order}I", head[8:12])[0]
    else:
        vr, offset = head[4:6].decode("ascii", "replace"), start + 8
        length = struct.unpack(f"{order}H", head[6:8])[0]
    if length == UNDEFINED_LENGTH:
        return PixelElement(keyword=keyword, vr=vr, offset=offset, length=None)
    return PixelElement(keyword=keyword, vr=vr, offset=offset, length=length)
