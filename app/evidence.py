"""Recompute where in an image a recorded finding comes from."""

import numpy as np
from numpy.typing import NDArray

from app.db.tables import PredictionRow
from app.errors import NotReproduced
from app.receive import reopen
from app.spool import Spool
from app.window import from_record, present
from dicom_io.read import frames
from dicom_io.sandbox import Sandbox
from vision_model.explain import contrast_map, upsample
from vision_model.runtime import Model


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
    if model.manifest.graph_sha256 != prediction.model_sha256:
        raise NotReproduced("another model is loaded now than the one that made this prediction")
    instance = reopen(prediction.instance, spool=spool, sandbox=sandbox).instance
    frame = next(frames(instance, sandbox=sandbox, numbers=[prediction.frame_number]))
    model_input = present(frame, from_record(prediction.preprocessing), spec=model.manifest.input)
    if model_input.sha256 != prediction.input_sha256:
        raise NotReproduced("the model's input is not the recorded one; a decoder may have been updated since")
    (repeated,) = model.predict_inputs([model_input])
    return upsample(contrast_map(repeated, manifest=model.manifest, task=task, label=label), shape=shape)
