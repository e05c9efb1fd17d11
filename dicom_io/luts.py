"""Look-up tables of PS3.3: modality, VOI and palette. Runs in the decoding process only."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.attributes import integer, items, named, raw, text
from dicom_io.errors import BadAttribute
from dicom_io.layout import Layout
from dicom_io.types import VoiLut

# VOI LUTs of one frame; mammography, which has most, has three.
_TABLES_MAX = 64


class Table:
    """One look-up table: entry i belongs to the value `first + i`, and the end entries to all values beyond."""

    def __init__(self, first: int, bits: int, entries: NDArray[np.int64]) -> None:
        self.first = first
        self.bits = bits
        self.entries = entries

    @property
    def top(self) -> int:
        """The largest value that an entry can take."""
        return (1 << self.bits) - 1

    def reach(self, low: int, high: int) -> tuple[int, int]:
        """The smallest and the largest entry that values from `low` to `high` can meet."""
        ends = np.clip(np.array((low, high)) - self.first, 0, len(self.entries) - 1)
        met = self.entries[ends[0] : ends[1] + 1]
        return int(met.min()), int(met.max())

    def __call__(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Look values up."""
        return self.entries[np.clip(values.astype(np.int64) - self.first, 0, len(self.entries) - 1)]


def table(dataset: Dataset, descriptor: str, content: str, *, signed: bool, little_endian: bool) -> Table:
    """Read a descriptor (entries, first value, bits) and its data (PS3.3 C.11.1.1); raises BadAttribute."""
    count, first, bits = _descriptor(dataset, descriptor, signed=signed)
    value = raw(dataset, content)
    if value is None:
        raise BadAttribute(f"{named(content)} is absent or empty, though {named(descriptor)} is there")
    if isinstance(value, bytes):
        order = "<" if little_endian else ">"
        # C.11.1.1.1 allows 8-bit entries to be packed two to a word.
        width = 1 if bits <= 8 and len(value) <= count + 1 else 2
        entries = np.frombuffer(value, f"{order}u{width}", count=len(value) // width)
    else:
        entries = np.atleast_1d(np.asarray(value))
    if entries.size == 0 or entries.dtype.kind not in "iu":
        raise BadAttribute(f"{named(content)} holds no whole numbers")
    # Signed VRs are a defect of some writers; the entries are unsigned.
    entries = entries[:count].astype(np.int64) & 0xFFFF
    if entries.size < count:
        raise BadAttribute(f"{named(content)} has {entries.size} entries; {named(descriptor)} says {count}")
    # Some writers state 16 bits over 8-bit data and the reverse: the entries themselves show it.
    if entries.max() >= 1 << bits:
        bits = int(entries.max()).bit_length()
    return Table(first, bits, entries)


def _descriptor(dataset: Dataset, keyword: str, *, signed: bool) -> tuple[int, int, int]:
    value = raw(dataset, keyword)
    try:
        count, first, bits = (int(n) for n in value)
    except (TypeError, ValueError) as exc:
        raise BadAttribute(f"{named(keyword)} has not three numbers as its value") from exc
    count &= 0xFFFF
    first = (first + 0x8000) % 0x10000 - 0x8000 if signed else first % 0x10000
    if not 8 <= bits <= 16:
        raise BadAttribute(f"{named(keyword)} says {bits} bits an entry; 8 to 16 is allowed")
    return count or 0x10000, first, bits


def modality_table(place: Dataset, *, form: Layout, little_endian: bool) -> Table | None:
    """The Modality LUT (PS3.3 C.11.1), None when there is none."""
    for item in _filled(place, "ModalityLUTSequence")[:1]:
        return table(item, "LUTDescriptor", "LUTData", signed=form.signed, little_endian=little_endian)
    return None


def _filled(place: Dataset, sequence: str) -> list[Dataset]:
    """The items that hold a table; some writers leave an item with nothing in it."""
    return [item for item in items(place, sequence) if raw(item, "LUTDescriptor") is not None]


def voi_luts(place: Dataset, *, signed: bool, little_endian: bool) -> tuple[VoiLut, ...]:
    """All items of the VOI LUT Sequence (PS3.3 C.11.2), entries scaled to 0..1."""
    found = []
    for item in _filled(place, "VOILUTSequence")[:_TABLES_MAX]:
        one = table(item, "LUTDescriptor", "LUTData", signed=signed, little_endian=little_endian)
        found.append(
            VoiLut(
                first_mapped=float(one.first),
                entries=(one.entries / one.top).astype(np.float32),
                explanation=text(item, "LUTExplanation"),
            )
        )
    return tuple(found)


def palette_to_rgb(values: NDArray[Any], dataset: Dataset, *, form: Layout, little_endian: bool) -> NDArray[np.float32]:
    """Colours of palette indices, (rows, columns, 3) in 0..255 (PS3.3 C.7.6.3.1.5); raises BadAttribute.

    Of wider entries the upper 8 bits are the colour: white is FF00 in the files of many writers, FFFF in others.
    """
    channels = []
    for colour in ("Red", "Green", "Blue"):
        one = _palette_table(dataset, colour, form=form, little_endian=little_endian)
        channels.append((one(values) >> (one.bits - 8)).astype(np.float32))
    return np.stack(channels, axis=-1)


def _palette_table(dataset: Dataset, colour: str, *, form: Layout, little_endian: bool) -> Table:
    descriptor = f"{colour}PaletteColorLookupTableDescriptor"
    plain, segmented = f"{colour}PaletteColorLookupTableData", f"Segmented{colour}PaletteColorLookupTableData"
    if raw(dataset, plain) is not None or raw(dataset, segmented) is None:
        one = table(dataset, descriptor, plain, signed=form.signed, little_endian=little_endian)
    else:
        one = _segmented_table(dataset, descriptor, segmented, signed=form.signed, little_endian=little_endian)
    if one.bits == 16 and one.entries.max() <= 0xFF:
        # A known defect (also handled by dcmtk): 8-bit colours under a descriptor that says 16.
        return Table(one.first, 8, one.entries)
    return one


def _segmented_table(dataset: Dataset, descriptor: str, content: str, *, signed: bool, little_endian: bool) -> Table:
    """Expand discrete, linear and indirect segments (PS3.3 C.7.9.2), never past the number of entries stated."""
    count, first, bits = _descriptor(dataset, descriptor, signed=signed)
    value = raw(dataset, content)
    if not isinstance(value, bytes):
        raise BadAttribute(f"{named(content)} holds no bytes")
    kind = "u1" if bits == 8 else f"{'<' if little_endian else '>'}u2"
    words = np.frombuffer(value, kind, count=len(value) // np.dtype(kind).itemsize).astype(np.int64)
    entries = np.zeros(count, np.int64)
    filled = _expand(words, entries, start=0, segments=len(words), filled=0, content=content, bits=bits)
    if filled < count:
        raise BadAttribute(f"{named(content)} expands to {filled} entries; {named(descriptor)} says {count}")
    return Table(first, bits, entries)


def _expand(
    words: NDArray[np.int64],
    entries: NDArray[np.int64],
    *,
    start: int,
    segments: int,
    filled: int,
    content: str,
    bits: int,
    indirect: bool = False,
) -> int:
    position = start
    for _ in range(segments):
        if position + 2 > len(words) or filled >= len(entries):
            break
        opcode, length = int(words[position]), int(words[position + 1])
        if opcode == 0 and position + 2 + length <= len(words):
            part = words[position + 2 : position + 2 + length]
            position += 2 + length
        elif opcode == 1 and position + 3 <= len(words) and filled:
            begin, end = entries[filled - 1], words[position + 2]
            part = np.rint(np.linspace(begin, end, length + 1)[1:]).astype(np.int64)
            position += 3
        elif opcode == 2 and position + 2 + 4 // (bits // 8) <= len(words) and not indirect:
            # The offset is given in two words, or in four bytes, least significant first.
            parts = words[position + 2 : position + 2 + 4 // (bits // 8)]
            offset_bytes = sum(int(part) << (bits * n) for n, part in enumerate(parts))
            filled = _expand(
                words,
                entries,
                start=offset_bytes // (bits // 8),
                segments=length,
                filled=filled,
                content=content,
                bits=bits,
                indirect=True,
            )
            position += 2 + len(parts)
            continue
        else:
            raise BadAttribute(f"{named(content)} has a segment that is not allowed")
        part = part[: len(entries) - filled]
        entries[filled : filled + len(part)] = part
        filled += len(part)
    return filled


def padding_range(dataset: Dataset, *, form: Layout) -> tuple[int, int] | None:
    """Lowest and highest stored value that means padding (PS3.3 C.7.5.1.1.2), None when there is none."""
    value = integer(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = integer(dataset, "PixelPaddingRangeLimit")
    ends = [_as_stored(one, form) for one in (value, value if limit is None else limit)]
    return min(ends), max(ends)


def _as_stored(value: int, form: Layout) -> int:
    """A padding value in the sign that Pixel Representation gives; its VR, US or SS, is often written wrongly."""
    value %= 1 << max(16, form.bits_allocated)
    half = 1 << (max(16, form.bits_allocated) - 1)
    return value - 2 * half if form.signed and value >= half else value
