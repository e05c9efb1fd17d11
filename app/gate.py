"""Decide which of a model's answers may be shown for one image, and say in plain words why the others may not.

A task answers only for the modality, body part, view and ages it was trained on, and only inside its distribution.
The header and the router must agree: either alone can be wrong, and a wrong one must not choose the question.
"""

from dataclasses import dataclass
from datetime import date

from dicom_io.types import Instance
from vision_model.manifest import Manifest, Population, Route, Task
from vision_model.runtime import Prediction, TaskResult

# PS3.6 Annex A: Secondary Capture and its four multi-frame kinds: screen shots, scanned paper, exported pictures.
SECONDARY_CAPTURE = frozenset({"1.2.840.10008.5.1.4.1.1.7"} | {f"1.2.840.10008.5.1.4.1.1.7.{n}" for n in range(1, 5)})
# Raw detector values of X-ray, mammography and intra-oral films (PS3.3 A.26): made for software, not to be looked at.
FOR_PROCESSING = frozenset(f"1.2.840.10008.5.1.4.1.1.1.{n}.1" for n in (1, 2, 3))
FILM_MODALITIES = frozenset({"CR", "DX"})
FRONTAL_VIEWS = frozenset({"AP", "PA"})
# PS3.3 C.8.1.2.1.1 and what vendors write for it: laterals, decubitus and oblique views.
OTHER_VIEWS = frozenset({"LL", "RL", "LAT", "LATERAL", "LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO"})
MODALITY_NAMES = {
    "CR": "X-ray",
    "DX": "X-ray",
    "CT": "CT",
    "DMS": "dermatoscopy",
    "GM": "microscopy",
    "MG": "mammography",
    "MR": "MRI",
    "OP": "photograph",
    "PT": "PET",
    "SM": "slide microscopy",
    "US": "ultrasound",
    "XC": "photograph",
}
OLDEST_ASKED_YEARS = 120.0  # a population that ends here or later has no upper end in words
OLDEST_BELIEVED_YEARS = 130.0
AGE_TOLERANCE_YEARS = 2.0  # between Patient's Age and the age that birth date and study date give


@dataclass(frozen=True, slots=True)
class Facts:
    """What the header says of one image, as far as the gate asks."""

    sop_class_uid: str
    modality: str | None
    body_part: str | None
    view_position: str | None
    age_years: float | None
    age_by_dates_years: float | None = None

    @classmethod
    def of(cls, instance: Instance) -> "Facts":
        """The facts of an instance that was read."""
        patient = instance.patient
        return cls(
            sop_class_uid=instance.ref.sop_class_uid,
            modality=instance.modality,
            body_part=instance.body_part,
            view_position=instance.view_position,
            age_years=patient.age_years,
            age_by_dates_years=_years_between(patient.birth_date, instance.study_date),
        )


@dataclass(frozen=True, slots=True)
class Withheld:
    """One answer that is not given. `task` is None when no task covers the image at all."""

    task: str | None
    code: str
    reason: str
    ood_score: float | None = None
    ood_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What may be shown of one prediction, what may not, and what the reader should know of both."""

    allowed: tuple[TaskResult, ...]
    withheld: tuple[Withheld, ...]
    warnings: tuple[str, ...]

    @property
    def abstention(self) -> Withheld | None:
        """Why nothing at all is answered: the reason of the task that came nearest to answering."""
        if self.allowed:
            return None
        return max(self.withheld, key=lambda withheld: _NEARNESS.get(withheld.code, 0))

    @property
    def asks_age(self) -> bool:
        """Whether stating the patient's age could open a task."""
        return any(withheld.code == "gate.age-unknown" for withheld in self.withheld)


_NEARNESS = {"gate.age-outside": 1, "gate.age-unknown": 2, "gate.out-of-distribution": 3}


