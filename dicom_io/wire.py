"""What passes between this process and a decoding process: a JSON header, then raw float32 bytes. Never a pickle.

Everything that comes back is checked here against the types it must have, because a compromised decoder may send
anything.
"""

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import DicomError, SandboxAnswerRefused, tree
from dicom_io.types import (
    EVIDENCE_FRAMES_MAX,
    IDENTITY,
    Code,
    Evidence,
    Frame,
    Instance,
    InstanceRef,
    Patient,
    Plane,
    VoiFunction,
    VoiLut,
    Window,
)

PREFIX = struct.Struct("<4sIQ")  # magic, bytes of the JSON header, bytes of arrays
MAGIC = b"HLM1"
HEADER_BYTES_MAX = 32 << 20
_TAG = re.compile(r"[0-9A-F]{8}")

Message = dict[str, Any]
_T = TypeVar("_T")


def pack(header: Message, arrays: Sequence[NDArray[np.float32]] = ()) -> list[bytes | memoryview]:
    """The parts of one message, to be written one after the other."""
    contiguous = [np.ascontiguousarray(array, dtype="<f4") for array in arrays]
    header = {**header, "arrays": [list(array.shape) for array in contiguous]}
    text = json.dumps(header, allow_nan=False).encode()
    prefix = PREFIX.pack(MAGIC, len(text), sum(array.nbytes for array in contiguous))
    return [prefix, text, *(array.data.cast("B") for array in contiguous if array.size)]


def sizes(prefix: bytes, *, payload_bytes_max: int) -> tuple[int, int]:
    """How many bytes of header and of arrays follow; raises SandboxAnswerRefused over the caps."""
    magic, header_bytes, payload_bytes = PREFIX.unpack(prefix)
    if magic != MAGIC or header_bytes > HEADER_BYTES_MAX or payload_bytes > payload_bytes_max:
        raise SandboxAnswerRefused("the decoding process answered outside the protocol")
    return header_bytes, payload_bytes


