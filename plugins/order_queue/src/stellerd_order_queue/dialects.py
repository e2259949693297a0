"""What the ledger says to a database: the same statements, under the same names, for PostgreSQL and for SQLite.

Parameters are the same too: `ids`, `rows` and `excluded` as `many`, `rows` and `texts` encode them, times as `moment`
does, bounds of CreateDate as text; the results' order ids, request ids and creation dates are text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, TextClause, text

Row = tuple[str, str, str, str]
"""order id, request id, message id, and the request id as "Orders" has it"""


@dataclass(frozen=True)
class Dialect:
    """One database's statements and how it takes its parameters."""

    say: Mapping[str, TextClause]
    say_without_ledger: Mapping[str, TextClause]
    """`survey` and `page` for a database where no ledger exists yet."""
    create_ledger: Sequence[str]
    upgrade_ledger: Sequence[str]
    """What a ledger of an earlier version lacks, for its owner to add."""
    create_orders: Sequence[str]
    moment: Callable[[datetime], Any]
    many: Callable[[Iterable[str]], Any]
    texts: Callable[[Iterable[str]], Any]
    rows: Callable[[Sequence[Row]], dict[str, Any]]
    pairs: Callable[[Sequence[tuple[str, str]]], dict[str, Any]]
    """Order ids with request ids, for `still`."""
    usable: Callable[[str | None], str | None]
    """A request id in its canonical form; None when it is null, nil or none at all."""
    as_id: Callable[[UUID], Any]
    bound: Callable[[datetime], str]
    """A moment as CreateDate is compared with it."""
    earliest: str
    latest: str | None
    first_key: str
    schema: str | None
    """Where the ledger is; None: beside "Orders"."""


def dialect_of(engine: Engine) -> Dialect:
    """The dialect of an engine; stellerd opens no other than these two."""
    from stellerd_order_queue import dialect_postgres, dialect_sqlite

    return dialect_sqlite.DIALECT if engine.dialect.name == "sqlite" else dialect_postgres.DIALECT


def statements(texts: Mapping[str, str], pieces: Mapping[str, str]) -> dict[str, TextClause]:
    """The texts with each {piece} replaced; pieces are constants of ours, never data."""

    def filled(statement: str) -> str:
        for name, piece in pieces.items():
            statement = statement.replace("{" + name + "}", piece)
        return statement

    return {key: text(filled(filled(filled(statement)))) for key, statement in texts.items()}  # pieces hold pieces


def utc_text(moment: datetime) -> str:
    """An aware datetime as SQLite's strftime('%Y-%m-%d %H:%M:%f') writes it: sorts as text, milliseconds."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", timespec="milliseconds")


def as_json(values: Iterable[Any]) -> str:
    """A list for SQLite's json_each."""
    return json.dumps(list(values))
