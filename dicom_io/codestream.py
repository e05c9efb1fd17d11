"""Read the first markers of JPEG, JPEG-LS and JPEG 2000 codestreams, before a decoder sees them."""

import struct
from dataclasses import dataclass

from dicom_io.errors import CannotDecode

_RGB_IDS = (b"RGB", b"rgb")
# SOF0 to SOF15 without DHT (C4), JPG (C8) and DAC (CC); SOF55 (F7) is JPEG-LS.
_SOF = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What the frame header (ISO/IEC 10918-1 B.2.2) and the application markers say."""

    precision: int
    rows: int
    columns: int
    component_ids: bytes
    sequential_dct: bool  # SOF0 or SOF1
    scan_at: int  # where what follows the frame header begins
    jfif: bool
    adobe_transform: int | None  # 0: none, 1: YCbCr

    @property
    def components(self) -> int:
        """Samples per pixel."""
        return len(self.component_ids)

    @property
    def is_rgb(self) -> bool:
        """Whether the components are named R, G and B."""
        return self.component_ids in _RGB_IDS


@dataclass(frozen=True, slots=True)
class Jpeg2000Header:
    """What the SIZ marker segment (ISO/IEC 15444-1 A.5.1) says."""

    precision: int  # of the first component, as the decoder takes it for all
    signed: bool
    rows: int
    columns: int
    components: int


def jpeg_header(source: bytes) -> JpegHeader:
    """Walk the markers up to the frame header; raises CannotDecode when there is none."""
    if source[:2] != b"\xff\xd8":
        raise CannotDecode("the frame does not begin like a JPEG codestream")
    position, jfif, adobe_transform = 2, False, None
    try:
        while True:
            if source[position] != 0xFF:
                raise CannotDecode("the JPEG codestream has no frame header")
            marker = source[position + 1]
            if marker == 0xFF:  # a fill byte
                position += 1
                continue
            if marker in _WITHOUT_LENGTH:
                position += 2
                continue
            length = struct.unpack_from(">H", source, position + 2)[0]
            segment = source[position + 4 : position + 2 + length]
            if marker in _SOF:
                precision, rows, columns, components = struct.unpack_from(">BHHB", segment)
                ids = bytes(segment[6 + 3 * n] for n in range(components))
                return JpegHeader(
                    precision=precision,
                    rows=rows,
                    columns=columns,
                    component_ids=ids,
                    sequential_dct=marker in (0xC0, 0xC1),
                    scan_at=position + 2 + length,
                    jfif=jfif,
                    adobe_transform=adobe_transform,
                )
            if marker == 0xE0:
                jfif = jfif or segment.startswith(b"JFIF")
            elif marker == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12:
                adobe_transform = segment[11]
            position += 2 + max(length, 2)
    except (IndexError, struct.error) as exc:
        raise CannotDecode("the JPEG codestream ends before its frame header") from exc


def with_sequential_scan(source: bytes, header: JpegHeader) -> bytes:
    """The codestream with the spectral selection that sequential DCT must have, 0 to 63 (ISO/IEC 10918-1 B.2.3).

    Some encoders of 12-bit frames write 0 to 0; the mode leaves no other meaning, and the decoder refuses it.
    """
    position = header.scan_at
    while header.sequential_dct and source[position : position + 1] == b"\xff" and position + 5 < len(source):
        length = struct.unpack_from(">H", source, position + 2)[0]
        if source[position + 1] == 0xDA:
            at = position + 5 + 2 * source[position + 4]
            if source[at : at + 3] != b"\x00\x3f\x00" and at + 3 <= len(source):
                return source[:at] + b"\x00\x3f\x00" + source[at + 3 :]
            break
        position += 2 + max(length, 2)
    return source


def jpeg2000_header(source: bytes) -> Jpeg2000Header:
    """Find the SIZ marker, past the boxes of a JP2 file if there are any; raises CannotDecode when there is none."""
    start = source.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0:
        raise CannotDecode("the frame does not begin like a JPEG 2000 codestream")
    try:
        right, bottom, left, top = struct.unpack_from(">IIII", source, start + 8)
        components, depth = struct.unpack_from(">H", source, start + 40)[0], source[start + 42]
    except (IndexError, struct.error) as exc:
        raise CannotDecode("the JPEG 2000 codestream ends inside its header") from exc
    return Jpeg2000Header(
        precision=(depth & 0x7F) + 1,
        signed=bool(depth & 0x80),
        rows=bottom - top,
        columns=right - left,
        components=components,
    )
