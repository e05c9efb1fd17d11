"""Does a chest-film score read the lungs or the circumstances? What can be said where no view is recorded.

Bedside (AP) films show sicker patients, so a probe may learn the view and score as if it had learnt the disease
(DeGrave et al. 2021). The adult source states no view, so three indirect looks are taken: a probe for the view, learnt
on a source that states it; the score among films that look alike in that respect; and the same probe trained on films
without their border, where side markers stand, and on the border alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict

from vision_model.evaluation.encoders import Image8
from vision_model.evaluation.features import Change
from vision_model.evaluation.intervals import area
from vision_model.evaluation.probes import Labelled

BORDER = 0.12  # of each side
VIEW_STRENGTH = 1e-3
STRATA = 3


def without_border(image: Image8, _rng: np.random.Generator) -> Image8:
    """Black out the outer frame, where side markers and portable signs stand."""
    kept = np.zeros_like(image)
    inside = _inside(image)
    kept[inside] = image[inside]
    return kept


def border_alone(image: Image8, _rng: np.random.Generator) -> Image8:
    """Black out all but the outer frame: no lung is left."""
    kept = image.copy()
    kept[_inside(image)] = 0
    return kept


WITHOUT_BORDER = Change(f"border of {BORDER} blacked out", without_border)
BORDER_ALONE = Change(f"all but a border of {BORDER} blacked out", border_alone)
# A probe is trained and tested on each.
LOOKS: tuple[tuple[str, Change | None], ...] = (
    ("whole film", None),
    ("without border", WITHOUT_BORDER),
    ("border alone", BORDER_ALONE),
)


@dataclass(frozen=True)
class ViewProbe:
    """Tells AP from PA films by the embedding."""

    centre: NDArray[np.float32]
    scale: NDArray[np.float32]
    fitted: LogisticRegression
    cross_validated_auroc: float
    images: dict[str, int]

    def log_odds(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N,) of being AP."""
        found: NDArray[np.float64] = self.fitted.decision_function((x - self.centre) / self.scale)
        return found


def fit_view_probe(films: Labelled) -> ViewProbe | None:
    """Learn AP (1) from PA (0), with an AUROC cross-validated by group; None without three patients of each."""
    folds = min(len(set(films.groups[films.y == v].tolist())) for v in (0, 1)) if len(films) else 0
    if folds < STRATA:
        return None
    centre, scale = films.x.mean(axis=0), films.x.std(axis=0) + 1e-6
    z = (films.x - centre) / scale
    regression = LogisticRegression(C=VIEW_STRENGTH, class_weight="balanced", max_iter=2000)
    held_out = cross_val_predict(
        regression, z, films.y, groups=films.groups, cv=GroupKFold(min(5, folds)), method="decision_function"
    )
    return ViewProbe(
        centre,
        scale,
        regression.fit(z, films.y),
        area(films.y == 1, held_out),
        {"AP": int((films.y == 1).sum()), "PA": int((films.y == 0).sum())},
    )


def view_figures(view: ViewProbe, score: NDArray[np.float64], test: Labelled) -> dict[str, Any]:
    """How far a disease score (N,) goes along with the view that the films appear to have."""
    log_odds = view.log_odds(test.x)
    edges = np.quantile(log_odds, np.linspace(0, 1, STRATA + 1)[1:-1])
    stratum = np.searchsorted(edges, log_odds)
    inside: dict[str, dict[str, float | None]] = {}
    areas: list[tuple[int, float]] = []
    for s in range(STRATA):
        own = np.flatnonzero(stratum == s)
        found = _area_or_none(test.y[own] == 1, score[own])
        inside[str(s + 1)] = {"images": len(own), "auroc": found}
        if found is not None:
            areas.append((len(own), found))
    return {
        "view_probe": {"cross_validated_auroc": view.cross_validated_auroc, "images": view.images},
        "auroc_of_apparent_view_for_disease": area(test.y == 1, log_odds),
        "rank_correlation_of_score_and_apparent_view": float(spearmanr(score, log_odds).statistic),
        "auroc_within_thirds_of_apparent_view": inside,
        "auroc_given_apparent_view": sum(n * a for n, a in areas) / sum(n for n, _ in areas) if areas else None,
    }


def _inside(image: Image8) -> tuple[slice, slice]:
    rows, columns = (round(n * BORDER) for n in image.shape[:2])
    return slice(rows, image.shape[0] - rows), slice(columns, image.shape[1] - columns)


def _area_or_none(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    return area(positive, score) if 0 < positive.sum() < len(positive) else None
