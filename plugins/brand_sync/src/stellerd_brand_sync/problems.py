"""What is wrong with the platform's database, each with the SQL that mends it: for `db check` and before every run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import sqlalchemy as sa

from stellerd import errors
from stellerd_brand_sync import digests, tables
from stellerd_brand_sync.lookup import Column, Look

_SAID = 5


class Problem(NamedTuple):
    """`stops`: a run is not even begun with it, because it would fail or store something else than what came."""

    what: str
    sql: str
    stops: bool = True


# By kind of tables.TABLES: what else than the contract's own type holds every value exactly
_ALSO = {
    "key": ("bigint",), "integer": ("bigint",), "text": ("character varying",),
    "time": (), "money4": ("numeric",), "money8": ("numeric",),
}  # fmt: skip
_PLAIN = {
    "key": "integer", "integer": "integer", "text": "text", "time": "timestamp with time zone",
    "money4": "numeric(18,4)", "money8": "numeric(18,8)",
}  # fmt: skip
_SCALE = {"money4": 4, "money8": 8}
_DIGITS = 18
_DEFAULTS = {"text": "''", "time": "now()", "integer": "0", "money4": "0", "money8": "0", "key": "0"}
_WE_SAY = ("Categories", "Products")
"""Tables whose "Id" is the vendor's; in the others the database gives it."""
_NOT_FILLED = {("Brands", "Id"), ("ProductPricings", "Id"), ("ProductPricingConfigurations", "Id"),
               ("Products", "Description")}  # fmt: skip


def find(connection: sa.Connection, *, ours: bool) -> Iterator[Problem]:
    """All problems. `ours`: the job may create what is missing, so that it is none.

    Raises: SQLAlchemy's errors.
    """
    look = Look(connection)
    for table in tables.TABLES:
        if table in look.tables:
            yield from _of_table(look, table)
        elif not ours:
            yield _missing_table(look, table)
    readable = all("Id" in look.tables.get(table, ()) and "SELECT" in look.rights[table] for table in tables.READ_ONLY)
    if not ours and readable:
        for table, number in tables.missing_seeds(connection):
            yield Problem(f'table "{table}" lacks row {number}', tables.seed_sql(table, number, look.dialect))
    if look.dialect == "postgresql":
        yield from _of_session(look)
        yield from _of_digests(look)


def require(connection: sa.Connection) -> None:
    """Prove that a run can be done.

    Raises: JobFailed naming what prevents it and the SQL that mends it.
    """
    stopping = [problem for problem in find(connection, ours=False) if problem.stops]
    if not stopping:
        return
    said = [f"{problem.what}; mend it with: {problem.sql};" for problem in stopping[:_SAID]]
    more = f" and {len(stopping) - _SAID} more;" if len(stopping) > _SAID else ""
    raise errors.JobFailed(f"the database is not ready: {' '.join(said)}{more} see stellerd db check, or create_tables")


def _missing_table(look: Look, table: str) -> Problem:
    schema = look.hidden.get(table)
    if schema:
        return Problem(
            f'{look.user} may not enter the schema of "{table}", {schema}',
            f"GRANT USAGE ON SCHEMA {schema} TO {look.user}",
        )
    return Problem(f'no table "{table}" (run the platform\'s migrations)', tables.ddl(table, look.dialect))


def _of_table(look: Look, table: str) -> Iterator[Problem]:
    found = look.tables[table]
    for name, kind, _ in tables.TABLES[table]:
        if table in tables.READ_ONLY and name != "Id":
            continue
        if name not in found:
            wanted = tables.TYPES[look.dialect][kind]
            yield Problem(f'table "{table}" has no column "{name}"', f'ALTER TABLE "{table}" ADD "{name}" {wanted}')
        elif look.dialect == "postgresql":
            yield from _of_type(table, name, kind, found[name])
    if table not in tables.READ_ONLY:
        yield from _unfilled(look, table, found.values())
        yield from _of_keys(look, table)
    yield from _of_rights(look, table)


def _of_type(table: str, name: str, kind: str, column: Column) -> Iterator[Problem]:
    if column.type in (_PLAIN[kind], *_ALSO[kind]) or _holds(kind, column):
        return
    using = f"\"{name}\" AT TIME ZONE 'UTC'" if column.base == "timestamp" else f'"{name}"::{_PLAIN[kind]}'
    yield Problem(
        f'"{table}"."{name}" is {column.type}, not {_PLAIN[kind]}',
        f'ALTER TABLE "{table}" ALTER "{name}" TYPE {_PLAIN[kind]} USING {using}',
        stops=not (kind == "time" and column.base == "timestamp"),  # in a session of UTC it holds the same
    )


def _holds(kind: str, column: Column) -> bool:
    if kind == "text":
        return column.base == "varchar"  # a text too long for it is that brand's problem
    if kind not in _SCALE or column.digits is None:
        return False
    before, after = column.digits
    return after >= _SCALE[kind] and before >= _DIGITS - _SCALE[kind]


