"""A small folder of made images in the shape of the real one: every dataset and label, in every split."""

import csv
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from vision_model.data.sources import COLUMNS
from vision_model.data.tasks import curriculum

MODALITY = {
    "DX-CHEST": ("DX", "CHEST"),
    "CT-CHEST": ("CT", "CHEST"),
    "CT-HEAD": ("CT", "HEAD"),
    "MR-BRAIN": ("MR", "BRAIN"),
    "DMS-SKIN": ("DMS", "SKIN"),
    "US-BREAST": ("US", "BREAST"),
    "OP-RETINA": ("OP", "RETINA"),
    "MG-BREAST": ("MG", "BREAST"),
    "SM-BREAST": ("SM", "BREAST"),
}


def made_images(folder: Path, *, each: int = 3) -> Path:
    """Write `each` images of every label and split; a label is the place of a bright bar, a route the level."""
    rng = np.random.default_rng(11)
    what = curriculum()
    kinds = {
        pair: (MODALITY[task.route], i)
        for task in what.tasks
        for i, label in enumerate(task.labels)
        for pair in label.sources
    }
    kinds[("mini_mias", "normal")] = (MODALITY["MG-BREAST"], 0)
    kinds[("idc_breast_patches", "idc")] = (MODALITY["SM-BREAST"], 0)
    number = count()
    levels = {kind: 20 * i for i, kind in enumerate(MODALITY.values())}
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as lines:
        rows = csv.DictWriter(lines, COLUMNS)
        rows.writeheader()
        for (dataset, label), ((modality, body_part), place) in kinds.items():
            for split in ("train", "val", "test"):
                for _ in range(each):
                    pixels = rng.normal(levels[modality, body_part], 10, (30, 36)).clip(0, 255)
                    pixels[:, place * 4 : place * 4 + 3] = 250
                    name = f"{next(number)}.png"
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
                    rows.writerow(
                        {
                            "file": name,
                            "dataset": dataset,
                            "modality": modality,
                            "body_part": body_part,
                            "label": label,
                            "group": f"{split}-{name}",
                            "split": split,
                            "licence": "made by code",
                        }
                    )
    return folder
