"""Read received images, ask the model, let the gate decide, and keep all of it before anybody sees it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice
from time import perf_counter

from app.db.session import Sessions
from app.errors import SpoolDamaged
from app.gate import Facts, gate
from app.identity import Actor
from app.receive import Received, digest
from app.record import record
from app.results import Diagnosed, NotDiagnosed, ReadImage
from app.window import as_record, choose, needs_route, present
from dicom_io.errors import DicomError, NoPixels, NotAVolume
from dicom_io.geometry import Slice, slices_in, slices_of, volume
from dicom_io.read import frames, group, no_frames
from dicom_io.sandbox import Sandbox
from dicom_io.types import Series
from vision_model.errors import ImageInvalid
from vision_model.preprocess import ModelInput
from vision_model.runtime import Model, Prediction

Prepared = tuple[ReadImage, ModelInput]

SLICED = frozenset({"CT", "MR", "PT"})  # modalities whose series are meant to be volumes


def diagnose(
    received: Iterable[Received],
    *,
    model: Model,
    sandbox: Sandbox,
    sessions: Sessions | None,
    actor: Actor,
    now: Callable[[], datetime],
    batch_size: int,
    frames_per_series: int,
    stated_age_years: float | None = None,
) -> Iterator[Diagnosed | NotDiagnosed]:
    """Diagnose images, yielding each once its prediction, findings and audit event are committed.

    Frames are read singly and held as model inputs, one batch at a time: memory is one batch, not one CT. Of a series
    with more than `frames_per_series` frames an even sample is read, and each result says so. With `sessions` None
    nothing is kept. A file that cannot be decoded is yielded as NotDiagnosed, and the rest goes on.
    """
    images = (
        image
        for each, numbers, warnings in plan(received, frames_per_series=frames_per_series)
        for image in _prepare(each, numbers, warnings, model=model, sandbox=sandbox, now=now)
    )
    while batch := list(islice(images, batch_size)):
        results = _predict(batch, model=model, stated_age_years=stated_age_years)
        if sessions is not None:
            started = perf_counter()
            results = record(
                results,
                sessions=sessions,
                manifest=model.manifest,
                actor=actor,
                now=now,
                stated_age_years=stated_age_years,
            )
            record_ms = _ms_since(started) / len(results)
            results = [_timed(result, record_ms) for result in results]
        yield from results


def plan(
    received: Iterable[Received], *, frames_per_series: int
) -> Iterator[tuple[Received, Sequence[int], tuple[str, ...]]]:
    """Which frames of which file are read, in reading order, with what the reader should know of the choice.

    An instance that was sent twice is read once.
    """
    by_uid: dict[str, Received] = {}
    for each in received:
        by_uid.setdefault(each.instance.ref.sop_instance_uid, each)
    for study in group(each.instance for each in by_uid.values()):
        for series in study.series:
            chosen, warnings = _sample(series, frames_per_series)
            warnings += _not_a_volume(series.modality, slices_of(series))
            for instance, numbers in zip(series.instances, chosen, strict=True):
                if numbers or instance.number_of_frames == 0:
                    yield by_uid[instance.ref.sop_instance_uid], numbers, warnings


def _sample(series: Series, limit: int) -> tuple[list[Sequence[int]], tuple[str, ...]]:
    """The frame numbers to read of each instance, evenly spread over the series."""
    counts = [instance.number_of_frames for instance in series.instances]
    total = sum(counts)
    if total <= limit:
        return [range(1, count + 1) for count in counts], ()
    # Both ends and even steps between; whole numbers, because a header may claim billions of frames.
    positions = [i * (total - 1) // max(limit - 1, 1) for i in range(limit)]
    chosen: list[Sequence[int]] = []
    before = 0
    for count in counts:
        chosen.append([position - before + 1 for position in positions if before <= position < before + count])
        before += count
    read = ", ".join(str(position + 1) for position in positions)
    return chosen, (f"This series holds {total} images; {limit} of them were read, evenly spaced: {read}.",)


def _not_a_volume(modality: str | None, slices: Sequence[Slice]) -> tuple[str, ...]:
    """What the reader of a stack of slices should know before trusting its order; nothing for other images."""
    if modality not in SLICED or len(slices) < 2:
        return ()
    try:
        volume(slices)
    except NotAVolume as reason:
        return (f"The slices of this series are not one regular volume: {reason}. Each was assessed alone.",)
    return ()


def _prepare(
    received: Received,
    numbers: Sequence[int],
    warnings: tuple[str, ...],
    *,
    model: Model,
    sandbox: Sandbox,
    now: Callable[[], datetime],
) -> Iterator[Prepared | NotDiagnosed]:
    """Decode and prepare the frames of one file; it ends at the first that cannot be."""
    instance, manifest = received.instance, model.manifest
    if not numbers:
        problem = no_frames(instance.ref.sop_class_uid)
        reason = "This object carries no image (a report, a plan, a waveform or the like); it is kept and not assessed."
        yield NotDiagnosed(received, None, problem.code, reason if isinstance(problem, NoPixels) else str(problem))
        return
    done = 0
    started_at, started = now(), perf_counter()
    try:
        if received.instance_id is not None and digest(instance.path)[0] != received.sha256:
            raise SpoolDamaged(received.sha256)  # the record names the bytes that were looked at
        if instance.number_of_frames > 1 and instance.modality in SLICED:
            warnings += _not_a_volume(instance.modality, slices_in(sandbox.evidence(instance.path)))
        for frame in frames(instance, sandbox=sandbox, numbers=numbers):
            decode_ms, started = _ms_since(started), perf_counter()
            place = (f"Frame {frame.number} of {instance.number_of_frames}.",) if instance.number_of_frames > 1 else ()
            presentation = choose(frame, instance, manifest=manifest)
            model_input = present(frame, presentation, spec=manifest.input)
            if needs_route(instance, manifest=manifest):
                # The window depends on the body part, which only the picture tells: look once with the file's window.
                seen = model.predict_inputs([model_input])[0].route
                presentation = choose(frame, instance, manifest=manifest, route=seen)
                model_input = present(frame, presentation, spec=manifest.input)
            image = ReadImage(
                received=received,
                frame_number=frame.number,
                decoder=frame.decoder,
                preprocessing=as_record(presentation, model_input, instance),
                warnings=(*received.warnings, *instance.warnings, *frame.warnings, *warnings, *place),
                started_at=started_at,
                latency_ms={"decode": decode_ms, "prepare": _ms_since(started)},
            )
            yield image, model_input
            done += 1
            started_at, started = now(), perf_counter()
    except (DicomError, ImageInvalid, SpoolDamaged) as error:
        left = len(numbers) - done - 1
        more = f" The {left} frames after it were not read." if left else ""
        yield NotDiagnosed(received, numbers[done], error.code, f"{error}{more}")


def _predict(
    batch: Sequence[Prepared | NotDiagnosed], *, model: Model, stated_age_years: float | None
) -> list[Diagnosed | NotDiagnosed]:
    """Ask the model for a whole batch at once, and let the gate judge each answer."""
    started = perf_counter()
    answers = iter(_answers(model, [image[1] for image in batch if not isinstance(image, NotDiagnosed)]))
    results: list[Diagnosed | NotDiagnosed] = []
    inference_ms = _ms_since(started) / len(batch)
    for prepared in batch:
        if isinstance(prepared, NotDiagnosed):
            results.append(prepared)
            continue
        image, prediction = prepared[0], next(answers)
        if isinstance(prediction, ImageInvalid):
            results.append(NotDiagnosed(image.received, image.frame_number, prediction.code, str(prediction)))
            continue
        facts = Facts.of(image.received.instance)
        verdict = gate(facts, prediction, manifest=model.manifest, stated_age_years=stated_age_years)
        results.append(
            Diagnosed(
                image=image,
                prediction=prediction,
                verdict=verdict,
                warnings=(*image.warnings, *verdict.warnings),
                latency_ms={**image.latency_ms, "inference": inference_ms},
            )
        )
    return results


def _answers(model: Model, inputs: Sequence[ModelInput]) -> list[Prediction | ImageInvalid]:
    """One answer an input: an image that the model cannot answer must not take its batch with it."""
    try:
        return list(model.predict_inputs(inputs))
    except ImageInvalid as error:
        if len(inputs) == 1:
            return [error]
        return [answer for one in inputs for answer in _answers(model, [one])]


def _timed(result: Diagnosed | NotDiagnosed, record_ms: float) -> Diagnosed | NotDiagnosed:
    if isinstance(result, NotDiagnosed):
        return result
    return replace(result, latency_ms={**result.latency_ms, "record": record_ms})


def _ms_since(started: float) -> float:
    return (perf_counter() - started) * 1000
