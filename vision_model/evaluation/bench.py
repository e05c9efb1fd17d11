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
from vision_model.data.mixture import MASKED
from vision_model.data.sources import read_manifest
from vision_model.data.tasks import Curriculum, curriculum
from vision_model.evaluation.benchmarks import Benchmark, benchmarks, extra_labels, left_out, require_sources
from vision_model.evaluation.corruptions import spread_sample
from vision_model.evaluation.encoders import Encoder, Ours
from vision_model.evaluation.features import Outputs, features
from vision_model.evaluation.probes import Labelled, select
from vision_model.manifest import InputSpec
from vision_model.runtime import Model, load

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What is measured, and how much of it."""

    split: Split = "test"
    baseline_images: int | None = None  # training images of each source that baselines see; None is all
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
    shared: NDArray[np.bool_]  # (N,) what baselines see: all but training images beyond `baseline_images`
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

    def labelled(self, benchmark: Benchmark, encoder: str, split: str, *, shared: bool = False) -> Labelled:
        """One encoder's embeddings of a benchmark's images of one split; `shared` leaves what baselines see too."""
        labels = benchmark.labels_of(self.examples, extra=self.extra)
        groups = np.array([e.group for e in self.examples])
        chosen = self.of_split(split)
        if shared or encoder != Ours.name:
            chosen &= self.shared
        return select(self.outputs[encoder]["embedding"], labels, groups, chosen)

    def embed(self, encoder: Encoder) -> None:
        """Fill `outputs`, split by split: ours for all examples, a baseline's for those it sees (NaN in other rows)."""
        outputs = self.outputs[encoder.name] = {}
        seen = np.ones(len(self.examples), np.bool_) if encoder.name == Ours.name else self.shared
        for split in dict.fromkeys((self.settings.split, "val", "train")):
            own = np.flatnonzero(seen & self.of_split(split))
            found = features(encoder, [self.examples[i] for i in own], cache=self.cache)
            for name, values in found.items():
                shape = (len(self.examples), *values.shape[1:])
                outputs.setdefault(name, np.full(shape, np.nan, np.float32))[own] = values

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
        shared=_shared(examples, most=settings.baseline_images, seed=settings.seed),
        duplicates=len(removed.images),
        cache=cache,
        command=command,
    )
    bench.encoders.append(Ours(model))
    bench.encoders += others(model.manifest.input, cache)
    return bench


def _shared(examples: list[Example], *, most: int | None, seed: int) -> NDArray[np.bool_]:
    """(N,) mask: everything but the training images of each source beyond `most`, labels taking turns."""
    kept = np.ones(len(examples), np.bool_)
    if most is None:
        return kept
    names = np.array([e.dataset if e.split == "train" else "" for e in examples])
    _, labels = np.unique([e.label for e in examples], return_inverse=True)
    for dataset in sorted(set(names.tolist()) - {""}):
        own = names == dataset
        chosen = spread_sample(np.where(own, labels, MASKED), most=most, rng=np.random.default_rng(seed))
        kept[own] = False
        kept[chosen] = True
    return kept
