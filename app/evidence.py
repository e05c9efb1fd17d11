"""Recompute where in an image a recorded finding comes from, and check it by covering the image."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from app.db.tables import PredictionRow
from app.errors import NotReproduced
from app.receive import reopen
from app.spool import Spool
from app.window import from_record, present
from dicom_io.read import frames
from dicom_io.sandbox import Sandbox
from vision_model.explain import Verification, contrast_map, upsample, verify_explanation
from vision_model.preprocess import ModelInput
from vision_model.runtime import Model

CHECK_STRIDE = 2  # patches that the cover moves: 64 runs of a grid of 16, some seconds on a small server
CHECK_BATCH = 4


def evidence(
    prediction: PredictionRow,
    *,
    task: str,
    label: str,
    shape: tuple[int, int],
    model: Model,
    spool: Spool,
    sandbox: Sandbox,
) -> NDArray[np.float32]:
    """What each place of the frame adds to the label's logit over its task's other labels, in `shape` (rows, columns).

    The record keeps digests of model and input, not the map; a map that would not be of the very same model and input
    is refused with NotReproduced. Raises NotInSpool, DicomError and UnknownLabel too.
    """
    model_input = _repeated(prediction, model=model, spool=spool, sandbox=sandbox)
    (repeated,) = model.predict_inputs([model_input])
    return upsample(contrast_map(repeated, manifest=model.manifest, task=task, label=label), shape=shape)


def check(
    prediction: PredictionRow,
    *,
    task: str,
    label: str,
    model: Model,
    spool: Spool,
    sandbox: Sandbox,
    heard: Callable[[int, int], None],
) -> Verification:
    """Cover the image place by place and compare what is lost with the map; `heard` is told the runs done and all.

    Raises what `evidence` raises.
    """
    model_input = _repeated(prediction, model=model, spool=spool, sandbox=sandbox)
    return verify_explanation(
        model, model_input, task=task, label=label, stride=CHECK_STRIDE, batch=CHECK_BATCH, heard=heard
    )


def _repeated(prediction: PredictionRow, *, model: Model, spool: Spool, sandbox: Sandbox) -> ModelInput:
    """The input that the prediction was made from, bit for bit."""
    if model.manifest.graph_sha256 != prediction.model_sha256:
        raise NotReproduced("another model is loaded now than the one that made this prediction")
    instance = reopen(prediction.instance, spool=spool, sandbox=sandbox).instance
    frame = next(frames(instance, sandbox=sandbox, numbers=[prediction.frame_number]))
    model_input = present(frame, from_record(prediction.preprocessing), spec=model.manifest.input)
    if model_input.sha256 != prediction.input_sha256:
        raise NotReproduced("the model's input is not the recorded one; a decoder may have been updated since")
    return model_input
