"""A model loads, predicts and explains as its manifest says."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import vision_model
from tests.vision_model.tiny import tiny_model
from vision_model.errors import (
    ImageInvalid,
    ManifestInvalid,
    ModelDigestMismatch,
    ModelNotFound,
    PrecisionUnavailable,
    ProviderUnavailable,
    UnknownLabel,
    UnknownTask,
)
from vision_model.explain import contrast_map, relevance_map, upsample
from vision_model.graph import PROVIDERS, provider_chain
from vision_model.manifest import GRAPH_NAME, MANIFEST_NAME, read_manifest
from vision_model.runtime import OUTPUTS, Model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return vision_model.load(tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def images() -> list[NDArray[np.generic]]:
    rng = np.random.default_rng(3)
    return [
        rng.integers(0, 256, (40, 60), dtype=np.uint8),
        rng.normal(0, 400, (64, 64)).astype(np.float32),
        rng.integers(0, 256, (30, 30, 3), dtype=np.uint8),
    ]


def test_manifest_reads_back_what_was_written(model: Model, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text(model.manifest.to_json(), encoding="utf-8")
    assert read_manifest(tmp_path) == model.manifest


@pytest.mark.parametrize(
    ("key", "value"),
    [("embedding_size", "3"), ("routes", {}), ("schema_version", 99), ("surprise", 1), ("precision", "int3")],
)
def test_manifest_with_a_wrong_key_is_refused_by_name(model: Model, tmp_path: Path, key: str, value: object) -> None:
    raw = json.loads(model.manifest.to_json()) | {key: value}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ManifestInvalid, match=key if key != "schema_version" else "schema"):
        read_manifest(tmp_path)


def test_probabilities_of_a_task_sum_to_one(model: Model, images: list[NDArray[np.generic]]) -> None:
    for prediction in model.predict(images):
        assert len(prediction.results) == len(model.manifest.tasks)
        for result in prediction.results:
            assert sum(f.probability for f in result.findings) == pytest.approx(1)


def test_a_normal_label_is_never_a_positive_finding(model: Model, images: list[NDArray[np.generic]]) -> None:
    findings = [f for p in model.predict(images) for r in p.results for f in r.findings]
    assert any(f.positive for f in findings)
    assert not any(f.positive for f in findings if f.normal)
    assert all(f.positive == (f.probability >= f.threshold) for f in findings if not f.normal)


def test_batch_and_single_predictions_agree(model: Model, images: list[NDArray[np.generic]]) -> None:
    together = model.predict(images, batch=3)
    alone = model.predict(images, batch=1)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.embedding, b.embedding, atol=1e-5)
        assert a.input_sha256 == b.input_sha256


def test_task_can_be_named_by_its_beginning(model: Model, images: list[NDArray[np.generic]]) -> None:
    (prediction, *_) = model.predict(images, task="cxr-pneumonia")
    assert [r.task for r in prediction.results] == ["cxr-pneumonia-child", "cxr-pneumonia-adult"]
    (prediction, *_) = model.predict(images, task="ct-covid")
    assert [r.task for r in prediction.results] == ["ct-covid"]
    with pytest.raises(UnknownTask, match="ct-covid"):
        model.predict(images, task="ct-flu")


def test_relevance_sums_to_the_logit(model: Model, images: list[NDArray[np.generic]]) -> None:
    for prediction in model.predict(images):
        for result in prediction.results:
            for finding in result.findings:
                relevance = relevance_map(prediction, manifest=model.manifest, task=finding.task, label=finding.label)
                assert relevance.sum() == pytest.approx(finding.logit, abs=1e-4)


def test_contrast_of_two_labels_is_opposite(model: Model, images: list[NDArray[np.generic]]) -> None:
    (prediction, *_) = model.predict(images)
    yes, no = (
        contrast_map(prediction, manifest=model.manifest, task="ct-covid", label=label)
        for label in ("covid", "not-covid")
    )
    np.testing.assert_allclose(yes, -no, atol=1e-6)
    with pytest.raises(UnknownLabel, match="not-covid"):
        relevance_map(prediction, manifest=model.manifest, task="ct-covid", label="flu")


def test_upsampled_map_has_the_frames_shape_and_keeps_the_bright_corner() -> None:
    relevance = np.zeros((4, 4), np.float32)
    relevance[0, 3] = 1
    heat = upsample(relevance, shape=(50, 90))
    assert heat.shape == (50, 90)
    assert np.unravel_index(heat.argmax(), heat.shape)[0] < 12
    assert np.unravel_index(heat.argmax(), heat.shape)[1] > 67


def test_embedding_of_nothing_is_empty(model: Model) -> None:
    assert model.embed([]).shape == (0, 3)


@pytest.mark.parametrize("shape", [(5,), (4, 4, 4), (1, 9), (0, 0)])
def test_what_is_no_image_is_refused(model: Model, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageInvalid):
        model.embed([np.zeros(shape, np.uint8)])


def test_values_that_are_not_finite_are_refused(model: Model) -> None:
    with pytest.raises(ImageInvalid, match="finite"):
        model.embed([np.full((8, 8), np.nan, np.float32)])


def test_changed_graph_is_not_run(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    data = bytearray((folder / GRAPH_NAME).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / GRAPH_NAME).write_bytes(data)
    with pytest.raises(ModelDigestMismatch, match="not run"):
        vision_model.load(folder)


def test_absent_model_and_unknown_provider_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        vision_model.load(tmp_path / "nothing")
    folder = tiny_model(tmp_path / "m")
    with pytest.raises(ProviderUnavailable, match="cpu, cuda"):
        vision_model.load(folder, provider="abacus")


def test_asking_for_cuda_without_a_gpu_is_refused_not_replaced(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    try:
        outcome = vision_model.load(folder, provider="cuda").provider
    except ProviderUnavailable as refusal:
        outcome = refusal.code
    assert outcome in {"CUDAExecutionProvider", "model.provider-unavailable"}


def test_bound_run_gives_what_a_plain_run_gives(model: Model) -> None:
    tensors = np.random.default_rng(0).normal(size=(3, 3, 28, 28)).astype(np.float32)
    for bound, plain in zip(model.graph.run_bound(tensors, OUTPUTS), model.run(tensors, OUTPUTS), strict=True):
        np.testing.assert_array_equal(bound, plain)


def test_warm_up_runs_before_load_returns_and_changes_no_answer(
    tmp_path: Path, images: list[NDArray[np.generic]]
) -> None:
    folder = tiny_model(tmp_path / "m")
    cold, warm = vision_model.load(folder), vision_model.load(folder, warm_up=8)
    np.testing.assert_array_equal(cold.embed(images), warm.embed(images))


def test_a_precision_that_the_model_has_not_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PrecisionUnavailable, match="it has fp32") as refusal:
        vision_model.load(tiny_model(tmp_path / "m"), precision="int8")
    assert refusal.value.code == "model.precision-unavailable"


def test_tensorrt_keeps_its_engines_where_it_is_told_and_needs_a_place(tmp_path: Path) -> None:
    first, *fallback = provider_chain("tensorrt", size=28, engine_cache=tmp_path / "engines")
    name, options = first
    assert name == PROVIDERS["tensorrt"]
    assert options["trt_engine_cache_path"] == str(tmp_path / "engines")
    assert options["trt_profile_max_shapes"] == "images:64x3x28x28"
    assert [provider for provider, _ in fallback] == [PROVIDERS["cuda"]]
    with pytest.raises(ProviderUnavailable, match=r"model\.engine_cache"):
        provider_chain("tensorrt", size=28, engine_cache=None)


@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no NVIDIA device on this machine")
def test_cuda_gives_the_numbers_of_the_cpu(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    tensors = np.random.default_rng(0).normal(size=(70, 3, 28, 28)).astype(np.float32)
    cpu, cuda = vision_model.load(folder), vision_model.load(folder, provider="cuda", warm_up=8)
    assert cuda.provider == PROVIDERS["cuda"]
    for expected, output in zip(cpu.run(tensors, OUTPUTS), cuda.run(tensors, OUTPUTS), strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-4)
