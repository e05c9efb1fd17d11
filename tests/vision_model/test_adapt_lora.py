"""LoRA on the shipped model: torch starts from the graph's weights, and the graph takes what torch has learnt."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import vision_model
from tests.vision_model.tiny import tiny_model
from vision_model.adapt import FewShotClassifier, lora
from vision_model.adapt.adapter import float_model, needed
from vision_model.errors import ExtraMissing, GraphInvalid, SupportInvalid
from vision_model.preprocess import prepare
from vision_model.runtime import Model

LABELS = ["stripes", "plain"] * 4


@pytest.fixture(scope="module")
def model() -> Model:
    return vision_model.load()


@pytest.fixture(scope="module")
def images() -> list[NDArray[np.generic]]:
    """Noise, every other one with stripes."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(120, 20, (8, 64, 64))
    pixels[::2, ::8] += 60
    return list(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def classifier(model: Model, images: list[NDArray[np.generic]]) -> FewShotClassifier:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora, "EPOCHS", 1)
        return FewShotClassifier(model, method="lora").fit(images, LABELS, groups=range(8))


def test_the_graph_with_the_adapter_gives_torchs_embedding(model: Model, images: list[NDArray[np.generic]]) -> None:
    inputs = np.stack([prepare(image, spec=model.manifest.input).tensor for image in images[:2]])
    in_float = float_model(model)
    tail = lora.Tail(lora.read_out_of(model), inputs, expected=in_float.embed(images[:1]))
    torch.manual_seed(0)
    with torch.no_grad():
        for change in tail.changes():
            change.copy_(torch.randn_like(change) * 0.08)
        learnt = tail(slice(None)).numpy()
    plain, adapted = in_float.embed(images[:2]), tail.adapter().applied(model).embed(images[:2])
    assert np.abs(adapted - plain).max() > 0.05
    np.testing.assert_allclose(adapted, learnt, atol=5e-3)  # the file holds the changes in 16 bits


def test_what_neither_encoder_nor_head_saw_makes_the_report_and_the_sets(classifier: FewShotClassifier) -> None:
    assert classifier.report_["method"] == "lora"
    assert (classifier.report_["images"], classifier.report_["left_out_images"]) == (6, 2)
    assert classifier.head_.conformal is not None
    assert classifier.head_.conformal.kind == "split"
    assert classifier.head_.conformal.groups == 2


def test_an_adapted_head_is_one_small_file_that_gives_the_same_numbers(
    classifier: FewShotClassifier, model: Model, images: list[NDArray[np.generic]], tmp_path: Path
) -> None:
    classifier.save(tmp_path / "head")
    assert (tmp_path / "head").stat().st_size < 200_000
    again = FewShotClassifier.load(tmp_path / "head", model)
    np.testing.assert_array_equal(again.predict_proba(images[:2]), classifier.predict_proba(images[:2]))
    share = again.explain(images[0], "plain").sum()
    assert share == pytest.approx(again.decision_function(images[:1])[0, 0], abs=1e-4)


def test_embeddings_cannot_teach_the_encoder(model: Model) -> None:
    embeddings = np.zeros((8, model.manifest.embedding_size), np.float32)
    with pytest.raises(SupportInvalid, match="needs the images"):
        FewShotClassifier(model, method="lora").fit(embeddings, LABELS, groups=range(8))


def test_a_label_of_one_group_cannot_be_on_both_sides(model: Model, images: list[NDArray[np.generic]]) -> None:
    with pytest.raises(SupportInvalid, match="both sides"):
        FewShotClassifier(model, method="lora").fit(images, LABELS, groups=[0, 1] * 4)


def test_a_graph_of_another_net_is_refused(tmp_path: Path, images: list[NDArray[np.generic]]) -> None:
    tiny = vision_model.load(tiny_model(tmp_path / "tiny"))
    with pytest.raises(GraphInvalid, match="Hilum exported"):
        FewShotClassifier(tiny, method="lora").fit(images, LABELS, groups=range(8))


def test_an_absent_package_is_named_with_its_extra() -> None:
    with pytest.raises(ExtraMissing, match=r"nothing_like_it is not installed.*hilum\[adapt\]"):
        needed("nothing_like_it", extra="adapt")
