"""Blank what compressed frames carry beside their pixels: comments and application data, which may name a patient.

Bytes are overwritten where they stand, so no length, offset or pixel changes.
"""

import struct
from collections.abc import Iterator

SOI, SOC = b"\xff\xd8", b"\xff\x4f"
# JPEG (ITU-T T.81 B.1.1.3) and JPEG-LS: comments, and application data but for what says how colours are coded.
JPEG_COMMENT = 0xFE
JPEG_APPLICATION = frozenset(range(0xE0, 0xF0)) - {0xE0, 0xE8, 0xEE}  # JFIF, SPIFF, Adobe
JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
JPEG_ENDS = frozenset({0xDA, 0xD9})  # start of scan, end of image
# JPEG 2000 (ITU-T T.800 A.9.2): comment; the main header ends at the first tile-part.
J2K_COMMENT, J2K_TILE_PART = 0x64, 0x90
ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


def without_comments(encapsulated: bytes) -> bytes:
    """Encapsulated Pixel Data (PS3.5 A.4) with blanks for every comment and application segment of its frames."""
    content = bytearray(encapsulated)
    for start, end in _fragments(content):
        for first, last in _segments(content, start, end):
            content[first:last] = b" " * (last - first)
    return bytes(content)


def _fragments(content: bytearray) -> Iterator[tuple[int, int]]:
    """Where each fragment lies, after the offset table."""
    position, number = 0, 0
    while content[position : position + 4] == ITEM and position + 8 <= len(content):
        (length,) = struct.unpack_from("<I", content, position + 4)
        start = position + 8
        if number:
            yield start, min(start + length, len(content))
        position, number = start + length, number + 1


def _segments(content: bytearray, start: int, end: int) -> Iterator[tuple[int, int]]:
    """What is to be blanked of a fragment that begins a frame; nothing of one that goes on with it."""
    begins = bytes(content[start : start + 2])
    if begins not in {SOI, SOC}:
        return
    position = start + 2
    while position + 4 <= end and content[position] == 0xFF:
        marker = content[position + 1]
        if begins == SOI and marker in JPEG_WITHOUT_LENGTH:
            position += 2
            continue
        if marker in JPEG_ENDS if begins == SOI else marker == J2K_TILE_PART:
            return
        (length,) = struct.unpack_from(">H", content, position + 2)
        last = min(position + 2 + length, end)
        if begins == SOI and (marker == JPEG_COMMENT or marker in JPEG_APPLICATION):
            yield position + 4, last
        elif begins == SOC and marker == J2K_COMMENT:
            yield position + 6, last  # two bytes say what kind of comment it is
        position += 2 + max(length, 2)
