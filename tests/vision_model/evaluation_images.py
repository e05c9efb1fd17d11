"""A folder of made images for every benchmark: each label a place of a bright bar, each route a level of grey."""

import csv
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from tests.vision_model.images import MODALITY
from vision_model.data.sources import COLUMNS
from vision_model.data.tasks import curriculum
from vision_model.evaluation.benchmarks import benchmarks


def evaluation_images(folder: Path, *, each: int = 4) -> Path:
    """Write `each` images of every label and split of every benchmark, and extra_labels.csv where one asks for it."""
    rng = np.random.default_rng(5)
    number, extra = count(), []
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as lines:
        rows = csv.DictWriter(lines, COLUMNS)
        rows.writeheader()
        for benchmark in benchmarks(curriculum()):
            modality, body_part = MODALITY[benchmark.route]
            (folder / benchmark.dataset).mkdir(exist_ok=True)
            for place, label in enumerate(benchmark.labels):
                ((dataset, value), *_) = sorted(label.sources)
                for split in ("train", "val", "test"):
                    for _ in range(each):
                        name = f"{dataset}/{next(number)}.png"
                        _draw(folder / name, place=place, level=len(MODALITY) * place, rng=rng)
                        if benchmark.extra is not None:
                            extra.append((name, benchmark.extra, value))
                        rows.writerow(
                            {
                                "file": name,
                                "dataset": dataset,
                                "modality": modality,
                                "body_part": body_part,
                                "label": "unused" if benchmark.extra else value,
                                "group": f"{split}-{name}",
                                "split": split,
                                "licence": "made by code",
                            }
                        )
    with (folder / "extra_labels.csv").open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([("file", "key", "value"), *extra])
    return folder


def _draw(path: Path, *, place: int, level: int, rng: np.random.Generator) -> None:
    pixels = rng.normal(60 + level, 50, (30, 40, 1)).clip(0, 255)
    left = place * 4 + int(rng.integers(2))
    pixels[:, left : left + 3] += 120
    Image.fromarray(np.repeat(pixels.clip(0, 255), 3, axis=2).astype(np.uint8)).save(path)
