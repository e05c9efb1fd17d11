"""Decode one frame to its stored samples: native, JPEG, JPEG-LS, JPEG 2000, RLE, deflated.

Runs in the decoding process only. The decoder of each transfer syntax is fixed (see `dicom_io.uids`), so that the same
file always gives the same pixels; python-gdcm, which aborts the process on some malformed streams, is never used.
"""

import zlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import libjpeg
import numpy as np
import openjpeg
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from rle.rle import decode_frame as decode_rle_frame

from dicom_io.attributes import integer, named, required_integer, text
from dicom_io.codestream import JpegHeader, jpeg2000_header, jpeg_header
from dicom_io.encapsulation import frame_bytes
from dicom_io.errors import (
    BadAttribute,
    CannotDecode,
    Malformed,
    PixelsNotRead,
    TooLarge,
    TransferSyntaxNotRead,
    Truncated,
)
from dicom_io.limits import Limits
from dicom_io.part10 import Part10

Samples = NDArray[Any]

_PACKAGES = {
    "native": "numpy",
    "libjpeg": "pylibjpeg-libjpeg",
    "openjpeg": "pylibjpeg-openjpeg",
    "rle": "pylibjpeg-rle",
}
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


@dataclass(frozen=True, slots=True)
class Layout:
    """The Image Pixel module (PS3.3 C.7.6.3), checked."""

    rows: int
    columns: int
    photometric: str
    samples: int
    planar: bool  # colour by plane
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    floating: bool

    @property
    def pixel_count(self) -> int:
        """Pixels of one frame."""
        return self.rows * self.columns

    @property
    def stored_range(self) -> tuple[int, int]:
        """The smallest and the largest value that the stored bits can express."""
        if self.signed:
            return -(1 << (self.bits_stored - 1)), (1 << (self.bits_stored - 1)) - 1
        return 0, (1 << self.bits_stored) - 1


@dataclass(frozen=True, slots=True)
class Decoded:
    """Stored values of one frame, not yet in modality units."""

    samples: Samples  # (rows, columns) or (rows, columns, 3)
    photometric: str  # what the samples are after decoding, which the codestream may know better than the header
    decoder: str
    notes: tuple[str, ...] = ()


def layout(part10: Part10, *, limits: Limits) -> Layout:
    """Read and check the attributes that pixels depend on; raises BadAttribute, PixelsNotRead and TooLarge."""
    dataset = part10.dataset
    floating = part10.pixels is not None and part10.pixels.keyword != "PixelData"
    rows, columns = required_integer(dataset, "Rows"), required_integer(dataset, "Columns")
    for keyword, value in (("Rows", rows), ("Columns", columns)):
        if not 1 <= value <= 65535:
            raise BadAttribute(f"{named(keyword)} is {value}; 1 to 65535 is allowed")
    photometric = text(dataset, "PhotometricInterpretation")
    if photometric is None:
        raise BadAttribute(
            f"{named('PhotometricInterpretation')} is absent or empty; the pixels cannot be read without it"
        )
    if photometric not in (*_GREY, *_COLOUR, "PALETTE COLOR"):
        raise PixelsNotRead(
            f"{named('PhotometricInterpretation')} is {photometric[:16]!r}, which this reader does not read"
        )
    samples = integer(dataset, "SamplesPerPixel") or (3 if photometric in _COLOUR else 1)
    if samples != (3 if photometric in _COLOUR else 1):
        raise BadAttribute(f"{named('SamplesPerPixel')} is {samples}, which does not go with {photometric}")
    size = rows * columns * samples * 4
    if size > limits.frame_bytes:
        raise TooLarge(
            f"a frame of {rows} x {columns} x {samples} needs {size} bytes; at most {limits.frame_bytes} are read"
        )
    return Layout(
        rows=rows,
        columns=columns,
        photometric=photometric,
        samples=samples,
        planar=integer(dataset, "PlanarConfiguration") == 1,
        floating=floating,
        **_bits(dataset, part10=part10, floating=floating),
    )


