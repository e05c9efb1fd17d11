"""Every error has an HTTP status and a sentence for a clinician."""

import logging

import pytest
from sqlalchemy.exc import OperationalError

from app.errors import HilumError
from app.web.errors import NEVER_SERVED, WORDINGS, answer, wording
from dicom_io.errors import DicomError, NotDicom
from vision_model.errors import VisionModelError

Tree = type[HilumError] | type[DicomError] | type[VisionModelError]


def leaves(tree: Tree) -> list[Tree]:
    below = tree.__subclasses__()
    return [leaf for child in below for leaf in leaves(child)] if below else [tree]


LEAVES = [leaf for tree in (HilumError, DicomError, VisionModelError) for leaf in leaves(tree)]


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.code)
def test_every_leaf_of_the_error_trees_has_a_row(leaf: Tree) -> None:
    assert (wording(leaf.code) is None) == (leaf.code in NEVER_SERVED)


def test_the_table_has_no_row_that_no_error_uses() -> None:
    codes = {leaf.code for leaf in LEAVES} | {"dicom.zip-refused"}  # which also has a child
    unused = [key for key in WORDINGS if not any(code == key or code.startswith(key) for code in codes)]
    assert unused == []


@pytest.mark.parametrize("code", WORDINGS)
def test_a_sentence_is_one_that_a_clinician_can_read(code: str) -> None:
    sentence = WORDINGS[code].sentence
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert len(sentence) < 200
    assert not any(word in sentence for word in ("UID", "exception", "traceback", "None", "sandbox"))
    assert 400 <= WORDINGS[code].status < 600


def test_an_error_tells_the_sentence_and_keeps_the_detail_for_the_administrator() -> None:
    status, body = answer(NotDicom("no DICM at byte 128"))
    assert status == 415
    assert body["error"] == {
        "code": "dicom.not-dicom",
        "sentence": "This is not a DICOM file. Export the images as DICOM and send those.",
        "message": "no DICM at byte 128",
    }


def test_a_database_that_went_away_is_said_to_be_the_database() -> None:
    status, body = answer(OperationalError("SELECT name FROM patient", {}, Exception("connection refused\nat once")))
    assert status == 503
    assert body["error"]["code"] == "database.unavailable"  # type: ignore[index]
    assert "SELECT" not in str(body)


def test_an_unforeseen_error_says_a_number_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        status, body = answer(ZeroDivisionError("patient Doe"))
    assert status == 500
    assert "Doe" not in str(body) + caplog.text
    number = str(body["error"]["message"]).removeprefix("incident ")  # type: ignore[index]
    assert number in caplog.text
