"""What can go wrong with a model.

VisionModelError
├── ModelError               the files of a model
│   ├── ModelNotFound
│   ├── ManifestInvalid
│   ├── ModelDigestMismatch
│   ├── GraphInvalid
│   ├── ProviderUnavailable
│   ├── PrecisionUnavailable
│   ├── KnowledgeInvalid
│   └── TextEncoderMissing
├── InputError               what is asked of it
│   ├── ImageInvalid
│   ├── UnknownTask
│   ├── UnknownLabel
│   ├── UnknownRoute
│   └── PromptsInvalid
├── AdaptationError          teaching it a new question from a few images
│   ├── SupportInvalid
│   ├── AlphaInvalid
│   ├── HeadNotFitted
│   ├── HeadInvalid
│   ├── HeadOfAnotherEncoder
│   └── ExtraMissing
└── TrainingError            making one
    ├── RecipeInvalid
    ├── SourceInvalid
    ├── SourceNotFetched
    ├── WeightsInvalid
    ├── EvaluationInvalid
    ├── LossNotFinite
    ├── ParityFailed
    └── QuantisationFailed
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


class PrecisionUnavailable(ModelError):
    """The model has no graph of the precision that was asked for, or none that the provider runs."""

    code = "model.precision-unavailable"


class KnowledgeInvalid(ModelError):
    """knowledge.toml contradicts itself, or lacks a concept that something points at."""

    code = "model.knowledge-invalid"


class TextEncoderMissing(ModelError):
    """The model's folder holds no text encoder, or no projection of images into its space."""

    code = "model.no-text-encoder"


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


class UnknownRoute(InputError):
    """The model has no such route, or could not tell which one an image belongs to."""

    code = "model.unknown-route"


class PromptsInvalid(InputError):
    """Words to compare an image with are absent or empty."""

    code = "model.prompts-invalid"


class AdaptationError(VisionModelError):
    """A head cannot be fitted, saved, loaded or asked."""

    code = "model.adaptation"


class SupportInvalid(AdaptationError):
    """The images, labels and groups to learn from do not fit together, or cannot teach a difference."""

    code = "model.support-invalid"


class AlphaInvalid(AdaptationError):
    """An error rate for prediction sets that is not between 0 and 1."""

    code = "model.alpha-invalid"


class HeadNotFitted(AdaptationError):
    """A classifier was asked before it was fitted."""

    code = "model.head-not-fitted"


class HeadInvalid(AdaptationError):
    """The file is no head, or not one that this version reads."""

    code = "model.head-invalid"


class HeadOfAnotherEncoder(AdaptationError):
    """The head was fitted on another encoder's embeddings; its numbers mean nothing to this one."""

    code = "model.head-of-another-encoder"


class ExtraMissing(AdaptationError):
    """An optional package that this needs is not installed; the message names the extra."""

    code = "model.extra-missing"


class TrainingError(VisionModelError):
    """Training, evaluating or exporting stopped."""

    code = "model.training"


class RecipeInvalid(TrainingError):
    """The recipe asks for what does not exist."""

    code = "model.recipe-invalid"


class SourceInvalid(TrainingError):
    """A source of images is not laid out as it must be."""

    code = "model.source-invalid"


class SourceNotFetched(TrainingError):
    """A public source is not on this machine and cannot be reached; the message says what to put where."""

    code = "model.source-not-fetched"


class WeightsInvalid(TrainingError):
    """Initial weights are not those that the recipe names."""

    code = "model.weights-invalid"


class EvaluationInvalid(TrainingError):
    """A file is no evaluation, or one of another model."""

    code = "model.evaluation-invalid"


class LossNotFinite(TrainingError):
    """The loss became NaN or infinite; the batch is named."""

    code = "model.loss-not-finite"


class ParityFailed(TrainingError):
    """The exported graph does not give torch's numbers; it was not written."""

    code = "model.parity-failed"


class QuantisationFailed(TrainingError):
    """The 8-bit graph does not answer as the graph it was made from; it was not written."""

    code = "model.quantisation-failed"
