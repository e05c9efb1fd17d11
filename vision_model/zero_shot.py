"""Compare images with words: what an image has in common with a text, and where.

An image's vector is a linear projection of its embedding, the mean of its patch tokens, so that its likeness to a text
is exactly the sum of its patches' shares. Texts are centred by the mean text of the image's route: what all texts of a
modality share says nothing about the image, and long descriptions would otherwise collapse into one another. Images are
centred by the route's mean image for the same reason: no word of a route is then likelier than another beforehand.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vision_model.errors import GraphInvalid, KnowledgeInvalid, PromptsInvalid, UnknownRoute
from vision_model.knowledge import Concept, Knowledge, Pair
from vision_model.manifest import PROJECTION_NAME, Manifest, verify_text
from vision_model.text import TEXT_SIZE, TextEncoder

LEAST_LENGTH = 1e-6  # a text that is its route's mean has no direction; it is like nothing


@dataclass(frozen=True, slots=True)
class QueryResult:
    """How much an image is like a text, and where."""

    route: str  # whose mean text was taken off
    score: float  # cosine, -1 to 1; not a probability, and not calibrated
    relevance: NDArray[np.float32] = field(repr=False)  # (grid, grid) shares of the patches; they sum to the score


@dataclass(frozen=True)
class Projection:
    """From embeddings (D,) into text space, as pretraining fitted it."""

    weight: NDArray[np.float32]  # (384, D)
    origins: NDArray[np.float32]  # (R, 384) where the mean image of each route comes to lie, in the manifest's order
    scale: float  # logits are this times the cosine
    centres: NDArray[np.float32]  # (R, 384) mean text of each route
    sharp: NDArray[np.floating]  # (384, D) the part of `weight` that knows what was shown: a head may lean on it alone

    def save(self, folder: Path) -> None:
        """Write text.npz."""
        np.savez(
            folder / PROJECTION_NAME,
            weight=self.weight,
            origins=self.origins,
            scale=np.float32(self.scale),
            centres=self.centres,
            sharp=self.sharp,
        )


@dataclass(frozen=True)
class WordSpace:
    """The space in which the images and the words of one model meet."""

    encoder: TextEncoder
    projection: Projection
    routes: tuple[str, ...]

    def images(self, embeddings: NDArray[np.float32], *, route: str) -> NDArray[np.float32]:
        """Embeddings (N, D) of one route -> (N, 384), centred by its mean image, each of unit length."""
        return unit(embeddings @ self.projection.weight.T - self.projection.origins[self.route_index(route)])

    def classes(self, prompts: Mapping[str, Sequence[str]]) -> NDArray[np.float32]:
        """(C, 384) one unit vector a class: the mean of its prompts' unit vectors. Raises PromptsInvalid."""
        for name, texts in prompts.items():
            if isinstance(texts, str) or not texts:
                raise PromptsInvalid(f"class {name!r} needs a list of one text or more, such as [{name!r}]")
        vectors = self.encoder.embed([text for texts in prompts.values() for text in texts])
        ends = np.cumsum([len(texts) for texts in prompts.values()])[:-1]
        return unit(np.array([part.mean(axis=0) for part in np.split(vectors, ends)], np.float32))

    def directions(self, texts: NDArray[np.float32], *, route: str) -> NDArray[np.float32]:
        """Unit vectors (C, 384) of texts -> (C, 384), centred by the route's mean text and of unit length again."""
        return unit(texts - self.projection.centres[self.route_index(route)])

    def logits(
        self, embeddings: NDArray[np.float32], prompts: Mapping[str, Sequence[str]], *, routes: Sequence[str]
    ) -> NDArray[np.float32]:
        """Embeddings (N, D), prompts of C classes and each image's route -> (N, C); a softmax makes them probabilities.

        Raises PromptsInvalid and UnknownRoute.
        """
        if not isinstance(prompts, Mapping) or len(prompts) < 2:
            raise PromptsInvalid(
                "zero-shot answers choose between classes; name two or more, each with texts that describe it, such as"
                ' {"normal": ["clear lungs"], "pneumonia": ["consolidation"]}'
            )
        texts = self.classes(prompts)
        logits = np.empty((len(embeddings), len(texts)), np.float32)
        for route in sorted(set(routes)):
            of_route = [i for i, name in enumerate(routes) if name == route]
            logits[of_route] = self.images(embeddings[of_route], route=route) @ self.directions(texts, route=route).T
        return logits * np.float32(self.projection.scale)

    def likeness(self, tokens: NDArray[np.float32], text: NDArray[np.float32], *, route: str) -> QueryResult:
        """Patch tokens (T, D) of one image, and the unit vector (384,) of a text. Raises UnknownRoute."""
        direction = self.directions(text[None], route=route)[0].astype(np.float64)
        weight = self.projection.weight.astype(np.float64)
        origin = self.projection.origins[self.route_index(route)].astype(np.float64)
        # The origin belongs to every patch alike, and the length of the image's vector divides all shares.
        length = max(float(np.linalg.norm(weight @ tokens.mean(axis=0, dtype=np.float64) - origin)), LEAST_LENGTH)
        shares = (tokens @ (direction @ weight) - direction @ origin) / (len(tokens) * length)
        side = int(len(tokens) ** 0.5)
        return QueryResult(
            route=route, score=float(shares.sum()), relevance=shares.reshape(side, side).astype(np.float32)
        )

    def route_index(self, route: str) -> int:
        """Place of a route in the manifest. Raises UnknownRoute."""
        if route not in self.routes:
            raise UnknownRoute(f"no route {route!r}; the model's are {', '.join(self.routes)}")
        return self.routes.index(route)


