"""The untrained tap, and the heads that are fitted on both encoders and calibrated by what they have not seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression

from vision_model.data.example import Example
from vision_model.data.mixture import MASKED
from vision_model.data.tasks import Curriculum, curriculum
from vision_model.errors import SourceInvalid
from vision_model.manifest import InputSpec
from vision_model.net import (
    EMBEDDING_SIZE,
    MOST_CONTRAST,
    TRAINED_SIZE,
    UNTRAINED_SIZE,
    ReadOut,
    Untrained,
    new_encoder,
)
from vision_model.pretrain.heads import FOLDS, CrossFitted, embed_examples, fit_heads
from vision_model.runtime import softmax

TASK = "cxr-pneumonia-child"


def test_the_untrained_taps_view_is_the_antialiased_image() -> None:
    tap = Untrained(size=224, view=126)
    pixels = np.random.default_rng(0).random((224, 224)).astype(np.float32)
    expected = np.asarray(Image.fromarray(pixels).resize((126, 126), Image.Resampling.BILINEAR))
    np.testing.assert_allclose((tap.shrink @ torch.from_numpy(pixels) @ tap.shrink.T).numpy(), expected, atol=1e-5)


def test_the_second_view_is_contrast_and_not_light() -> None:
    tap = Untrained(size=224, view=126)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    contrast = tap.contrast(image)
    assert contrast.shape == image.shape
    assert contrast.abs().max() <= MOST_CONTRAST
    torch.testing.assert_close(tap.contrast(image + 0.7), contrast, atol=1e-4, rtol=0)  # lighter
    assert (tap.contrast(3 * image) - contrast).abs().mean() < 0.1 * contrast.abs().mean()  # of more contrast
    assert tap.contrast(torch.full((1, 3, 224, 224), 0.4)).abs().max() < 1e-4  # nothing to be seen


def test_a_token_of_the_view_keeps_its_share_and_its_place() -> None:
    tap = Untrained(size=224, view=126)
    assert tap.spread.shape == (16 * 16, 9 * 9)
    torch.testing.assert_close(tap.spread.sum(dim=1), torch.ones(256))
    torch.testing.assert_close(tap.spread.sum(dim=0), torch.full((81,), 256 / 81))
    shares = tap.spread[:, 8].reshape(16, 16)  # the token in the first row's last column
    assert shares[0, 15] == 1
    assert shares[:, :14].sum() == shares[2:].sum() == 0


def test_the_untrained_tap_ends_at_its_block_and_gives_the_images_patches() -> None:
    tap = Untrained(size=42, view=28).eval()
    assert len(tap.encoder.blocks) == 8
    with torch.inference_mode():
        tokens = tap(torch.randn(2, 3, 42, 42))
    assert tokens.shape == (2, 9, UNTRAINED_SIZE)


def _data(count: int, what: Curriculum, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    targets = np.stack([np.arange(count) % n for n in (len(what.routes), *(len(t.labels) for t in what.tasks))], axis=1)
    x = rng.normal(size=(count, EMBEDDING_SIZE)).astype(np.float32)
    column = _column(what)
    x[:, [0, TRAINED_SIZE]] += 3 * targets[:, [column]]  # either half can tell
    return x, targets


def _column(what: Curriculum) -> int:
    return 1 + [t.name for t in what.tasks].index(TASK)


@pytest.fixture(scope="module")
def fitted() -> tuple[CrossFitted, NDArray[np.float32], NDArray[np.int64]]:
    what, rng = curriculum(), np.random.default_rng(1)
    val = _data(30, what, rng)
    groups = np.repeat([f"source:{n:02}" for n in range(10)], 3)
    return (
        fit_heads(_data(60, what, rng), val, groups=groups, curriculum=what, strength=0.01),
        *val,
    )


def test_no_group_calibrates_heads_that_saw_it(
    fitted: tuple[CrossFitted, NDArray[np.float32], NDArray[np.int64]],
) -> None:
    cross, x, _ = fitted
    assert len(cross.without) == FOLDS
    assert all(len(set(cross.fold[i : i + 3])) == 1 for i in range(0, 30, 3))
    assert set(cross.fold) == set(range(FOLDS))
    twice = cross.held_out(np.concatenate([x, x]))
    for i in range(30):
        np.testing.assert_allclose(twice[i], cross.without[cross.fold[i]].logits(x[i : i + 1])[0], atol=1e-4)
    np.testing.assert_array_equal(twice[:30], twice[30:])


def test_a_head_is_the_mean_of_what_each_encoder_says() -> None:
    what, rng = curriculum(), np.random.default_rng(2)
    train, val = _data(60, what, rng), _data(30, what, rng)
    heads = fit_heads(train, val, groups=np.arange(30).astype(str), curriculum=what, strength=0.01).heads
    x, y = np.concatenate([train[0], val[0]]), np.concatenate([train[1], val[1]])[:, _column(what)]
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    halves = [
        LogisticRegression(C=0.01, max_iter=1000).fit(standard[:, part], y).decision_function(standard[:, part])
        for part in (slice(TRAINED_SIZE), slice(TRAINED_SIZE, None))
    ]
    own = slice(first := what.first_logit(TASK), first + 2)
    probability = softmax(heads.logits(x)[:, own])[:, 1]
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-np.mean(halves, axis=0))), atol=1e-3)


def test_a_label_without_images_is_refused_by_its_task() -> None:
    what, rng = curriculum(), np.random.default_rng(3)
    (x, targets), val = _data(60, what, rng), _data(30, what, rng)
    column = _column(what)
    for _, some in ((x, targets), val):
        some[some[:, column] == 1, column] = MASKED
    with pytest.raises(SourceInvalid, match=TASK):
        fit_heads((x, targets), val, groups=np.arange(30).astype(str), curriculum=what, strength=0.01)


def test_what_was_embedded_is_read_again_for_the_same_net_and_images_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (30, 20), 90).save(tmp_path / "one.png")
    example = Example(tmp_path / "one.png", "source", "CR", "CHEST", "normal", "source:1", "train", "CC0")
    net = ReadOut(new_encoder(28), Untrained(size=28, view=28)).eval()
    spec = InputSpec(28, 14, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), windows=(), percentiles=(0.5, 99.5))

    def embed() -> NDArray[np.float32]:
        return embed_examples(net, [example], spec=spec, bf16=False, kept=tmp_path / "kept.npz").mean

    first = embed()
    with monkeypatch.context() as patch:
        patch.setattr(
            "vision_model.pretrain.heads.load_squares", lambda *_, **__: pytest.fail("the images were embedded again")
        )
        np.testing.assert_array_equal(embed(), first)
    net.untrained.spread.mul_(2)
    assert np.abs(embed() - first).max() > 0.01
