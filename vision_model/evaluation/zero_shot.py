"""Words alone: how an encoder does on sources it never saw when nobody brings a labelled image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_model.evaluation.benchmarks import Benchmark, BenchmarkLabel
from vision_model.evaluation.intervals import interval_of
from vision_model.evaluation.probes import Labelled
from vision_model.knowledge import Knowledge
from vision_model.manifest import Manifest
from vision_model.runtime import softmax
from vision_model.zero_shot import WordSpace, balanced_accuracy, prompt_ablation, prompt_sets

HEADLINE = "all texts"  # the prompt set that stands for the model: names, synonyms and finding phrases


def prompts(benchmark: Benchmark, *, words: Knowledge) -> dict[str, dict[str, list[str]]]:
    """{prompt set: {class: texts}} of the knowledge file's ablation: labels, names, names and synonyms, all texts.

    A label with words of its own has them in every set that says more than its name.
    """
    known = [label for label in benchmark.labels if label.concepts]
    sets = prompt_sets(
        {label.name: label.sources for label in known},
        words=words,
        concepts={label.name: label.concepts for label in known},
    )
    return {
        name: {label.name: texts.get(label.name) or _own_words(name, label) for label in benchmark.labels}
        for name, texts in sets.items()
    }


def zero_shot(
    space: WordSpace,
    test: Labelled,
    benchmark: Benchmark,
    *,
    words: Knowledge,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Balanced accuracy against chance, with its interval over groups, and the rows of the prompts' ablation."""
    sets = prompts(benchmark, words=words)
    logits = space.logits(test.x, sets[HEADLINE], routes=[benchmark.route] * len(test))
    answers = logits.argmax(axis=1)
    chance = 1 / len(np.unique(test.y))
    accuracy = balanced_accuracy(answers, test.y)
    return {
        "balanced_accuracy": accuracy,
        "interval": interval_of(lambda i: balanced_accuracy(answers[i], test.y[i]), test.groups, rng=rng),
        "chance": chance,
        "above_chance": accuracy - chance,
        "recall": {
            label.name: float((answers[test.y == i] == i).mean())
            for i, label in enumerate(benchmark.labels)
            if (test.y == i).any()
        },
        "prompts": sets[HEADLINE],
        "ablation": prompt_ablation(space, test.x, test.y, sets=sets, route=benchmark.route),
    }


def routing(
    logits: NDArray[np.float32], truth: NDArray[np.int64], datasets: Sequence[str], *, manifest: Manifest
) -> dict[str, Any]:
    """How often the router names the right modality and body part: in all, and for each dataset, answered or not."""
    probabilities = softmax(logits[:, : len(manifest.routes)] / manifest.route_temperature)
    right = probabilities.argmax(axis=1) == truth
    answered = probabilities.max(axis=1) >= manifest.route_minimum
    names = np.array(datasets)

    def figures(chosen: NDArray[np.bool_]) -> Mapping[str, float | int | None]:
        said = chosen & answered
        return {
            "images": int(chosen.sum()),
            "accuracy": float(right[chosen].mean()),
            "answered": float(answered[chosen].mean()),
            "accuracy_of_answered": float(right[said].mean()) if said.any() else None,
        }

    return {
        "all": figures(np.ones(len(names), np.bool_)),
        "datasets": {name: figures(names == name) for name in sorted(set(datasets))},
    }


def _own_words(prompt_set: str, label: BenchmarkLabel) -> list[str]:
    if prompt_set == "labels":
        return sorted({value for _, value in label.sources})
    return [label.display] if prompt_set == "names" else [label.display, *label.words]
