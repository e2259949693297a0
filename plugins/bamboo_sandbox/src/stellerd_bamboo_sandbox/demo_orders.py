"""The job `demo_orders`: a trickle of orders as the platform would write them, into tables that others own."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from pydantic import Field
from sqlalchemy.exc import DBAPIError

from stellerd import Context, Done, Job, Settings, Skipped, errors, hookimpl

FIRST_NUMBER = 100_001
_STATUS_IDS = {
    "created": 1,
    "queued": 2,
    "pending": 3,
    "processing": 4,
    "succeeded": 5,
    "failed": 6,
    "partialfailed": 7,
}
_STATUSES = ("Created",) * 15 + ("created", "Queued", "Pending", "Processing", "Succeeded", "Failed")
_FACE_VALUES = (5, 10, 15, 20, 25, 50, 100)
_CURRENCIES = ("USD", "EUR", "AED", "GBP")
_CENT = Decimal("0.0001")
_SPREAD = timedelta(hours=20)
"""The first batch is spread over this much of the past, well inside a day."""
_COLUMNS = (
    "Id", "OrderNumber", "OrderId", "RequestId", "PartnerId", "SaleTotal", "Total", "OrderStatusId", "Status",
    "CreateDate", "ErrorMessage", "OrderType", "Currency", "CreatedAt", "UpdatedAt",
)  # fmt: skip


class DemoOrdersSettings(Settings):
    """Where the demo orders go and how many there may be."""

    database: str = Field("steller", description='The `[databases]` entry that holds "Orders".')
    first_batch: int = Field(25, ge=0, le=100_000, description="Orders written into an empty table.")
    per_run: int = Field(3, ge=1, le=10_000, description="Most orders of a later run; the least is 1.")
    max_pending: int = Field(200, ge=1, description="No new order while so many wait to be placed.")
    seed: int = Field(0, ge=0, description="The same seed, the same orders but for their times; 0: always others.")


class DemoOrders(Job):
    """Write a few orders, as a platform with customers would."""

    every = "10s"
    Settings = DemoOrdersSettings

    def check(self, ctx: Context) -> None:
        """The database answers; the table may still be missing.

        Raises: ConfigError, Unreachable.
        """
        with _transaction(ctx) as connection:
            sa.inspect(connection).has_table("Orders")

    def run(self, ctx: Context) -> Done | Skipped:
        """One trickle.

        Raises: Unreachable when the database does not answer; JobFailed when "Orders" has another shape.
        """
        settings: DemoOrdersSettings = ctx.settings
        with _transaction(ctx) as connection:
            if not sa.inspect(connection).has_table("Orders"):
                return Skipped("no Orders table yet")
            orders = _orders_table(connection)
            number, pending = _last_number(connection, orders), _pending(connection, orders)
            room = settings.max_pending - pending
            if room <= 0:
                return Skipped(f"{pending} orders are pending, max_pending is {settings.max_pending}")
            rows = _batch(
                settings, number + 1, room, ctx.now(), first=number < FIRST_NUMBER and settings.first_batch > 0
            )
            if ctx.dry_run:
                return Done({"orders": 0, "planned": len(rows)})
            _insert(connection, orders, rows)
            return Done({"orders": len(rows), "pending": pending + sum(map(_is_pending, rows))})


@contextmanager
def _transaction(ctx: Context) -> Iterator[sa.Connection]:
    """A transaction on the orders' database; its failures without statement, values and password."""
    name = ctx.settings.database
    try:
        with ctx.engine(name).begin() as connection:
            yield connection
    except DBAPIError as error:
        reason = " ".join(str(error.orig).split())
        if error.connection_invalidated or isinstance(error, sa.exc.OperationalError):
            raise errors.Unreachable(f"database {name}: {reason}") from None
        raise errors.JobFailed(f"database {name}: {reason}") from None


