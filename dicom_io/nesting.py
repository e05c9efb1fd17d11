"""Walk a data set's tags and lengths without recursion, before any parser that recurses sees it."""

import struct
from dataclasses import dataclass
from typing import BinaryIO

from dicom_io.errors import NestingTooDeep, TooLarge, Truncated
from dicom_io.limits import Limits

_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_FRAGMENT_VRS = frozenset((b"OB", b"OW", b"OF", b"OD", b"OL", b"OV"))
_UNDEFINED = 0xFFFFFFFF
_PIXEL_TAGS = frozenset(((0x7FE0, 0x0008), (0x7FE0, 0x0009), (0x7FE0, 0x0010)))


@dataclass(frozen=True, slots=True)
class Encoding:
    """How elements are written: with VRs or without, and in which byte order."""

    implicit_vr: bool
    little_endian: bool


@dataclass(frozen=True, slots=True)
class _Container:
    end: int | None  # None: until its delimiter
    kind: str  # "sequence", "item" or "fragments"


def scan(stream: BinaryIO, *, start: int, end: int, encoding: Encoding, limits: Limits) -> None:
    """Walk from `start` to the pixels or to `end`.

    Raises NestingTooDeep, TooLarge (too many elements) and Truncated (an element reaches past the end).
    Bytes that make no sense otherwise are left to the parser.
    """
    order = "<" if encoding.little_endian else ">"
    containers: list[_Container] = []
    position, elements, depth = start, 0, 0
    while position + 8 <= end:
        while containers and containers[-1].end is not None and position >= containers[-1].end:
            depth -= containers.pop().kind == "sequence"
        stream.seek(position)
        head = stream.read(16)
        group, element = struct.unpack(f"{order}HH", head[:4])
        elements += 1
        if elements > limits.element_count:
            raise TooLarge(f"the data set has more than {limits.element_count} elements")
        if group == 0xFFFE:
            length = struct.unpack(f"{order}I", head[4:8])[0]
            position += 8
            if element != 0xE000:  # a delimiter ends the innermost container of undefined length
                while containers:
                    ended = containers.pop()
                    depth -= ended.kind == "sequence"
                    if ended.end is None:
                        break
            elif containers and containers[-1].kind == "fragments":
                position += length
            else:
                containers.append(_Container(None if length == _UNDEFINED else position + length, "item"))
            continue
        if not containers and (group, element) in _PIXEL_TAGS:
            return
        vr, length, header = _element_header(head, order=order, implicit_vr=encoding.implicit_vr)
        value = position + header
        if length == _UNDEFINED and vr in _FRAGMENT_VRS:
            containers.append(_Container(None, "fragments"))
            position = value
        elif length == _UNDEFINED or vr == b"SQ" or _begins_with_item(head, header, order=order, length=length, vr=vr):
            depth += 1
            if depth > limits.sequence_depth:
                raise NestingTooDeep(f"sequences are nested more than {limits.sequence_depth} deep")
            containers.append(_Container(None if length == _UNDEFINED else value + length, "sequence"))
            position = value
        else:
            position = value + length
            if position > end:
                raise Truncated(
                    f"({group:04X},{element:04X}) says that it is {length} bytes long; the file ends {position - end} "
                    "bytes before that"
                )


def _element_header(head: bytes, *, order: str, implicit_vr: bool) -> tuple[bytes | None, int, int]:
    """VR (None where there is none), value length, and the length of the header itself."""
    vr = head[4:6]
    # PS3.5 6.2.2: sequences of VR UN are implicit inside an explicit data set, so every element is looked at.
    if implicit_vr or not (vr.isalpha() and vr.isupper()):
        return None, struct.unpack(f"{order}I", head[4:8])[0], 8
    if vr in _LONG_VRS:
        if len(head) < 12:
            raise Truncated("the file ends inside the header of an element")
        return vr, struct.unpack(f"{order}I", head[8:12])[0], 12
    return vr, struct.unpack(f"{order}H", head[6:8])[0], 8


def _begins_with_item(head: bytes, header: int, *, order: str, length: int, vr: bytes | None) -> bool:
    """Whether a value without VR (or of VR UN) is a sequence: it then begins with an item tag."""
    if vr not in (None, b"UN") or length < 8:
        return False
    item = head[header : header + 4]
    return len(item) == 4 and struct.unpack(f"{order}HH", item) == (0xFFFE, 0xE000)
