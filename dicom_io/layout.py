"""The Image Pixel module (PS3.3 C.7.6.3) of one object, checked. Runs in the decoding process only."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.attributes import integer, named, required_integer, text
from dicom_io.errors import BadAttribute, PixelsNotRead, TooLarge
from dicom_io.limits import Limits
from dicom_io.part10 import Part10

Samples = NDArray[Any]

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
    def frame_bits(self) -> int:
        """Bits of one native frame."""
        # PS3.3 C.7.6.3.1.2: two pixels share their chroma samples, so that a pixel takes two samples, not three.
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.pixel_count * samples * self.bits_allocated

    @property
    def stored_range(self) -> tuple[int, int]:
        """The smallest and the largest value that the stored bits can express."""
        if self.signed:
            return -(1 << (self.bits_stored - 1)), (1 << (self.bits_stored - 1)) - 1
        return 0, (1 << self.bits_stored) - 1


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
    expected_samples = 3 if photometric in _COLOUR else 1
    samples = integer(dataset, "SamplesPerPixel") or expected_samples
    if samples != expected_samples:
        raise BadAttribute(f"{named('SamplesPerPixel')} is {samples}, which does not go with {photometric}")
    bits = _bits(dataset, part10=part10, floating=floating)
    if samples == 3 and (floating or bits["bits_allocated"] not in (8, 16, 32)):
        raise BadAttribute(
            f"{named('BitsAllocated')} is {bits['bits_allocated']}, which does not go with {photometric}"
        )
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
        **bits,
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


def shaped(flat: Samples, form: Layout, *, planar: bool) -> Samples:
    """Give samples the shape (rows, columns) or (rows, columns, 3)."""
    if form.samples == 1:
        return flat.reshape(form.rows, form.columns)
    if planar:
        return flat.reshape(form.samples, form.rows, form.columns).transpose(1, 2, 0)
    return flat.reshape(form.rows, form.columns, form.samples)


def settle_bits(values: Samples, form: Layout, *, bits: int | None = None) -> Samples:
    """Take the stored bits out of unsigned containers and give them their sign.

    What lies in the other bits, overlays in old files, is left out. `bits` is the codestream's precision where that
    holds instead of Bits Stored.
    """
    width = values.dtype.itemsize * 8
    stored = min(bits or form.bits_stored, width)
    shift = form.high_bit + 1 - form.bits_stored
    if bits is None and 0 < shift < width:
        values = values >> shift
    if stored < width:
        values = values & np.array((1 << stored) - 1, values.dtype)
    if not form.signed:
        return values
    signed = values.view(f"{values.dtype.byteorder}i{values.dtype.itemsize}")
    if stored == width:
        return signed
    sign = np.array(1 << (stored - 1), signed.dtype)
    return np.asarray((signed ^ sign) - sign)
