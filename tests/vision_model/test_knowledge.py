"""The knowledge file agrees with itself, with SNOMED CT's check digit and with the tasks."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from vision_model.data.tasks import TASKS_FILE, curriculum
from vision_model.errors import KnowledgeInvalid, RecipeInvalid
from vision_model.knowledge import Concept, Knowledge, knowledge

# Verhoeff's dihedral group D5 and permutation, as SNOMED CT's Technical Implementation Guide prints them.
MULTIPLY = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    [1, 2, 3, 4, 0, 6, 7, 8, 9, 5],
    [2, 3, 4, 0, 1, 7, 8, 9, 5, 6],
    [3, 4, 0, 1, 2, 8, 9, 5, 6, 7],
    [4, 0, 1, 2, 3, 9, 5, 6, 7, 8],
    [5, 9, 8, 7, 6, 0, 4, 3, 2, 1],
    [6, 5, 9, 8, 7, 1, 0, 4, 3, 2],
    [7, 6, 5, 9, 8, 2, 1, 0, 4, 3],
    [8, 7, 6, 5, 9, 3, 2, 1, 0, 4],
    [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
]
PERMUTE = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    [1, 5, 7, 6, 2, 8, 3, 0, 9, 4],
    [5, 8, 0, 3, 7, 9, 6, 1, 4, 2],
    [8, 9, 1, 6, 0, 4, 3, 5, 2, 7],
    [9, 4, 5, 3, 1, 2, 6, 8, 7, 0],
    [4, 2, 8, 6, 5, 7, 3, 9, 0, 1],
    [2, 7, 9, 3, 8, 0, 6, 4, 1, 5],
    [7, 0, 4, 6, 9, 1, 3, 2, 5, 8],
]
SOURCES = {
    *("kermany_cxr", "nih_cxr", "ieee8023_cxr", "covid_cxnet", "hannover_covid", "sarscov2_ct", "head_ct_hemorrhage"),
    *("brain_mri_sartaj", "ham10000", "busi", "mini_mias", "idc_breast_patches", "odir5k", "srahim_dr"),
}

WORDS = knowledge()


def verhoeff(digits: str) -> bool:
    check = 0
    for position, digit in enumerate(reversed(digits)):
        check = MULTIPLY[check][PERMUTE[position % 8][int(digit)]]
    return check == 0


def written(folder: Path, text: str) -> Path:
    path = folder / "knowledge.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_check_digit_is_verhoeffs() -> None:
    assert verhoeff("233604007")
    assert not verhoeff("233604008")
    assert not verhoeff("233606007")  # a digit mistyped
    assert not verhoeff("236304007")  # two exchanged


@pytest.mark.parametrize("concept", [c for c in WORDS if c.code], ids=lambda c: c.name)
def test_a_code_has_the_shape_of_its_scheme(concept: Concept) -> None:
    assert concept.code is not None
    if concept.code.scheme == "SCT":
        assert 6 <= len(concept.code.value) <= 18
        assert concept.code.value[-3:-1] in ("00", "10")  # the partition of concepts, not of descriptions
        assert verhoeff(concept.code.value)
    else:
        assert concept.code.scheme == "RADLEX"
        assert concept.code.value.startswith("RID")
    assert concept.code.meaning


def test_no_code_stands_for_two_concepts() -> None:
    assert [code for code, n in Counter(c.code for c in WORDS if c.code).items() if n > 1] == []


def test_no_text_belongs_to_two_concepts() -> None:
    assert [text for text, n in Counter(t.casefold() for c in WORDS for t in c.texts).items() if n > 1] == []


def test_every_source_has_concepts_and_no_label_has_two() -> None:
    assert {dataset for concept in WORDS for dataset, _ in concept.sources} == SOURCES
    pairs = Counter(pair for concept in WORDS for pair in concept.sources)
    assert max(pairs.values()) == 1


def test_a_concept_seen_in_images_has_a_route_and_phrases() -> None:
    what = curriculum()
    for concept in WORDS:
        if concept.sources:
            assert concept.modality
            assert concept.anatomy
            what.route_of(concept.modality, concept.anatomy)
            assert concept.phrases, concept.name


def test_every_parent_is_of_the_same_modality_or_of_none() -> None:
    for concept in WORDS:
        for ancestor in WORDS.ancestors(concept):
            assert ancestor.modality in (concept.modality, None)


def test_every_label_of_every_task_has_a_concept_of_the_tasks_route() -> None:
    what = curriculum()
    for task in what.tasks:
        for label in task.labels:
            concept = WORDS[label.concept]
            assert concept.modality is not None
            assert concept.anatomy is not None
            assert what.routes[what.route_of(concept.modality, concept.anatomy)].name == task.route
            assert label.code == WORDS.code(concept)


def test_no_source_label_is_two_answers_of_one_task() -> None:
    for task in curriculum().tasks:
        assert sum(len(label.sources) for label in task.labels) == len(task.label_of)


def test_both_kinds_of_kermanys_pneumonia_are_the_childs_pneumonia_and_only_they() -> None:
    child = next(t for t in curriculum().tasks if t.name == "cxr-pneumonia-child")
    assert child.labels[1].sources == {("kermany_cxr", "bacteria_pneumonia"), ("kermany_cxr", "virus_pneumonia")}
    names = [c.name for c in WORDS.ancestors(WORDS["covid-pneumonia"])]
    assert names == ["viral-pneumonia", "pneumonia"]


def test_nine_grades_are_any_retinopathy_and_a_normal_fundus_has_none() -> None:
    retina = next(t for t in curriculum().tasks if t.name == "fundus-dr")
    none, some = retina.labels
    assert none.sources == {("srahim_dr", "1 - No DR"), ("odir5k", "normal")}
    assert len(some.sources) == 10  # nine grades and the other collection's one


def test_a_disease_lends_its_code_to_its_looks_but_a_kind_is_not_coded_as_its_parent() -> None:
    code = WORDS.code(WORDS["breast-us-malignant"])
    assert code is not None
    assert code.value == "254837009"
    assert WORDS.code(WORDS["lipoid-pneumonia"]) is None


def test_a_label_that_no_concept_means_is_none() -> None:
    assert WORDS.of("kermany_cxr", "broken rib") is None
    found = WORDS.of("busi", "benign")
    assert found is not None
    assert found.name == "breast-us-benign"
    assert found.texts[0] == "Benign breast mass on ultrasound"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[a]\ndisplay = "A"\nparent = "b"', "no concept 'b'"),
        ('[a]\ndisplay = "A"\nparent = "b"\n[b]\ndisplay = "B"\nparent = "a"', "turns back on itself"),
        ('[a]\ndisplay = "A"\nfrom = ["x:1"]\n[b]\ndisplay = "B"\nfrom = ["x:1"]', "both a and b"),
        ('[a]\ndisplay = "A"\nfrom = ["x"]', "dataset:label"),
        ('[a]\ndisplay = "A"\ncolour = "red"', "unknown keys: colour"),
        ('[a]\nsynonyms = ["A"]', "no display"),
        ('[a]\ndisplay = "A"\nmodality = "CT"', "give both or none"),
        ("[a", "not TOML"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(KnowledgeInvalid, match=says):
        knowledge(written(tmp_path, text))


def test_a_task_across_two_routes_is_refused() -> None:
    moved = replace(WORDS["chest-film-normal"], modality="CT")
    with pytest.raises(RecipeInvalid, match="cxr-pneumonia-child: its labels belong to CT-CHEST, DX-CHEST"):
        curriculum(TASKS_FILE, words=Knowledge({**WORDS.concepts, moved.name: moved}))
