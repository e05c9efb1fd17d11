"""What a model wants and what it says: the manifest that lies beside its ONNX graph."""

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vision_model.errors import (
    ManifestInvalid,
    ModelDigestMismatch,
    ModelNotFound,
    PrecisionUnavailable,
    TextEncoderMissing,
    UnknownTask,
)

MANIFEST_NAME = "manifest.json"
GRAPH_NAME = "model.onnx"
FLOAT_GRAPH_NAME = "float.onnx"  # the same weights as an 8-bit model.onnx, computed with in fp32
WEIGHTS_NAME = "weights.bin"  # what the two of them share
GOLDEN_NAME = "golden.npz"  # "images" (B, 3, S, S) and outputs of the graph for them, as the export computed them
TEXT_GRAPH_NAME = "text.onnx"  # token_ids, mask (B, T) int64 -> embedding (B, 384), unit length
TOKENIZER_NAME = "tokenizer.json"
PROJECTION_NAME = "text.npz"  # weight (384, D), scale (), origins and centres (R, 384): from embeddings to text space
SCHEMA_VERSION = 1

# How a graph's large weights lie in the file and what it computes with: "int8" multiplies 8-bit integers and knows only
# the CPU; what is "stored" otherwise is turned to fp32 once, when the session starts.
Precision = Literal["fp32", "fp16-stored", "int8", "int8-stored"]


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept: SNOMED CT (scheme "SCT") or RadLex (scheme "RADLEX")."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True, slots=True)
class WindowRule:
    """The window the training images of one modality and body part were made with, in modality units."""

    modality: str
    body_part: str
    centre: float
    width: float


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How pixels become a tensor: the numbers of `prepare()`."""

    size: int  # side of the square input, a multiple of patch
    patch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    windows: tuple[WindowRule, ...]
    percentiles: tuple[float, float]  # black and white point where neither a rule nor the file gives a window

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.size // self.patch

    def window(self, modality: str | None, body_part: str | None) -> tuple[float, float] | None:
        """(centre, width) that the training images of this kind were made with, or None."""
        for rule in self.windows:
            if (rule.modality, rule.body_part) == (modality, body_part):
                return rule.centre, rule.width
        return None


@dataclass(frozen=True, slots=True)
class Route:
    """One class of the modality and body-part router, with the DICOM words that name it."""

    name: str  # "DX-CHEST"
    modalities: tuple[str, ...]  # Modality (0008,0060) values that mean it: ("DX", "CR")
    body_parts: tuple[str, ...]  # Body Part Examined (0018,0015) values: ("CHEST",)


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold on the calibrated probability, chosen on `val` by the named rule."""

    threshold: float
    rule: str
    sensitivity: float  # on val
    specificity: float


@dataclass(frozen=True, slots=True)
class Label:
    """One answer a task can give."""

    name: str
    display: str
    code: Code | None
    normal: bool  # a normal label is shown, but never counts as a positive finding
    operating_point: OperatingPoint


@dataclass(frozen=True, slots=True)
class Population:
    """Who the training images show. None means that the source does not say."""

    description: str
    minimum_age_years: float | None
    maximum_age_years: float | None  # exclusive


@dataclass(frozen=True, slots=True)
class Task:
    """A question the model answers, for one route and one population."""

    name: str
    display: str
    route: str
    population: Population
    labels: tuple[Label, ...]
    first_logit: int  # where this task's logits start in the graph's output
    temperature: float
    conformal_alpha: float
    conformal_quantile: float  # a label is in the set when 1 - p <= quantile
    ood_index: int  # column of the graph's `ood` output
    ood_threshold: float
    sources: tuple[str, ...]
    test_auroc: float
    test_auroc_interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class UnservedTask:
    """A task that was trained and is not answered, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One more graph of the same weights, computed otherwise."""

    file: str
    precision: Precision
    sha256: str


