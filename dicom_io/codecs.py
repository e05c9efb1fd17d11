"""Decode one compressed frame: JPEG, JPEG-LS, JPEG 2000, RLE, deflated. Runs in the decoding process only.

The decoder of each transfer syntax is fixed (see `dicom_io.uids`), so that the same file always gives the same pixels;
python-gdcm, which aborts the process on some malformed streams, is never used.
"""

import zlib
from dataclasses import dataclass

import libjpeg.utils as libjpeg
import numpy as np
import openjpeg.utils as openjpeg
from rle.rle import decode_frame as decode_rle_frame

from dicom_io.attributes import named
from dicom_io.codestream import JpegHeader, jpeg2000_header, jpeg_header, with_sequential_scan
from dicom_io.errors import CannotDecode, Truncated
from dicom_io.layout import Layout, Samples, settle_bits, shaped


@dataclass(frozen=True, slots=True)
class Decoded:
    """Stored values of one frame, not yet in modality units."""

    samples: Samples  # (rows, columns) or (rows, columns, 3)
    photometric: str  # what the samples are after decoding, which the codestream may know better than the header
    decoder: str
    notes: tuple[str, ...] = ()


def _fits(rows: int, columns: int, components: int, form: Layout) -> None:
    """The codestream must be as large as the header says, or memory would be given for what nobody declared."""
    if (rows, columns, components) != (form.rows, form.columns, form.samples):
        raise CannotDecode(
            f"the codestream is {rows} x {columns} x {components}; "
            f"the header says {form.rows} x {form.columns} x {form.samples}"
        )


def jpeg(source: bytes, form: Layout, *, lossless: bool, name: str) -> Decoded:
    """Decode a JPEG or JPEG-LS frame; raises CannotDecode and Truncated."""
    header = jpeg_header(source)
    _fits(header.rows, header.columns, header.components, form)
    # The decoder fills a frame that is cut off with grey and says nothing. Inside the coded data, FF is never followed
    # by D9 (ISO/IEC 10918-1 B.1.1.2, 14495-1 A.1).
    if source.find(b"\xff\xd9", header.scan_at) < 0:
        raise Truncated("the JPEG codestream ends without its end marker, so the frame is incomplete")
    notes: list[str] = []
    mended = with_sequential_scan(source, header)
    if mended is not source:
        notes.append(
            "the JPEG scan header has spectral values that its sequential mode does not allow; they were mended"
        )
    try:
        values: Samples = libjpeg.decode(mended, colour_transform=0)
    except MemoryError:
        raise
    except Exception as exc:
        raise CannotDecode(f"{name} cannot decode the frame: {str(exc)[:200]}") from exc
    _has_given_all(values, form, name)
    # Lossless containers may be wider than what is stored in them. Lossy values may overshoot, which is no extra bit.
    bits = min(header.precision, form.bits_stored) if lossless else header.precision
    if bits < form.bits_stored or (not lossless and bits != form.bits_stored):
        notes.append(f"the codestream has {header.precision} bits; {named('BitsStored')} is {form.bits_stored}")
    photometric = _jpeg_photometric(header, form, lossless=lossless)
    if photometric[:3] != form.photometric[:3]:
        notes.append(f"the codestream is {photometric}; {named('PhotometricInterpretation')} is {form.photometric}")
    own_bits = None if bits == form.bits_stored else bits
    return Decoded(settle_bits(values, form, bits=own_bits), photometric, name, tuple(notes))


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


def jpeg2000(source: bytes, form: Layout, *, lossless: bool, name: str) -> Decoded:
    """Decode a JPEG 2000 or HTJ2K frame; raises CannotDecode."""
    header = jpeg2000_header(source)
    _fits(header.rows, header.columns, header.components, form)
    if header.precision > 32:
        raise CannotDecode(f"the codestream has {header.precision} bits a sample; at most 32 are decoded")
    try:
        values: Samples = openjpeg.decode(source)
    except MemoryError:
        raise
    except Exception as exc:
        raise CannotDecode(f"{name} cannot decode the frame: {str(exc)[:200]}") from exc
    _has_given_all(values, form, name)
    notes: list[str] = []
    if header.precision < form.bits_stored or (not lossless and header.precision != form.bits_stored):
        notes.append(f"the codestream has {header.precision} bits; {named('BitsStored')} is {form.bits_stored}")
    if header.signed != form.signed:
        notes.append(f"the codestream and {named('PixelRepresentation')} disagree about the sign; the latter holds")
        # The bits are what the modality wrote; only the decoder's reading of the uppermost one is undone.
        values = settle_bits(values.view(f"u{values.dtype.itemsize}"), form, bits=header.precision)
    elif lossless and header.precision > form.bits_stored:
        values = settle_bits(values.view(f"u{values.dtype.itemsize}"), form)
    # The decoder has undone the component transform (ISO/IEC 15444-1 Annex G) already.
    photometric = "RGB" if form.photometric in ("YBR_ICT", "YBR_RCT") else form.photometric
    return Decoded(values, "YBR_FULL" if photometric == "YBR_FULL_422" else photometric, name, tuple(notes))


def rle(source: bytes, form: Layout) -> Samples:
    """Decode an RLE frame (PS3.5 Annex G); raises CannotDecode."""
    if form.bits_allocated == 1:
        return _rle_bits(source, form)
    flat = np.frombuffer(_rle_segments(source, form.pixel_count, form.bits_allocated), f"<u{form.bits_allocated // 8}")
    if flat.size != form.pixel_count * form.samples:
        raise CannotDecode(f"the RLE frame has {flat.size} samples; {form.pixel_count * form.samples} are needed")
    # PS3.5 G.2: each byte plane of each sample is a segment of its own, so the result is always by plane.
    return settle_bits(shaped(flat, form, planar=True), form)


def _rle_bits(source: bytes, form: Layout) -> Samples:
    """Single bits come packed eight to a byte or one to a byte; which of them, the length of the segment shows."""
    try:
        return np.frombuffer(_rle_segments(source, form.pixel_count, 8), np.uint8).reshape(form.rows, form.columns) & 1
    except (CannotDecode, ValueError):
        packed = np.frombuffer(_rle_segments(source, -(-form.pixel_count // 8), 8), np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[: form.pixel_count]
        return bits.reshape(form.rows, form.columns)


def _rle_segments(source: bytes, pixel_count: int, bits_allocated: int) -> bytes:
    try:
        return bytes(decode_rle_frame(source, pixel_count, bits_allocated, "<"))
    except BaseException as exc:
        # A panic of the Rust decoder is not an Exception.
        if isinstance(exc, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        raise CannotDecode(f"the RLE frame cannot be decoded: {str(exc)[:200]}") from exc


def inflated(source: bytes, form: Layout) -> bytes:
    """Inflate a deflated frame, never past what its header says; raises CannotDecode."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(source, -(-form.frame_bits // 8))
    except zlib.error as exc:
        raise CannotDecode("the deflated frame cannot be inflated") from exc


def _has_given_all(values: Samples, form: Layout, name: str) -> None:
    if values.shape[:2] != (form.rows, form.columns) or values.size != form.pixel_count * form.samples:
        raise CannotDecode(f"{name} gave {values.shape} for a frame of {form.rows} x {form.columns} x {form.samples}")
