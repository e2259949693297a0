"""Temporary tables that a catalogue is loaded into before it is compared: COPY on PostgreSQL, executemany on SQLite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import sqlalchemy as sa

from stellerd_brand_sync.tables import TYPES

BATCH = 2_000
"""Rows held in Python before they go to the database: memory stays flat however large the catalogue is."""
_COPY_BYTES = 256 * 1024

_SIGNS = (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"))
"""Signs of COPY's own, the escape first."""

# What the catalogue says; a brand is known by its position in it, which is shorter than any key
STAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "bs_brands": (
        ("position", "integer"), ("internal_id", "text"), ("name", "text"), ("country", "code"), ("currency", "code"),
        ("description", "text"), ("disclaimer", "text"), ("redemption", "text"), ("terms", "text"), ("logo", "text"),
        ("modified", "time"), ("linked", "integer"), ("digest", "text"), ("products", "integer"),
    ),
    "bs_products": (
        ("id", "integer"), ("position", "integer"), ("name", "text"), ("low", "money4"), ("high", "money4"),
        ("stock", "integer"), ("modified", "time"), ("price_low", "money8"), ("price_high", "money8"),
        ("currency", "code"), ("commission", "integer"),
    ),
    "bs_links": (("position", "integer"), ("category_id", "integer")),
}  # fmt: skip
# What the merge finds out: which row each item is stored in, and what has to be written
PLANS: dict[str, tuple[tuple[str, str], ...]] = {
    "bs_brand_ids": (("position", "integer"), ("id", "integer")),
    "bs_plan_brands": (("position", "integer"), ("id", "integer")),
    "bs_plan_products": (("product_id", "integer"), ("id", "integer")),
    "bs_plan_prices": (("product_id", "integer"), ("id", "integer")),
    "bs_plan_configurations": (("product_id", "integer"), ("id", "integer")),
    "bs_plan_links": (("category_id", "integer"), ("brand_id", "integer"), ("id", "integer")),
}
_SQLITE_KEYS = {
    "bs_brands": "position", "bs_products": "id", "bs_links": "position, category_id", "bs_brand_ids": "position",
}  # fmt: skip
"""PostgreSQL hashes; SQLite only has nested loops and wants an index to look up in."""
_ANALYSE = "ANALYZE bs_brands (position, internal_id), bs_products (id, position, commission), bs_links"


class Staging:
    """The temporary tables of one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self._postgres = connection.dialect.name == "postgresql"
        self._copying = ExitStack()
        self._all([self._ddl(table, columns) for table, columns in (STAGES | PLANS).items()])

    def _ddl(self, table: str, columns: Iterable[tuple[str, str]]) -> str:
        types = TYPES[self.connection.dialect.name]
        body = ", ".join(f'"{name}" {types[kind]}' for name, kind in columns)
        if self._postgres:
            return f"CREATE TEMPORARY TABLE {table} ({body}) ON COMMIT DROP"
        key = f", PRIMARY KEY ({_SQLITE_KEYS[table]})" if table in _SQLITE_KEYS else ""
        return f"CREATE TEMPORARY TABLE {table} ({body}{key})"

    def _all(self, statements: Sequence[str]) -> None:
        """Statements without a result, on PostgreSQL in one exchange."""
        for statement in ["; ".join(statements)] if self._postgres else statements:
            self.connection.exec_driver_sql(statement)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Around calls of `load`: the server may still be at what it was sent last while the next rows are made."""
        with self._copying:
            yield

    def load(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Append rows whose values are int, str or None; only within `loading`."""
        if not rows:
            return
        if self._postgres:
            self._copy(table, rows)
        else:
            marks = ", ".join("?" * len(STAGES[table]))
            self.connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({marks})", list(rows))  # noqa: S608 - ours

    def _copy(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        raw: Any = self.connection.connection.driver_connection
        texts = [number for number, (_, kind) in enumerate(STAGES[table]) if kind == "text"]
        self._copying.close()
        copy = self._copying.enter_context(self._copying.enter_context(raw.cursor()).copy(f"COPY {table} FROM STDIN"))
        buffer: list[bytes] = []
        size = 0
        for row in rows:
            line = copy_line(row, texts).encode()  # one by one: a single wide sign would widen all that it is joined to
            buffer.append(line)
            size += len(line)
            if size > _COPY_BYTES:
                copy.write(b"".join(buffer))
                buffer, size = [], 0
        copy.write(b"".join(buffer))

    def analyse(self) -> None:
        """Let PostgreSQL plan for the sizes that came; a guess of its own costs minutes at a million rows."""
        if self._postgres:
            self.connection.exec_driver_sql(_ANALYSE)

    def empty(self, tables: Iterable[str]) -> None:
        """Forget the rows of some tables."""
        verb = "TRUNCATE" if self._postgres else "DELETE FROM"
        self._all([f"{verb} {table}" for table in tables])

    def drop(self) -> None:
        """Leave nothing behind in the connection, which goes back to a pool."""
        self._all([f"DROP TABLE {table}" for table in STAGES | PLANS])


def copy_line(row: Iterable[Any], texts: Iterable[int]) -> str:
    r"""One row in COPY's text format: tabs between, \N for null; in columns `texts` signs of its own escaped."""
    values = list(row)
    for number in texts:
        text = values[number]
        if text:
            # searches by memchr: str.translate looks every character up and takes ten times as long
            for sign, written in _SIGNS:
                if sign in text:
                    text = text.replace(sign, written)
            values[number] = text
    return "\t".join(["\\N" if v is None else v if type(v) is str else str(v) for v in values]) + "\n"
