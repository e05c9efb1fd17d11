"""Turn one frame of a parsed file into a `Frame` in modality units. Runs in the decoding process only."""

from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.attributes import holder, integer, items, named, numbers, raw, text
from dicom_io.codecs import Decoded
from dicom_io.errors import BadAttribute, NoPixels, NoSuchFrame, PixelsNotRead
from dicom_io.header import number_of_frames
from dicom_io.layout import Layout, layout
from dicom_io.limits import Limits
from dicom_io.luts import modality_table, padding_range, palette_to_rgb, voi_luts
from dicom_io.part10 import Part10
from dicom_io.samples import decode
from dicom_io.types import Frame, InstanceRef, VoiFunction, VoiLut, Window
from dicom_io.voi import turned_window

_NO_REF = InstanceRef("", "", "", "")  # the parent knows the true one and puts it in
_FUNCTIONS: dict[str, VoiFunction] = {function: function for function in get_args(VoiFunction)}
_VOI_MAX = 64  # windows of one frame; the most seen is five
_CENTIMETRE = 3  # Physical Units X and Y Direction (PS3.3 C.8.5.5.1.15)


def frame(part10: Part10, number: int, *, limits: Limits) -> Frame:
    """Decode frame `number` (1-based); its `ref` is filled in by the parent process.

    Raises NoPixels, NoSuchFrame, BadAttribute, PixelsNotRead, TooLarge, Truncated, Malformed, CannotDecode,
    TransferSyntaxNotRead.
    """
    count = number_of_frames(part10)
    if count == 0:
        raise NoPixels("the object carries no pixel data")
    if not 1 <= number <= count:
        raise NoSuchFrame(f"frame {number} was asked for; there are frames 1 to {count}")
    form = layout(part10, limits=limits)
    decoded = decode(part10, form, number - 1, frame_count=count, limits=limits)
    spacing, spacing_notes = spacing_mm(part10.dataset, number)
    notes = [*decoded.notes, *spacing_notes]
    if form.samples == 3 or form.photometric == "PALETTE COLOR":
        pixels = _colour(part10, form, decoded)
        windows: tuple[Window, ...] = ()
        luts: tuple[VoiLut, ...] = ()
        turned_about = None
    else:
        pixels, windows, luts, turned_about = _grey(part10, form, decoded, number=number, notes=notes)
    # A rescale beyond float32 gives infinities here.
    with np.errstate(over="ignore"):
        pixels = np.ascontiguousarray(pixels, dtype=np.float32)
    if not np.isfinite(pixels).all():
        raise BadAttribute(f"{named('RescaleSlope')} and its intercept give values that are not finite")
    return Frame(
        ref=_NO_REF,
        number=number,
        pixels=pixels,
        spacing_mm=spacing,
        windows=windows,
        voi_luts=luts,
        decoder=decoded.decoder,
        warnings=tuple(notes),
        turned_about=turned_about,
    )


def _colour(part10: Part10, form: Layout, decoded: Decoded) -> NDArray[np.float32]:
    """RGB in 0..255, (rows, columns, 3)."""
    if form.photometric == "PALETTE COLOR":
        return palette_to_rgb(decoded.samples, part10.dataset, form=form, little_endian=part10.syntax.little_endian)
    # Wider samples give their upper 8 bits, as palettes do.
    samples = decoded.samples >> (form.bits_stored - 8) if form.bits_stored > 8 else decoded.samples
    values = np.asarray(samples, dtype=np.float32)
    if form.bits_stored < 8:
        values *= np.float32(255.0 / form.stored_range[1])
    if decoded.photometric == "RGB":
        return values
    if decoded.photometric != "YBR_FULL" and decoded.photometric != "YBR_FULL_422":
        raise PixelsNotRead(f"{decoded.photometric} samples in {part10.syntax.name} are not read")
    # PS3.3 C.7.6.3.1.2, inverted; rounded because the colours were whole numbers before they were transformed.
    y, cb, cr = values[..., 0], values[..., 1] - 128.0, values[..., 2] - 128.0
    rgb = np.stack((y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb), axis=-1)
    return np.asarray(np.clip(np.rint(rgb), 0.0, 255.0), dtype=np.float32)


