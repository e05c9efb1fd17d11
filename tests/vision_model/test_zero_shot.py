"""Images are compared with words, and the map of a query sums to its score."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import vision_model
from tests.vision_model.tiny import CHANNELS, tiny_model
from tests.vision_model.tiny_text import SCALE, with_words
from vision_model.errors import (
    GraphInvalid,
    KnowledgeInvalid,
    ModelDigestMismatch,
    PromptsInvalid,
    TextEncoderMissing,
    UnknownRoute,
)
from vision_model.explain import upsample
from vision_model.knowledge import knowledge
from vision_model.manifest import MANIFEST_NAME, PROJECTION_NAME, TEXT_GRAPH_NAME, read_manifest, text_spec
from vision_model.runtime import Model, softmax
from vision_model.text import TEXT_SIZE
from vision_model.zero_shot import Projection, WordSpace, balanced_accuracy, prompt_ablation, prompt_sets

CLASSES = {"bright": ["bright lung", "a bright picture"], "dark": ["dark lung"], "left": ["left"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return vision_model.load(with_words(tiny_model(tmp_path_factory.mktemp("words"))))


@pytest.fixture
def images() -> list[NDArray[np.generic]]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (40, 60), dtype=np.uint8) for _ in range(3)]


def test_probabilities_are_the_softmax_of_scaled_cosines_with_centred_texts(
    model: Model, images: list[NDArray[np.generic]]
) -> None:
    projection, encoder = model.words.projection, model.words.encoder
    route = model.words.routes.index("DX-CHEST")
    centre, origin = projection.centres[route], projection.origins[route]
    expected = []
    for z in model.embed(images):
        image = projection.weight @ z - origin
        cosines = []
        for texts in CLASSES.values():
            mean = encoder.embed(texts).mean(axis=0)
            direction = mean / np.linalg.norm(mean) - centre
            cosines.append(image @ direction / np.linalg.norm(image) / np.linalg.norm(direction))
        expected.append(softmax(SCALE * np.array(cosines)))
    got = model.zero_shot(images, CLASSES, batch=2)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-9)


def test_a_class_is_the_same_however_often_a_prompt_is_said(model: Model, images: list[NDArray[np.generic]]) -> None:
    once = model.zero_shot(images, {"bright": ["bright lung"], "dark": ["dark"]})
    thrice = model.zero_shot(images, {"bright": ["bright lung"] * 3, "dark": ["dark"]})
    np.testing.assert_allclose(once, thrice, atol=1e-6)


def test_what_every_text_of_the_route_says_counts_for_nothing(model: Model) -> None:
    words = model.words
    shared = words.encoder.embed(["lung"])
    centred = replace(words, projection=replace(words.projection, centres=np.repeat(shared, len(words.routes), axis=0)))
    assert np.abs(centred.directions(shared, route="DX-CHEST")).max() == 0


def test_the_router_says_what_an_image_shows_unless_the_caller_does(
    model: Model, images: list[NDArray[np.generic]]
) -> None:
    np.testing.assert_array_equal(model.zero_shot(images, CLASSES), model.zero_shot(images, CLASSES, route="DX-CHEST"))
    assert not np.array_equal(model.zero_shot(images, CLASSES), model.zero_shot(images, CLASSES, route="US-BREAST"))
    assert [r.route for r in model.query(images, "dark", route="US-BREAST")] == ["US-BREAST"] * 3


def test_an_image_that_the_router_cannot_place_needs_a_route(model: Model, images: list[NDArray[np.generic]]) -> None:
    unsure = Model(replace(model.manifest, route_temperature=1e3), model.graph, folder=model.folder)
    with pytest.raises(UnknownRoute, match="name its route: DX-CHEST"):
        unsure.zero_shot(images, CLASSES)
    assert unsure.zero_shot(images, CLASSES, route="CT-HEAD").shape == (3, 3)
    with pytest.raises(UnknownRoute, match="no route 'XA-HEART'"):
        model.zero_shot(images, CLASSES, route="XA-HEART")


def test_a_query_scores_the_cosine_and_its_map_sums_to_it(model: Model, images: list[NDArray[np.generic]]) -> None:
    results = model.query(images, "dark lung", batch=2)
    words = model.words
    direction = words.directions(words.encoder.embed(["dark lung"]), route="DX-CHEST")[0]
    expected = words.images(model.embed(images), route="DX-CHEST") @ direction
    grid = model.manifest.input.grid
    for result, cosine in zip(results, expected, strict=True):
        assert result.score == pytest.approx(float(cosine), abs=1e-5)
        assert result.relevance.shape == (grid, grid)
        assert float(result.relevance.sum()) == pytest.approx(result.score, abs=1e-6)
        assert upsample(result.relevance, shape=(40, 60)).shape == (40, 60)


def test_a_querys_map_shows_the_patch_that_differs(model: Model) -> None:
    image = np.zeros((28, 28), np.uint8)
    image[:14, 14:] = 255
    (result,) = model.query([image], "bright")
    others = np.delete(result.relevance.ravel(), 1)
    assert np.ptp(others) < 1e-6
    assert abs(result.relevance[0, 1] - others[0]) > 1e-3


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ({"bright": ["bright"]}, "two or more"),
        ({}, "two or more"),
        (["bright", "dark"], "each with texts"),
        ({"bright": ["bright"], "dark": []}, "class 'dark' needs a list"),
        ({"bright": ["bright"], "dark": "dark"}, "class 'dark' needs a list"),
        ({"bright": ["bright"], "dark": ["  "]}, "blank"),
    ],
)
def test_classes_that_say_nothing_are_refused(
    model: Model, images: list[NDArray[np.generic]], classes: dict[str, list[str]], says: str
) -> None:
    with pytest.raises(PromptsInvalid, match=says):
        model.zero_shot(images, classes)


def test_no_images_are_no_rows(model: Model) -> None:
    assert model.zero_shot([], CLASSES).shape == (0, 3)
    assert model.query([], "bright") == []


def test_a_model_without_words_says_what_to_do(tmp_path: Path, images: list[NDArray[np.generic]]) -> None:
    wordless = vision_model.load(tiny_model(tmp_path))
    assert wordless.manifest.text is None
    with pytest.raises(TextEncoderMissing, match="without a text encoder; load one whose manifest has `text`"):
        wordless.zero_shot(images, CLASSES)


@pytest.mark.parametrize("name", [TEXT_GRAPH_NAME, PROJECTION_NAME, "tokenizer.json"])
def test_a_text_file_that_was_changed_is_not_used(tmp_path: Path, images: list[NDArray[np.generic]], name: str) -> None:
    folder = with_words(tiny_model(tmp_path))
    with (folder / name).open("ab") as stream:
        stream.write(b" ")
    changed = vision_model.load(folder)
    assert changed.embed(images).shape == (3, CHANNELS)  # images alone need no words
    with pytest.raises(ModelDigestMismatch, match=name):
        changed.query(images, "bright")
    (folder / name).unlink()
    with pytest.raises(TextEncoderMissing, match=f"holds no {name}"):
        vision_model.load(folder).query(images, "bright")


def test_a_projection_of_another_encoder_is_refused(tmp_path: Path, images: list[NDArray[np.generic]]) -> None:
    folder = with_words(tiny_model(tmp_path))
    zeros = np.zeros((TEXT_SIZE, 7), np.float32)
    Projection(weight=zeros, sharp=zeros, origins=zeros.T, scale=1.0, centres=zeros.T).save(folder)
    manifest = replace(read_manifest(folder), text=text_spec(folder))
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    with pytest.raises(GraphInvalid, match=r"\(384, 7\)"):
        vision_model.load(folder).query(images, "bright")


def test_prompt_sets_go_from_the_sources_bare_words_to_all_that_is_known() -> None:
    words = knowledge()
    sets = prompt_sets(
        {
            "normal": [("kermany_cxr", "normal")],
            "pneumonia": [("kermany_cxr", "bacteria_pneumonia"), ("kermany_cxr", "virus_pneumonia")],
        },
        words=words,
    )
    assert sets["labels"] == {"normal": ["normal"], "pneumonia": ["bacteria_pneumonia", "virus_pneumonia"]}
    assert sets["names"]["pneumonia"] == ["Bacterial pneumonia", "Viral pneumonia"]
    assert sets["names and synonyms"]["normal"] == list(words["chest-film-normal"].names)
    assert sets["all texts"]["normal"] == list(words["chest-film-normal"].texts)


def test_a_class_may_name_its_concepts_itself() -> None:
    pairs = [("ieee8023_cxr", "Klebsiella"), ("ieee8023_cxr", "Influenza")]
    sets = prompt_sets({"other": pairs}, words=knowledge(), concepts={"other": ["pneumonia"]})
    assert sets["labels"] == {"other": ["Influenza", "Klebsiella"]}
    assert sets["names"] == {"other": ["Pneumonia"]}
    with pytest.raises(KnowledgeInvalid, match="busi:unheard"):
        prompt_sets({"what": [("busi", "unheard")]}, words=knowledge())


def test_the_ablation_finds_prompts_that_point_at_the_images(model: Model) -> None:
    words = model.words
    # Embeddings whose projections are the centred texts themselves: the right prompts must then be right always.
    centres = words.projection.centres
    eye = np.eye(TEXT_SIZE, dtype=np.float32)
    identity = Projection(weight=eye, sharp=eye, origins=np.zeros_like(centres), scale=1.0, centres=centres)
    space = WordSpace(words.encoder, identity, words.routes)
    good = {"bright": ["bright"], "dark": ["dark"]}
    swapped = {"bright": ["dark"], "dark": ["bright"]}
    embeddings = np.repeat(space.directions(space.classes(good), route="DX-CHEST"), 2, axis=0)
    found = prompt_ablation(
        space, embeddings, np.array([0, 0, 1, 1]), sets={"good": good, "swapped": swapped}, route="DX-CHEST"
    )
    assert found == {"good": 1, "good, not centred": 1, "swapped": 0, "swapped, not centred": 0}


def test_balanced_accuracy_counts_classes_not_images() -> None:
    assert balanced_accuracy(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1])) == 0.5
