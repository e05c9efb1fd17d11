"""Read rows as the engine holds them, and give each the digest that the audit trail keeps."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime

from sqlalchemy import Boolean, Column, Table, select, type_coerce
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.types import NULLTYPE

from app.db.canonical import canonical, sha256_hex
from app.db.columns import utc_text
from app.errors import UnstorableValue

RawRow = dict[str, object]  # column name -> plain value; absent values are left out
BATCH = 500


def row_digest(row: Mapping[str, object]) -> str:
    """SHA-256 of the row's canonical JSON."""
    return sha256_hex(canonical(row))


def raw_rows(
    session: Session, table: Table, *, key: str, keys: Sequence[int], order: str | None = None
) -> dict[int, list[RawRow] | None]:
    """The rows whose column `key` has one of the values, by that value; None where the engine cannot read them.

    Values come without the columns' own conversions, which would hide changes: 2 would still be True. Rows that
    cannot be read end the session's transaction, so a session that writes must not ask for damaged ones.
    """
    found: dict[int, list[RawRow] | None] = {}
    for start in range(0, len(keys), BATCH):
        batch = keys[start : start + BATCH]
        try:
            found.update(_read(session, table, key=key, keys=batch, order=order))
        except (SQLAlchemyError, ValueError, UnstorableValue):
            for one in batch:
                session.rollback()
                try:
                    found.update(_read(session, table, key=key, keys=[one], order=order))
                except (SQLAlchemyError, ValueError, UnstorableValue):
                    found[one] = None
            session.rollback()
    return found


def _read(
    session: Session, table: Table, *, key: str, keys: Sequence[int], order: str | None
) -> dict[int, list[RawRow]]:
    found: dict[int, list[RawRow]] = {}
    columns = list(table.columns)
    statement = select(*(type_coerce(column, NULLTYPE) for column in columns)).where(table.c[key].in_(keys))
    if order is not None:
        statement = statement.order_by(table.c[key], table.c[order])
    for values in session.execute(statement):
        row = {column.name: _plain(column, value) for column, value in zip(columns, values, strict=True)}
        present = {name: value for name, value in row.items() if value is not None}
        canonical(present)  # a value that has no canonical form counts as unreadable
        value = row[key]
        assert isinstance(value, int)  # it was asked for by number
        found.setdefault(value, []).append(present)
    return found


def _plain(column: Column[object], value: object) -> object:
    """A value as both engines agree on it."""
    match value:
        case bool():
            return value
        case int() if isinstance(column.type, Boolean) and value in (0, 1):
            return bool(value)
        case datetime():
            return utc_text(value)
        case date():
            return value.isoformat()
        case bytes():
            return {"bytes": value.hex()}
        case _:
            return value