def _grey(
    part10: Part10, form: Layout, decoded: Decoded, *, number: int, notes: list[str]
) -> tuple[NDArray[Any], tuple[Window, ...], tuple[VoiLut, ...], float | None]:
    """Modality units, larger is brighter, the windows and VOI LUTs that fit them, and about what all were turned."""
    dataset, little_endian = part10.dataset, part10.syntax.little_endian
    stored = decoded.samples
    modality, low, high = _modality(part10, form, stored, number=number)
    place = holder(dataset, number, "FrameVOILUTSequence", "WindowCenter", "VOILUTSequence")
    windows: tuple[Window, ...] = ()
    luts: tuple[VoiLut, ...] = ()
    turned_about: float | None = None
    if place is not None:
        windows = _windows(place, notes)
        # PS3.3 C.11.2.1.1: first values are signed when the modality's output can be.
        luts = _luts_or_note(place, signed=low < 0, little_endian=little_endian, notes=notes)
    if is_inverted(dataset, form, notes):
        if form.floating:
            raise PixelsNotRead("floating point pixels in MONOCHROME1 have no range about which they could be turned")
        modality = np.float32(low + high) - modality if abs(low + high) < 2**24 else (low + high) - modality
        windows = tuple(turned_window(one, low + high) for one in windows)
        luts = tuple(_turned_lut(one, low + high) for one in luts)
        turned_about = low + high
    valid = _valid(part10, form, stored, notes)
    if valid is not None and not valid.all():
        if not valid.any():
            notes.append("every pixel of the frame is padding")
            modality = np.where(np.isfinite(modality), modality, 0.0)
        else:
            modality = np.where(valid, modality, modality[valid].min())
    return modality, windows, luts, turned_about


def _modality(part10: Part10, form: Layout, stored: NDArray[Any], *, number: int) -> tuple[NDArray[Any], float, float]:
    """Modality values, and the lowest and highest that the stored range can give (PS3.3 C.11.1)."""
    low, high = (0.0, 0.0) if form.floating else (float(end) for end in form.stored_range)
    place = holder(
        part10.dataset,
        number,
        "PixelValueTransformationSequence",
        "RescaleSlope",
        "RescaleIntercept",
        "ModalityLUTSequence",
    )
    exact = not form.floating and form.bits_stored <= 24
    values: NDArray[Any] = stored.astype(np.float32 if exact else np.float64)
    if place is None:
        return values, low, high
    if "ModalityLUTSequence" in place and not form.floating:
        lut = modality_table(place, form=form, little_endian=part10.syntax.little_endian)
        if lut is not None:
            bottom, top = lut.reach(*form.stored_range)
            return lut(stored).astype(np.float32), float(bottom), float(top)
    slope = (numbers(place, "RescaleSlope") or (1.0,))[0]
    intercept = (numbers(place, "RescaleIntercept") or (0.0,))[0]
    if slope == 0:
        raise BadAttribute(f"{named('RescaleSlope')} is 0, which would make every pixel equal")
    if (slope, intercept) == (1.0, 0.0):
        return values, low, high
    if not (exact and slope == 1.0 and intercept == int(intercept) and abs(intercept) < 2**23):
        values = values.astype(np.float64)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    with np.errstate(over="ignore", invalid="ignore"):
        values *= slope
        values += intercept
    return values, ends[0], ends[1]


def is_inverted(dataset: Dataset, form: Layout, notes: list[str]) -> bool:
    """Whether small values are meant to be bright.

    MONOCHROME1 and Presentation LUT Shape INVERSE say the same thing once (PS3.3 C.8.11.3.1.2 asks for both together),
    so they never turn the pixels twice.
    """
    shape = text(dataset, "PresentationLUTShape")
    if form.photometric == "MONOCHROME1":
        return True
    if shape == "INVERSE":
        notes.append(f"{named('PresentationLUTShape')} is INVERSE on MONOCHROME2 pixels; they are turned once")
        return True
    return False


def _turned_lut(one: VoiLut, both_ends: float) -> VoiLut:
    return VoiLut(
        first_mapped=both_ends - (one.first_mapped + len(one.entries) - 1),
        entries=np.ascontiguousarray(1.0 - one.entries[::-1], dtype=np.float32),
        explanation=one.explanation,
    )


