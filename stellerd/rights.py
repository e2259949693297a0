"""What the store's user may not do on PostgreSQL, where others own the database, with the SQL for its owner.

Asked of the catalogue, which everybody may read, so that one look finds everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from stellerd.schema import bookkeeping, metadata, version
from stellerd.session import Transaction

_ALL = "SELECT, INSERT, UPDATE, DELETE"
_SCHEMAS = sa.text("""
    SELECT quote_ident(n.nspname) AS name, has_schema_privilege(n.oid, 'USAGE') AS may_use,
        has_schema_privilege(n.oid, 'CREATE') AS may_create, n.oid,
        EXISTS (SELECT 1 FROM pg_class c WHERE c.relnamespace = n.oid
            AND c.relname IN ('stellerd_version', 'stellerd_meta')) AS is_it
    FROM unnest(CAST(:names AS text[])) WITH ORDINALITY AS p(name, place) JOIN pg_namespace n ON n.nspname = p.name
    ORDER BY is_it DESC, place""").columns(name=sa.Text, may_use=sa.Boolean, may_create=sa.Boolean, oid=sa.BigInteger,
                                           is_it=sa.Boolean)  # fmt: skip
_TABLES = sa.text("""
    SELECT c.relname AS name, quote_ident(c.relname) AS quoted, pg_has_role(c.relowner, 'USAGE') AS owns,
        has_table_privilege(c.oid, 'SELECT') AS "SELECT", has_table_privilege(c.oid, 'INSERT') AS "INSERT",
        has_table_privilege(c.oid, 'UPDATE') AS "UPDATE", has_table_privilege(c.oid, 'DELETE') AS "DELETE"
    FROM pg_class c WHERE c.relnamespace = :schema AND c.relkind IN ('r', 'p')
    ORDER BY c.relname""").columns(name=sa.Text, quoted=sa.Text, owns=sa.Boolean, SELECT=sa.Boolean, INSERT=sa.Boolean,
                                   UPDATE=sa.Boolean, DELETE=sa.Boolean)  # fmt: skip
_SEQUENCES = sa.text("""
    SELECT t.relname AS table, quote_ident(c.relname) AS quoted
    FROM pg_class c JOIN pg_depend d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
    JOIN pg_class t ON t.oid = d.refobjid
    WHERE t.relnamespace = :schema AND CASE WHEN c.relkind = 'S' THEN NOT has_sequence_privilege(c.oid, 'USAGE') END
    ORDER BY c.relname""").columns(table=sa.Text, quoted=sa.Text)


@dataclass(frozen=True)
class Place:
    """Where the store's tables are, or would be made, and for whom; the names are quoted for SQL."""

    schema: str
    user: str
    oid: int
    may_use: bool
    may_create: bool
    has_tables: bool

    def grant_all(self) -> str:
        """The rights to all tables of this version, to be given once they are there."""
        tables = metadata.sorted_tables
        counted = [table.name for table in tables if isinstance(table.autoincrement_column, sa.Column)]
        named = ", ".join(f"{self.schema}.{table.name}" for table in tables)
        sequences = ", ".join(f"{self.schema}.{name}_id_seq" for name in counted)
        return (
            f"GRANT USAGE ON SCHEMA {self.schema} TO {self.user};\n"
            f"GRANT SELECT ON TABLE {self.schema}.{version.name} TO {self.user};\n"
            f"GRANT {_ALL} ON TABLE {named} TO {self.user};\nGRANT USAGE ON SEQUENCE {sequences} TO {self.user};"
        )


def place(connection: Transaction) -> Place | None:
    """Where they are by this session's search_path; None when none of its schemas exists."""
    asked = sa.text("SELECT current_setting('search_path') AS path, current_user AS me, quote_ident(current_user) AS q")
    path, me, user = connection.execute(asked.columns(path=sa.Text, me=sa.Text, q=sa.Text)).one()
    names = [me if name == "$user" else name for name in _unquoted(path)]
    found = connection.execute(_SCHEMAS, names=names).first()
    if found is None:
        return None
    return Place(found.name, user, found.oid, found.may_use, found.may_create, found.is_it)


def missing(connection: Transaction) -> Iterator[tuple[str, str]]:
    """(what the user may not do, the SQL that allows it), safe to run twice; nothing for one that owns the tables."""
    there = place(connection)
    if there is None:
        user = connection.execute(sa.text("SELECT quote_ident(current_user)")).scalar_one()
        path = connection.execute(sa.text("SHOW search_path")).scalar_one()
        wanted = [name for name in _unquoted(path) if name != "$user"] or ["stellerd"]
        quoted = '"' + wanted[0].replace('"', '""') + '"'
        yield f"search_path: there is no schema {quoted}", f"CREATE SCHEMA IF NOT EXISTS {quoted} AUTHORIZATION {user};"
        return
    lacking = [name for name, may in (("USAGE", there.may_use), ("CREATE", there.may_create or there.has_tables))
               if not may]  # fmt: skip
    if lacking:
        rights = ", ".join(lacking)
        yield (
            f"schema {there.schema}: no right to {rights}",
            f"GRANT {rights} ON SCHEMA {there.schema} TO {there.user};",
        )
    if there.has_tables:
        yield from _of_tables(connection, there)


def _of_tables(connection: Transaction, there: Place) -> Iterator[tuple[str, str]]:
    ours = {**metadata.tables, **bookkeeping.tables}
    for row in connection.execute(_TABLES, schema=there.oid):
        if row.name in ours:
            wanted = _ALL.split(", ") if row.name in metadata.tables else ["SELECT"]
            if rights := ", ".join(right for right in wanted if not getattr(row, right)):
                table = f"{there.schema}.{row.quoted}"
                yield f"{table}: no right to {rights}", f"GRANT {rights} ON TABLE {table} TO {there.user};"
    for row in connection.execute(_SEQUENCES, schema=there.oid):
        if row.table in ours:
            name = f"{there.schema}.{row.quoted}"
            yield f"{name}: no right to USAGE", f"GRANT USAGE ON SEQUENCE {name} TO {there.user};"


def _unquoted(path: Any) -> list[str]:
    """The schemas of a search_path; a comma inside of quotes is beyond it."""
    parts = (part.strip() for part in str(path).split(","))
    return [part[1:-1].replace('""', '"') if part.startswith('"') else part for part in parts if part]
