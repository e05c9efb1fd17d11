"""The tree of errors is drawn as it is, and its codes are what other programs may hold on to."""

import re
from pathlib import Path

from dicom_io import errors
from dicom_io.errors import DicomError, tree
from dicom_io.uids import IMAGE_SOP_CLASSES, TRANSFER_SYNTAXES


def drawn() -> dict[str, str]:
    """Class name and code of every line of the drawing at the top of the module."""
    assert errors.__doc__
    return dict(re.findall(r"(\w+) +(dicom[\w.-]*)$", errors.__doc__, re.MULTILINE))


def test_the_drawing_shows_every_error_with_its_code() -> None:
    assert drawn() == {leaf.__name__: code for code, leaf in tree().items()}


def test_every_error_has_a_code_of_its_own() -> None:
    def walk(root: type[DicomError]) -> list[type[DicomError]]:
        return [root, *(leaf for child in root.__subclasses__() for leaf in walk(child))]

    every = walk(DicomError)
    assert len({leaf.code for leaf in every}) == len(every)


def test_every_error_says_what_it_means() -> None:
    assert all(leaf.__doc__ for leaf in tree().values())


def test_uids_in_the_tables_are_valid_and_told_apart() -> None:
    for uid in (*TRANSFER_SYNTAXES, *IMAGE_SOP_CLASSES):
        assert re.fullmatch(r"1\.2\.840\.10008(\.\d+)+", uid)
        assert len(uid) <= 64


def test_the_package_names_no_decoder_that_aborts() -> None:
    sources = Path(errors.__file__).parent.glob("*.py")
    assert not any(re.search(r"import gdcm|from gdcm|pydicom\.pixels", path.read_text()) for path in sources)