def _orders_table(connection: sa.Connection) -> sa.TableClause:
    """ "Orders" as this database declares it.

    Raises: JobFailed naming the columns that are missing.
    """
    found = {column["name"]: column["type"] for column in sa.inspect(connection).get_columns("Orders")}
    if missing := [name for name in _COLUMNS if name not in found]:
        raise errors.JobFailed(f'"Orders" has no column {", ".join(missing)}: not the platform\'s table')
    sqlite = connection.dialect.name == "sqlite"
    return sa.table("Orders", *(sa.column(name, _type(found[name], sqlite, name)) for name in _COLUMNS))


def _type(declared: Any, sqlite: bool, name: str) -> Any:
    """How a value is bound; SQLite has neither UUID nor decimals, so it gets text of the declared width."""
    if name in ("Id", "RequestId"):
        return sa.Uuid(native_uuid=not sqlite) if not sqlite or _is_hex(declared) else _DashedUuid()
    if name in ("SaleTotal", "Total"):
        return _DecimalText() if sqlite else sa.Numeric(18, 4)
    if name in ("CreateDate", "CreatedAt", "UpdatedAt"):
        return sa.DateTime(timezone=True)
    return sa.Integer() if name in ("OrderNumber", "OrderId", "PartnerId", "OrderStatusId") else sa.Text()


def _is_hex(declared: Any) -> bool:
    return getattr(declared, "length", None) == 32


class _DashedUuid(sa.types.TypeDecorator[uuid.UUID]):
    impl = sa.String(36)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else str(value)


class _DecimalText(sa.types.TypeDecorator[Decimal]):
    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else str(value)


def _last_number(connection: sa.Connection, orders: sa.TableClause) -> int:
    highest = connection.scalar(sa.select(sa.func.max(orders.c.OrderNumber)))
    return max(FIRST_NUMBER - 1, highest or 0)


def _pending(connection: sa.Connection, orders: sa.TableClause) -> int:
    over = sa.func.lower(orders.c.Status).in_(("succeeded", "failed"))
    return connection.scalar(sa.select(sa.func.count()).where(orders.c.OrderId == 0, ~over)) or 0


def _is_pending(row: dict[str, Any]) -> bool:
    return row["OrderId"] == 0 and row["Status"].lower() not in ("succeeded", "failed")


def _batch(settings: DemoOrdersSettings, number: int, room: int, now: datetime, *, first: bool) -> list[dict[str, Any]]:
    chance = _chance(settings.seed, number)
    size = settings.first_batch if first else 1 + int(chance.random() * settings.per_run)
    size = min(size, room)
    ages = [_SPREAD * (size - place) / size if first else timedelta(seconds=size - place) for place in range(size)]
    return [_order(settings.seed, number + place, now - age) for place, age in enumerate(ages)]


def _chance(seed: int, number: int) -> random.Random:
    return random.Random(f"{seed}:{number}") if seed else random.Random()


def _order(seed: int, number: int, at: datetime) -> dict[str, Any]:
    chance = _chance(seed, number)
    status = chance.choice(_STATUSES)
    sale = Decimal(chance.choice(_FACE_VALUES) * chance.randint(1, 4))
    total = (sale * (1000 - chance.randint(10, 80)) / 1000).quantize(_CENT)
    return {
        "Id": uuid.UUID(int=chance.getrandbits(128), version=4),
        "OrderNumber": number,
        "OrderId": 500_000 + number if status == "Succeeded" else 0,
        "RequestId": uuid.UUID(int=chance.getrandbits(128), version=4),
        "PartnerId": chance.randint(1, 5),
        "SaleTotal": sale.quantize(_CENT),
        "Total": total,
        "OrderStatusId": _STATUS_IDS[status.lower()],
        "Status": status,
        "CreateDate": at,
        "ErrorMessage": "The vendor declined the order" if status == "Failed" else None,
        "OrderType": "GiftCard",
        "Currency": chance.choice(_CURRENCIES),
        "CreatedAt": at,
        "UpdatedAt": at,
    }


def _insert(connection: sa.Connection, orders: sa.TableClause, rows: list[dict[str, Any]]) -> None:
    connection.execute(sa.insert(orders), rows)


@hookimpl
def stellerd_job() -> type[Job]:
    """The job class."""
    return DemoOrders
