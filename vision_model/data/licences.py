"""What is known of where images come from: which licences are permissive, and who published which dataset."""

import re
import tomllib
from functools import cache
from pathlib import Path

LICENCES_FILE = Path(__file__).parent / "licences.toml"
PROVENANCE_FILE = Path(__file__).parent / "provenance.toml"


def permissive(licence: str) -> bool:
    """Whether a licence, as a source states it, asks for nothing but a mention. One that is not known does not."""
    return refusal(licence) is None


def refusal(licence: str) -> str | None:
    """Why a licence is not permissive, or None if it is."""
    refused, allowed = _table()
    stated = licence.lower()
    for pattern, reason in refused:
        if pattern.search(stated):
            return reason
    if any(pattern.search(stated) for pattern in allowed):
        return None
    return "is not in the table of licences" if stated.strip() else "is not stated"


@cache
def published() -> dict[str, str]:
    """Dataset -> who published it, for the datasets of `provenance.toml`."""
    raw = tomllib.loads(PROVENANCE_FILE.read_text(encoding="utf-8"))
    return {dataset: row["cite"] for dataset, row in raw.items()}


@cache
def _table() -> tuple[list[tuple[re.Pattern[str], str]], list[re.Pattern[str]]]:
    raw = tomllib.loads(LICENCES_FILE.read_text(encoding="utf-8"))
    refused = [(re.compile(row["pattern"]), row["reason"]) for row in raw["refused"]]
    return refused, [re.compile(row["pattern"]) for row in raw["permissive"]]