def _unfilled(look: Look, table: str, columns: Iterable[Column]) -> Iterator[Problem]:
    """Columns that must have a value and get none from us."""
    kinds = {name: kind for name, kind, _ in tables.TABLES[table]}
    for column in columns:
        filled = column.name in kinds and (table, column.name) not in _NOT_FILLED
        if filled or not column.needs_value:
            continue
        what = f'"{table}"."{column.name}" must have a value, has no default, and is not filled by brand_sync'
        if column.name == "Id":
            yield Problem(what, _identity(table))
        elif look.dialect == "sqlite":
            yield Problem(what, f'-- give "{column.name}" a default where "{table}" is created')
        elif column.name in kinds:
            default = _DEFAULTS[kinds[column.name]]
            yield Problem(what, f'ALTER TABLE "{table}" ALTER "{column.name}" SET DEFAULT {default}')
        else:
            yield Problem(what, f'ALTER TABLE "{table}" ALTER "{column.name}" DROP NOT NULL')


def _identity(table: str) -> str:
    return f'ALTER TABLE "{table}" ALTER "Id" ADD GENERATED BY DEFAULT AS IDENTITY; {_set_key(table)}'


def _set_key(table: str) -> str:
    sequence = f"pg_get_serial_sequence('\"{table}\"', 'Id')"
    return f'SELECT setval({sequence}, coalesce(max("Id"), 0) + 1, false) FROM "{table}"'  # noqa: S608 - ours


def _of_keys(look: Look, table: str) -> Iterator[Problem]:
    """Whether the database gives out ids as we need it."""
    column = look.tables[table].get("Id")
    if column is None or look.dialect == "sqlite":
        return
    if table in _WE_SAY:
        if column.identity == "a":
            yield Problem(
                f'"{table}"."Id" takes no id from outside, and the vendor\'s is to be stored',
                f'ALTER TABLE "{table}" ALTER "Id" SET GENERATED BY DEFAULT',
            )
        return
    key = look.key(table)
    if key is None:
        return
    if not key.usable:
        yield Problem(
            f'{look.user} may not use the sequence of "{table}"."Id"',
            f"GRANT USAGE ON SEQUENCE {key.sequence} TO {look.user}",
        )
    if key.behind:
        yield Problem(f'the sequence of "{table}"."Id" gives out ids that are taken', _set_key(table))


def _of_rights(look: Look, table: str) -> Iterator[Problem]:
    links = table == "BrandCategories"
    writes = table not in tables.READ_ONLY
    needed = {"SELECT": True, "INSERT": writes, "UPDATE": writes and not links, "DELETE": links}
    lacking = ", ".join(right for right, need in needed.items() if need and right not in look.rights[table])
    if lacking:
        yield Problem(f'{look.user} lacks {lacking} on "{table}"', f'GRANT {lacking} ON "{table}" TO {look.user}')


def _of_session(look: Look) -> Iterator[Problem]:
    database = look.database_without_temporary
    if database:
        yield Problem(
            f"{look.user} may not make temporary tables", f"GRANT TEMPORARY ON DATABASE {database} TO {look.user}"
        )


def _of_digests(look: Look) -> Iterator[Problem]:
    """Without that table all works, only slower; with a wrong one nothing does."""
    table = f"stellerd.{digests.TABLE}"
    state = look.digests(digests.COLUMNS)
    if state.columns_wrong:
        yield Problem(f"{table} has not the columns of this version; brand_sync makes it anew", f"DROP TABLE {table}")
    elif state.exists and not state.may_enter:
        yield Problem(
            f"{look.user} may not enter the schema stellerd: every run compares everything",
            f"GRANT USAGE ON SCHEMA stellerd TO {look.user}", stops=False,
        )  # fmt: skip
    elif state.exists and state.lacking:
        rights = ", ".join(state.lacking)
        yield Problem(
            f"{look.user} lacks {rights} on {table}: every run compares everything",
            f"GRANT {rights} ON {table} TO {look.user}", stops=False,
        )  # fmt: skip
    elif state.exists and (sql := digests.rekeying(look.connection)):
        what = f"{table} cannot hold an internalId of more than 2,700 bytes: such a brand is not stored"
        yield Problem(f"{what}; brand_sync mends it in its next run where it owns the table", sql, stops=False)
    elif not state.exists and not state.may_create:
        yield Problem(
            f"{look.user} may not make {table}: every run compares everything",
            f"GRANT USAGE, CREATE ON SCHEMA stellerd TO {look.user}"
            if state.schema
            else f"CREATE SCHEMA IF NOT EXISTS stellerd AUTHORIZATION {look.user}",
            stops=False,
        )


def for_people(problems: Iterable[Problem]) -> list[tuple[str, str]]:
    """As `Job.database_problems` hands them out."""
    return [(problem.what, problem.sql) for problem in problems]
