"""`stellerd check --connect`: everything a run needs, before it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from stellerd import Context, errors
from stellerd_order_queue.database import missing_columns, shown, transaction
from stellerd_order_queue.ledger import TABLE, Ledger
from stellerd_order_queue.publisher import open_publisher

COLUMNS = ("Id", "OrderId", "RequestId", "Status", "CreateDate")
ADVISED_INDEX = 'CREATE INDEX CONCURRENTLY "IX_Orders_stellerd_pending" ON "Orders" ("CreateDate") WHERE "OrderId" = 0'
_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")
_INDEX_QUERY = """SELECT count(*) FROM pg_index i WHERE i.indrelid = to_regclass('"Orders"') AND i.indisvalid
    AND pg_get_indexdef(i.indexrelid, 1, true) IN ('"CreateDate"')
    AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid) LIKE '("OrderId" = 0)%')"""


def check(ctx: Context) -> None:
    """Raises: Unreachable, JobFailed or ConfigError for the first thing that is not as it must be."""
    settings = ctx.settings
    engine = ctx.engine(settings.database)
    where = f'database "{settings.database}" ({shown(engine)})'
    _orders(engine, settings, where)
    ledger = Ledger(engine, settings.database, settings.rules())
    if engine.dialect.name == "postgresql":
        _rights(engine, settings, where, ledger)
        _advise_index(ctx, engine)
    with open_publisher(ctx.broker_urls(), settings.wishes()):
        ctx.log.info("broker reachable", exchange=settings.message_type)


def _orders(engine: sa.Engine, settings: Any, where: str) -> None:
    missing = missing_columns(engine, settings.database, "Orders", COLUMNS)
    if missing is None and not settings.create_tables:
        raise errors.JobFailed(f'{where}: there is no table "Orders"; point the job\'s setting `database` elsewhere')
    if missing:
        names = ", ".join(f'"{name}"' for name in missing)
        raise errors.JobFailed(f'{where}: the table "Orders" lacks {names}; this job was written for another one')


def _rights(engine: sa.Engine, settings: Any, where: str, ledger: Ledger) -> None:
    with transaction(engine, settings.database, reads_only=True) as connection:
        who = user(connection)
        there = connection.scalar(sa.text("""SELECT to_regclass('"Orders"') IS NOT NULL"""))
        if there and lacking_rights(connection, '"Orders"', ("SELECT",)):
            raise errors.JobFailed(f'{where}: no right to read: GRANT SELECT ON "Orders" TO {who}')
        exists = sa.inspect(connection).has_table(TABLE, schema="stellerd")
        if exists and not may_use_schema(connection):
            raise errors.JobFailed(f"{where}: no right to use the ledger: GRANT USAGE ON SCHEMA stellerd TO {who}")
        if exists and (lacking := lacking_rights(connection, ledger.table)):
            grant = f"GRANT {', '.join(lacking)} ON {ledger.table} TO {who}"
            raise errors.JobFailed(f"{where}: no right to use the ledger: {grant}")
        if not exists and not may_create_ledger(connection):
            raise errors.JobFailed(
                f"{where}: the ledger is not there and cannot be made: {right_to_create_ledger(connection, who)}"
            )


def lacking_rights(connection: sa.Connection, table: str, rights: Sequence[str] = _RIGHTS) -> list[str]:
    """Those of the rights that the connected role does not have on a table that is there."""
    ask = sa.text("SELECT has_table_privilege(:table, :right)")
    return [each for each in rights if not connection.scalar(ask, {"table": table, "right": each})]


def may_create_ledger(connection: sa.Connection) -> bool:
    """Whether the connected role can make the ledger's schema, or its table in it."""
    ask = (
        "SELECT CASE WHEN to_regnamespace('stellerd') IS NULL "
        "THEN has_database_privilege(current_database(), 'CREATE') "
        "ELSE has_schema_privilege('stellerd', 'CREATE') AND has_schema_privilege('stellerd', 'USAGE') END"
    )
    return bool(connection.scalar(sa.text(ask)))


def right_to_create_ledger(connection: sa.Connection, who: str) -> str:
    """The SQL that lets `who` make the ledger, in a schema of its own or in the one that is there."""
    if connection.scalar(sa.text("SELECT to_regnamespace('stellerd') IS NULL")):
        return f"CREATE SCHEMA stellerd AUTHORIZATION {who}"
    return f"GRANT USAGE, CREATE ON SCHEMA stellerd TO {who}"


def may_use_schema(connection: sa.Connection) -> bool:
    """Whether the connected role may enter the ledger's schema."""
    return bool(connection.scalar(sa.text("SELECT has_schema_privilege('stellerd', 'USAGE')")))


def user(connection: sa.Connection) -> str:
    """The connected role, as SQL writes it."""
    return str(connection.scalar(sa.text("SELECT quote_ident(current_user)")))


def has_index(connection: sa.Connection) -> bool:
    """Whether an index finds the pending orders by their date."""
    return bool(connection.scalar(sa.text(_INDEX_QUERY)))


def _advise_index(ctx: Context, engine: sa.Engine) -> None:
    with transaction(engine, ctx.settings.database, reads_only=True) as connection:
        if not has_index(connection):
            ctx.log.warning(
                "every run reads the whole table of orders; an index makes it milliseconds", sql=ADVISED_INDEX
            )
