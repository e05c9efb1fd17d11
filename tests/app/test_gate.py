"""What the gate lets through and withholds, on manifests and predictions made by hand."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gate import Facts, Verdict, age_range, gate
from dicom_io.types import Instance, InstanceRef, Patient
from vision_model.manifest import InputSpec, Label, Manifest, OperatingPoint, Population, Route, Task
from vision_model.runtime import Prediction, TaskResult

DX_IMAGE = "1.2.840.10008.5.1.4.1.1.1.1"
CR_IMAGE = "1.2.840.10008.5.1.4.1.1.1"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

ROUTES = (
    Route("DX-CHEST", ("DX", "CR"), ("CHEST", "THORAX")),
    Route("CT-CHEST", ("CT",), ("CHEST", "THORAX")),
    Route("CT-HEAD", ("CT",), ("HEAD", "BRAIN")),
    Route("MR-BRAIN", ("MR",), ("BRAIN", "HEAD")),
    Route("MG-BREAST", ("MG",), ("BREAST",)),  # known to the router, but no task answers for it
)
CHILD, ADULT, COVID, BLEED = "cxr-pneumonia-child", "cxr-pneumonia-adult", "ct-covid", "head-ct-hemorrhage"


def task(name: str, route: str, population: Population) -> Task:
    return Task(
        name=name,
        display=name.replace("-", " "),
        route=route,
        population=population,
        labels=(
            Label("finding", "Finding", None, normal=False, operating_point=OperatingPoint(0.5, "youden", 0.9, 0.9)),
        ),
        first_logit=0,
        temperature=1.0,
        conformal_alpha=0.1,
        conformal_quantile=0.5,
        ood_index=0,
        ood_threshold=10.0,
        sources=("made",),
        test_auroc=0.9,
        test_auroc_interval=(0.85, 0.95),
    )


MANIFEST = Manifest(
    name="made",
    version="0",
    graph_sha256="0" * 64,
    precision="fp32",
    input=InputSpec(224, 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (), (1.0, 99.0)),
    embedding_size=4,
    routes=ROUTES,
    route_temperature=1.0,
    route_minimum=0.9,
    tasks=(
        task(CHILD, "DX-CHEST", Population("children of 1 to 5 years", 1, 6)),
        task(ADULT, "DX-CHEST", Population("adults", 18, 120)),
        task(COVID, "CT-CHEST", Population("adults", 18, 120)),
        task(BLEED, "CT-HEAD", Population("unknown: collected from the web", None, None)),
    ),
    unserved=(),
    threshold_set="made",
    licence="none",
    sources=(),
    training={},
)


def prediction(
    route: str | None = "DX-CHEST", *, route_probability: float = 0.99, ood: Mapping[str, float] | None = None
) -> Prediction:
    scores = ood or {}
    return Prediction(
        results=tuple(
            TaskResult(
                each.name, (), ("finding",), ood_score=scores.get(each.name, 1.0), ood_threshold=each.ood_threshold
            )
            for each in MANIFEST.tasks
        ),
        route=route,
        route_probability=route_probability,
        route_probabilities={} if route is None else {route: route_probability},
        embedding=np.zeros(4, np.float32),
        patch_logits=np.zeros((1, 1), np.float32),
        model_sha256="0" * 64,
        input_sha256="0" * 64,
        provider="CPUExecutionProvider",
        precision="fp32",
    )


def film(**changes: object) -> Facts:
    """A frontal chest film whose age is not known, unless changed."""
    facts = Facts(sop_class_uid=DX_IMAGE, modality="DX", body_part="CHEST", view_position="PA", age_years=None)
    return replace(facts, **changes)  # type: ignore[arg-type]


def judged(facts: Facts, predicted: Prediction | None = None, stated: float | None = None) -> Verdict:
    return gate(facts, predicted or prediction(), manifest=MANIFEST, stated_age_years=stated)


def answered(verdict: Verdict) -> list[str]:
    return [result.task for result in verdict.allowed]


def codes(verdict: Verdict) -> dict[str | None, str]:
    return {withheld.task: withheld.code for withheld in verdict.withheld}


@pytest.mark.parametrize("age_years", [1.0, 3.0, 5.0, 5.99])
def test_a_child_of_one_to_five_gets_the_childrens_answer_only(age_years: float) -> None:
    verdict = judged(film(age_years=age_years))
    assert answered(verdict) == [CHILD]
    assert codes(verdict) == {ADULT: "gate.age-outside"}
    assert verdict.abstention is None


@pytest.mark.parametrize("age_years", [18.0, 45.0, 119.0])
def test_an_adult_never_gets_the_childrens_answer(age_years: float) -> None:
    verdict = judged(film(age_years=age_years))
    assert answered(verdict) == [ADULT]
    assert codes(verdict) == {CHILD: "gate.age-outside"}
    assert "this patient is" in verdict.withheld[0].reason
    assert "1 to 5 years" in verdict.withheld[0].reason


@pytest.mark.parametrize("age_years", [0.0, 0.99, 6.0, 12.0, 17.99, 125.0])
def test_an_age_that_no_film_task_was_trained_on_gets_no_answer(age_years: float) -> None:
    verdict = judged(film(age_years=age_years))
    assert answered(verdict) == []
    assert codes(verdict) == {CHILD: "gate.age-outside", ADULT: "gate.age-outside"}
    assert verdict.abstention is not None
    assert verdict.abstention.code == "gate.age-outside"


@given(
    header=st.none() | st.floats(allow_nan=True),
    by_dates=st.none() | st.floats(-10, 200),
    stated=st.none() | st.floats(allow_nan=True),
)
def test_whatever_the_ages_say_the_childrens_answer_needs_a_known_age_of_one_to_five(
    header: float | None, by_dates: float | None, stated: float | None
) -> None:
    verdict = judged(film(age_years=header, age_by_dates_years=by_dates), stated=stated)
    if CHILD in answered(verdict):
        assert any(age is not None and 1 <= age < 6 for age in (header, stated))
        assert not (header is not None and 6 <= header < 130 and by_dates is None)
    assert {*answered(verdict), *codes(verdict)} == {CHILD, ADULT}


def test_without_an_age_the_page_is_told_to_ask() -> None:
    verdict = judged(film())
    assert answered(verdict) == []
    assert codes(verdict) == {CHILD: "gate.age-unknown", ADULT: "gate.age-unknown"}
    assert verdict.asks_age
    assert "age is not known" in verdict.withheld[0].reason


def test_a_stated_age_opens_the_task_of_that_age_and_is_told() -> None:
    verdict = judged(film(), stated=3)
    assert answered(verdict) == [CHILD]
    assert any("stated by the user" in warning for warning in verdict.warnings)
    assert not verdict.asks_age


def test_the_age_in_the_file_wins_over_the_stated_one() -> None:
    verdict = judged(film(age_years=45.0), stated=3)
    assert answered(verdict) == [ADULT]
    assert any("not the stated 3 years" in warning for warning in verdict.warnings)


def test_a_stated_age_that_agrees_with_the_file_raises_no_warning() -> None:
    assert judged(film(age_years=3.4), stated=3).warnings == ()


def test_a_file_that_contradicts_itself_about_the_age_counts_as_without_an_age() -> None:
    verdict = judged(film(age_years=3.0, age_by_dates_years=60.0))
    assert codes(verdict) == {CHILD: "gate.age-unknown", ADULT: "gate.age-unknown"}
    assert any("contradicts itself" in warning for warning in verdict.warnings)


def test_an_impossible_age_counts_as_without_an_age() -> None:
    verdict = judged(film(age_years=999.0))
    assert codes(verdict) == {CHILD: "gate.age-unknown", ADULT: "gate.age-unknown"}
    assert any("not possible" in warning for warning in verdict.warnings)


def test_a_task_whose_training_ages_are_not_known_answers_and_says_so() -> None:
    facts = Facts(CT_IMAGE, modality="CT", body_part="HEAD", view_position=None, age_years=None)
    verdict = judged(facts, prediction("CT-HEAD"))
    assert answered(verdict) == [BLEED]
    assert verdict.withheld == ()
    assert any("ages of the people in the training images are not known" in warning for warning in verdict.warnings)


def test_computed_radiography_is_a_chest_film_too() -> None:
    assert answered(judged(film(sop_class_uid=CR_IMAGE, modality="CR", age_years=40.0))) == [ADULT]


@pytest.mark.parametrize("body_part", ["chest", " CHEST ", "Thorax"])
def test_body_part_words_are_compared_without_case_and_padding(body_part: str) -> None:
    assert answered(judged(film(body_part=body_part, age_years=40.0))) == [ADULT]


@pytest.mark.parametrize("body_part", [None, "", "  "])
def test_without_a_body_part_the_router_decides_and_that_is_told(body_part: str | None) -> None:
    verdict = judged(film(body_part=body_part, age_years=40.0))
    assert answered(verdict) == [ADULT]
    assert any("Body Part Examined" in warning for warning in verdict.warnings)


@pytest.mark.parametrize(
    ("facts", "predicted", "code"),
    [
        (film(modality="PT"), prediction(), "gate.modality-not-covered"),
        (film(modality="OT"), prediction(), "gate.modality-not-covered"),
        (film(modality="SC"), prediction(), "gate.modality-not-covered"),
        (film(modality="MG", body_part="BREAST"), prediction("MG-BREAST"), "gate.modality-not-covered"),
        (film(modality="MR", body_part="BRAIN"), prediction("MR-BRAIN"), "gate.modality-not-covered"),
        (film(modality=None), prediction(), "gate.modality-absent"),
        (film(modality=" "), prediction(), "gate.modality-absent"),
        (film(sop_class_uid=SECONDARY_CAPTURE), prediction(), "gate.secondary-capture"),
        (film(sop_class_uid=SECONDARY_CAPTURE + ".4"), prediction(), "gate.secondary-capture"),
        (film(sop_class_uid=DX_IMAGE + ".1"), prediction(), "gate.for-processing"),
        (film(body_part="HAND"), prediction(), "gate.body-part-not-covered"),
        (film(view_position="LL"), prediction(), "gate.view-not-covered"),
        (film(view_position="RL"), prediction(), "gate.view-not-covered"),
        (film(view_position="lateral"), prediction(), "gate.view-not-covered"),
        (film(view_position="LL", body_part=None), prediction(), "gate.view-not-covered"),
        (film(), prediction(None, route_probability=0.5), "gate.router-unsure"),
        (film(), prediction("DX-CHEST", route_probability=0.89), "gate.router-unsure"),
        (film(), prediction("DX-CHEST", route_probability=float("nan")), "gate.router-unsure"),
        (film(), prediction("CT-CHEST"), "gate.modality-disagrees"),
        (film(), prediction("MG-BREAST"), "gate.modality-disagrees"),
        (film(modality="CT", body_part="CHEST"), prediction("CT-HEAD"), "gate.body-part-disagrees"),
    ],
)
def test_an_image_that_no_task_covers_gets_one_reason_in_words(facts: Facts, predicted: Prediction, code: str) -> None:
    verdict = judged(replace(facts, age_years=40.0), predicted)
    assert codes(verdict) == {None: code}
    assert verdict.allowed == ()
    assert verdict.abstention == verdict.withheld[0]
    assert verdict.withheld[0].reason.endswith(".")
    assert len(verdict.withheld[0].reason) > 40


def test_the_reason_says_what_the_image_is_and_what_is_covered() -> None:
    reason = judged(film(modality="PT")).withheld[0].reason
    assert reason == (
        "The file says that this is an image of modality PT (PET). "
        "This model reads X-ray of the chest, CT of the chest and CT of the head."
    )


def test_a_header_rule_is_named_before_the_router() -> None:
    assert codes(judged(film(view_position="LL"), prediction("CT-HEAD"))) == {None: "gate.view-not-covered"}


@pytest.mark.parametrize("view_position", [None, "", "SWIMMERS"])
def test_a_film_whose_view_is_not_known_is_answered_with_a_warning(view_position: str | None) -> None:
    verdict = judged(film(view_position=view_position, age_years=40.0))
    assert answered(verdict) == [ADULT]
    assert any("frontal" in warning for warning in verdict.warnings)


def test_a_ct_without_a_body_part_is_answered_for_what_the_router_sees() -> None:
    facts = Facts(CT_IMAGE, modality="CT", body_part=None, view_position=None, age_years=50.0)
    assert answered(judged(facts, prediction("CT-CHEST"))) == [COVID]
    assert answered(judged(facts, prediction("CT-HEAD"))) == [BLEED]


@pytest.mark.parametrize("score", [10.01, float("inf"), float("nan")])
def test_an_image_outside_the_distribution_is_withheld_with_its_score(score: float) -> None:
    verdict = judged(film(age_years=40.0), prediction(ood={ADULT: score}))
    assert answered(verdict) == []
    assert codes(verdict) == {CHILD: "gate.age-outside", ADULT: "gate.out-of-distribution"}
    assert verdict.abstention is not None
    assert verdict.abstention.task == ADULT
    assert verdict.abstention.ood_threshold == 10.0


def test_a_score_at_the_threshold_is_inside() -> None:
    assert answered(judged(film(age_years=40.0), prediction(ood={ADULT: 10.0}))) == [ADULT]


def test_the_ages_of_a_population_are_told_in_completed_years() -> None:
    assert age_range(Population("", 1, 6)) == "1 to 5 years"
    assert age_range(Population("", 18, 120)) == "18 years and over"
    assert age_range(Population("", 18, None)) == "18 years and over"
    assert age_range(Population("", None, 18)) == "0 to 17 years"
    assert age_range(Population("", None, None)) == "ages not known"


def test_facts_take_the_age_by_dates_from_birth_and_study() -> None:
    instance = Instance(
        ref=InstanceRef("1.2", "1.3", "1.4", DX_IMAGE),
        path=Path("film.dcm"),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        patient=Patient(name=None, patient_id=None, birth_date=date(2000, 1, 1), sex=None, age_years=3.0),
        modality="DX",
        body_part="CHEST",
        view_position="PA",
        laterality=None,
        photometric_interpretation="MONOCHROME2",
        rows=2,
        columns=2,
        number_of_frames=1,
        instance_number=None,
        position_mm=None,
        orientation=None,
        study_date=date(2020, 1, 1),
        study_description=None,
        accession_number=None,
        series_number=None,
        series_description=None,
        manufacturer=None,
    )
    facts = Facts.of(instance)
    assert facts.age_years == 3.0
    assert facts.age_by_dates_years == pytest.approx(20.0, abs=0.01)
