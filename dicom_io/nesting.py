"""Walk a data set's tags and lengths without recursion, before any parser that recurses sees it."""

import struct
from dataclasses import dataclass
from typing import BinaryIO

from dicom_io.errors import Malformed, NestingTooDeep, TooLarge, Truncated
from dicom_io.limits import Limits

# VRs whose length takes four bytes (PS3.5 7.1.2).
LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
UNDEFINED_LENGTH = 0xFFFFFFFF

_FRAGMENT_VRS = frozenset((b"OB", b"OW", b"OF", b"OD", b"OL", b"OV"))
_PIXEL_TAGS = frozenset(((0x7FE0, 0x0008), (0x7FE0, 0x0009), (0x7FE0, 0x0010)))


@dataclass(frozen=True, slots=True)
class Encoding:
    """How elements are written: with VRs or without, and in which byte order."""

    implicit_vr: bool
    little_endian: bool

    @property
    def order(self) -> str:
        """The byte order as `struct` writes it."""
        return "<" if self.little_endian else ">"


@dataclass(frozen=True, slots=True)
class _Container:
    end: int | None  # None: until its delimiter
    kind: str  # "sequence", "item" or "fragments"


def scan(stream: BinaryIO, *, start: int, end: int, encoding: Encoding, limits: Limits) -> None:
    """Walk from `start` to the pixels or to `end`.

    Raises NestingTooDeep, TooLarge (too many elements), Truncated (an element reaches past the end), and Malformed for
    a sequence whose byte order is not that of the data set. Bytes that make no sense otherwise are left to the parser.
    """
    walk = _Walk(encoding, end=end, depth_allowed=limits.sequence_depth)
    position, elements = start, 0
    while position + 8 <= end:
        walk.leave_ended(position)
        stream.seek(position)
        head = stream.read(16)
        tag: tuple[int, int] = struct.unpack(f"{encoding.order}HH", head[:4])
        if not walk.containers and tag in _PIXEL_TAGS:
            return
        elements += 1
        if elements > limits.element_count:
            raise TooLarge(f"the data set has more than {limits.element_count} elements")
        position = walk.step(tag, head, position)
    walk.leave_ended(position)
    if walk.containers:
        raise Truncated("the file ends inside a sequence")


class _Walk:
    def __init__(self, encoding: Encoding, *, end: int, depth_allowed: int) -> None:
        self._encoding = encoding
        self._end = end
        self._depth = 0
        self._depth_allowed = depth_allowed
        self.containers: list[_Container] = []

    def leave_ended(self, position: int) -> None:
        """Leave the containers whose stated length is used up."""
        while self.containers and (end := self.containers[-1].end) is not None and position >= end:
            self._leave()

    def step(self, tag: tuple[int, int], head: bytes, position: int) -> int:
        """Take one tag and say where the next one lies."""
        if tag[0] == 0xFFFE:
            return self._structure(tag[1], head, position)
        vr, length, header_bytes = self._header(head)
        value = position + header_bytes
        undefined = length == UNDEFINED_LENGTH
        if undefined and vr in _FRAGMENT_VRS:
            self.containers.append(_Container(None, "fragments"))
            return value
        if undefined or vr == b"SQ" or self._begins_with_item(head[header_bytes:], vr=vr, length=length):
            self._enter_sequence(tag, vr, None if undefined else value + length)
            return value
        if value + length > self._end:
            raise Truncated(
                f"({tag[0]:04X},{tag[1]:04X}) says that it is {length} bytes long; "
                f"the file ends {value + length - self._end} bytes before that"
            )
        return value + length

    def _structure(self, element: int, head: bytes, position: int) -> int:
        """An item or a delimiter."""
        length = struct.unpack(f"{self._encoding.order}I", head[4:8])[0]
        value = position + 8
        if element != 0xE000:
            # A delimiter ends the innermost container of undefined length.
            while self.containers and self._leave().end is not None:
                pass
            return value
        if self.containers and self.containers[-1].kind == "fragments":
            return value + int(length)
        self.containers.append(_Container(None if length == UNDEFINED_LENGTH else value + length, "item"))
        return value

    def _enter_sequence(self, tag: tuple[int, int], vr: bytes | None, end: int | None) -> None:
        if vr == b"UN" and not self._encoding.little_endian:
            # PS3.5 6.2.2 makes its content little endian, which the parser does not follow.
            raise Malformed(f"({tag[0]:04X},{tag[1]:04X}) is a sequence of VR UN in a big-endian data set")
        self._depth += 1
        if self._depth > self._depth_allowed:
            raise NestingTooDeep(f"sequences are nested more than {self._depth_allowed} deep")
        self.containers.append(_Container(end, "sequence"))

    def _leave(self) -> _Container:
        left = self.containers.pop()
        self._depth -= left.kind == "sequence"
        return left

    def _header(self, head: bytes) -> tuple[bytes | None, int, int]:
        """VR (None where there is none), value length, and the length of the header itself."""
        order, vr = self._encoding.order, head[4:6]
        # PS3.5 6.2.2: sequences of VR UN are implicit inside an explicit data set, so every element is looked at.
        if self._encoding.implicit_vr or not (vr.isalpha() and vr.isupper()):
            return None, struct.unpack(f"{order}I", head[4:8])[0], 8
        if vr not in LONG_VRS:
            return vr, struct.unpack(f"{order}H", head[6:8])[0], 8
        if len(head) < 12:
            raise Truncated("the file ends inside the header of an element")
        return vr, struct.unpack(f"{order}I", head[8:12])[0], 12

    def _begins_with_item(self, value: bytes, *, vr: bytes | None, length: int) -> bool:
        """Whether a value without VR (or of VR UN) is a sequence: it then begins with an item tag."""
        if vr not in (None, b"UN") or length < 8 or len(value) < 4:
            return False
        return struct.unpack(f"{self._encoding.order}HH", value[:4]) == (0xFFFE, 0xE000)
