"""A little of what `python -m tests.bench.hostile` does at length; only its answers count here, not its time."""

from pathlib import Path

import numpy as np
import pytest

from tests.bench.hostile import bombs, mutants, mutations, seeds


@pytest.mark.parametrize("name", [*seeds()])
def test_every_mutant_has_an_answer(name: str, tmp_path: Path) -> None:
    found = mutations(name, seeds()[name], count=60, seed=1, workers=1, kept=tmp_path / "kept")
    assert found["without a code"] == 0
    assert found["mutants"] == 60
    assert not (tmp_path / "kept").exists()


def test_mutants_follow_from_the_seed_and_differ() -> None:
    (whole, *_) = seeds().values()
    one, again, other = (
        [next(many) for _ in range(50)]
        for many in (
            mutants(whole, np.random.default_rng(3)),
            mutants(whole, np.random.default_rng(3)),
            mutants(whole, np.random.default_rng(4)),
        )
    )
    assert one == again
    assert one != other
    assert sum(made != whole for made in one) > 45


def test_every_bomb_is_refused_or_gives_no_more_than_its_frame() -> None:
    answers = {name: refusal.answer for name, refusal in bombs().items()}
    harmless = {name for name, answer in answers.items() if answer == "read"}
    assert harmless == {"deflated frame of 256 MiB", "RLE frame of 400 MB"}
    assert {answers[name] for name in answers if name not in harmless} == {
        "dicom.too-large",
        "dicom.nesting-too-deep",
        "dicom.cannot-decode",
        "dicom.zip-refused",
    }
