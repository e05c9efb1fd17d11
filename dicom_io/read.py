"""From files to studies: the public face of reading. Parsing and decoding happen in the sandbox."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dicom_io.errors import NoPixels, NoSuchFrame, PixelsMissing
from dicom_io.expand import Refused, Source, expand
from dicom_io.limits import Limits
from dicom_io.sandbox import Sandbox
from dicom_io.types import Frame, Instance, Series, Study
from dicom_io.uids import IMAGE_SOP_CLASSES

__all__ = ["Limits", "Refused", "Sandbox", "Source", "expand", "frames", "group", "no_frames", "read_instance"]


def read_instance(path: Path, *, sandbox: Sandbox) -> Instance:
    """Read the header of one file; raises DicomError with a stable code.

    Objects without pixels (reports, plans, waveforms) are instances with 0 frames.
    """
    return sandbox.instance(path)


def frames(instance: Instance, *, sandbox: Sandbox, numbers: Sequence[int] | None = None) -> Iterator[Frame]:
    """Decode the frames asked for (1-based; None: all), one at a time.

    Raises NoPixels, PixelsMissing, NoSuchFrame, and at the frame concerned whatever keeps it from being decoded.
    """
    if instance.number_of_frames == 0:
        raise no_frames(instance.ref.sop_class_uid)
    for number in range(1, instance.number_of_frames + 1) if numbers is None else numbers:
        if not 1 <= number <= instance.number_of_frames:
            raise NoSuchFrame(f"frame {number} was asked for; there are frames 1 to {instance.number_of_frames}")
        yield sandbox.frame(instance, number)


def no_frames(sop_class_uid: str) -> NoPixels | PixelsMissing:
    """Why an instance has none: by its SOP class it is no image, or it is one that came without them."""
    if sop_class_uid in IMAGE_SOP_CLASSES:
        return PixelsMissing("the image came without its pixel data: the file may have been cut off; send it again")
    return NoPixels("the object carries no pixel data")


def group(instances: Iterable[Instance]) -> tuple[Study, ...]:
    """Gather instances into series and studies.

    Studies come in the order in which they are first met, series by number, and instances by position along the normal
    of the image plane, else by instance number. What a study or series says of itself is taken from its first instance.
    """
    studies: dict[str, dict[str, list[Instance]]] = {}
    for instance in instances:
        of_study = studies.setdefault(instance.ref.study_instance_uid, {})
        of_study.setdefault(instance.ref.series_instance_uid, []).append(instance)
    return tuple(_study(list(of_study.values())) for of_study in studies.values())


def _study(members: list[list[Instance]]) -> Study:
    first = members[0][0]
    series = sorted((_series(one) for one in members), key=lambda one: (one.number is None, one.number or 0))
    return Study(
        study_instance_uid=first.ref.study_instance_uid,
        patient=first.patient,
        study_date=first.study_date,
        description=first.study_description,
        accession_number=first.accession_number,
        series=tuple(series),
    )


def _series(instances: list[Instance]) -> Series:
    first = instances[0]
    return Series(
        series_instance_uid=first.ref.series_instance_uid,
        modality=first.modality,
        body_part=first.body_part,
        number=first.series_number,
        description=first.series_description,
        instances=tuple(_in_reading_order(instances)),
    )


def _in_reading_order(instances: list[Instance]) -> list[Instance]:
    along = [_position_along_normal(one) for one in instances]
    parallel = all(_parallel(one, instances[0]) for one in instances)
    numbered = sorted(instances, key=lambda one: (one.instance_number is None, one.instance_number or 0))
    if not parallel or any(place is None for place in along):
        return numbered
    places = {id(one): place for one, place in zip(instances, along, strict=True)}
    # Repeated positions (phases, echoes) keep the order of their instance numbers, because sorting is stable.
    return sorted(numbered, key=lambda one: round(places[id(one)] or 0.0, 3))


def _position_along_normal(instance: Instance) -> float | None:
    if instance.position_mm is None or instance.orientation is None:
        return None
    normal = np.cross(instance.orientation[:3], instance.orientation[3:])
    return float(np.dot(normal, instance.position_mm))


def _parallel(one: Instance, other: Instance) -> bool:
    if one.orientation is None or other.orientation is None:
        return False
    return bool(np.allclose(one.orientation, other.orientation, atol=1e-2))
