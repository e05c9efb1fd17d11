"""Every error of the application is drawn at the top of its file with the code that it has."""

import re
from collections.abc import Iterator

from app import errors


def leaves(tree: type[errors.HilumError]) -> Iterator[type[errors.HilumError]]:
    branches = [branch for branch in tree.__subclasses__() if branch.__module__ == errors.__name__]
    if not branches:
        yield tree
    for branch in branches:
        yield from leaves(branch)


def test_the_drawing_and_the_classes_are_the_same_tree() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) +([\w.-]+)$", errors.__doc__ or "", flags=re.MULTILINE))
    assert drawn == {leaf.__name__: leaf.code for leaf in leaves(errors.HilumError)}


def test_every_leaf_has_a_code_of_its_own() -> None:
    codes = [leaf.code for leaf in leaves(errors.HilumError)]
    assert len(set(codes)) == len(codes)
