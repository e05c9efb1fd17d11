"""From an open file to the stored samples of one frame. Runs in the decoding process only."""

import zlib
from functools import cache
from importlib.metadata import version

import numpy as np

from dicom_io.codecs import Decoded, inflated, jpeg, jpeg2000, rle
from dicom_io.encapsulation import frame_bytes
from dicom_io.errors import Malformed, PixelsNotRead, TransferSyntaxNotRead, Truncated
from dicom_io.layout import Layout, Samples, settle_bits, shaped
from dicom_io.limits import Limits
from dicom_io.part10 import Part10

_PACKAGES = {
    "native": "numpy",
    "libjpeg": "pylibjpeg-libjpeg",
    "openjpeg": "pylibjpeg-openjpeg",
    "rle": "pylibjpeg-rle",
}


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
        values = _native(native_bytes(part10, form, index), part10, form, skip_bits=_skip_bits(form, index))
        return Decoded(values, form.photometric, name)
    if not part10.syntax.encapsulated:
        raise Malformed(f"(7FE0,0010) PixelData is in fragments, though the transfer syntax is {part10.syntax.name}")
    source = frame_bytes(part10, index, frame_count=frame_count, limits=limits)
    if decoder == "libjpeg":
        return jpeg(source, form, lossless=part10.syntax.lossless, name=name)
    if decoder == "openjpeg":
        return jpeg2000(source, form, lossless=part10.syntax.lossless, name=name)
    if decoder == "rle":
        return Decoded(rle(source, form), form.photometric, name)
    if decoder == "zlib":
        source = inflated(source, form)
    if len(source) * 8 < form.frame_bits:
        raise Truncated(f"frame {index + 1} has {len(source)} bytes; {form.frame_bits // 8} are needed")
    return Decoded(_native(source, part10, form, skip_bits=0), form.photometric, name)


def _skip_bits(form: Layout, index: int) -> int:
    return index * form.frame_bits % 8


def native_bytes(part10: Part10, form: Layout, index: int) -> bytes:
    """The bytes of one frame, beginning with the byte in which its first bit lies."""
    assert part10.pixels is not None
    assert part10.pixels.length is not None
    bits = form.frame_bits
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
    return settle_bits(shaped(flat[:count], form, planar=form.planar), form)


def _packed_twelve(source: bytes, form: Layout) -> Samples:
    """Two 12-bit values in three bytes, the first one lowest (PS3.5 8.1.1 and Annex D of its 2004 edition)."""
    if form.pixel_count % 2:
        raise PixelsNotRead("(0028,0100) BitsAllocated is 12 and the number of pixels is odd")
    triples = np.frombuffer(source, np.uint8)[: form.pixel_count * 3 // 2].reshape(-1, 3).astype(np.uint16)
    values = np.empty((len(triples), 2), np.uint16)
    values[:, 0] = triples[:, 0] | (triples[:, 1] & 0x0F) << 8
    values[:, 1] = triples[:, 1] >> 4 | triples[:, 2] << 4
    return values.reshape(form.rows, form.columns)