def _windows(place: Dataset, notes: list[str]) -> tuple[Window, ...]:
    try:
        centres, widths = numbers(place, "WindowCenter"), numbers(place, "WindowWidth")
    except BadAttribute as exc:
        notes.append(str(exc))
        return ()
    stated = text(place, "VOILUTFunction") or "LINEAR"
    function = _FUNCTIONS.get(stated)
    if function is None:
        notes.append(f"{named('VOILUTFunction')} is not one of the three that PS3.3 defines; its windows are left out")
        return ()
    explanations = raw(place, "WindowCenterWidthExplanation")
    names = [explanations] if isinstance(explanations, str) else list(explanations or ())
    windows = []
    for n, (centre, width) in enumerate(zip(centres[:_VOI_MAX], widths, strict=False)):
        if not (width >= 1 if function == "LINEAR" else width > 0):
            notes.append(f"{named('WindowWidth')} is {width}, which {function} does not allow; that window is left out")
            continue
        name = str(names[n]).strip() if n < len(names) else ""
        windows.append(Window(centre=centre, width=width, function=function, explanation=name or None))
    return tuple(windows)


def _luts_or_note(place: Dataset, *, signed: bool, little_endian: bool, notes: list[str]) -> tuple[VoiLut, ...]:
    try:
        return voi_luts(place, signed=signed, little_endian=little_endian)
    except BadAttribute as exc:
        notes.append(f"{exc}; the VOI LUTs are left out")
        return ()


def _valid(part10: Part10, form: Layout, stored: NDArray[Any], notes: list[str]) -> NDArray[np.bool_] | None:
    """Which pixels are image and not padding; None when all are."""
    if form.floating:
        valid = np.isfinite(stored)
        keyword = "FloatPixelPaddingValue" if form.bits_allocated == 32 else "DoubleFloatPixelPaddingValue"
        padding = numbers(part10.dataset, keyword)
        return np.asarray(valid & (stored != padding[0]) if padding else valid)
    try:
        ends = padding_range(part10.dataset, form=form)
    except BadAttribute as exc:
        notes.append(f"{exc}; no pixel is taken as padding")
        return None
    if ends is None:
        return None
    return np.asarray((stored < ends[0]) | (stored > ends[1]))


def spacing_mm(dataset: Dataset, number: int) -> tuple[tuple[float, float] | None, list[str]]:
    """Distance between pixel centres as (row, column), None when nothing states it; and what was wrong with it.

    Pixel Spacing before Imager Pixel Spacing (at the detector, so larger than in the patient) before that of a scanned
    film, before a calibrated ultrasound region.
    """
    notes: list[str] = []
    for sequence, keyword in (
        ("PixelMeasuresSequence", "PixelSpacing"),
        ("", "ImagerPixelSpacing"),
        ("", "NominalScannedPixelSpacing"),
    ):
        place = holder(dataset, number, sequence, keyword) if sequence else dataset
        try:
            values = numbers(place, keyword) if place is not None else ()
        except BadAttribute as exc:
            notes.append(str(exc))
            continue
        if len(values) == 2 and min(values) > 0:
            return (values[0], values[1]), notes
        if values:
            notes.append(f"{named(keyword)} is not two numbers above 0; it is left out")
    return _ultrasound_spacing(dataset), notes


def _ultrasound_spacing(dataset: Dataset) -> tuple[float, float] | None:
    """Spacing where every region that is calibrated in centimetres has the same (PS3.3 C.8.5.5)."""
    found = set()
    for region in items(dataset, "SequenceOfUltrasoundRegions"):
        try:
            units = [integer(region, f"PhysicalUnits{axis}Direction") for axis in "XY"]
            steps = [numbers(region, f"PhysicalDelta{axis}") for axis in "YX"]
        except BadAttribute:
            continue
        if units == [_CENTIMETRE, _CENTIMETRE] and all(len(step) == 1 and step[0] != 0 for step in steps):
            found.add((abs(steps[0][0]) * 10.0, abs(steps[1][0]) * 10.0))
    return found.pop() if len(found) == 1 else None
