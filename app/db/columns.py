"""Column types whose values come back the same from SQLite and from PostgreSQL."""

import json
import math
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Dialect, Float, Integer, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

from app.db.canonical import canonical
from app.errors import UnstorableValue

# SQLite counts ids up by itself only in a column that is declared INTEGER, which holds 64 bits there anyway.
Whole = BigInteger().with_variant(Integer(), "sqlite")


def utc_text(at: datetime) -> str:
    """An aware time as text that sorts: 2026-11-22T18:00:00.000000Z."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def storable(text: str) -> str:
    """The text with NUL and lone surrogates, which PostgreSQL cannot hold, as U+FFFD."""
    if text.isascii() and "\x00" not in text:
        return text
    # UTF-16 joins surrogate pairs; what is left alone is no character.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "\ufffd")


class UtcTime(TypeDecorator[datetime]):
    """An aware time, kept in UTC: timestamptz on PostgreSQL, text that sorts on SQLite. A naive time is refused."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """SQLite has no time type."""
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """To UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise UnstorableValue("a time without a time zone cannot be stored; use datetime.now(UTC)")
        return utc_text(value) if dialect.name == "sqlite" else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (SQLAlchemy's signature)
        """Aware, in UTC, whatever the server's time zone."""
        if value is None:
            return None
        return (datetime.fromisoformat(value) if isinstance(value, str) else value).astimezone(UTC)


class Real(TypeDecorator[float]):
    """A double. NaN is refused, since SQLite would keep it as NULL, and so are infinities."""

    impl = Float(53)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> float | None:  # noqa: ARG002 (SQLAlchemy's signature)
        """Any real number, numpy's included, to a finite double without a negative zero."""
        if value is None:
            return None
        number = float(value) + 0.0  # SQLite drops the sign of zero; so do we on both
        if not math.isfinite(number):
            raise UnstorableValue(f"{number} cannot be stored; leave a value that was not computed out, as None")
        return number


class Words(TypeDecorator[str]):
    """Text of any length; what PostgreSQL cannot hold becomes U+FFFD on both engines."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 (SQLAlchemy's signature)
        """Replace, so that a strange header is stored and not lost."""
        return None if value is None else storable(value)


class CanonicalJson(TypeDecorator[Any]):
    """JSON kept as canonical text, so that its bytes and digest do not depend on the engine."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 (SQLAlchemy's signature)
        """To RFC 8785 text."""
        return None if value is None else storable(canonical(value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002 (SQLAlchemy's signature)
        """Back to Python."""
        return None if value is None else json.loads(value)
