"""What Hilum knows in words: the concepts of `knowledge.toml`, their codes, texts and kinship."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vision_model.errors import KnowledgeInvalid
from vision_model.manifest import Code

KNOWLEDGE_FILE = Path(__file__).parent / "knowledge.toml"
KEYS = frozenset({"display", "code", "synonyms", "phrases", "modality", "anatomy", "parent", "from"})

Pair = tuple[str, str]  # (dataset, label) as a source's manifest writes them


@dataclass(frozen=True, slots=True)
class Concept:
    """One thing an image may show.

    A disease that looks different in each modality is a concept without modality and anatomy; its children are its
    looks, one per modality.
    """

    name: str
    display: str
    code: Code | None
    synonyms: tuple[str, ...]
    phrases: tuple[str, ...]  # findings, as they stand in a report
    modality: str | None  # Modality (0008,0060)
    anatomy: str | None  # body part, as the sources' manifests write it
    parent: str | None
    sources: frozenset[Pair]

    @property
    def names(self) -> tuple[str, ...]:
        """The display name, then the synonyms."""
        return (self.display, *self.synonyms)

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything that may be said of it: names, synonyms, finding phrases."""
        return (*self.names, *self.phrases)


@dataclass(frozen=True)
class Knowledge:
    """All concepts by name, in the order of the file."""

    concepts: dict[str, Concept]
    _by_source: dict[Pair, Concept] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        by_source: dict[Pair, Concept] = {}
        for concept in self.concepts.values():
            for pair in concept.sources:
                if pair in by_source:
                    raise KnowledgeInvalid(f"{':'.join(pair)} is both {by_source[pair].name} and {concept.name}")
                by_source[pair] = concept
        object.__setattr__(self, "_by_source", by_source)
        for concept in self.concepts.values():
            self.ancestors(concept)

    def __getitem__(self, name: str) -> Concept:
        """The concept of that name. Raises KnowledgeInvalid."""
        if name not in self.concepts:
            raise KnowledgeInvalid(f"knowledge.toml has no concept {name!r}; add a table [{name}] or correct the name")
        return self.concepts[name]

    def __iter__(self) -> Iterator[Concept]:
        return iter(self.concepts.values())

    def of(self, dataset: str, label: str) -> Concept | None:
        """The concept that a source's label means, or None where the file does not say."""
        return self._by_source.get((dataset, label))

    def ancestors(self, concept: Concept) -> tuple[Concept, ...]:
        """Parent, grandparent and so on. Raises KnowledgeInvalid where a parent is absent or is its own descendant."""
        line: list[Concept] = []
        while (parent := (line[-1] if line else concept).parent) is not None:
            if parent == concept.name or any(parent == known.name for known in line):
                raise KnowledgeInvalid(f"{concept.name}: its line of parents turns back on itself at {parent}")
            line.append(self[parent])
        return tuple(line)

    def family(self, concept: Concept) -> tuple[Concept, ...]:
        """The concept and all kinds of it."""
        return tuple(c for c in self if c.name == concept.name or concept in self.ancestors(c))

    def code(self, concept: Concept) -> Code | None:
        """Its own code, or the disease's when it is that disease's look in one modality."""
        if concept.code is None and concept.parent is not None:
            parent = self[concept.parent]
            return parent.code if parent.modality is None else None
        return concept.code


@cache
def knowledge(path: Path = KNOWLEDGE_FILE) -> Knowledge:
    """Read `knowledge.toml`, once.

    Raises KnowledgeInvalid naming the concept and the key that is wrong.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as exc:
        raise KnowledgeInvalid(f"{path.name} is not TOML: {exc}") from exc
    return Knowledge({name: _concept(name, table) for name, table in raw.items()})


def _concept(name: str, table: dict[str, Any]) -> Concept:
    if unknown := table.keys() - KEYS:
        raise KnowledgeInvalid(f"[{name}] has unknown keys: {', '.join(sorted(unknown))}")
    if "display" not in table:
        raise KnowledgeInvalid(f"[{name}] has no display")
    if ("modality" in table) != ("anatomy" in table):
        raise KnowledgeInvalid(f"[{name}] gives one of modality and anatomy; give both or none")
    return Concept(
        name=name,
        display=table["display"],
        code=Code(*table["code"]) if "code" in table else None,
        synonyms=tuple(table.get("synonyms", ())),
        phrases=tuple(table.get("phrases", ())),
        modality=table.get("modality"),
        anatomy=table.get("anatomy"),
        parent=table.get("parent"),
        sources=frozenset(_pair(name, entry) for entry in table.get("from", ())),
    )


def _pair(name: str, entry: str) -> Pair:
    dataset, colon, label = entry.partition(":")
    if not (dataset and colon and label):
        raise KnowledgeInvalid(f'[{name}] from holds {entry!r}; it is written "dataset:label"')
    return dataset, label
