"""What a database has: tables, columns, rights, sequences; read from its catalogues, changed by nothing here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import sqlalchemy as sa

from stellerd_brand_sync.tables import TABLES

_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")


@dataclass(frozen=True)
class Column:
    """A column as it is; `type` as SQL writes it, `base` its bare name; `needs_value`: an INSERT must name it."""

    name: str
    needs_value: bool
    type: str
    base: str
    identity: str

    @property
    def digits(self) -> tuple[int, int] | None:
        """Before and after the point, of numeric(p, s)."""
        match = re.fullmatch(r"numeric\((\d+),(\d+)\)", self.type)
        return (int(match[1]) - int(match[2]), int(match[2])) if match else None


class Key(NamedTuple):
    """The sequence behind an "Id"."""

    sequence: str
    usable: bool
    behind: bool


class DigestState(NamedTuple):
    """How far the table of digests can be used."""

    schema: bool
    exists: bool
    may_enter: bool
    may_create: bool
    columns_wrong: bool
    lacking: list[str]


_TABLES = ", ".join(f"'{table}'" for table in TABLES)
_LOOK = {
    "postgresql": f"""
        SELECT c.relname, a.attname, a.attnotnull AND NOT a.atthasdef AND a.attidentity = '',
               format_type(a.atttypid, a.atttypmod), t.typname, a.attidentity,
               has_table_privilege(c.oid, 'SELECT'), has_table_privilege(c.oid, 'INSERT'),
               has_table_privilege(c.oid, 'UPDATE'), has_table_privilege(c.oid, 'DELETE')
          FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid
         WHERE c.relname IN ({_TABLES}) AND pg_table_is_visible(c.oid) AND c.relkind IN ('r', 'p')
           AND a.attnum > 0 AND NOT a.attisdropped ORDER BY c.oid, a.attnum""",  # noqa: S608 - ours
    "sqlite": f"""
        SELECT t.name, c.name, c."notnull" AND c.dflt_value IS NULL AND c.pk = 0, c.type, c.type, '',
               1, 1, 1, 1
          FROM sqlite_master t JOIN pragma_table_info(t.name) c WHERE t.type = 'table' AND t.name IN ({_TABLES})""",  # noqa: S608 - ours
}  # fmt: skip
_HIDDEN = f"""
SELECT c.relname, quote_ident(n.nspname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relname IN ({_TABLES}) AND c.relkind IN ('r', 'p') AND NOT has_schema_privilege(n.oid, 'USAGE')"""  # noqa: S608 - ours
_KEY = """
SELECT pg_get_serial_sequence(:table, 'Id'), a.attidentity FROM pg_attribute a
 WHERE a.attrelid = CAST(:table AS regclass) AND a.attname = 'Id'"""
_DIGESTS = """
SELECT n.oid IS NOT NULL, c.oid IS NOT NULL, coalesce(has_schema_privilege(n.oid, 'USAGE'), false),
       CASE WHEN n.oid IS NULL THEN has_database_privilege(current_database(), 'CREATE')
            ELSE has_schema_privilege(n.oid, 'CREATE') AND has_schema_privilege(n.oid, 'USAGE') END,
       (SELECT array_agg(CAST(a.attname AS text) || ' ' || format_type(a.atttypid, a.atttypmod) ORDER BY a.attname)
          FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
       has_table_privilege(c.oid, 'SELECT'), has_table_privilege(c.oid, 'INSERT'),
       has_table_privilege(c.oid, 'UPDATE'), has_table_privilege(c.oid, 'DELETE')
  FROM (SELECT 1) one LEFT JOIN pg_namespace n ON n.nspname = 'stellerd'
  LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = 'stellerd_brand_digests'"""
_TEMPORARY = """
SELECT CASE WHEN NOT has_database_privilege(current_database(), 'TEMPORARY') THEN quote_ident(current_database()) END"""


class Look:
    """One look at a database. Raises: SQLAlchemy's errors, from each member."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.dialect = connection.dialect.name
        self.tables: dict[str, dict[str, Column]] = {}
        self.rights: dict[str, set[str]] = {}
        for table, *facts in connection.exec_driver_sql(_LOOK[self.dialect]):
            self.tables.setdefault(table, {})[facts[0]] = Column(*facts[:5])
            self.rights[table] = {right for right, has in zip(_RIGHTS, facts[5:], strict=True) if has}

    @cached_property
    def user(self) -> str:
        """Who we are, quoted as SQL needs it."""
        return str(self._one("SELECT quote_ident(current_user)")[0])

    @cached_property
    def hidden(self) -> Mapping[str, str]:
        """Tables that are there, in a schema that this user may not enter."""
        if self.dialect == "sqlite":
            return {}
        return dict(tuple(row) for row in self.connection.exec_driver_sql(_HIDDEN))

    @property
    def database_without_temporary(self) -> str | None:
        """The database's name, quoted, if temporary tables may not be made in it."""
        name: str | None = self._one(_TEMPORARY)[0]
        return name

    def key(self, table: str) -> Key | None:
        """The sequence that gives out this table's ids; None when that is not what gives them out."""
        sequence, identity = self._one(_KEY, table=f'"{table}"')
        if sequence is None or not self.rights[table] >= {"SELECT", "INSERT"}:
            return None
        usable, readable = self._one(
            "SELECT has_sequence_privilege(:name, 'USAGE'), has_sequence_privilege(:name, 'SELECT')", name=sequence
        )
        behind = False
        if readable:
            statement = (
                f'SELECT coalesce((SELECT max("Id") FROM "{table}"), 0) >= last_value + is_called::int FROM {sequence}'  # noqa: S608 - the server's own quoting
            )
            behind = bool(self._one(statement)[0])
        return Key(sequence, bool(usable) or identity != "", behind)

    def digests(self, wanted: Mapping[str, str]) -> DigestState:
        """The table of digests, which should have the `wanted` columns and types."""
        schema, exists, enter, create, columns, *rights = self._one(_DIGESTS)
        wrong = exists and columns != sorted(f"{name} {kind}" for name, kind in wanted.items())
        lacking = [right for right, has in zip(_RIGHTS, rights, strict=True) if not has]
        return DigestState(schema, exists, enter, create, wrong, lacking)

    def _one(self, statement: str, **parameters: Any) -> Any:
        return self.connection.execute(sa.text(statement), parameters).one()
