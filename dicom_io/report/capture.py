"""The heat map over the windowed image as a colour Secondary Capture, for archives that know nothing newer.

(0028,0301) Burned In Annotation asks whether patient and date can be told from the pixels. What is drawn here names
neither, so the source's own statement is repeated, and nothing is stated where the source states nothing.
"""

import numpy as np
from highdicom import SOPClass
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from dicom_io.errors import HeatMapUnfit
from dicom_io.report.document import base_arguments, complete
from dicom_io.report.findings import NOTICE, Device, HeatMap, LabelFinding, StudyFindings, TaskFindings
from dicom_io.report.parametric_map import DERIVATION, on_frame, put_lossy, source_item
from dicom_io.types import Frame, VoiLut, Window
from dicom_io.voi import eight_bits

SERIES_NUMBER = 9903
_PANEL_MIN, _PANEL_MAX = 420, 900  # pixels of the longer side of each panel
_MARGIN, _LINE, _BAR = 12, 26, 18
_FAINT = 0.12  # share of the strongest place under which the image is left as it is
_OPACITY = 0.45  # the same everywhere, so that only the colour tells the value
# Blue (against) and red (for) of ColorBrewer's RdBu, which the colour-blind tell apart, paler towards zero.
_AGAINST = np.array([(146, 197, 222), (67, 147, 195), (33, 102, 172)], np.float32)
_FOR = np.array([(253, 219, 140), (244, 130, 60), (200, 20, 40)], np.float32)


def secondary_capture(
    findings: StudyFindings,
    heat_map: HeatMap,
    frame: Frame,
    *,
    voi: Window | VoiLut | None = None,
    instance_number: int = 1,
) -> Dataset:
    """One picture: the frame as `voi` shows it (None: as its file asks), and beside it with the heat map laid over.

    Raises EvidenceMissing, and HeatMapUnfit where the map does not fit the frame.
    """
    _, answer, label = findings.finding_of(heat_map)
    evidence = findings.frame_of(heat_map.sop_instance_uid, heat_map.frame_number)
    named = frame.ref.sop_instance_uid, frame.number
    if named != (heat_map.sop_instance_uid, heat_map.frame_number):
        raise HeatMapUnfit("the frame given is not the one that the heat map is of")
    pixels = picture(frame, heat_map, answer=answer, label=label, device=findings.device, voi=voi)
    parts = (heat_map.sop_instance_uid, str(heat_map.frame_number), heat_map.task, heat_map.label)
    made = SOPClass(
        study_instance_uid=evidence.ref.study_instance_uid,
        sop_class_uid=SecondaryCaptureImageStorage,
        instance_number=instance_number,
        modality="OT",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_description="Hilum heat maps, pictures (research use only)",
        **base_arguments(findings, "secondary capture", *parts, series_number=SERIES_NUMBER),
    )
    complete(made, findings)
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.ConversionType = "WSD"
    made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = made.SeriesDate, made.SeriesTime
    made.Laterality = evidence.laterality if evidence.laterality in {"R", "L"} else None
    made.PatientOrientation = None  # two views and a colour bar have no common direction
    made.ImageComments = f"{answer.display}: {label.display}. {NOTICE}"
    made.DerivationDescription = DERIVATION
    made.SourceImageSequence = [source_item(evidence, heat_map.frame_number, spatial_locations_preserved=False)]
    if evidence.burned_in is not None:
        made.BurnedInAnnotation = evidence.burned_in
    put_lossy(made, evidence)
    made.SamplesPerPixel = 3
    made.PhotometricInterpretation = "RGB"
    made.PlanarConfiguration = 0
    made.Rows, made.Columns = pixels.shape[:2]
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    content = pixels.tobytes()
    made.PixelData = content + bytes(len(content) % 2)
    made["PixelData"].VR = "OB"
    return made


