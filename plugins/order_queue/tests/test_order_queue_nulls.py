"""Orders with nulls where the platform's own table allows them: put aside and named, in nobody's way."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

Take = Callable[[], Counter[str]]
COLUMNS = ("OrderId", "RequestId", "Status", "CreateDate")


@pytest.fixture
def lax(orders: Any) -> Any:
    """A platform whose columns may be null."""
    with orders.engine.begin() as connection:
        if orders.is_sqlite:
            columns = [row[1] for row in connection.exec_driver_sql('PRAGMA table_info("Orders")')]
            connection.exec_driver_sql('DROP TABLE "Orders"')
            connection.exec_driver_sql('CREATE TABLE "Orders" (' + ", ".join(f'"{name}"' for name in columns) + ")")
        else:
            for column in COLUMNS:
                connection.exec_driver_sql(f'ALTER TABLE "Orders" ALTER "{column}" DROP NOT NULL')
    return orders


def nulled(orders: Any, column: str) -> str:
    """The key of a new order that lacks a value."""
    (request,) = orders.add()
    key = next(str(row[0]) for row in orders.sql('SELECT "Id", "RequestId" FROM "Orders"') if str(row[1]) == request)
    with orders.engine.begin() as connection:
        statement = sa.text(f'UPDATE "Orders" SET "{column}" = NULL WHERE CAST("Id" AS text) = :key')
        connection.execute(statement, {"key": key})
    return key


@pytest.mark.parametrize("column", COLUMNS)
def test_a_null_is_put_aside_once_and_good_orders_go_out(
    column: str, lax: Any, job: Any, spool: Path, spooled: Take
) -> None:
    good = lax.add(3)
    bad = nulled(lax, column)
    harness = job(lax.url, f"spool://{spool}")
    record = harness.run()
    assert spooled() == Counter(good)
    assert (record.state, record.counters["published"], record.counters["refused"]) == ("partial", 3, 1)
    [item] = harness.quarantined()
    assert (item["entity"], item["key"]) == ("order", bad)
    assert f"{column} is null" in item["reason"]
    harness.clock.advance(timedelta(hours=2).total_seconds())
    record = harness.run()
    assert (record.counters["refused"], harness.quarantined()) == (0, [])


@pytest.mark.parametrize("column", COLUMNS)
def test_db_check_names_it(column: str, lax: Any, job: Any, spool: Path) -> None:
    harness = job(lax.url, f"spool://{spool}")
    before = harness.database_problems()
    bad = nulled(lax, column)
    found = [problem for problem in harness.database_problems() if problem not in before]
    [(what, sql)] = found
    assert what == f'1 orders have no "{column}" and are not published: {bad}'
    assert sql.startswith("-- give each the right value: SELECT")


@pytest.mark.parametrize("column", COLUMNS)
def test_a_mended_order_is_published(column: str, lax: Any, job: Any, spool: Path, spooled: Take) -> None:
    bad = nulled(lax, column)
    harness = job(lax.url, f"spool://{spool}")
    harness.run()
    assert spooled() == Counter()
    value: Any = {"OrderId": 0, "Status": "Created", "CreateDate": "2026-01-01 00:00:00+00:00"}.get(
        column, uuid.uuid4()
    )
    with lax.engine.begin() as connection:
        statement = sa.text(f'UPDATE "Orders" SET "{column}" = :value WHERE CAST("Id" AS text) = :key')
        value = str(value) if lax.is_sqlite and column == "RequestId" else value
        connection.execute(statement, {"key": bad, "value": value})
    assert harness.run().counters["published"] == 1
    bad_again = nulled(lax, column)
    harness.clock.advance(timedelta(hours=2).total_seconds())
    harness.run()
    assert [item["key"] for item in harness.quarantined()] == [bad_again]


@pytest.mark.parametrize("column", ["OrderId", "Status", "CreateDate"])
def test_asked_for_by_name_it_is_said(column: str, lax: Any, job: Any, spool: Path) -> None:
    bad = nulled(lax, column)
    record = job(lax.url, f"spool://{spool}", order=bad).run()
    assert (record.state, f"its {column} is null" in record.reason) == ("skipped", True)
