"""What each brand looked like when it was last stored: whoever looks the same again need not even be decoded.

The table is ours and stands beside the platform's, so that a digest and the rows it speaks for are one transaction.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from stellerd_brand_sync.rows import MAPPING

TABLE = "stellerd_brand_digests"
COLUMNS = {"internal_id": "text", "digest": "text", "products": "integer", "mapping": "text"}
_COLUMNS = ", ".join(f"{name} {kind} NOT NULL" for name, kind in COLUMNS.items())
# PostgreSQL cannot index a text of more than 2.7 KB, and an internal id may have 1,000 signs of three bytes
_KEY = {"postgresql": "digest", "sqlite": "internal_id"}
_NAMES = {"postgresql": f"stellerd.{TABLE}", "sqlite": TABLE}
_SCHEMA = "SELECT to_regnamespace('stellerd') IS NOT NULL"
_USABLE = {
    "postgresql": """SELECT coalesce((SELECT has_table_privilege(c.oid, 'SELECT')
        AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE')
        AND has_table_privilege(c.oid, 'DELETE') AND has_schema_privilege(c.relnamespace, 'USAGE')
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'stellerd' AND c.relname = 'stellerd_brand_digests'), false)""",
    "sqlite": "SELECT count(*) > 0 FROM sqlite_master WHERE type = 'table' AND name = 'stellerd_brand_digests'",
}
_GONE = {
    "postgresql": "internal_id IN (SELECT json_array_elements_text(CAST(:keys AS json)))",
    "sqlite": "internal_id IN (SELECT value FROM json_each(:keys))",
}
_CHANGE = """
UPDATE {table} AS d SET digest = s.digest, products = s.products, mapping = :mapping FROM bs_brands s
 WHERE d.internal_id = s.internal_id AND s.digest IS NOT NULL AND (d.digest <> s.digest OR d.mapping <> :mapping)"""
_ADD = """
INSERT INTO {table} (internal_id, digest, products, mapping)
SELECT s.internal_id, s.digest, s.products, :mapping FROM bs_brands s
 WHERE s.digest IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {table} d WHERE d.internal_id = s.internal_id)"""
# The primary key's name in the table of an earlier version
_OLD_KEY = """
SELECT quote_ident(k.conname) FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (k.conkey)
 WHERE n.nspname = 'stellerd' AND c.relname = 'stellerd_brand_digests' AND k.contype = 'p'
   AND a.attname = 'internal_id'"""


class Known(NamedTuple):
    """A stored brand: its digest ("" where an older mapping made the rows) and how many products it had."""

    digest: str
    products: int


class Sorted(NamedTuple):
    """A catalogue next to what is known: each brand's digest, and the internal ids of unchanged ones by position."""

    digests: list[str]
    unchanged: dict[int, str]


class Digests:
    """The table as one transaction sees it; `usable` False (no table, no rights): nothing is known, all is compared.

    `mode`: whatever else but the vendor's bytes decides what is stored.
    """

    def __init__(self, connection: sa.Connection, mode: str = "") -> None:
        self._connection = connection
        self._table = _NAMES[connection.dialect.name]
        self._mapping = f"{MAPPING}{mode and '-'}{mode}"
        self.usable = bool(connection.exec_driver_sql(_USABLE[connection.dialect.name]).scalar_one())

    def load(self) -> dict[str, Known]:
        """What is known, by internal id."""
        if not self.usable:
            return {}
        rows = self._connection.exec_driver_sql(f"SELECT internal_id, digest, products, mapping FROM {self._table}")  # noqa: S608 - ours
        return {key: Known(digest if mapping == self._mapping else "", n) for key, digest, n, mapping in rows}

    def remember(self) -> None:
        """Keep the digests of the staged brands that have one."""
        if self.usable:
            for statement in (_CHANGE, _ADD):
                self._connection.execute(sa.text(statement.format(table=self._table)), {"mapping": self._mapping})

    def forget(self, keys: Iterable[str]) -> None:
        """These brands are to be looked at again when they come again."""
        gone = list(keys)
        if gone:
            condition = _GONE[self._connection.dialect.name]
            statement = sa.text(f"DELETE FROM {self._table} WHERE {condition}")  # noqa: S608 - ours
            self._connection.execute(statement, {"keys": json.dumps(gone)})


def sort(brands: Sequence[msgspec.Raw], known: Mapping[str, Known]) -> Sorted:
    """Which brands are byte for byte what they were; one that comes twice in a catalogue is not."""
    digests = [hashlib.blake2b(raw, digest_size=16).hexdigest() for raw in brands]
    keys = {one.digest: key for key, one in known.items() if one.digest}
    found = {position: keys[digest] for position, digest in enumerate(digests) if digest in keys}
    often = Counter(found.values())
    return Sorted(digests, {position: key for position, key in found.items() if often[key] == 1})


def create(connection: sa.Connection) -> None:
    """Make the table unless it is there.

    CREATE SCHEMA IF NOT EXISTS wants the right to create one even where it is there.
    """
    dialect = connection.dialect.name
    if dialect == "postgresql" and not connection.exec_driver_sql(_SCHEMA).scalar_one():
        connection.exec_driver_sql("CREATE SCHEMA stellerd")
    connection.exec_driver_sql(
        f"CREATE TABLE IF NOT EXISTS {_NAMES[dialect]} ({_COLUMNS}, PRIMARY KEY ({_KEY[dialect]}))"
    )


def rekeying(connection: sa.Connection) -> str | None:
    """The SQL that gives the table of an earlier version today's key; None when it has it, or is not there."""
    if connection.dialect.name != "postgresql":
        return None
    name = connection.exec_driver_sql(_OLD_KEY).scalar()
    table = _NAMES["postgresql"]
    return f"ALTER TABLE {table} DROP CONSTRAINT {name}, ADD PRIMARY KEY ({_KEY['postgresql']})" if name else None