def _bits(dataset: Dataset, *, part10: Part10, floating: bool) -> dict[str, Any]:
    if floating:
        assert part10.pixels is not None
        width = 32 if part10.pixels.keyword == "FloatPixelData" else 64
        return {"bits_allocated": width, "bits_stored": width, "high_bit": width - 1, "signed": True}
    allocated = required_integer(dataset, "BitsAllocated")
    if allocated not in (1, 8, 12, 16, 32):
        raise BadAttribute(f"{named('BitsAllocated')} is {allocated}; this reader takes 1, 8, 12, 16 and 32")
    stored = required_integer(dataset, "BitsStored")
    if not 1 <= stored <= allocated:
        raise BadAttribute(f"{named('BitsStored')} is {stored}; 1 to {allocated} is allowed here")
    high_bit = integer(dataset, "HighBit")
    high_bit = stored - 1 if high_bit is None else high_bit
    if not stored - 1 <= high_bit < allocated:
        raise BadAttribute(f"{named('HighBit')} is {high_bit}; {stored - 1} to {allocated - 1} is allowed here")
    representation = required_integer(dataset, "PixelRepresentation")
    if representation not in (0, 1):
        raise BadAttribute(f"{named('PixelRepresentation')} is {representation}; 0 or 1 is allowed")
    return {"bits_allocated": allocated, "bits_stored": stored, "high_bit": high_bit, "signed": representation == 1}


@cache
def decoder_name(decoder: str) -> str:
    """Name and version of a decoder, for the audited record."""
    return (
        f"zlib {zlib.ZLIB_RUNTIME_VERSION}"
        if decoder == "zlib"
        else f"{_PACKAGES[decoder]} {version(_PACKAGES[decoder])}"
    )


def decode(part10: Part10, form: Layout, index: int, *, frame_count: int, limits: Limits) -> Decoded:
    """Stored values of one frame (0-based), sign and unused bits settled.

    Raises TransferSyntaxNotRead, Truncated, Malformed, CannotDecode, TooLarge.
    """
    decoder = part10.syntax.decoder
    if decoder is None:
        raise TransferSyntaxNotRead(
            f"pixels in {part10.syntax.name} ({part10.syntax.uid}) are not decoded by this reader"
        )
    assert part10.pixels is not None
    name = decoder_name(decoder)
    if part10.pixels.length is not None:
        if part10.syntax.encapsulated:
            raise Malformed(
                f"(7FE0,0010) PixelData is not in fragments, though the transfer syntax is {part10.syntax.name}"
            )
        values = _native(_native_bytes(part10, form, index), part10, form, skip_bits=_skip_bits(form, index))
        return Decoded(values, form.photometric, name)
    if not part10.syntax.encapsulated:
        raise Malformed(f"(7FE0,0010) PixelData is in fragments, though the transfer syntax is {part10.syntax.name}")
    source = frame_bytes(part10, index, frame_count=frame_count, limits=limits)
    if decoder == "libjpeg":
        return _jpeg(source, part10, form, name)
    if decoder == "openjpeg":
        return _jpeg2000(source, part10, form, name)
    if decoder == "rle":
        return Decoded(_rle(source, form), form.photometric, name)
    if decoder == "zlib":
        source = _inflated(source, form)
    if len(source) * 8 < _frame_bits(form):
        raise Truncated(f"frame {index + 1} has {len(source)} bytes; {_frame_bits(form) // 8} are needed")
    return Decoded(_native(source, part10, form, skip_bits=0), form.photometric, name)


def _frame_bits(form: Layout) -> int:
    # PS3.3 C.7.6.3.1.2: two pixels share their chroma samples, so that a pixel takes two samples, not three.
    samples = 2 if form.photometric == "YBR_FULL_422" else form.samples
    return form.pixel_count * samples * form.bits_allocated


def _skip_bits(form: Layout, index: int) -> int:
    return index * _frame_bits(form) % 8


def _native_bytes(part10: Part10, form: Layout, index: int) -> bytes:
    """The bytes of one frame, beginning with the byte in which its first bit lies."""
    assert part10.pixels is not None
    assert part10.pixels.length is not None
    bits = _frame_bits(form)
    start, end = index * bits // 8, -(-(index + 1) * bits // 8)
    available = min(part10.pixels.length, part10.size - part10.pixels.offset)
    if end > available:
        raise Truncated(f"frame {index + 1} ends at byte {end} of the pixels; there are {available}")
    swap = form.bits_allocated == 8 and part10.pixels.vr == "OW" and not part10.syntax.little_endian
    if swap:
        # PS3.5 8.1.1: bytes in OW lie in words, whose two bytes change places in big endian.
        start, end, shift = start & ~1, min(end + (end & 1), available), start & 1
        part10.stream.seek(part10.pixels.offset + start)
        words = np.frombuffer(part10.stream.read(end - start).ljust(end - start + (end - start & 1), b"\0"), np.uint16)
        return words.byteswap().tobytes()[shift:]
    part10.stream.seek(part10.pixels.offset + start)
    source = part10.stream.read(end - start)
    if len(source) < end - start:
        raise Truncated(f"the file ends inside frame {index + 1}")
    return source


