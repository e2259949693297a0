"""`stellerd check --connect`: everything a run needs, before it is needed."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from stellerd import Context, errors
from stellerd_order_queue.database import missing_columns, shown, transaction
from stellerd_order_queue.ledger import Ledger
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
    with open_publisher(ctx.broker_url(), settings.wishes()):
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
        if not connection.scalar(
            sa.text("""SELECT coalesce(has_table_privilege(to_regclass('"Orders"'), 'SELECT'), true)""")
        ):
            raise errors.JobFailed(f'{where}: no right to read: GRANT SELECT ON "Orders" TO {_user(connection)}')
    if ledger.exists():
        _rights_on_ledger(engine, settings, where, ledger)
    else:
        _right_to_create(engine, settings, where)


def _rights_on_ledger(engine: sa.Engine, settings: Any, where: str, ledger: Ledger) -> None:
    ask = sa.text("SELECT has_table_privilege(:table, :right)")
    with transaction(engine, settings.database, reads_only=True) as connection:
        lacking = [r for r in _RIGHTS if not connection.scalar(ask, {"table": ledger.table, "right": r})]
        if lacking:
            grant = f"GRANT {', '.join(lacking)} ON {ledger.table} TO {_user(connection)}"
            raise errors.JobFailed(f"{where}: no right to use the ledger: {grant}")


def _right_to_create(engine: sa.Engine, settings: Any, where: str) -> None:
    ask = sa.text(
        "SELECT CASE WHEN to_regnamespace('stellerd') IS NULL "
        "THEN has_database_privilege(current_database(), 'CREATE') "
        "ELSE has_schema_privilege('stellerd', 'CREATE') END"
    )
    with transaction(engine, settings.database, reads_only=True) as connection:
        if not connection.scalar(ask):
            user = _user(connection)
            raise errors.JobFailed(
                f"{where}: the ledger is not there and cannot be made: "
                f"CREATE SCHEMA IF NOT EXISTS stellerd AUTHORIZATION {user}"
            )


def _user(connection: sa.Connection) -> str:
    return str(connection.scalar(sa.text("SELECT quote_ident(current_user)")))


def _advise_index(ctx: Context, engine: sa.Engine) -> None:
    with transaction(engine, ctx.settings.database, reads_only=True) as connection:
        if not connection.scalar(sa.text(_INDEX_QUERY)):
            ctx.log.warning(
                "every run reads the whole table of orders; an index makes it milliseconds", sql=ADVISED_INDEX
            )
