"""Demo orders on SQLite and PostgreSQL, in tables that the job neither creates nor alters."""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa
from stellerd_bamboo_sandbox.demo_orders import DemoOrders

from stellerd import errors
from stellerd.testing import Harness

POSTGRES = """CREATE TABLE "Orders" (
  "Id" uuid PRIMARY KEY, "OrderNumber" integer NOT NULL, "OrderId" integer NOT NULL DEFAULT 0,
  "RequestId" uuid NOT NULL, "PartnerId" integer NOT NULL, "SaleTotal" numeric(18,4) NOT NULL,
  "Total" numeric(18,4) NOT NULL, "OrderStatusId" integer NOT NULL, "Status" text NOT NULL,
  "CreateDate" timestamptz NOT NULL, "ErrorMessage" text, "OrderType" text NOT NULL, "Currency" text NOT NULL,
  "CreatedAt" timestamptz NOT NULL, "UpdatedAt" timestamptz NOT NULL, "CreatedBy" integer, "UpdatedBy" integer)"""
SQLITE = POSTGRES.replace("uuid", "TEXT").replace("timestamptz", "TEXT").replace("numeric(18,4)", "NUMERIC")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/steller.db"
    return request.getfixturevalue("postgres_url")


class Demo:
    def __init__(self, url, folder, **settings):
        self.engine = sa.create_engine(url)
        self.harness = Harness(DemoOrders, settings=settings, databases={"steller": url}, folder=folder)

    def create(self):
        with self.engine.begin() as connection:
            connection.exec_driver_sql(SQLITE if self.engine.dialect.name == "sqlite" else POSTGRES)

    def rows(self):
        with self.engine.connect() as connection:
            return connection.execute(sa.text('SELECT * FROM "Orders" ORDER BY "OrderNumber"')).mappings().all()


@pytest.fixture
def make(database, tmp_path):
    made = []

    def build(create=True, **settings):
        demo = Demo(database, tmp_path / f"state{len(made)}", **settings)
        made.append(demo)
        demo.harness.folder.mkdir(exist_ok=True)
        if create:
            demo.create()
        return demo

    yield build
    for demo in made:
        demo.engine.dispose()
        demo.harness.runner.services.engine("steller").dispose()


def test_it_waits_for_the_table_and_never_creates_it(make):
    demo = make(create=False)
    record = demo.harness.run()
    assert (record.state, record.reason) == ("skipped", "no Orders table yet")
    assert not sa.inspect(demo.engine).has_table("Orders")
    demo.create()
    assert demo.harness.run().state == "ok"


def test_a_first_batch_and_then_a_trickle(make):
    demo = make()
    assert demo.harness.run().counters["orders"] == 25
    assert len(demo.rows()) == 25
    for _ in range(8):
        before = len(demo.rows())
        added = demo.harness.run().counters["orders"]
        assert 1 <= added <= 3
        assert len(demo.rows()) == before + added


def test_order_numbers_rise_without_gaps_and_ids_are_unique(make):
    demo = make()
    for _ in range(4):
        demo.harness.run()
    rows = demo.rows()
    assert [row["OrderNumber"] for row in rows] == list(range(100_001, 100_001 + len(rows)))
    ids = [uuid.UUID(str(row[key])) for row in rows for key in ("Id", "RequestId")]
    assert len(set(ids)) == 2 * len(rows)
    assert {value.version for value in ids} == {4}


def test_sqlite_holds_ids_with_dashes_and_times_that_strftime_reads(tmp_path):
    demo = Demo(f"sqlite:///{tmp_path}/steller.db", tmp_path)
    demo.create()
    demo.harness.run()
    with demo.engine.connect() as connection:
        rows = connection.execute(
            sa.text('SELECT "RequestId", strftime(\'%Y\', "CreateDate"), typeof("Total") FROM "Orders"')
        ).all()
    assert all(len(row[0]) == 36 for row in rows)
    assert {row[1] for row in rows} <= {str(demo.harness.clock().year), str(demo.harness.clock().year - 1)}
    assert {row[2] for row in rows} <= {"real", "integer"}
    demo.engine.dispose()


def test_sqlite_with_short_ids_gets_short_ids(tmp_path):
    demo = Demo(f"sqlite:///{tmp_path}/steller.db", tmp_path)
    with demo.engine.begin() as connection:
        connection.exec_driver_sql(SQLITE.replace('"RequestId" TEXT', '"RequestId" CHAR(32)'))
    demo.harness.run()
    assert {(len(row["Id"]), len(row["RequestId"])) for row in demo.rows()} == {(36, 32)}
    demo.engine.dispose()