def gate(facts: Facts, prediction: Prediction, *, manifest: Manifest, stated_age_years: float | None = None) -> Verdict:
    """Let the answers through that this image is entitled to.

    Rules on the header come first, because their reasons help most; then the router, the age and the distribution.
    `stated_age_years` is what the user said the age is; an age in the header wins over it.
    """
    routes = {route.name: route for route in manifest.routes}
    covered = [route for route in manifest.routes if any(task.route == route.name for task in manifest.tasks)]

    refusal, admitted = _by_header(facts, covered)
    if refusal is None:
        refusal = _by_router(facts, prediction, admitted, routes=routes, manifest=manifest)
    if refusal is not None:
        return Verdict(allowed=(), withheld=(refusal,), warnings=())

    age_years, warnings = _believed_age(facts, stated_age_years)
    route = routes[prediction.route or ""]
    warnings += _header_gaps(facts, route)
    results = {result.task: result for result in prediction.results}
    allowed: list[TaskResult] = []
    withheld: list[Withheld] = []
    for task in manifest.tasks:
        if task.route != route.name:
            continue  # a question about another kind of image: naming each would be noise
        result = results[task.name]
        reason = _by_age(task, age_years) or _by_distribution(task, result)
        if reason is not None:
            withheld.append(reason)
            continue
        allowed.append(result)
        if not _has_age_limits(task.population):
            warnings.append(f"{task.display}: the ages of the people in the training images are not known.")
    return Verdict(allowed=tuple(allowed), withheld=tuple(withheld), warnings=tuple(warnings))


def age_range(population: Population) -> str:
    """The training ages in words: "1 to 5 years", "18 years and over", "ages not known"."""
    low, high = population.minimum_age_years, population.maximum_age_years
    if low is None and high is None:
        return "ages not known"
    if high is None or high >= OLDEST_ASKED_YEARS:
        return f"{low or 0:g} years and over"
    # Ages are told in completed years: below 6 means to the end of the fifth year of age.
    last = f"{high - 1:g}" if float(high).is_integer() else f"{high:g}"
    return f"{low or 0:g} to {last} years"


def kind(route: Route) -> str:
    """A route in words: "X-ray of the chest"."""
    return f"{_modality_name(route.modalities[0])} of the {route.body_parts[0].lower()}"


def _by_header(facts: Facts, covered: list[Route]) -> tuple[Withheld | None, list[Route]]:
    """The routes that the header admits, or why it admits none."""
    kinds = f"This model reads {_listed([kind(route) for route in covered])}."

    def refuse(code: str, what: str) -> tuple[Withheld, list[Route]]:
        return Withheld(task=None, code=code, reason=f"{what} {kinds}"), []

    if facts.sop_class_uid in SECONDARY_CAPTURE:
        return refuse(
            "gate.secondary-capture",
            "This is a secondary capture, such as a screen shot or a scanned page, and not the original image.",
        )
    if facts.sop_class_uid in FOR_PROCESSING:
        return refuse(
            "gate.for-processing",
            "This film holds raw detector values (For Processing), not the picture that is made of them; "
            "send the film For Presentation.",
        )
    modality = _word(facts.modality)
    if modality is None:
        return refuse("gate.modality-absent", "The file does not say what kind of image it holds (Modality is empty).")
    by_modality = [route for route in covered if modality in _words(route.modalities)]
    if not by_modality:
        return refuse("gate.modality-not-covered", f"The file says that this is {_modality_phrase(modality)}.")
    body_part = _word(facts.body_part)
    admitted = [route for route in by_modality if body_part is None or body_part in _words(route.body_parts)]
    if not admitted:
        return refuse(
            "gate.body-part-not-covered",
            f"The file says that this is {_modality_phrase(modality)} of the body part {body_part}.",
        )
    view = _word(facts.view_position)
    if view in OTHER_VIEWS and all(_is_chest_film(route) for route in admitted):
        return refuse(
            "gate.view-not-covered",
            f"This is a lateral or oblique chest film (View Position {view}); "
            "the chest film tasks were trained on frontal films only.",
        )
    return None, admitted


def _by_router(
    facts: Facts, prediction: Prediction, admitted: list[Route], *, routes: dict[str, Route], manifest: Manifest
) -> Withheld | None:
    """Why the router does not confirm what the header says; None if it does."""
    body_part = _word(facts.body_part)
    said = kind(admitted[0]) if body_part else _modality_phrase(_word(facts.modality) or "")
    # Written so that a probability that is not a number also withholds.
    if prediction.route is None or not prediction.route_probability >= manifest.route_minimum:
        return Withheld(
            task=None,
            code="gate.router-unsure",
            reason=f"The file says that this is {said}, but the picture itself is not recognised with enough certainty "
            f"({prediction.route_probability:.2f}; {manifest.route_minimum:.2f} is needed).",
        )
    if prediction.route in {route.name for route in admitted}:
        return None
    seen = routes[prediction.route]
    same_modality = any(set(_words(seen.modalities)) & set(_words(route.modalities)) for route in admitted)
    return Withheld(
        task=None,
        code="gate.body-part-disagrees" if same_modality else "gate.modality-disagrees",
        reason=f"The file says that this is {said}, but the picture looks like {kind(seen)}. "
        "One of the two is wrong, so nothing is answered.",
    )


