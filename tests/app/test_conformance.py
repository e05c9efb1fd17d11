"""The conformance statement says what the code does."""

from app.conformance import path, statement
from dicom_io.uids import IMAGE_SOP_CLASSES, TRANSFER_SYNTAXES


def test_the_statement_is_that_of_the_tables() -> None:
    """`python -m app.conformance` writes it anew."""
    assert path().read_text(encoding="utf-8") == statement()


def test_it_names_every_syntax_and_class_and_route() -> None:
    said = statement()
    assert all(f"`{uid}`" in said for uid in (*TRANSFER_SYNTAXES, *IMAGE_SOP_CLASSES))
    assert "| PUT | `/workitems/{workitem}/state` |" in said
    assert "| POST | `/studies` |" in said