def picture(
    frame: Frame,
    heat_map: HeatMap,
    *,
    answer: TaskFindings,
    label: LabelFinding,
    device: Device,
    voi: Window | VoiLut | None = None,
) -> NDArray[np.uint8]:
    """The picture's pixels, (rows, columns, 3): two panels, colour bar, what is said, and the notice."""
    rows, columns = frame.pixels.shape[:2]
    relevance = on_frame(heat_map, rows=rows, columns=columns)
    display = eight_bits(frame, voi)
    grey = np.broadcast_to(display[..., None], (rows, columns, 3)) if display.ndim == 2 else display
    plain = _scaled(grey, frame.spacing_mm)
    reach = max(float(np.abs(relevance).max()), 1e-6)
    width, height = plain.size
    stretched = Image.fromarray(relevance / reach).resize(plain.size, Image.Resampling.BILINEAR)
    laid_over = _laid_over(np.asarray(plain, np.float32), np.asarray(stretched))
    panels = plain, Image.fromarray(_bytes(laid_over))

    top = _MARGIN + 3 * _LINE + _MARGIN
    bar_x = 2 * (width + _MARGIN) + _MARGIN
    canvas = Image.new("RGB", (bar_x + 110, top + height + _MARGIN + _LINE + _MARGIN), "black")
    draw = ImageDraw.Draw(canvas)
    above = "at or above" if label.positive else "below"
    lines = (
        f"{answer.display}: {label.display}",
        f"probability {label.probability:.1%}, {above} the operating point {label.threshold:.1%}",
        f"{device.name} {device.version}, model {device.model_name} {device.model_version}",
    )
    for n, line in enumerate(lines):
        _write(draw, (_MARGIN, _MARGIN + n * _LINE), line, size=20 if n == 0 else 16, room=canvas.width - 2 * _MARGIN)
    for n, panel in enumerate(panels):
        canvas.paste(panel, (_MARGIN + n * (width + _MARGIN), top))
    _draw_bar(canvas, draw, at=(bar_x, top), height=height, reach=reach)
    bottom = top + height + _MARGIN
    _write(draw, (_MARGIN, bottom), NOTICE.upper(), size=18, room=canvas.width - 2 * _MARGIN, fill=(255, 210, 0))
    return np.asarray(canvas, np.uint8)


def _laid_over(plain: NDArray[np.float32], relative: NDArray[np.float32]) -> NDArray[np.float32]:
    """The image with its places coloured; `relative` is -1..1."""
    shown = np.abs(relative) >= _FAINT
    blended = plain * (1 - _OPACITY) + _colours(relative) * _OPACITY
    return np.where(shown[..., None], blended, plain)


def _colours(relative: NDArray[np.float32]) -> NDArray[np.float32]:
    """RGB 0..255 of values from -1 (against) to 1 (for)."""
    strength = np.abs(relative)
    stops = np.linspace(0, 1, len(_FOR))
    against, for_ = (
        np.stack([np.interp(strength, stops, table[:, channel]) for channel in range(3)], axis=-1)
        for table in (_AGAINST, _FOR)
    )
    return np.where((relative < 0)[..., None], against, for_).astype(np.float32)


def _bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def _scaled(pixels: NDArray[np.uint8], spacing_mm: tuple[float, float] | None) -> Image.Image:
    """The panel at a size that can be read, with square pixels where the spacing is known."""
    rows, columns = pixels.shape[:2]
    across, down = (1.0, 1.0) if spacing_mm is None else (spacing_mm[1], spacing_mm[0])
    width, height = columns * across, rows * down
    longer = min(max(columns, rows, _PANEL_MIN), _PANEL_MAX)
    scale = longer / max(width, height)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def _draw_bar(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, *, at: tuple[int, int], height: int, reach: float
) -> None:
    """The colour bar, in the colours as they look over mid-grey, with the contribution to the logit at its ends."""
    x, top = at
    values = np.linspace(1, -1, height, dtype=np.float32)[:, None].repeat(_BAR, axis=1)
    grey = np.full((height, _BAR, 3), 128, np.float32)
    canvas.paste(Image.fromarray(_bytes(_laid_over(grey, values))), (x, top))
    room = canvas.width - x - _BAR - 2 * 6
    middle = top + height // 2
    for y, line in (
        (top, f"+{reach:.2g}"),
        (top + 18, "for"),
        (middle - 9, "0"),
        (top + height - 36, "against"),
        (top + height - 18, f"-{reach:.2g}"),
    ):
        _write(draw, (x + _BAR + 6, y), line, size=14, room=room)


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    line: str,
    *,
    size: int,
    room: int,
    fill: tuple[int, int, int] = (255, 255, 255),
) -> None:
    """One line in Pillow's own font, smaller where it would not fit."""
    font = ImageFont.load_default(size)
    while draw.textlength(line, font=font) > room and size > 8:
        size -= 1
        font = ImageFont.load_default(size)
    draw.text(at, line, font=font, fill=fill)
