"""Find the fragments of each frame of encapsulated Pixel Data (PS3.5 A.4). Runs in the decoding process only."""

import struct
from itertools import pairwise

from pydicom.dataset import Dataset

from dicom_io.attributes import raw
from dicom_io.errors import CannotDecode, Malformed, TooLarge, Truncated
from dicom_io.limits import Limits
from dicom_io.part10 import Part10

Fragment = tuple[int, int]  # offset in the stream, length

_ITEM = b"\xfe\xff\x00\xe0"
_DELIMITER = b"\xfe\xff\xdd\xe0"
# A frame of JPEG and JPEG-LS begins with SOI, one of JPEG 2000 with SOC and SIZ or a JP2 signature box.
_STARTS = (b"\xff\xd8", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP")


def frame_bytes(part10: Part10, index: int, *, frame_count: int, limits: Limits) -> bytes:
    """The encoded bytes of one frame (0-based), its fragments joined.

    Raises Malformed, Truncated, CannotDecode (the fragments cannot be told apart into frames) and TooLarge.
    """
    if part10.frame_offsets is None:
        part10.frame_offsets = _frames(part10, frame_count=frame_count, limits=limits)
    if index >= len(part10.frame_offsets):
        raise Truncated(f"frame {index + 1} is not in the file; it holds {len(part10.frame_offsets)} of {frame_count}")
    fragments = part10.frame_offsets[index]
    length = sum(size for _, size in fragments)
    if length > limits.frame_bytes:
        raise TooLarge(f"frame {index + 1} has {length} encoded bytes; at most {limits.frame_bytes} are read")
    parts = []
    for offset, size in fragments:
        part10.stream.seek(offset)
        part = part10.stream.read(size)
        if len(part) < size:
            raise Truncated(f"the file ends inside frame {index + 1}")
        parts.append(part)
    return b"".join(parts)


def _frames(part10: Part10, *, frame_count: int, limits: Limits) -> list[list[Fragment]]:
    table, base, fragments = _fragments(part10, limits=limits)
    if not fragments:
        raise Truncated("(7FE0,0010) PixelData holds no fragment")
    offsets = _extended_offsets(part10.dataset) or table
    if frame_count == 1:
        return [fragments]
    if len(offsets) == frame_count:
        grouped = _by_offsets(fragments, [base + offset for offset in offsets])
        if grouped is not None:
            return grouped
    if len(fragments) <= frame_count:
        return [[fragment] for fragment in fragments]
    grouped = _by_start_marker(part10, fragments)
    if len(grouped) == frame_count:
        return grouped
    raise CannotDecode(
        f"{len(fragments)} fragments cannot be divided into {frame_count} frames: there is no usable offset table"
    )


def _fragments(part10: Part10, *, limits: Limits) -> tuple[list[int], int, list[Fragment]]:
    """The Basic Offset Table, where its offsets count from, and all fragments; the last may reach past the end."""
    assert part10.pixels is not None
    stream, position = part10.stream, part10.pixels.offset
    table: list[int] | None = None
    fragments: list[Fragment] = []
    while position + 8 <= part10.size:
        stream.seek(position)
        head = stream.read(8)
        length = struct.unpack("<I", head[4:])[0]
        position += 8
        if head[:4] == _DELIMITER:
            break
        if head[:4] != _ITEM:
            raise Malformed("(7FE0,0010) PixelData has something other than an item where a fragment should begin")
        if table is None:
            content = stream.read(min(length, 4 * limits.element_count))
            table = [n for (n,) in struct.iter_unpack("<I", content[: len(content) // 4 * 4])]
        else:
            fragments.append((position, length))
        if len(fragments) > limits.element_count:
            raise TooLarge(f"(7FE0,0010) PixelData has more than {limits.element_count} fragments")
        position += length
    base = fragments[0][0] - 8 if fragments else 0
    # An empty fragment carries nothing, and some writers pad with them.
    return table or [], base, [fragment for fragment in fragments if fragment[1]]


def _extended_offsets(dataset: Dataset) -> list[int]:
    """Offsets of the Extended Offset Table, which are relative as in the basic one; empty when absent."""
    value = raw(dataset, "ExtendedOffsetTable")
    if not isinstance(value, bytes):
        return []
    return [n for (n,) in struct.iter_unpack("<Q", value[: len(value) // 8 * 8])]


def _by_offsets(fragments: list[Fragment], offsets: list[int]) -> list[list[Fragment]] | None:
    """Group by the item offsets of each frame's first fragment; None when the table does not fit the fragments."""
    numbers = {offset - 8: number for number, (offset, _) in enumerate(fragments)}
    starts = [numbers.get(offset, -1) for offset in offsets]
    if starts[0] != 0 or any(later <= earlier for earlier, later in pairwise(starts)):
        return None
    ends = [*starts[1:], len(fragments)]
    return [fragments[start:end] for start, end in zip(starts, ends, strict=True)]


def _by_start_marker(part10: Part10, fragments: list[Fragment]) -> list[list[Fragment]]:
    grouped: list[list[Fragment]] = []
    for offset, length in fragments:
        part10.stream.seek(offset)
        if part10.stream.read(8).startswith(_STARTS) or not grouped:
            grouped.append([])
        grouped[-1].append((offset, length))
    return grouped
