"""Areas, intervals, supports, probes and shortcuts, against cases worked by hand or by another tool."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from vision_model.data.example import Example
from vision_model.data.mixture import MASKED
from vision_model.data.tasks import curriculum
from vision_model.evaluation import few_shot, intervals, shortcuts
from vision_model.evaluation.benchmarks import benchmarks, extra_labels
from vision_model.evaluation.encoders import Hog, Image8, Pixels
from vision_model.evaluation.features import Change, features
from vision_model.evaluation.few_shot import draw_supports, paired_difference, plain_regression
from vision_model.evaluation.intervals import area, auroc, bootstrap_interval, interval_of
from vision_model.evaluation.probes import STRENGTHS, UNCHOSEN, Labelled, fit_probe
from vision_model.knowledge import knowledge
from vision_model.pretrain.heads import WHOLE, fit_head
from vision_model.runtime import softmax


def labelled(
    rng: np.random.Generator, *, n: int, width: int = 6, labels: int = 2, apart: float = 3.0, per_group: int = 1
) -> Labelled:
    y = np.arange(n) % labels
    x = rng.normal(size=(n, width)).astype(np.float32)
    x[np.arange(n), y % width] += apart
    return Labelled(x, y, np.array([f"g{i // (labels * per_group)}-{i % labels}" for i in range(n)]))


def test_area_counts_a_tie_as_half() -> None:
    # Pairs (positive, negative): .5 > .2, .5 = .5, .9 > .2, .9 > .5: three and a half of four.
    assert area(np.array([False, True, False, True]), np.array([0.2, 0.5, 0.5, 0.9])) == pytest.approx(3.5 / 4)


def test_area_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    positive, score = rng.random(300) < 0.3, rng.normal(size=300).round(1)
    assert area(positive, score) == pytest.approx(roc_auc_score(positive, score))
    with pytest.raises(ValueError, match="two kinds"):
        area(np.ones(3, np.bool_), np.arange(3.0))


def test_area_of_several_labels_is_the_mean_over_those_present() -> None:
    p = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.6, 0.3, 0.1]])
    assert auroc(p, np.array([0, 1, 0])) == pytest.approx(1.0)


def test_whole_groups_are_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "BOOTSTRAPS", 50)
    groups = np.repeat(["a", "b", "c"], 4)

    def of_whole_groups(i: NDArray[np.int64]) -> tuple[float]:
        _, counts = np.unique(i // 4, return_counts=True)
        return (float((counts % 4 == 0).all()),)

    low, _ = bootstrap_interval(of_whole_groups, groups, rng=np.random.default_rng(0))
    assert low == [1.0]


def test_one_patient_has_no_interval() -> None:
    assert interval_of(lambda _: 0.5, np.array(["one"] * 9), rng=np.random.default_rng(0)) is None


def test_supports_take_one_image_of_each_patient_first() -> None:
    y = np.repeat([0, 1], 40)
    groups = np.array([f"{label}-{i // 4}" for label in (0, 1) for i in range(40)])  # ten patients of four images each
    for support in draw_supports(y, groups, labels=2):
        chosen = groups[support.indices]
        assert (np.bincount(y[support.indices]) == support.shots).all()
        assert len(set(chosen.tolist())) == 2 * min(support.shots, 10)


def test_a_smaller_support_is_part_of_the_larger_and_draws_repeat() -> None:
    y, groups = np.repeat([0, 1], 20), np.array([str(i) for i in range(40)])
    drawn = draw_supports(y, groups, labels=2)
    by = {(s.seed, s.shots): set(s.indices.tolist()) for s in drawn}
    assert all(by[seed, 1] <= by[seed, 5] <= by[seed, 10] <= by[seed, 16] for seed in range(few_shot.SEEDS))
    assert by == {(s.seed, s.shots): set(s.indices.tolist()) for s in draw_supports(y, groups, labels=2)}
    assert by[0, 10] != by[1, 10]


def test_a_label_with_few_images_gives_all_it_has() -> None:
    y = np.array([0] * 20 + [1] * 3)
    (largest, *_) = [s for s in draw_supports(y, np.arange(23).astype(str), labels=2) if s.shots == 16]
    assert np.bincount(y[largest.indices]).tolist() == [16, 3]


def test_plain_regression_means_the_same_at_every_scale_of_the_embedding() -> None:
    rng = np.random.default_rng(1)
    support, query = labelled(rng, n=20), labelled(rng, n=60)
    p = plain_regression(support, query.x)
    large = Labelled(support.x * 1000 + 7, support.y, support.groups)
    np.testing.assert_allclose(plain_regression(large, query.x * 1000 + 7), p, atol=1e-3)
    assert auroc(p, query.y) > 0.9


def test_a_difference_is_paired_by_draw_and_zero_against_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "BOOTSTRAPS", 30)
    rng = np.random.default_rng(2)
    test = labelled(rng, n=40)
    draws = rng.random((3, 40, 2))
    found = paired_difference(draws, draws, test, rng=rng)
    assert found == {"difference": 0.0, "interval": (0.0, 0.0)}


def test_probe_takes_the_strength_that_val_prefers_and_learns_from_val_after() -> None:
    rng = np.random.default_rng(3)
    train, val, test = (labelled(rng, n=n, width=60, apart=1.5) for n in (60, 80, 80))
    parts = (slice(0, 30), slice(30, 60))
    probe = fit_probe(train, val, parts=parts, labels=2)
    areas = {}
    for strength in STRENGTHS:
        logits = fit_head(train.x, train.y, parts=parts, strength=strength).logits(val.x)
        areas[strength] = auroc(softmax(logits), val.y)
    assert probe.strength == max(areas, key=areas.__getitem__)
    assert probe.val_auroc is not None
    assert probe.val_auroc == pytest.approx(max(areas.values()))
    assert auroc(probe.probabilities(val.x), val.y) > probe.val_auroc
    assert auroc(probe.probabilities(test.x), test.y) > 0.8


def test_probe_chooses_nothing_where_val_lacks_a_label() -> None:
    rng = np.random.default_rng(4)
    train, val = labelled(rng, n=100), labelled(rng, n=30)
    probe = fit_probe(train, val.only(val.y == 0), parts=WHOLE, labels=2)
    assert (probe.strength, probe.val_auroc) == (UNCHOSEN, None)


def test_a_score_that_is_only_the_view_says_nothing_among_films_of_one_view() -> None:
    rng = np.random.default_rng(6)
    films = labelled(rng, n=60, apart=4)
    view = shortcuts.fit_view_probe(films)
    assert view is not None
    assert view.cross_validated_auroc > 0.95
    # Sicker patients lie: the disease goes with the view, and the score is nothing but the view.
    test = labelled(rng, n=400, apart=2)
    sick = np.where(rng.random(400) < 0.8, test.y, 1 - test.y)
    found = shortcuts.view_figures(view, view.log_odds(test.x), Labelled(test.x, sick, test.groups))
    assert found["auroc_of_apparent_view_for_disease"] > 0.7
    assert found["rank_correlation_of_score_and_apparent_view"] == pytest.approx(1)
    assert found["auroc_given_apparent_view"] < found["auroc_of_apparent_view_for_disease"]


def test_too_few_films_of_a_view_teach_nothing() -> None:
    rng = np.random.default_rng(7)
    films = labelled(rng, n=4)
    assert shortcuts.fit_view_probe(films.only(films.y == 0)) is None


def test_border_and_inside_make_up_the_film() -> None:
    rng = np.random.default_rng(8)
    film = rng.integers(1, 255, (50, 40, 3), dtype=np.uint8)
    outside, inside = shortcuts.border_alone(film, rng), shortcuts.without_border(film, rng)
    assert np.array_equal(outside + inside, film)
    assert not outside[6:44, 5:35].any()


class Counting:
    """Pixels, and how many images it was asked for."""

    def __init__(self) -> None:
        self.name, self.digest, self.parts = "counting", "0" * 64, WHOLE
        self.images = 0

    def embed(self, images: Sequence[Image8]) -> dict[str, NDArray[np.float32]]:
        self.images += len(images)
        return Pixels().embed(images)


def made(folder: Path, *, count: int) -> list[Example]:
    rng = np.random.default_rng(9)
    examples = []
    for i in range(count):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
        examples.append(Example(path, "d", "DX", "CHEST", "normal", str(i), "train", ""))
    return examples


def test_a_stopped_evaluation_embeds_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision_model.evaluation.features.CHUNK", 4)
    examples, encoder = made(tmp_path, count=10), Counting()
    first = features(encoder, examples[:8], cache=tmp_path / "cache")
    assert encoder.images == 8
    whole = features(encoder, examples, cache=tmp_path / "cache")
    assert encoder.images == 10
    np.testing.assert_array_equal(whole["embedding"][:8], first["embedding"])
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(examples[0].path)
    features(encoder, examples, cache=tmp_path / "cache")
    assert encoder.images == 14  # the chunk with the image that changed


def test_changed_images_are_kept_apart_from_whole_ones(tmp_path: Path) -> None:
    examples, encoder = made(tmp_path, count=3), Counting()
    dark = Change("dark", lambda image, _rng: np.zeros_like(image))
    whole = features(encoder, examples, cache=tmp_path / "cache")["embedding"]
    changed = features(encoder, examples, cache=tmp_path / "cache", change=dark)["embedding"]
    assert not changed.any()
    np.testing.assert_array_equal(features(encoder, examples, cache=tmp_path / "cache")["embedding"], whole)


def test_hog_sees_direction_and_not_brightness() -> None:
    ramp = np.repeat(np.linspace(0, 120, 64)[None, :, None], 64, axis=0)
    image = np.repeat(ramp, 3, axis=2).astype(np.uint8)
    level, brighter, turned = Hog().embed([image, image + 60, image.transpose(1, 0, 2)])["embedding"]
    np.testing.assert_allclose(level, brighter, atol=1e-3)
    assert np.abs(level - turned).max() > 0.1


def test_every_benchmark_has_words_for_its_labels_and_labels_for_its_words() -> None:
    known = knowledge()
    for benchmark in benchmarks(curriculum()):
        assert len(benchmark.labels) > 1
        for label in benchmark.labels:
            assert label.words or [known[c] for c in label.concepts]
            if benchmark.extra is None:
                assert all(known.of(*pair) is not None for pair in label.sources), label


def test_a_label_of_extra_labels_is_found_by_the_file(tmp_path: Path) -> None:
    (tmp_path / "extra_labels.csv").write_text("file,key,value\nmini_mias/a.png,density,fatty\n", encoding="utf-8")
    density = next(b for b in benchmarks(curriculum()) if b.extra == "density")
    films = [
        Example(tmp_path / "mini_mias" / name, "mini_mias", "MG", "BREAST", "normal", name, "test", "")
        for name in ("a.png", "b.png")
    ]
    assert density.labels_of(films, extra=extra_labels(tmp_path)).tolist() == [0, MASKED]