def _native(source: bytes, part10: Part10, form: Layout, *, skip_bits: int) -> Samples:
    order = "<" if part10.syntax.little_endian else ">"
    count = form.pixel_count * form.samples
    if form.bits_allocated == 1:
        bits = np.unpackbits(np.frombuffer(source, np.uint8), bitorder="little")
        return bits[skip_bits : skip_bits + count].reshape(form.rows, form.columns)
    if form.floating:
        kind = f"{order}f{form.bits_allocated // 8}"
        return np.frombuffer(source, kind, count=count).reshape(form.rows, form.columns)
    if form.bits_allocated == 12:
        return settle_bits(_packed_twelve(source, form), form)
    flat = np.frombuffer(source, f"{order}u{form.bits_allocated // 8}")
    if form.photometric == "YBR_FULL_422":
        # Y1 Y2 Cb Cr for every two pixels of a row.
        quads = flat[: form.pixel_count * 2].reshape(-1, 4)
        pixels = np.empty((len(quads), 2, 3), flat.dtype)
        pixels[:, :, 0], pixels[:, :, 1], pixels[:, :, 2] = quads[:, :2], quads[:, 2:3], quads[:, 3:4]
        return pixels.reshape(form.rows, form.columns, 3)
    return settle_bits(_shaped(flat[:count], form, planar=form.planar), form)


