"""Replace identifiers by others that follow from them and a secret key: the same patient stays one patient."""

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydicom._uid_dict import UID_dictionary

LONGEST_SHIFT_DAYS = 3650
SHORTEST_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Project:
    """The key of one de-identification project.

    With the same key the same study gives the same new identifiers, in any run and on any machine. Without it nothing
    can be led back. Raises ValueError for a key of fewer than 16 bytes.
    """

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) < SHORTEST_KEY_BYTES:
            raise ValueError(f"a project's key has at least {SHORTEST_KEY_BYTES} bytes; this one has {len(self.key)}")

    def uid(self, original: str) -> str:
        """A UID under 2.25 (PS3.5 B.2) in place of an instance's; those that the standard defines stay as they are."""
        if not original or original in UID_dictionary:
            return original
        return f"2.25.{int.from_bytes(self._digest('uid', original)[:16], 'big')}"

    def pseudonym(self, patient_id: str) -> str:
        """What a patient is called instead, both as name and as ID."""
        return f"HILUM-{self._digest('patient', patient_id).hex()[:12].upper()}"

    def shift(self, patient_id: str) -> timedelta:
        """By how much all dates of a patient move into the past: whole days, from one to ten years' worth."""
        days = int.from_bytes(self._digest("dates", patient_id)[:8], "big") % LONGEST_SHIFT_DAYS + 1
        return timedelta(days=-days)

    def _digest(self, kind: str, text: str) -> bytes:
        return hmac.digest(self.key, f"{kind}\0{text}".encode(), hashlib.sha256)


def shifted_day(value: str, shift: timedelta) -> str | None:
    """A DA or DT value on another day, the time of day kept; None where it holds no whole date."""
    match = re.match(r"([0-9]{4})[.-]?([0-9]{2})[.-]?([0-9]{2})", value)
    if match is None:
        return None
    try:
        moved = datetime(int(match[1]), int(match[2]), int(match[3])) + shift  # noqa: DTZ001  # a date without a place
    except (ValueError, OverflowError):
        return None
    return f"{moved:%Y%m%d}{value[match.end() :]}"
