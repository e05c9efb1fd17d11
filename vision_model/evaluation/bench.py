"""What all parts of one evaluation share: the model, the images, the questions, and the embeddings."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vision_model.data.duplicates import without_duplicates
from vision_model.data.example import Example, Split
from vision_model.data.sources import read_manifest
from vision_model.data.tasks import Curriculum, curriculum
from vision_model.evaluation.benchmarks import Benchmark, benchmarks, extra_labels, left_out, require_sources
from vision_model.evaluation.encoders import Encoder, Ours
from vision_model.evaluation.features import Outputs
from vision_model.evaluation.probes import Labelled, select
from vision_model.manifest import InputSpec
from vision_model.runtime import Model, load

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What is measured, and how much of it."""

    split: Split = "test"
    corruption_images: int = 120  # of each source
    explanation_images: int = 8  # of each served task; 0 leaves explanations out
    seed: int = 7


@dataclass
class Bench:
    """What all parts of one evaluation share."""

    model: Model
    what: Curriculum
    settings: Settings
    examples: list[Example]
    extra: dict[tuple[str, str], str]
    asked: tuple[Benchmark, ...]
    left_out: frozenset[str]
    duplicates: int  # train images left out because they stand twice
    cache: Path
    command: str
    encoders: list[Encoder] = field(default_factory=list)
    outputs: dict[str, Outputs] = field(default_factory=dict)  # encoder -> outputs for `examples`
    seconds: dict[str, float] = field(default_factory=dict)

    def of_split(self, split: str) -> NDArray[np.bool_]:
        """(N,) mask of the examples of a split."""
        return np.array([e.split == split for e in self.examples])

    def rng(self) -> np.random.Generator:
        """A fresh generator, so that no figure depends on which others were measured before."""
        return np.random.default_rng(self.settings.seed)

    def labelled(self, benchmark: Benchmark, encoder: str, split: str) -> Labelled:
        """One encoder's embeddings of a benchmark's images of one split."""
        labels = benchmark.labels_of(self.examples, extra=self.extra)
        groups = np.array([e.group for e in self.examples])
        return select(self.outputs[encoder]["embedding"], labels, groups, self.of_split(split))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Say what is being done, and keep how long it took."""
        logger.info("%s ...", stage)
        began = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - began, 1)
        logger.info("%s took %.0f s", stage, self.seconds[stage])


def open_bench(
    folder: Path,
    *,
    data: Path,
    cache: Path,
    settings: Settings,
    command: str,
    others: Callable[[InputSpec, Path], list[Encoder]],
) -> Bench:
    """Read model, images and benchmarks. Raises as `evaluate_model` does."""
    model, what = load(folder), curriculum()
    splits = {"train", "val", settings.split}
    asked = benchmarks(what)
    examples = read_manifest(data)
    require_sources(examples, asked)
    unseen = left_out(model.manifest, asked)
    # What pretraining was kept from, a probe is kept from too: a train image that is also a test image tells nothing.
    examples, removed = without_duplicates(examples, cache=cache / "fingerprints.npz", guarded=unseen)
    examples = [e for e in examples if e.split in splits]
    bench = Bench(
        model=model,
        what=what,
        settings=settings,
        examples=examples,
        extra=extra_labels(data),
        asked=asked,
        left_out=unseen,
        duplicates=len(removed.images),
        cache=cache,
        command=command,
    )
    bench.encoders.append(Ours(model))
    bench.encoders += others(model.manifest.input, cache)
    return bench
