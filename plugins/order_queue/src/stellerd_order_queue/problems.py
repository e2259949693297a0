"""`stellerd db check`: what is wrong with the orders' database, each with the SQL that mends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from stellerd import Context
from stellerd_order_queue.check import (
    ADVISED_INDEX,
    has_index,
    lacking_rights,
    may_create_ledger,
    may_use_schema,
    right_to_create_ledger,
    user,
)
from stellerd_order_queue.database import transaction
from stellerd_order_queue.ledger import TABLE, Ledger

Problem = tuple[str, str]
_ORDERS = {
    "Id": ("uuid",),
    "OrderId": ("integer", "bigint", "smallint"),
    "RequestId": ("uuid",),
    "Status": ("text", "varchar"),
    "CreateDate": ("timestamp with time zone",),
}
_LEDGER = {
    "order_id": ("uuid",),
    "request_id": ("uuid",),
    "message_id": ("uuid",),
    "attempts": ("integer",),
    "first_published": ("timestamp with time zone",),
    "last_published": ("timestamp with time zone",),
    "next_due": ("timestamp with time zone",),
    "claim_owner": ("uuid",),
    "claim_until": ("timestamp with time zone",),
    "refused": ("text",),
    "last_failed": ("timestamp with time zone",),
    "failure": ("text",),
}
_JUDGED_BY = ("OrderId", "RequestId", "Status", "CreateDate")
_NAMED = 5


def database_problems(ctx: Context) -> Iterator[Problem]:
    """See `Job.database_problems`.

    Raises: Unreachable when the database cannot be asked.
    """
    settings = ctx.settings
    engine = ctx.engine(settings.database)
    ledger = Ledger(engine, settings.database, settings.rules())
    is_postgres = engine.dialect.name == "postgresql"
    with transaction(engine, settings.database, reads_only=True) as connection:
        orders = _columns(connection, "Orders", None)
        ledger_columns = _columns(connection, TABLE, "stellerd" if is_postgres else None)
        who = user(connection) if is_postgres else ""
        if orders is None:
            if not settings.create_tables:
                hint = "-- point the setting `database` at the platform's database, or set create_tables = true"
                yield 'there is no table "Orders"', hint
        else:
            yield from _wrong_columns('"Orders"', orders, _ORDERS, is_postgres)
            if not is_postgres or not lacking_rights(connection, '"Orders"', ("SELECT",)):
                yield from _of_nulls(connection, [name for name in _JUDGED_BY if name in orders])
            if is_postgres:
                yield from _of_orders(connection, who)
        if ledger_columns is not None:
            yield from _wrong_columns(ledger.table, ledger_columns, _LEDGER, is_postgres)
        if is_postgres:
            yield from _of_ledger(connection, ledger, ledger_columns is not None, who)


def _columns(connection: sa.Connection, table: str, schema: str | None) -> dict[str, str] | None:
    """Names and types, in lower case; None when there is no such table."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(table, schema=schema):
        return None
    return {each["name"]: _type(each["type"]) for each in inspector.get_columns(table, schema=schema)}


def _type(kind: Any) -> str:
    if isinstance(kind, sa.DateTime):
        return f"timestamp {'with' if kind.timezone else 'without'} time zone"
    return str(kind).lower().partition("(")[0]


def _wrong_columns(
    table: str, there: Mapping[str, str], wanted: Mapping[str, tuple[str, ...]], types: bool
) -> Iterator[Problem]:
    """SQLite takes any type."""
    for name, kinds in wanted.items():
        column = name if name.islower() else f'"{name}"'
        if name not in there:
            kind = kinds[0] if types else "text"
            yield f"{table} has no column {column}", f"ALTER TABLE {table} ADD COLUMN {column} {kind}"
        elif types and there[name] not in kinds:
            yield (
                f"{table}.{column} is {there[name]} instead of {kinds[0]}",
                f"ALTER TABLE {table} ALTER COLUMN {column} TYPE {kinds[0]} USING {column}::{kinds[0]}",
            )


def _of_orders(connection: sa.Connection, who: str) -> Iterator[Problem]:
    if lacking_rights(connection, '"Orders"', ("SELECT",)):
        yield f'{who} may not read "Orders"', f'GRANT SELECT ON "Orders" TO {who}'
    if not has_index(connection):
        yield "each run reads all orders: the index of the pending ones is missing", ADVISED_INDEX


def _of_nulls(connection: sa.Connection, columns: Iterable[str]) -> Iterator[Problem]:
    """Orders that are not published because a column that decides about it is null, where the platform allows that."""
    for name in columns:
        where = f'"{name}" IS NULL' + ("" if name == "OrderId" else ' AND coalesce("OrderId", 0) = 0')
        number = connection.scalar(sa.text(f'SELECT count(*) FROM "Orders" WHERE {where}'))  # noqa: S608 - ours
        if not number:
            continue
        ask = sa.text(f'SELECT CAST("Id" AS text) FROM "Orders" WHERE {where} ORDER BY "Id" LIMIT {_NAMED}')  # noqa: S608 - ours
        named = ", ".join(connection.scalars(ask))
        more = ", …" if number > _NAMED else ""
        yield (  # for people to read, never executed here
            f'{number} orders have no "{name}" and are not published: {named}{more}',
            f'-- give each the right value: SELECT * FROM "Orders" WHERE {where}',  # noqa: S608 - ours
        )


def _of_ledger(connection: sa.Connection, ledger: Ledger, exists: bool, who: str) -> Iterator[Problem]:
    if not exists:
        if not may_create_ledger(connection):
            yield (
                f"the ledger {ledger.table} is not there and {who} may not make it",
                right_to_create_ledger(connection, who),
            )
    elif not may_use_schema(connection):
        yield f"{who} may not enter the schema stellerd", f"GRANT USAGE ON SCHEMA stellerd TO {who}"
    elif lacking := lacking_rights(connection, ledger.table):
        rights = ", ".join(lacking)
        yield f"{who} lacks {rights} on the ledger", f"GRANT {rights} ON {ledger.table} TO {who}"