def _by_age(task: Task, age_years: float | None) -> Withheld | None:
    population = task.population
    if not _has_age_limits(population):
        return None
    trained = f"{task.display}: trained on {population.description}, and answered for ages {age_range(population)} only"
    if age_years is None:
        return Withheld(
            task=task.name,
            code="gate.age-unknown",
            reason=f"{trained}; this patient's age is not known. State the age to have it considered.",
        )
    low, high = population.minimum_age_years, population.maximum_age_years
    if (low is not None and age_years < low) or (high is not None and age_years >= high):
        return Withheld(
            task=task.name,
            code="gate.age-outside",
            reason=f"{trained}; this patient is {_age_words(age_years)} old.",
        )
    return None


def _by_distribution(task: Task, result: TaskResult) -> Withheld | None:
    # Written so that a score that is not a number also withholds.
    if result.ood_score <= result.ood_threshold:
        return None
    return Withheld(
        task=task.name,
        code="gate.out-of-distribution",
        reason=f"{task.display}: the image is unlike the images this task was trained on "
        f"(distance {result.ood_score:.3g}; up to {result.ood_threshold:.3g} is answered).",
        ood_score=result.ood_score,
        ood_threshold=result.ood_threshold,
    )


def _believed_age(facts: Facts, stated_years: float | None) -> tuple[float | None, list[str]]:
    """The age to go by, and what the reader should know of it."""
    header_years, by_dates = facts.age_years, facts.age_by_dates_years
    warnings: list[str] = []
    if stated_years is not None and not 0 <= stated_years < OLDEST_BELIEVED_YEARS:
        warnings.append(f"The stated age ({stated_years:g} years) is not possible and was not used.")
        stated_years = None
    if header_years is not None and not 0 <= header_years < OLDEST_BELIEVED_YEARS:
        warnings.append(f"The age in the file ({header_years:g} years) is not possible and was not used.")
        header_years = None
    elif header_years is not None and by_dates is not None and abs(header_years - by_dates) > AGE_TOLERANCE_YEARS:
        warnings.append(
            f"The file contradicts itself about the age: Patient's Age says {_age_words(header_years)}, "
            f"birth date and study date say {_age_words(by_dates)}. Neither was used."
        )
        header_years = None
    if header_years is None:
        if stated_years is not None:
            warnings.append(
                f"The age of {_age_words(stated_years)} was stated by the user; the file gives none to use."
            )
        return stated_years, warnings
    if stated_years is not None and abs(stated_years - header_years) >= 1:
        warnings.append(
            f"The age in the file ({_age_words(header_years)}) was used, not the stated {_age_words(stated_years)}."
        )
    return header_years, warnings


def _header_gaps(facts: Facts, route: Route) -> list[str]:
    """What the header leaves open, so that the router alone decided it."""
    gaps: list[str] = []
    if _word(facts.body_part) is None:
        gaps.append(
            f"The file does not name the body part (Body Part Examined); the picture itself looks like {kind(route)}."
        )
    if _is_chest_film(route) and _word(facts.view_position) not in FRONTAL_VIEWS:
        gaps.append(
            "The file does not say that this is a frontal film (View Position AP or PA); answers hold for no other."
        )
    return gaps


def _is_chest_film(route: Route) -> bool:
    return bool(FILM_MODALITIES & set(_words(route.modalities))) and "CHEST" in _words(route.body_parts)


def _has_age_limits(population: Population) -> bool:
    return population.minimum_age_years is not None or population.maximum_age_years is not None


def _years_between(birth: date | None, study: date | None) -> float | None:
    if birth is None or study is None:
        return None
    return (study - birth).days / 365.25


def _age_words(years: float) -> str:
    if 0 <= years < 2:
        months = int(years * 12)
        return f"{months} month{'' if months == 1 else 's'}"
    return f"{int(years)} years"


def _modality_name(modality: str) -> str:
    return MODALITY_NAMES.get(modality, modality)


def _modality_phrase(modality: str) -> str:
    name = MODALITY_NAMES.get(modality)
    return f"an image of modality {modality}" + (f" ({name})" if name and name != modality else "")


def _word(value: str | None) -> str | None:
    """A code string as it is compared: upper case, no padding; None when empty."""
    return (value or "").strip().upper() or None


def _words(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value.upper() for value in values)


def _listed(names: list[str], *, last: str = "and") -> str:
    """ "a, b and c" """
    if len(names) < 2:
        return "".join(names) or "no kind of image"
    return f"{', '.join(names[:-1])} {last} {names[-1]}"