@dataclass(frozen=True, slots=True)
class TextSpec:
    """Digests of the files with which the model reads words."""

    graph_sha256: str
    tokenizer_sha256: str
    projection_sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything the serving part needs to know of a model."""

    name: str
    version: str
    graph_sha256: str  # of model.onnx, the graph that answers on a CPU and that everything below was calibrated on
    precision: Precision
    input: InputSpec
    embedding_size: int
    routes: tuple[Route, ...]
    route_temperature: float
    route_minimum: float  # the router abstains below this probability
    tasks: tuple[Task, ...]
    unserved: tuple[UnservedTask, ...]
    threshold_set: str  # digest of every temperature, quantile and threshold: they do not survive a model update
    licence: str
    sources: tuple[dict[str, str], ...]  # name, licence, train_images; see `described` of vision_model.data.sources
    training: dict[str, str]  # recipe, seed, commit, initial weights, date
    more_graphs: tuple[GraphSpec, ...] = ()
    weights_sha256: str | None = None  # of weights.bin; None where the graph holds its own weights
    text: TextSpec | None = None  # None where the model has no words for its images
    schema_version: int = SCHEMA_VERSION

    def graph(self, *, provider: str = "cpu", precision: str | None = None) -> GraphSpec:
        """The graph to run; without a precision, the one this model is meant to answer with on that provider.

        Raises PrecisionUnavailable, naming the precisions there are.
        """
        every = (GraphSpec(GRAPH_NAME, self.precision, self.graph_sha256), *self.more_graphs)
        fitting = [g for g in every if provider == "cpu" or g.precision != "int8"]
        for spec in fitting:
            if precision in (None, spec.precision):
                return spec
        raise PrecisionUnavailable(
            f"{self.name} has no graph of precision {precision or 'fp32'!r} for {provider}; "
            f"it has {', '.join(g.precision for g in fitting) or 'none: an int8 graph runs on the CPU only'}"
        )

    def task(self, name: str) -> Task:
        """The served task of that name. Raises UnknownTask with the names there are, or why it is not served."""
        for task in self.tasks:
            if task.name == name:
                return task
        for unserved in self.unserved:
            if unserved.name == name:
                raise UnknownTask(f"task {name!r} is not served: {unserved.reason}")
        raise UnknownTask(f"no task {name!r}; served are {', '.join(t.name for t in self.tasks)}")

    def tasks_named(self, name: str) -> tuple[Task, ...]:
        """The task of that name, or all whose name begins with it: "cxr-pneumonia" means child and adult."""
        return tuple(t for t in self.tasks if t.name.startswith(name + "-")) or (self.task(name),)

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a model's folder.

    Raises ModelNotFound, and ManifestInvalid naming the first key that is absent, unknown or of the wrong type.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ModelNotFound(f"{folder} holds no {MANIFEST_NAME}; name a folder that `hilum model export` wrote")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise ManifestInvalid(f"{path} is not JSON: {exc}") from exc
    if not isinstance(raw, dict) or raw.get("schema_version") != SCHEMA_VERSION:
        raise ManifestInvalid(f"{path} has another schema than {SCHEMA_VERSION}; export the model again")
    manifest: Manifest = _decode(Manifest, raw, path="manifest")
    return manifest


def file_sha256(path: Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify_graph(folder: Path, manifest: Manifest) -> Path:
    """The path of model.onnx, once every graph and the weights are known to be what the manifest was written for.

    Raises ModelNotFound and ModelDigestMismatch.
    """
    expected = {GRAPH_NAME: manifest.graph_sha256} | {g.file: g.sha256 for g in manifest.more_graphs}
    if manifest.weights_sha256 is not None:
        expected[WEIGHTS_NAME] = manifest.weights_sha256
    for name, sha256 in expected.items():
        path = folder / name
        if not path.is_file():
            raise ModelNotFound(f"{folder} holds no {name}")
        if (digest := file_sha256(path)) != sha256:
            raise ModelDigestMismatch(
                f"{path} has SHA-256 {digest[:16]}…, its manifest says {sha256[:16]}…: "
                "the file was changed or belongs to another export; it is not run"
            )
    return folder / GRAPH_NAME


def text_spec(folder: Path) -> TextSpec:
    """The digests of the text files that lie in a folder. Raises TextEncoderMissing naming one that does not."""
    return TextSpec(*(file_sha256(_text_file(folder, n)) for n in (TEXT_GRAPH_NAME, TOKENIZER_NAME, PROJECTION_NAME)))


def verify_text(folder: Path, manifest: Manifest) -> None:
    """Make sure that the text files' bytes are those that the manifest was written for.

    Raises TextEncoderMissing and ModelDigestMismatch.
    """
    if manifest.text is None:
        raise TextEncoderMissing(
            f"the model {manifest.name} {manifest.version} was exported without a text encoder; "
            "load one whose manifest has `text`, or ask for embeddings or a task instead"
        )
    digests = (manifest.text.graph_sha256, manifest.text.tokenizer_sha256, manifest.text.projection_sha256)
    for name, wanted in zip((TEXT_GRAPH_NAME, TOKENIZER_NAME, PROJECTION_NAME), digests, strict=True):
        path = _text_file(folder, name)
        if (digest := file_sha256(path)) != wanted:
            raise ModelDigestMismatch(
                f"{path} has SHA-256 {digest[:16]}…, its manifest says {wanted[:16]}…: "
                "the file was changed or belongs to another export; it is not used"
            )


def _text_file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise TextEncoderMissing(f"{folder} holds no {name}; copy the whole folder that the export wrote")
    return path


def _decode(kind: Any, value: Any, *, path: str) -> Any:
    """JSON value -> the dataclass, tuple or scalar that the annotation names; nothing is coerced but int to float."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise ManifestInvalid(f"{path} is not an object")
        hints = get_type_hints(kind)
        needed = {f.name for f in fields(kind) if f.default is MISSING}
        if wrong := (needed - value.keys()) | (value.keys() - hints.keys()):
            raise ManifestInvalid(f"{path}: keys absent or unknown: {', '.join(sorted(wrong))}")
        return kind(**{name: _decode(hints[name], value[name], path=f"{path}.{name}") for name in value})  # type: ignore[operator]
    if origin is tuple:
        if not isinstance(value, list):
            raise ManifestInvalid(f"{path} is not a list")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise ManifestInvalid(f"{path} has {len(value)} entries, not {len(kinds)}")
        return tuple(_decode(k, v, path=f"{path}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {str(key): _decode(arguments[1], entry, path=f"{path}.{key}") for key, entry in value.items()}
    if origin is UnionType:
        return None if value is None else _decode(arguments[0], value, path=path)
    if origin is Literal and value in arguments:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise ManifestInvalid(f"{path} is {value!r}, which is not of type {kind}")