def unpack(text: bytes, payload: bytearray) -> tuple[Message, list[NDArray[np.float32]]]:
    """The header and the arrays of one message; raises SandboxAnswerRefused when they do not fit together."""
    try:
        header = json.loads(text)
        shapes = [tuple(_whole(n) for n in shape) for shape in header["arrays"]]
        sizes_bytes = [4 * math.prod(shape) for shape in shapes]
        if min(sizes_bytes, default=0) < 0 or sum(sizes_bytes) != len(payload):
            raise ValueError("array sizes")
        arrays, offset = [], 0
        for shape, size_bytes in zip(shapes, sizes_bytes, strict=True):
            flat = np.frombuffer(payload, dtype="<f4", count=size_bytes // 4, offset=offset)
            arrays.append(flat.reshape(shape))
            offset += size_bytes
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise SandboxAnswerRefused("the decoding process answered with a header that does not fit its arrays") from exc
    return header, arrays


def error_message(error: DicomError) -> Message:
    """An error on its way to the parent."""
    return {"error": {"code": error.code, "message": str(error)}}


def raise_error(header: Message) -> None:
    """Raise the error that an answer carries, if it carries one."""
    stated = header.get("error")
    if stated is None:
        return
    known = tree()
    if not isinstance(stated, dict) or stated.get("code") not in known:
        raise SandboxAnswerRefused("the decoding process answered with an error that does not exist")
    raise known[stated["code"]](str(stated.get("message"))[:1000])


def instance_message(instance: Instance) -> Message:
    """An `Instance` on its way to the parent, without its path."""
    fields = asdict(instance)
    del fields["path"]
    fields["warnings"] = list(instance.warnings)
    fields["study_date"] = _day_text(instance.study_date)
    fields["patient"]["birth_date"] = _day_text(instance.patient.birth_date)
    return {"instance": fields}


def instance_from(header: Message, *, path: Path) -> Instance:
    """The `Instance` of an answer, every field checked; raises SandboxAnswerRefused."""
    try:
        fields = header["instance"]
        patient = fields["patient"]
        position = _floats_or_none(fields["position_mm"])
        if position is not None and len(position) != 3:
            raise ValueError("position")
        return Instance(
            ref=_ref(fields["ref"]),
            path=path,
            transfer_syntax_uid=_text(fields["transfer_syntax_uid"]),
            patient=Patient(
                name=_text_or_none(patient["name"]),
                patient_id=_text_or_none(patient["patient_id"]),
                birth_date=_day(patient["birth_date"]),
                sex=_text_or_none(patient["sex"]),
                age_years=None if patient["age_years"] is None else _real(patient["age_years"]),
            ),
            modality=_text_or_none(fields["modality"]),
            body_part=_text_or_none(fields["body_part"]),
            view_position=_text_or_none(fields["view_position"]),
            laterality=_text_or_none(fields["laterality"]),
            photometric_interpretation=_text_or_none(fields["photometric_interpretation"]),
            rows=_whole_or_none(fields["rows"]),
            columns=_whole_or_none(fields["columns"]),
            number_of_frames=_whole(fields["number_of_frames"]),
            instance_number=_whole_or_none(fields["instance_number"]),
            position_mm=None if position is None else (position[0], position[1], position[2]),
            orientation=_floats_or_none(fields["orientation"]),
            study_date=_day(fields["study_date"]),
            study_description=_text_or_none(fields["study_description"]),
            accession_number=_text_or_none(fields["accession_number"]),
            series_number=_whole_or_none(fields["series_number"]),
            series_description=_text_or_none(fields["series_description"]),
            manufacturer=_text_or_none(fields["manufacturer"]),
            warnings=_texts(fields["warnings"]),
            study_time=_text_or_none(fields["study_time"]),
            study_id=_text_or_none(fields["study_id"]),
            referring_physician=_text_or_none(fields["referring_physician"]),
            instances_of_study=_whole_or_none(fields["instances_of_study"]),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise SandboxAnswerRefused("the decoding process answered with something that is no instance") from exc


def frame_message(frame: Frame) -> tuple[Message, list[NDArray[np.float32]]]:
    """A `Frame` on its way to the parent: its facts, and its pixels followed by the entries of its VOI LUTs."""
    fields = {
        "number": frame.number,
        "spacing_mm": frame.spacing_mm,
        "windows": [asdict(window) for window in frame.windows],
        "voi_luts": [{"first_mapped": lut.first_mapped, "explanation": lut.explanation} for lut in frame.voi_luts],
        "decoder": frame.decoder,
        "warnings": list(frame.warnings),
        "turned_about": frame.turned_about,
    }
    return {"frame": fields}, [frame.pixels, *(lut.entries for lut in frame.voi_luts)]


def frame_from(header: Message, arrays: list[NDArray[np.float32]], *, ref: InstanceRef, number: int) -> Frame:
    """The `Frame` of an answer, every field checked; raises SandboxAnswerRefused."""
    try:
        fields = header["frame"]
        pixels, *entries = arrays
        spacing = _floats_or_none(fields["spacing_mm"])
        if fields["number"] != number or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
            raise ValueError("not the frame that was asked for")
        if pixels.size == 0 or not np.isfinite(pixels).all() or (spacing is not None and len(spacing) != 2):
            raise ValueError("pixels or spacing")
        luts = tuple(
            VoiLut(
                first_mapped=_real(lut["first_mapped"]),
                entries=_one_dimensional(lut_entries),
                explanation=_text_or_none(lut["explanation"]),
            )
            for lut, lut_entries in zip(fields["voi_luts"], entries, strict=True)
        )
        return Frame(
            ref=ref,
            number=number,
            pixels=pixels,
            spacing_mm=None if spacing is None else (spacing[0], spacing[1]),
            windows=tuple(_window(window) for window in fields["windows"]),
            voi_luts=luts,
            decoder=_text(fields["decoder"]),
            warnings=_texts(fields["warnings"]),
            turned_about=None if fields["turned_about"] is None else _real(fields["turned_about"]),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise SandboxAnswerRefused("the decoding process answered with something that is no frame") from exc


def content_message(content: bytes) -> tuple[Message, list[NDArray[np.float32]]]:
    """Bytes of a file on their way to the parent, as words whose bits nothing looks at."""
    words = np.frombuffer(content + bytes(-len(content) % 4), dtype="<f4")
    return {"content_bytes": len(content)}, [words]


def content_from(header: Message, arrays: list[NDArray[np.float32]]) -> bytes:
    """The bytes of an answer; raises SandboxAnswerRefused."""
    try:
        (words,) = arrays
        size = _whole(header["content_bytes"])
        if not 0 <= words.nbytes - size < 4:
            raise ValueError("size")
        return words.tobytes()[:size]
    except (KeyError, TypeError, ValueError) as exc:
        raise SandboxAnswerRefused("the decoding process answered with something that is no content") from exc


def data_set_from(header: Message, arrays: list[NDArray[np.float32]]) -> Message:
    """The data set of an answer in the DICOM JSON model; raises SandboxAnswerRefused."""
    content = content_from(header, arrays)
    try:
        data_set = json.loads(content)
        if not all(_TAG.fullmatch(tag) and isinstance(value["vr"], str) for tag, value in data_set.items()):
            raise ValueError("attribute")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as exc:
        raise SandboxAnswerRefused("the decoding process answered with something that is no data set") from exc
    found: Message = data_set
    return found


def evidence_message(evidence: Evidence) -> Message:
    """An `Evidence` on its way to the parent; JSON turns its tuples into lists."""
    return {"evidence": asdict(evidence)}


def evidence_from(header: Message) -> Evidence:
    """The `Evidence` of an answer, every field checked; raises SandboxAnswerRefused."""
    try:
        fields = header["evidence"]
        identity = {keyword: _text(value) for keyword, value in fields["identity"].items()}
        if not identity.keys() <= set(IDENTITY) or len(fields["planes"]) > EVIDENCE_FRAMES_MAX:
            raise ValueError("identity or planes")
        frame_of_reference, orientation = fields["frame_of_reference_uid"], fields["patient_orientation"]
        spacing = _floats_or_none(fields["spacing_mm"])
        region = fields["anatomic_region"]
        return Evidence(
            ref=_ref(fields["ref"]),
            identity=identity,
            modality=_text_or_none(fields["modality"]),
            rows=_whole_or_none(fields["rows"]),
            columns=_whole_or_none(fields["columns"]),
            number_of_frames=_whole(fields["number_of_frames"]),
            frame_of_reference_uid=None if frame_of_reference is None else _uid(frame_of_reference),
            planes=tuple(None if plane is None else _plane(plane) for plane in fields["planes"]),
            spacing_mm=None if spacing is None else _pair(spacing),
            laterality=_text_or_none(fields["laterality"]),
            patient_orientation=None if orientation is None else _pair(_texts(orientation)),
            body_part=_text_or_none(fields["body_part"]),
            anatomic_region=None if region is None else _code(region),
            procedures=tuple(_code(code) for code in fields["procedures"]),
            burned_in=_text_or_none(fields["burned_in"]),
            lossy=_truth(fields["lossy"]),
            lossy_ratios=_floats(fields["lossy_ratios"]),
            lossy_methods=_texts(fields["lossy_methods"]),
            timezone_offset=_text_or_none(fields["timezone_offset"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise SandboxAnswerRefused("the decoding process answered with something that is no evidence") from exc


def references_from(header: Message) -> list[list[str]]:
    """The file references of a DICOMDIR, each a list of name components; raises SandboxAnswerRefused."""
    try:
        return [list(_texts(reference)) for reference in header["references"]]
    except (KeyError, TypeError, ValueError) as exc:
        raise SandboxAnswerRefused("the decoding process answered with something that is no list of files") from exc


def _plane(fields: Message) -> Plane:
    position, cosines = _floats(fields["position_mm"]), _floats(fields["orientation"])
    (x, y, z), (a, b, c, d, e, f) = position, cosines
    thickness = fields["thickness_mm"]
    return Plane(
        position_mm=(x, y, z),
        orientation=(a, b, c, d, e, f),
        spacing_mm=_pair(_floats(fields["spacing_mm"])),
        thickness_mm=None if thickness is None else _real(thickness),
    )


def _code(fields: Message) -> Code:
    return Code(scheme=_text(fields["scheme"]), value=_text(fields["value"]), meaning=_text(fields["meaning"]))


def _window(fields: Message) -> Window:
    function = fields["function"]
    if function not in get_args(VoiFunction):
        raise ValueError("function")
    width = _real(fields["width"])
    if width < (1 if function == "LINEAR" else 0):
        raise ValueError("width")
    return Window(
        centre=_real(fields["centre"]),
        width=width,
        function=function,
        explanation=_text_or_none(fields["explanation"]),
    )


def _ref(fields: Message) -> InstanceRef:
    return InstanceRef(
        study_instance_uid=_uid(fields["study_instance_uid"]),
        series_instance_uid=_uid(fields["series_instance_uid"]),
        sop_instance_uid=_uid(fields["sop_instance_uid"]),
        sop_class_uid=_uid(fields["sop_class_uid"]),
    )


def _uid(value: object) -> str:
    uid = _text(value)
    if not 0 < len(uid) <= 64 or not set(uid) <= set("0123456789."):
        raise ValueError("uid")
    return uid


def _one_dimensional(array: NDArray[np.float32]) -> NDArray[np.float32]:
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError("LUT")
    return array


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("texts")
    return tuple(_text(one) for one in value)


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**31) <= value < 2**31:
        raise TypeError("whole number")
    return value


def _whole_or_none(value: object) -> int | None:
    return None if value is None else _whole(value)


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError("number")
    return float(value)


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("truth")
    return value


def _floats(value: object) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise TypeError("numbers")
    return tuple(_real(one) for one in value)


def _floats_or_none(value: object) -> tuple[float, ...] | None:
    return None if value is None else _floats(value)


def _pair(values: tuple[_T, ...]) -> tuple[_T, _T]:
    first, second = values
    return first, second


def _day(value: object) -> date | None:
    return None if value is None else date.fromisoformat(_text(value))


def _day_text(value: date | None) -> str | None:
    return None if value is None else value.isoformat()
