"""Read what a search asks for from a request's parameters (PS3.18 8.3.4)."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from fastapi import Request
from pydicom.datadict import keyword_for_tag

from app.web.errors import RequestInvalid

MOST_RESULTS = 5000
_NOT_KEYS = frozenset({"accept", "charset", "includefield", "limit", "offset"})
# The standard's words for what is not done (8.3.4.2).
_NOT_DONE = {
    "fuzzymatching": "The fuzzymatching parameter is not supported. Only literal matching has been performed.",
    "emptyvaluematching": "The emptyvaluematching parameter is not supported.",
    "multiplevaluematching": "The multiplevaluematching parameter is not supported.",
}


@dataclass(frozen=True, slots=True)
class Query:
    """What a search asks for."""

    keys: dict[str, str]  # keyword, or keywords joined by dots -> value
    include: frozenset[str]  # keywords, or "all"
    limit: int
    offset: int
    warnings: tuple[str, ...]


def query_of(request: Request, known: Collection[str]) -> Query:
    """The query of a request, given the keys that can be matched.

    A key that cannot be matched is refused: without it the answer would hold patients who were not asked for.
    Raises RequestInvalid.
    """
    keys: dict[str, str] = {}
    include: set[str] = set()
    warnings: list[str] = []
    for name, value in request.query_params.multi_items():
        if name.lower() in _NOT_DONE:
            if value.lower() == "true":
                warnings.append(_NOT_DONE[name.lower()])
        elif name.lower() == "includefield":
            include |= {keyword(one) for one in value.split(",") if one}
        elif name.lower() not in _NOT_KEYS:
            key = keyword(name)
            if key not in known:
                raise RequestInvalid(f"{key[:64]} cannot be matched here; these can: {', '.join(sorted(known))}")
            keys[key] = f"{keys[key]}\\{value}" if key in keys else value
    limit = min(_whole(request, "limit", MOST_RESULTS), MOST_RESULTS)
    return Query(keys, frozenset(include), limit, _whole(request, "offset", 0), tuple(warnings))


def keyword(name: str) -> str:
    """`00100020`, `PatientID`, and either joined by dots for what lies in a sequence -> keywords."""
    parts = [
        keyword_for_tag(int(one, 16)) or one if re.fullmatch(r"[0-9A-Fa-f]{8}", one) else one for one in name.split(".")
    ]
    return ".".join(parts)


def _whole(request: Request, name: str, otherwise: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return otherwise
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise RequestInvalid(f"{name} is no whole number")
    return int(text)
