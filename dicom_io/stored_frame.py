"""Take one frame out of a file as it is stored, for others to decode. Runs in the decoding process only."""

import numpy as np

from dicom_io.encapsulation import frame_bytes
from dicom_io.errors import Malformed, NoPixels, NoSuchFrame
from dicom_io.header import number_of_frames
from dicom_io.layout import Layout, layout
from dicom_io.limits import Limits
from dicom_io.part10 import Part10
from dicom_io.samples import native_bytes


def stored_frame(part10: Part10, number: int, *, limits: Limits) -> bytes:
    """The codestream of frame `number` (1-based), or its native samples in little endian (PS3.18 8.7.3.3.2).

    Raises NoPixels, NoSuchFrame, Truncated, Malformed, CannotDecode, TooLarge, and for native pixels BadAttribute and
    PixelsNotRead.
    """
    count = number_of_frames(part10)
    if count == 0:
        raise NoPixels("the object carries no pixel data")
    if not 1 <= number <= count:
        raise NoSuchFrame(f"frame {number} was asked for; there are frames 1 to {count}")
    assert part10.pixels is not None
    if (part10.pixels.length is None) != part10.syntax.encapsulated:
        raise Malformed(f"(7FE0,0010) PixelData is not encoded as the transfer syntax {part10.syntax.name} says")
    if part10.syntax.encapsulated:
        return frame_bytes(part10, number - 1, frame_count=count, limits=limits)
    form = layout(part10, limits=limits)
    content = native_bytes(part10, form, number - 1)
    if form.bits_allocated == 1:
        return _from_first_bit(content, form, skip_bits=(number - 1) * form.frame_bits % 8)
    if part10.syntax.little_endian or form.bits_allocated == 8:
        return content
    return np.frombuffer(content, f">u{form.bits_allocated // 8}").byteswap().tobytes()


def _from_first_bit(content: bytes, form: Layout, *, skip_bits: int) -> bytes:
    """Frames of single bits follow each other without a gap (PS3.5 8.1.1); alone, each begins with a byte."""
    bits = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")
    return np.packbits(bits[skip_bits : skip_bits + form.frame_bits], bitorder="little").tobytes()