def test_statuses_are_mixed_as_on_the_platform(make):
    demo = make(first_batch=400, max_pending=10_000, seed=1)
    demo.harness.run()
    rows = demo.rows()
    counts = Counter(row["Status"] for row in rows)
    assert counts["Created"] > 200
    assert set(counts) == {"Created", "created", "Queued", "Pending", "Processing", "Succeeded", "Failed"}
    for row in rows:
        assert (row["OrderId"] > 0) == (row["Status"] == "Succeeded")
        assert (row["ErrorMessage"] is not None) == (row["Status"] == "Failed")
        assert 0 < Decimal(str(row["Total"])) < Decimal(str(row["SaleTotal"]))


def test_the_first_batch_lies_in_the_last_day_and_later_orders_now(make):
    demo = make()
    now = demo.harness.clock()
    demo.harness.run()
    demo.harness.clock.advance(10)
    demo.harness.run()
    times = [_utc(row["CreateDate"]) for row in demo.rows()]
    assert times == sorted(times)
    assert now - timedelta(hours=20) <= times[0] <= now - timedelta(hours=19)
    assert all(now <= at <= now + timedelta(seconds=10) for at in times[25:])


def _utc(value):
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.replace(tzinfo=value.tzinfo or UTC)


def test_it_stops_growing_at_the_cap(make):
    demo = make(first_batch=20, max_pending=22, seed=5)
    for _ in range(15):
        record = demo.harness.run()
    pending = sum(row["OrderId"] == 0 and row["Status"] != "Failed" for row in demo.rows())
    assert pending == 22
    assert (record.state, record.reason) == ("skipped", "22 orders are pending, max_pending is 22")


def test_orders_that_were_placed_make_room(make):
    demo = make(first_batch=20, max_pending=20, seed=5)
    for _ in range(10):
        demo.harness.run()
    with demo.engine.begin() as connection:
        connection.exec_driver_sql('UPDATE "Orders" SET "OrderId" = 7, "Status" = \'SUCCEEDED\'')
    assert demo.harness.run().counters["orders"] >= 1


def test_the_cap_holds_for_the_first_batch_too(make):
    demo = make(first_batch=50, max_pending=10)
    assert demo.harness.run().counters["orders"] == 10


def test_no_first_batch_is_a_trickle_from_the_start(make):
    demo = make(first_batch=0)
    assert 1 <= demo.harness.run().counters["orders"] <= 3


def test_a_dry_run_writes_nothing(make):
    demo = make()
    record = demo.harness.run(dry_run=True)
    assert record.counters == {"orders": 0, "planned": 25}
    assert demo.rows() == []


def test_a_seed_gives_the_same_orders(tmp_path):
    seen = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        demo = Demo(f"sqlite:///{tmp_path}/{name}.db", tmp_path / name, seed=9)
        demo.create()
        for _ in range(3):
            demo.harness.run()
        seen.append([(row["Id"], row["RequestId"], row["Total"], row["Status"]) for row in demo.rows()])
        demo.engine.dispose()
    assert seen[0] == seen[1]


def test_a_table_of_another_shape_is_named(make):
    demo = make(create=False)
    with demo.engine.begin() as connection:
        connection.exec_driver_sql('CREATE TABLE "Orders" ("Id" integer, "Status" text)')
    record = demo.harness.run()
    assert record.state == "failed"
    assert '"Orders" has no column OrderNumber' in record.reason


def test_a_row_that_the_table_refuses_fails_the_run_without_its_values(make):
    demo = make(create=False)
    with demo.engine.begin() as connection:
        shape = SQLITE if demo.engine.dialect.name == "sqlite" else POSTGRES
        connection.exec_driver_sql(shape.replace('"PartnerId" integer', '"PartnerId" integer CHECK ("PartnerId" > 99)'))
    record = demo.harness.run()
    assert record.state == "failed"
    assert record.reason.startswith("database steller: ")
    assert demo.rows() == []


def test_an_unreachable_server_is_said_without_the_password(tmp_path):
    url = "postgresql+psycopg://stellerd:open-sesame@127.0.0.1:9/steller"
    harness = Harness(DemoOrders, databases={"steller": url}, folder=tmp_path)
    record = harness.run()
    assert record.state == "failed"
    assert record.reason.startswith("database steller: ")
    assert "open-sesame" not in record.reason
    with pytest.raises(errors.Unreachable, match="database steller"):
        harness.check()


def test_check_is_content_without_the_table(make):
    make(create=False).harness.check()
