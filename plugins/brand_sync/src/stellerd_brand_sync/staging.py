"""Temporary tables that a catalogue is loaded into before it is compared: COPY on PostgreSQL, executemany on SQLite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from stellerd_brand_sync.tables import TYPES

BATCH = 5_000
"""Rows held in Python before they go to the database: memory stays flat however large the catalogue is."""
_COPY_CHARS = 256 * 1024

# What the catalogue says
STAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "bs_categories": (("id", "integer"), ("name", "text"), ("description", "text")),
    "bs_brands": (
        ("position", "integer"), ("internal_id", "text"), ("name", "text"), ("country", "text"), ("currency", "text"),
        ("description", "text"), ("disclaimer", "text"), ("redemption", "text"), ("terms", "text"), ("logo", "text"),
        ("modified", "time"), ("linked", "integer"),
    ),
    "bs_products": (
        ("id", "integer"), ("internal_id", "text"), ("name", "text"), ("low", "money4"), ("high", "money4"),
        ("stock", "integer"), ("modified", "time"),
    ),
    "bs_prices": (
        ("product_id", "integer"), ("low", "money8"), ("high", "money8"), ("currency", "text"),
        ("commission", "integer"),
    ),
    "bs_links": (("internal_id", "text"), ("category_id", "integer")),
}  # fmt: skip
# What the merge finds out: which row each item is stored in, and what has to be written
_PLANS: dict[str, tuple[tuple[str, str], ...]] = {
    "bs_brand_ids": (("internal_id", "text"), ("id", "integer")),
    "bs_plan_categories": (("id", "integer"), ("stored", "integer")),
    "bs_plan_brands": (("internal_id", "text"), ("id", "integer")),
    "bs_plan_products": (("id", "integer"), ("stored", "integer")),
    "bs_plan_prices": (("product_id", "integer"), ("id", "integer")),
    "bs_plan_configurations": (("product_id", "integer"), ("id", "integer")),
    "bs_plan_links": (
        ("internal_id", "text"),
        ("category_id", "integer"),
        ("brand_id", "integer"),
        ("wanted", "integer"),
    ),
}
_SQLITE_KEYS = {
    "bs_categories": "id", "bs_brands": "internal_id", "bs_products": "id", "bs_prices": "product_id",
    "bs_links": "internal_id, category_id", "bs_brand_ids": "internal_id", "bs_plan_products": "id",
}  # fmt: skip
"""PostgreSQL hashes; SQLite only has nested loops and wants an index to look up in."""


class Staging:
    """The temporary tables of one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self._postgres = connection.dialect.name == "postgresql"
        for table, columns in (STAGES | _PLANS).items():
            self._create(table, columns)

    def _create(self, table: str, columns: Iterable[tuple[str, str]]) -> None:
        types = TYPES[self.connection.dialect.name]
        body = ", ".join(f'"{name}" {types[kind]}' for name, kind in columns)
        if self._postgres:
            self.connection.exec_driver_sql(f"CREATE TEMPORARY TABLE {table} ({body}) ON COMMIT DROP")
            return
        key = f", PRIMARY KEY ({_SQLITE_KEYS[table]})" if table in _SQLITE_KEYS else ""
        self.connection.exec_driver_sql(f"CREATE TEMPORARY TABLE {table} ({body}{key})")

    def load(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Append rows whose values are int, str or None."""
        if not rows:
            return
        if self._postgres:
            self._copy(table, rows)
        else:
            marks = ", ".join("?" * len(STAGES[table]))
            self.connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({marks})", list(rows))  # noqa: S608 - ours

    def _copy(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        raw: Any = self.connection.connection.driver_connection
        with raw.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN") as copy:
            buffer: list[str] = []
            size = 0
            for row in rows:
                text = copy_line(row)
                buffer.append(text)
                size += len(text)
                if size > _COPY_CHARS:
                    copy.write("".join(buffer))
                    buffer, size = [], 0
            copy.write("".join(buffer))

    def analyse(self) -> None:
        """Let PostgreSQL plan for the sizes that came; a guess of its own costs minutes at a million rows."""
        if self._postgres:
            self.connection.exec_driver_sql(f"ANALYZE {', '.join(STAGES)}")

    def drop(self) -> None:
        """Leave nothing behind in the connection, which goes back to a pool."""
        for table in STAGES | _PLANS:
            self.connection.exec_driver_sql(f"DROP TABLE {table}")


def copy_line(row: Iterable[Any]) -> str:
    r"""One row in COPY's text format: tabs between, \N for null, backslash, tab and line ends escaped."""
    return "\t".join(["\\N" if v is None else _escaped(v) if type(v) is str else str(v) for v in row]) + "\n"


def _escaped(text: str) -> str:
    # four searches by memchr: str.translate looks every character up and takes ten times as long
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
