"""Few-shot heads: what they learn, promise, explain and keep."""

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.covariance import LedoitWolf, ledoit_wolf_shrinkage
from sklearn.model_selection import cross_val_score

import vision_model
from tests.vision_model.tiny import CHANNELS, tiny_model
from vision_model.adapt import FewShotClassifier, load_head
from vision_model.adapt.classifier import Text
from vision_model.adapt.fit import Examples, fit, ledoit_wolf, left_out, reference
from vision_model.adapt.head import Conformal, Linear, group_weight, needed_groups
from vision_model.calibrate import conformal_quantile
from vision_model.errors import (
    AlphaInvalid,
    HeadInvalid,
    HeadNotFitted,
    HeadOfAnotherEncoder,
    ImageInvalid,
    SupportInvalid,
    UnknownLabel,
)
from vision_model.runtime import Model, softmax

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return vision_model.load(tiny_model(tmp_path_factory.mktemp("tiny")))


def clouds(n: int, *, classes: int, seed: int, width: int = 6, apart: float = 1.5) -> tuple[Floats, NDArray[np.int64]]:
    """`n` points, each from one of the classes' Gaussian clouds."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centres = np.random.default_rng(classes).normal(0, apart, (classes, width))
    return (centres[y] + rng.normal(size=(n, width))).astype(np.float32), y


def examples(n: int, *, classes: int, seed: int, groups: NDArray[np.int64] | None = None) -> Examples:
    x, y = clouds(n, classes=classes, seed=seed)
    return Examples(x.astype(np.float64), y, (np.arange(n) if groups is None else groups).astype(str), classes)


def pictures(n: int, *, seed: int) -> tuple[list[NDArray[np.generic]], list[str]]:
    """Dark and bright pictures."""
    rng = np.random.default_rng(seed)
    labels = ["dark", "bright"] * (n // 2)
    levels = {"dark": 60, "bright": 180}
    return [rng.normal(levels[label], 25, (30, 34)).clip(0, 255).astype(np.uint8) for label in labels], labels


@pytest.mark.parametrize("method", ["auto", "prototype", "logistic"])
def test_images_are_told_apart_by_each_method(model: Model, method: str) -> None:
    images, labels = pictures(16, seed=0)
    new, truth = pictures(20, seed=1)
    classifier = FewShotClassifier(model, method=method).fit(images, labels, groups=range(16))  # type: ignore[arg-type]
    assert classifier.classes_.tolist() == ["bright", "dark"]
    assert classifier.score(new, truth) == 1
    np.testing.assert_allclose(classifier.predict_proba(new).sum(axis=1), 1)


@pytest.mark.parametrize(("each", "method"), [(1, "prototype"), (2, "prototype"), (3, "logistic")])
def test_auto_takes_prototypes_up_to_two_images_a_label(model: Model, each: int, method: str) -> None:
    images, labels = pictures(2 * each, seed=0)
    classifier = FewShotClassifier(model).fit(images, labels, groups=range(2 * each))
    assert classifier.report_["method"] == method


def test_embeddings_and_images_give_the_same_head(model: Model) -> None:
    images, labels = pictures(12, seed=0)
    by_image = FewShotClassifier(model).fit(images, labels, groups=range(12))
    by_embedding = FewShotClassifier(model).fit(model.embed(images), labels, groups=range(12))
    np.testing.assert_array_equal(by_image.predict_proba(images), by_embedding.predict_proba(images))


def test_an_image_is_embedded_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = pictures(8, seed=0)
    classifier = FewShotClassifier(model).fit(images, labels, groups=range(8))
    asked: list[int] = []
    run = model.run

    def counted(tensors: Floats, outputs: Sequence[str]) -> list[Floats]:
        asked.append(len(tensors))
        return run(tensors, outputs)

    monkeypatch.setattr(model, "run", counted)
    classifier.predict([*images, images[0].T.copy()])
    assert asked == [1]


@pytest.mark.parametrize("label", ["dark", "bright"])
def test_explanation_sums_to_the_logit(model: Model, label: str) -> None:
    images, labels = pictures(12, seed=0)
    classifier = FewShotClassifier(model).fit(images, labels, groups=range(12))
    logits = classifier.decision_function(images)
    for image, own in zip(images, logits, strict=True):
        grid = classifier.explain(image, label)
        assert grid.shape == (2, 2)
        assert grid.sum() == pytest.approx(own[classifier.classes_.tolist().index(label)], abs=1e-4)


def test_an_unknown_label_is_not_explained(model: Model) -> None:
    images, labels = pictures(8, seed=0)
    with pytest.raises(UnknownLabel, match="bright, dark"):
        FewShotClassifier(model).fit(images, labels, groups=range(8)).explain(images[0], "grey")


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(3)), seed=st.integers(0, 5))
def test_naming_the_labels_otherwise_only_reorders_the_answers(order: list[int], seed: int) -> None:
    plain = examples(18, classes=3, seed=seed)
    renamed = Examples(plain.x, np.array(order)[plain.y], plain.groups, 3)
    one, other = (fit(e, method="logistic", seed=0).linear.logits(plain.x) for e in (plain, renamed))
    np.testing.assert_allclose(softmax(one), softmax(other)[:, order], atol=0.02)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=24, max_size=24), st.integers(0, 99))
def test_a_group_never_crosses_folds(groups: list[int], seed: int) -> None:
    support = examples(24, classes=2, seed=1, groups=np.array(groups))
    tested = []
    for train, test in left_out(support, seed=seed):
        assert not set(support.groups[train]) & set(support.groups[test])
        tested += test.tolist()
    assert sorted(tested) in (list(range(24)), [])


@settings(max_examples=10, deadline=None)
@given(
    n=st.integers(4, 40), classes=st.integers(2, 4), seed=st.integers(0, 99), labels=st.sampled_from(["word", "int"])
)
def test_a_saved_head_gives_the_same_numbers(
    tmp_path_factory: pytest.TempPathFactory, n: int, classes: int, seed: int, labels: str
) -> None:
    folder = tmp_path_factory.mktemp("head")
    model = vision_model.load(tiny_model(folder / "model"))
    x, y = clouds(n * classes, classes=classes, seed=seed, width=CHANNELS)
    named = y if labels == "int" else np.array(["a", "b", "c", "d"])[y]
    classifier = FewShotClassifier(model).fit(x, named, groups=range(len(y)))
    classifier.save(folder / "my-head")
    again = FewShotClassifier.load(folder / "my-head", model)
    assert again.classes_.tolist() == classifier.classes_.tolist()
    assert again.report_ == classifier.report_
    assert again.ood_threshold_ == classifier.ood_threshold_
    np.testing.assert_array_equal(again.predict_proba(x), classifier.predict_proba(x))
    np.testing.assert_array_equal(again.ood_score(x), classifier.ood_score(x))
    assert again.predict_set(x, alpha=0.2) == classifier.predict_set(x, alpha=0.2)
    again.save(folder / "twice")
    assert (folder / "twice").read_bytes() == (folder / "my-head").read_bytes()


def test_a_head_is_a_small_file(tmp_path: Path) -> None:
    x, y = clouds(80, classes=8, seed=0, width=1152)
    fitted = fit(Examples(x.astype(np.float64), y, np.arange(80).astype(str), 8), method="logistic", seed=0)
    head = vision_model.adapt.Head("0" * 64, tuple(range(8)), fitted.linear, fitted.conformal, fitted.support, {})
    head.save(tmp_path / "head")
    assert 10_000 < (tmp_path / "head").stat().st_size < 200_000


def test_a_head_is_refused_by_another_encoder(model: Model, tmp_path: Path) -> None:
    images, labels = pictures(8, seed=0)
    FewShotClassifier(model).fit(images, labels, groups=range(8)).save(tmp_path / "head")
    other = vision_model.load(tiny_model(tmp_path / "other", route="MR-BRAIN"))
    with pytest.raises(HeadOfAnotherEncoder, match="fit it again"):
        FewShotClassifier.load(tmp_path / "head", other)
    assert load_head(tmp_path / "head").labels == ("bright", "dark")


@pytest.mark.parametrize("damage", ["cut", "text", "absent", "format", "nan", "labels"])
def test_what_is_no_head_is_refused(model: Model, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "head"
    images, labels = pictures(8, seed=0)
    FewShotClassifier(model).fit(images, labels, groups=range(8)).save(path)
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    header = json.loads(str(arrays["header"]))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:300])
    elif damage == "text":
        path.write_text("not a head", encoding="utf-8")
    elif damage == "absent":
        path.unlink()
    else:
        if damage == "format":
            header["format"] = "hilum-head-99"
        elif damage == "labels":
            header["labels"].append("third")
        else:
            arrays["bias"][0, 0] = np.nan
        with path.open("wb") as stream:
            np.savez(stream, **(arrays | {"header": np.array(json.dumps(header))}))
    with pytest.raises(HeadInvalid):
        load_head(path)


def test_sets_of_cross_validation_cover_new_images() -> None:
    covered = total = 0
    for seed in range(30):
        support = examples(40, classes=4, seed=seed)
        x, y = clouds(40, classes=4, seed=seed + 1000)
        conformal = fit(support, method="prototype", seed=0).conformal
        assert conformal is not None
        covered += int(conformal.sets(x, alpha=0.2)[np.arange(40), y].sum())
        total += 40
    # The spread between supports of 40 is about that of a beta(33, 8) variable: .06 each, .011 over 30 of them.
    assert 0.8 - 0.04 < covered / total < 0.8 + 0.08


def test_split_sets_are_those_of_the_quantile(model: Model) -> None:
    x, y = clouds(60, classes=3, seed=0, width=CHANNELS)
    further, truth = clouds(57, classes=3, seed=1, width=CHANNELS)
    classifier = FewShotClassifier(model).fit(x, y, groups=range(60)).calibrate(further, truth, groups=range(57))
    quantile = conformal_quantile(classifier.predict_proba(further), truth, alpha=0.1)
    expected = [tuple(np.flatnonzero(1 - p <= quantile).tolist()) for p in classifier.predict_proba(x)]
    assert classifier.predict_set(x, alpha=0.1) == expected


def test_a_patient_with_many_images_counts_once() -> None:
    # Nine patients with score .1 and one with ninety images of score .9: by images .9 is usual, by patients it is not.
    scores = np.array([0.1] * 9 + [0.9] * 90)
    weight = group_weight([*range(9), *[9] * 90])
    assert weight.sum() == pytest.approx(10)
    linear = Linear(np.array([[1.0], [0.0]], np.float32), np.zeros(2, np.float32))
    conformal = Conformal((linear,), scores, np.zeros(99, np.int64), weight, "split")
    likely = np.log([[4.0]])  # p = .8, .2
    assert conformal.sets(likely, alpha=0.2).tolist() == [[False, False]]  # both scores, .2 and .8, are above .1
    assert conformal.sets(likely, alpha=0.1).tolist() == [[True, True]]


@pytest.mark.parametrize(("alpha", "groups"), [(0.1, 9), (0.2, 4), (0.05, 19), (0.5, 1), (0.3, 3)])
def test_the_fewest_groups_are_those_of_the_theorem(alpha: float, groups: int) -> None:
    assert needed_groups(alpha) == groups


def test_too_few_images_put_every_label_in_the_set_and_say_what_it_takes(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = pictures(6, seed=0)
    classifier = FewShotClassifier(model).fit(images, labels, groups=range(6))
    with caplog.at_level(logging.WARNING):
        assert classifier.predict_set(images, alpha=0.1) == [("bright", "dark")] * 6
    assert "need at least 9 groups, and there are 6" in caplog.text


def test_one_image_a_label_measures_nothing_and_says_so(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    images, labels = pictures(2, seed=0)
    with caplog.at_level(logging.WARNING):
        classifier = FewShotClassifier(model).fit(images, labels, groups=range(2))
        assert classifier.predict_set(images) == [("bright", "dark")] * 2
    assert "was not measured" in caplog.text
    assert "call calibrate()" in caplog.text
    assert "auroc" not in classifier.report_
    assert classifier.ood_threshold_ == np.inf


def test_without_groups_the_log_says_what_is_assumed(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    images, labels = pictures(8, seed=0)
    with caplog.at_level(logging.WARNING):
        FewShotClassifier(model).fit(images, labels)
    assert "no groups are given" in caplog.text


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 2.0, float("nan")])
@pytest.mark.parametrize("each", [1, 8])
def test_an_error_rate_outside_0_to_1_is_refused(model: Model, alpha: float, each: int) -> None:
    images, labels = pictures(2 * each, seed=0)
    classifier = FewShotClassifier(model).fit(images, labels, groups=range(2 * each))
    with pytest.raises(AlphaInvalid, match="between 0 and 1"):
        classifier.predict_set(images, alpha=alpha)


def test_what_cannot_be_learnt_from_is_refused(model: Model) -> None:
    images, labels = pictures(8, seed=0)
    x = model.embed(images)
    for wrong_images, wrong_labels, groups in (
        (images, ["dark"] * 8, None),  # one label
        (images, labels[:-1], None),
        (images, labels, range(7)),
        (x * np.nan, labels, None),
        (images, [0.5] * 8, None),  # numbers that are no labels
        ([], [], None),
    ):
        with pytest.raises(SupportInvalid):
            FewShotClassifier(model).fit(wrong_images, wrong_labels, groups)  # type: ignore[arg-type]
    with pytest.raises(SupportInvalid, match="auto, prototype, logistic, lora"):
        FewShotClassifier(model, method="svm").fit(images, labels)  # type: ignore[arg-type]
    for no_embeddings in (x[:, :2], np.zeros((8, CHANNELS), np.uint8)):
        with pytest.raises(ImageInvalid, match="neither"):
            FewShotClassifier(model).fit(no_embeddings, labels)
    with pytest.raises(UnknownLabel, match="grey"):
        FewShotClassifier(model).fit(images, labels).calibrate(images[:1], ["grey"])


def test_what_is_not_fitted_answers_nothing(model: Model, tmp_path: Path) -> None:
    classifier = FewShotClassifier(model)
    for ask in (classifier.predict, classifier.predict_proba, classifier.predict_set, classifier.ood_score):
        with pytest.raises(HeadNotFitted, match="fit"):
            ask([np.zeros((8, 8), np.uint8)])
    with pytest.raises(HeadNotFitted):
        classifier.save(tmp_path / "head")


def test_distance_is_that_of_a_ledoit_wolf_covariance() -> None:
    rng = np.random.default_rng(0)
    for n, width in ((10, 24), (30, 24)):
        x = rng.normal(size=(n, width)) * np.linspace(0.1, 3, width)
        new = rng.normal(size=(5, width))
        assert ledoit_wolf(x - x.mean(axis=0)) == pytest.approx(ledoit_wolf_shrinkage(x))
        np.testing.assert_allclose(reference(x).distance(new), LedoitWolf().fit(x).mahalanobis(new) / width, rtol=2e-3)


def test_far_images_are_out_of_distribution_and_new_near_ones_are_usually_not(model: Model) -> None:
    x, y = clouds(60, classes=2, seed=0, width=CHANNELS)
    near, _ = clouds(200, classes=2, seed=1, width=CHANNELS)
    classifier = FewShotClassifier(model).fit(x, y, groups=range(60))
    assert (classifier.ood_score(near + 30) > classifier.ood_threshold_).all()
    assert (classifier.ood_score(near) > classifier.ood_threshold_).mean() < 0.15


def test_directions_of_words_decide_where_one_image_a_label_cannot(model: Model) -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(200) % 2
    x = rng.normal(size=(200, CHANNELS)).astype(np.float32)
    x[:, 0] += np.where(truth == 1, 1.5, -1.5)
    text: Text = {0: np.array([-1.0, 0, 0]), 1: np.array([1.0, 0, 0])}
    plain, read = 0.0, 0.0
    for start in range(0, 40, 2):
        support = slice(start, start + 2)
        classifier = FewShotClassifier(model).fit(x[support], truth[support], range(2))
        plain += classifier.score(x[40:], truth[40:]) / 20
        classifier.fit(x[support], truth[support], range(2), text=text)
        read += classifier.score(x[40:], truth[40:]) / 20
    assert read > plain + 0.02


def test_validation_finds_the_map_by_which_words_are_right() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = rng.normal(size=(40, 50))
    x[:, 0] += np.where(y == 1, 1.5, -1.5)
    right, other = np.zeros((2, 2, 50))
    right[:, 0], other[:, 1] = (-1, 1), (-1, 1)
    shown = Examples(x, y, np.arange(40).astype(str), 2)
    blind, alone, chosen = (
        float(fit(replace(shown, words=words), method="prototype", seed=0).about["log_loss"])
        for words in ((other,), (right,), (other, right))
    )
    assert chosen == alone
    assert alone < blind - 0.05


@pytest.mark.parametrize("images", [1, 9])
def test_words_count_as_one_image_of_a_label_where_nothing_can_be_left_out(model: Model, images: int) -> None:
    x, y = clouds(2 * images, classes=2, seed=0, width=CHANNELS)
    text: Text = {0: np.array([-1.0, 0, 0]), 1: np.array([1.0, 0, 0])}
    classifier = FewShotClassifier(model).fit(x, y, groups=["one"] * len(y), text=text)
    assert classifier.report_["text_share"] == pytest.approx(1 / (1 + images))


def test_words_that_mislead_are_left_out_by_validation(model: Model) -> None:
    x, y = clouds(60, classes=2, seed=0, width=CHANNELS, apart=0.8)
    away = x[y == 0].mean(axis=0) - x[y == 1].mean(axis=0)  # each label's words point at the other
    classifier = FewShotClassifier(model).fit(x, y, groups=range(60), text={0: -away, 1: away})
    assert "text_share" not in classifier.report_
    with pytest.raises(UnknownLabel, match="1"):
        classifier.fit(x, y, groups=range(60), text={0: away})
    with pytest.raises(SupportInvalid, match="directions"):
        classifier.fit(x, y, groups=range(60), text={0: away[:2], 1: away[:2]})


def test_scikit_learn_clones_and_validates_it(model: Model) -> None:
    images, labels = pictures(12, seed=0)
    classifier = FewShotClassifier(model, method="prototype").fit(images, labels, groups=range(12))
    copy = clone(classifier)
    assert copy.get_params() == classifier.get_params()
    assert not hasattr(copy, "head_")
    assert clone(copy).set_params(method="logistic", seed=3).get_params()["seed"] == 3
    with pytest.raises(SupportInvalid, match="depth"):
        copy.set_params(depth=3)
    assert cross_val_score(copy, images, labels, cv=3, params={"groups": range(12)}).mean() == 1


def test_a_head_is_asked_without_any_training_library(model: Model, tmp_path: Path) -> None:
    images, labels = pictures(12, seed=0)
    classifier = FewShotClassifier(model).fit(images, labels, groups=range(12))
    classifier.save(tmp_path / "head")
    np.save(tmp_path / "z.npy", model.embed(images))
    program = (
        "import sys, numpy as np\n"
        "from vision_model.adapt.head import load_head\n"
        "from vision_model.adapt import FewShotClassifier\n"
        f"head, z = load_head({str(tmp_path / 'head')!r}), np.load({str(tmp_path / 'z.npy')!r})\n"
        "head.predict_set(z, alpha=0.2), head.support.distance(z)\n"
        "assert not {'sklearn', 'scipy', 'torch', 'onnx'} & sys.modules.keys()\n"
        "print(repr(head.predict_proba(z).tolist()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )  # our own program
    np.testing.assert_array_equal(np.array(json.loads(done.stdout)), classifier.predict_proba(images))
