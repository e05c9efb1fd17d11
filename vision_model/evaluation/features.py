"""Embed every image once per encoder, and keep what was done, so that a stopped evaluation goes on where it was."""

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vision_model.data.example import Example
from vision_model.evaluation.encoders import Encoder, Image8, read_image

logger = logging.getLogger(__name__)

CHUNK = 256  # images that an interruption can cost
BATCH = 32

Outputs = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Change:
    """What is done to every image before it is embedded; its name says all that it depends on."""

    name: str
    apply: Callable[[Image8, np.random.Generator], Image8]


def features(
    encoder: Encoder, examples: Sequence[Example], *, cache: Path | None = None, change: Change | None = None
) -> Outputs:
    """The encoder's outputs for the examples, in their order: "embedding" (N, D), and "logits" and "ood" of ours.

    With a `cache` folder, chunks are read from there when encoder, change and the images' bytes are the same.
    """
    parts: list[Outputs] = []
    title = encoder.name if change is None else f"{encoder.name}, {change.name}"
    with tqdm(total=len(examples), desc=title, unit="image", mininterval=10, smoothing=0.05) as bar:
        for start in range(0, len(examples), CHUNK):
            chunk = examples[start : start + CHUNK]
            path = None if cache is None else _chunk_path(cache, encoder, chunk, change)
            if path is not None and path.is_file():
                with np.load(path, allow_pickle=False) as stored:
                    parts.append({name: stored[name] for name in stored.files})
                bar.update(len(chunk))
                bar.unpause()  # what was read from disk says nothing of the time left
                continue
            parts.append(_embedded(encoder, chunk, change=change, bar=bar))
            if path is not None:
                _keep(path, parts[-1])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _embedded(encoder: Encoder, examples: Sequence[Example], *, change: Change | None, bar: "tqdm[None]") -> Outputs:
    batches = []
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH]
        images = [read_image(e.path) for e in batch]
        if change is not None:
            images = [change.apply(image, _rng(change, e)) for image, e in zip(images, batch, strict=True)]
        batches.append(encoder.embed(images))
        bar.update(len(batch))
    return {name: np.concatenate([b[name] for b in batches]).astype(np.float32) for name in batches[0]}


def _rng(change: Change, example: Example) -> np.random.Generator:
    """The same image is changed in the same way for every encoder, whatever else is embedded with it."""
    seed = hashlib.sha256(f"{change.name} {example.dataset} {example.path.name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(seed[:8], "big"))


def _chunk_path(cache: Path, encoder: Encoder, examples: Sequence[Example], change: Change | None) -> Path:
    digest = hashlib.sha256((change.name if change else "").encode())
    for example in examples:
        digest.update(hashlib.sha256(example.path.read_bytes()).digest())
    folder = f"{re.sub(r'[^a-z0-9]+', '-', encoder.name.lower())}-{encoder.digest[:12]}"
    return cache / folder / f"{digest.hexdigest()[:32]}.npz"


def _keep(path: Path, outputs: Outputs) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, **outputs)  # type: ignore[arg-type]  # names of arrays, none of them allow_pickle
    part.replace(path)
