"""What can go wrong with a model.

VisionModelError
├── ModelError               the files of a model
│   ├── ModelNotFound
│   ├── ManifestInvalid
│   ├── ModelDigestMismatch
│   ├── GraphInvalid
│   └── ProviderUnavailable
├── InputError               what is asked of it
│   ├── ImageInvalid
│   ├── UnknownTask
│   └── UnknownLabel
└── TrainingError            making one
    ├── RecipeInvalid
    ├── SourceInvalid
    ├── WeightsInvalid
    ├── LossNotFinite
    └── ParityFailed
"""


class VisionModelError(Exception):
    """Anything this package refuses, with a stable code."""

    code = "model"


class ModelError(VisionModelError):
    """A model's files cannot be used."""

    code = "model.unusable"


class ModelNotFound(ModelError):
    """The folder holds no model."""

    code = "model.not-found"


class ManifestInvalid(ModelError):
    """manifest.json does not say what it must."""

    code = "model.manifest-invalid"


class ModelDigestMismatch(ModelError):
    """The graph's bytes are not those that the manifest was written for."""

    code = "model.digest-mismatch"


class GraphInvalid(ModelError):
    """The graph does not load, or lacks an output that the manifest promises."""

    code = "model.graph-invalid"


class ProviderUnavailable(ModelError):
    """The execution provider that was asked for is not there; nothing else is taken in its place."""

    code = "model.provider-unavailable"


class InputError(VisionModelError):
    """What was asked of the model makes no sense to it."""

    code = "model.input"


class ImageInvalid(InputError):
    """An array is not an image: wrong shape, empty, or without finite values."""

    code = "model.image-invalid"


class UnknownTask(InputError):
    """The model has no such task, or does not serve it."""

    code = "model.unknown-task"


class UnknownLabel(InputError):
    """The task has no such label."""

    code = "model.unknown-label"


class TrainingError(VisionModelError):
    """Training, evaluating or exporting stopped."""

    code = "model.training"


class RecipeInvalid(TrainingError):
    """The recipe asks for what does not exist."""

    code = "model.recipe-invalid"


class SourceInvalid(TrainingError):
    """A source of images is not laid out as it must be."""

    code = "model.source-invalid"


class WeightsInvalid(TrainingError):
    """Initial weights are not those that the recipe names."""

    code = "model.weights-invalid"


class LossNotFinite(TrainingError):
    """The loss became NaN or infinite; the batch is named."""

    code = "model.loss-not-finite"


class ParityFailed(TrainingError):
    """The exported graph does not give torch's numbers; it was not written."""

    code = "model.parity-failed"