def _packed_twelve(source: bytes, form: Layout) -> Samples:
    """Two 12-bit values in three bytes, the first one lowest (PS3.5 8.1.1 and Annex D of its 2004 edition)."""
    if form.pixel_count % 2:
        raise PixelsNotRead("(0028,0100) BitsAllocated is 12 and the number of pixels is odd")
    triples = np.frombuffer(source, np.uint8)[: form.pixel_count * 3 // 2].reshape(-1, 3).astype(np.uint16)
    values = np.empty((len(triples), 2), np.uint16)
    values[:, 0] = triples[:, 0] | (triples[:, 1] & 0x0F) << 8
    values[:, 1] = triples[:, 1] >> 4 | triples[:, 2] << 4
    return values.reshape(form.rows, form.columns)


def _shaped(flat: Samples, form: Layout, *, planar: bool) -> Samples:
    if form.samples == 1:
        return flat.reshape(form.rows, form.columns)
    if planar:
        return flat.reshape(form.samples, form.rows, form.columns).transpose(1, 2, 0)
    return flat.reshape(form.rows, form.columns, form.samples)


def settle_bits(values: Samples, form: Layout, *, precision: int | None = None) -> Samples:
    """Take the stored bits out of unsigned containers and give them their sign.

    What lies in the other bits, overlays in old files, is left out. `precision` is the codestream's, where there is one
    and it is smaller than Bits Stored.
    """
    width = values.dtype.itemsize * 8
    stored = min(form.bits_stored, precision or form.bits_stored, width)
    shift = form.high_bit + 1 - form.bits_stored
    if shift and shift < width:
        values = values >> shift
    if stored < width:
        values = values & np.array((1 << stored) - 1, values.dtype)
    if not form.signed:
        return values
    signed = values.astype(np.dtype(f"i{values.dtype.itemsize}"))
    if stored == width:
        return signed
    return (signed ^ (1 << (stored - 1))) - (1 << (stored - 1))


def _fits(rows: int, columns: int, components: int, form: Layout) -> None:
    """The codestream must be as large as the header says, or memory would be given for what nobody declared."""
    if (rows, columns, components) != (form.rows, form.columns, form.samples):
        raise CannotDecode(
            f"the codestream is {rows} x {columns} x {components}; "
            f"the header says {form.rows} x {form.columns} x {form.samples}"
        )


def _jpeg(source: bytes, part10: Part10, form: Layout, name: str) -> Decoded:
    header = jpeg_header(source)
    _fits(header.rows, header.columns, header.components, form)
    try:
        values: Samples = libjpeg.decode(source, colour_transform=0)
    except Exception as exc:
        raise CannotDecode(f"{name} cannot decode the frame: {str(exc)[:200]}") from exc
    if values.shape[:2] != (form.rows, form.columns) or values.size != form.pixel_count * form.samples:
        raise CannotDecode(f"{name} gave {values.shape} for a frame of {form.rows} x {form.columns} x {form.samples}")
    notes: list[str] = []
    if header.precision != form.bits_stored:
        notes.append(f"the codestream has {header.precision} bits; {named('BitsStored')} is {form.bits_stored}")
    photometric = _jpeg_photometric(header, form, lossless=part10.syntax.lossless)
    if photometric != form.photometric:
        notes.append(f"the codestream is {photometric}; {named('PhotometricInterpretation')} is {form.photometric}")
    return Decoded(settle_bits(values, form, precision=header.precision), photometric, name, tuple(notes))


def _jpeg_photometric(header: JpegHeader, form: Layout, *, lossless: bool) -> str:
    """The colour space of the decoded components; JPEG's own markers settle it where they speak."""
    if form.samples != 3:
        return form.photometric
    if header.is_rgb:
        return "RGB"
    if header.adobe_transform is not None and not lossless:
        return "RGB" if header.adobe_transform == 0 else "YBR_FULL"
    # A JFIF marker means YCbCr (JFIF 1.02), whatever the data set says.
    if header.jfif and not form.photometric.startswith("YBR"):
        return "YBR_FULL"
    return "YBR_FULL" if form.photometric == "YBR_FULL_422" else form.photometric


def _jpeg2000(source: bytes, part10: Part10, form: Layout, name: str) -> Decoded:
    header = jpeg2000_header(source)
    _fits(header.rows, header.columns, header.components, form)
    if header.precision > 32:
        raise CannotDecode(f"the codestream has {header.precision} bits a sample; at most 32 are decoded")
    try:
        values: Samples = openjpeg.decode(source)
    except Exception as exc:
        raise CannotDecode(f"{name} cannot decode the frame: {str(exc)[:200]}") from exc
    if values.shape[:2] != (form.rows, form.columns) or values.size != form.pixel_count * form.samples:
        raise CannotDecode(f"{name} gave {values.shape} for a frame of {form.rows} x {form.columns} x {form.samples}")
    notes: list[str] = []
    if header.precision != form.bits_stored:
        notes.append(f"the codestream has {header.precision} bits; {named('BitsStored')} is {form.bits_stored}")
    if header.signed != form.signed:
        notes.append(f"the codestream and {named('PixelRepresentation')} disagree about the sign; the latter holds")
        width = values.dtype.itemsize * 8
        # The bits are what the modality wrote; only the decoder's reading of the uppermost one is undone.
        values = values.view(f"{'i' if form.signed else 'u'}{values.dtype.itemsize}")
        if header.precision < width:
            values = (values << (width - header.precision)) >> (width - header.precision)
    elif part10.syntax.lossless and header.precision > form.bits_stored:
        values = settle_bits(values.view(f"u{values.dtype.itemsize}"), form)
    # The decoder has undone the component transform (ISO/IEC 15444-1 Annex G) already.
    photometric = "RGB" if form.photometric in ("YBR_ICT", "YBR_RCT") else form.photometric
    return Decoded(values, "YBR_FULL" if photometric == "YBR_FULL_422" else photometric, name, tuple(notes))


def _rle(source: bytes, form: Layout) -> Samples:
    try:
        frame = decode_rle_frame(source, form.pixel_count, form.bits_allocated, "<")
    except Exception as exc:
        raise CannotDecode(f"the RLE frame cannot be decoded: {str(exc)[:200]}") from exc
    flat = np.frombuffer(frame, f"<u{max(1, form.bits_allocated // 8)}")
    if flat.size != form.pixel_count * form.samples:
        raise CannotDecode(f"the RLE frame has {flat.size} samples; {form.pixel_count * form.samples} are needed")
    # PS3.5 G.2: each byte plane of each sample is a segment of its own, so the result is always by plane.
    return settle_bits(_shaped(flat, form, planar=True), form)


def _inflated(source: bytes, form: Layout) -> bytes:
    needed = -(-_frame_bits(form) // 8)
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(source, needed)
    except zlib.error as exc:
        raise CannotDecode("the deflated frame cannot be inflated") from exc
