"""What a model wants and what it says: the manifest that lies beside its ONNX graph."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vision_model.errors import ManifestInvalid, ModelDigestMismatch, ModelNotFound

MANIFEST_NAME = "manifest.json"
GRAPH_NAME = "model.onnx"
SCHEMA_VERSION = 1


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
class Manifest:
    """Everything the serving part needs to know of a model."""

    name: str
    version: str
    graph_sha256: str
    precision: Literal["fp32", "fp16-stored"]
    input: InputSpec
    embedding_size: int
    routes: tuple[Route, ...]
    route_temperature: float
    route_minimum: float  # the router abstains below this probability
    tasks: tuple[Task, ...]
    unserved: tuple[UnservedTask, ...]
    threshold_set: str  # digest of every temperature, quantile and threshold: they do not survive a model update
    licence: str
    sources: tuple[dict[str, str], ...]  # name, licence, images
    training: dict[str, str]  # recipe, seed, commit, initial weights, date
    schema_version: int = SCHEMA_VERSION