def open_word_space(folder: Path, manifest: Manifest, *, threads: int = 0) -> WordSpace:
    """Open a model's text encoder and projection, once their bytes are known to be the manifest's.

    Raises TextEncoderMissing, ModelDigestMismatch and GraphInvalid.
    """
    verify_text(folder, manifest)
    try:
        with np.load(folder / PROJECTION_NAME, allow_pickle=False) as arrays:
            projection = Projection(
                weight=arrays["weight"],
                origins=arrays["origins"],
                scale=float(arrays["scale"]),
                centres=arrays["centres"],
                sharp=arrays["sharp"],
            )
    except (KeyError, ValueError, OSError) as exc:
        raise GraphInvalid(f"{PROJECTION_NAME} cannot be read: {exc}") from exc
    arrays_read = (projection.weight, projection.sharp, projection.origins, projection.centres)
    shapes = tuple(array.shape for array in arrays_read)
    wanted = (*[(TEXT_SIZE, manifest.embedding_size)] * 2, *[(len(manifest.routes), TEXT_SIZE)] * 2)
    if shapes != wanted:
        raise GraphInvalid(f"{PROJECTION_NAME} holds arrays of the shapes {shapes}, not {wanted}: export it again")
    return WordSpace(TextEncoder(folder, threads=threads), projection, tuple(r.name for r in manifest.routes))


def prompt_sets(
    classes: Mapping[str, Collection[Pair]],
    *,
    words: Knowledge,
    concepts: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, dict[str, list[str]]]:
    """The prompts that an ablation of the knowledge file compares: {set: {class: texts}}.

    `classes` gives the (dataset, label) pairs that mean each class. "labels" are those labels as the source writes
    them; "names" the display names of their concepts, or of those that `concepts` names for the class; "names and
    synonyms" and "all texts" add what the file says beyond. Raises KnowledgeInvalid for a label without concept.
    """
    meant = {
        name: [words[c] for c in (concepts or {}).get(name, ())] or [_concept(pair, words) for pair in sorted(pairs)]
        for name, pairs in classes.items()
    }
    return {
        "labels": {name: sorted({label for _, label in pairs}) for name, pairs in classes.items()},
        "names": {name: [c.display for c in found] for name, found in meant.items()},
        "names and synonyms": {name: [text for c in found for text in c.names] for name, found in meant.items()},
        "all texts": {name: [text for c in found for text in c.texts] for name, found in meant.items()},
    }


def prompt_ablation(
    space: WordSpace,
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    sets: Mapping[str, Mapping[str, Sequence[str]]],
    route: str,
) -> dict[str, float]:
    """Zero-shot balanced accuracy of embeddings (N, D) for every prompt set, and the same with ", not centred".

    `labels` (N,) index the classes in the order of each set. The projection was fitted to centred texts, so "not
    centred" says what centring is worth when asking, not what it was worth in training.
    """
    vectors = space.images(embeddings, route=route)
    found: dict[str, float] = {}
    for name, prompts in sets.items():
        texts = space.classes(prompts)
        centred = space.directions(texts, route=route)
        found[name] = balanced_accuracy((vectors @ centred.T).argmax(axis=1), labels)
        found[f"{name}, not centred"] = balanced_accuracy((vectors @ texts.T).argmax(axis=1), labels)
    return found


def balanced_accuracy(answers: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Mean over the classes present of the share of their images that were answered right."""
    return float(np.mean([(answers[labels == c] == c).mean() for c in np.unique(labels)]))


def _concept(pair: Pair, words: Knowledge) -> Concept:
    concept = words.of(*pair)
    if concept is None:
        raise KnowledgeInvalid(f"no concept of knowledge.toml has {':'.join(pair)} in its `from`")
    return concept


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (..., D) brought to unit length; what has no direction stays at nothing."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    of_unit_length: NDArray[np.float32] = vectors / np.maximum(length, LEAST_LENGTH)
    return of_unit_length
