"""One of two training processes that torchrun starts: leaves a digest of its weights and the images it saw."""

import hashlib
import os
import sys
from pathlib import Path

from vision_model.data.mixture import Batch, Batches
from vision_model.data.sources import read_manifest
from vision_model.data.tasks import curriculum
from vision_model.knowledge import knowledge
from vision_model.pretrain.loop import train
from vision_model.pretrain.objective import read_prompts
from vision_model.pretrain.recipe import read_recipe
from vision_model.runtime import MODELS, SHIPPED
from vision_model.text import TextEncoder


class Noted(Batches):
    """Batches that write down which images they hold."""

    def __getitem__(self, item: int) -> Batch:
        batch = super().__getitem__(item)
        with (out / f"seen-{rank}.txt").open("a") as lines:
            lines.write(f"{item} {batch.indices.tolist()}\n")
        return batch


folder, out = (Path(argument) for argument in sys.argv[1:])
rank = os.environ["RANK"]
what = curriculum()
examples = [e for e in read_manifest(folder) if e.split == "train"]
from vision_model.pretrain import loop  # noqa: E402  # after the class that takes its place

setattr(loop, "Batches", Noted)  # noqa: B010  # mypy would have it exported
net = train(
    examples,
    watched=examples[::20],
    curriculum=what,
    knowledge=knowledge(),
    prompts=read_prompts(knowledge(), what, TextEncoder(MODELS / SHIPPED)),
    recipe=read_recipe("tiny"),
    run=out / "run",
    workers=0,
)
digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters()))
(out / f"weights-{rank}.txt").write_text(digest.hexdigest())
