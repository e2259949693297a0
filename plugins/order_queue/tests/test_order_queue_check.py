"""`stellerd check --connect`: what is missing is said before a run needs it, with the statement that mends it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from stellerd import errors


@pytest.fixture
def poor_url(pg_orders: Any) -> Iterator[str]:
    """The database's URL for a role without any right."""
    role = f"poor_{uuid.uuid4().hex[:8]}"
    with pg_orders.engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
    yield pg_orders.url.replace("//stellerd@", f"//{role}@")
    with pg_orders.engine.begin() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {role} CASCADE")
        connection.exec_driver_sql(f"DROP ROLE {role}")


def grant(orders: Any, url: str, what: str) -> None:
    role = sa.make_url(url).username
    with orders.engine.begin() as connection:
        connection.exec_driver_sql(f"{what} TO {role}")


def test_all_is_well(orders: Any, job: Any, spool: Path) -> None:
    harness = job(orders.url, f"spool://{spool}")
    harness.check()
    harness.run()
    harness.check()


def test_no_table(job: Any, spool: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/empty.db"
    with pytest.raises(errors.JobFailed, match='there is no table "Orders"'):
        job(url, f"spool://{spool}").check()
    job(url, f"spool://{spool}", create_tables=True).check()


def test_a_missing_column_is_named(orders: Any, job: Any, spool: Path) -> None:
    with orders.engine.begin() as connection:
        connection.exec_driver_sql('ALTER TABLE "Orders" RENAME COLUMN "RequestId" TO "Request"')
    with pytest.raises(errors.JobFailed, match='the table "Orders" lacks "RequestId"'):
        job(orders.url, f"spool://{spool}").check()


def test_each_missing_right_is_named_until_the_run_works(pg_orders: Any, poor_url: str, job: Any, spool: Path) -> None:
    pg_orders.add(2)
    harness = job(poor_url, f"spool://{spool}")
    with pytest.raises(errors.JobFailed, match='GRANT SELECT ON "Orders" TO poor_'):
        harness.check()
    assert "permission denied" in harness.run().reason
    grant(pg_orders, poor_url, 'GRANT SELECT ON "Orders"')
    with pytest.raises(errors.JobFailed, match="CREATE SCHEMA stellerd AUTHORIZATION poor_"):
        harness.check()
    grant(pg_orders, poor_url, f'GRANT CREATE ON DATABASE "{sa.make_url(poor_url).database}"')
    harness.check()
    record = harness.run()
    assert (record.state, record.counters["published"]) == ("ok", 2)
    harness.check()


def test_a_ledger_that_is_somebody_elses(pg_orders: Any, poor_url: str, job: Any, spool: Path) -> None:
    job(pg_orders.url, f"spool://{spool}").run()  # the superuser owns it
    grant(pg_orders, poor_url, 'GRANT SELECT ON "Orders"')
    grant(pg_orders, poor_url, "GRANT USAGE ON SCHEMA stellerd")
    grant(pg_orders, poor_url, "GRANT SELECT, INSERT ON stellerd.stellerd_published_orders")
    harness = job(poor_url, f"spool://{spool}")
    with pytest.raises(errors.JobFailed, match=r"GRANT UPDATE, DELETE ON stellerd\.stellerd_published_orders"):
        harness.check()
    grant(pg_orders, poor_url, "GRANT UPDATE, DELETE ON stellerd.stellerd_published_orders")
    harness.check()
    pg_orders.add(1)
    assert harness.run().counters["published"] == 1  # nothing more is needed


@pytest.mark.parametrize("there", [True, False])
def test_the_index_is_advised_when_it_is_missing(
    there: bool, pg_orders: Any, job: Any, spool: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if not there:
        with pg_orders.engine.begin() as connection:
            connection.exec_driver_sql('DROP INDEX "IX_Orders_stellerd_pending"')
    job(pg_orders.url, f"spool://{spool}").check()
    written = capfd.readouterr()
    assert ("CREATE INDEX CONCURRENTLY" in written.out + written.err) is not there


def test_the_broker_is_asked_too(orders: Any, job: Any) -> None:
    with pytest.raises(errors.Unreachable, match=r"127\.0\.0\.1:1/x"):
        job(orders.url, "amqp://127.0.0.1:1/x").check()


def mended(harness: Any, orders: Any) -> list[str]:
    """Run the SQL of each problem as the owner until there is none; returns the problems."""
    said: list[str] = []
    for _ in range(10):
        found = harness.database_problems()
        if not found:
            return said
        said += [problem for problem, _ in found]
        with orders.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for _, sql in found:
                connection.exec_driver_sql(sql)
    raise AssertionError(found)


def test_db_check_finds_nothing_on_a_database_as_it_should_be(orders: Any, job: Any, spool: Path) -> None:
    harness = job(orders.url, f"spool://{spool}")
    assert harness.database_problems() == []
    harness.run()
    assert harness.database_problems() == []


def test_db_check_says_what_mends_each_table(pg_orders: Any, job: Any, spool: Path) -> None:
    job(pg_orders.url, f"spool://{spool}").run()
    with pg_orders.engine.begin() as connection:
        connection.exec_driver_sql('DROP INDEX "IX_Orders_stellerd_pending"')
        connection.exec_driver_sql('ALTER TABLE "Orders" ALTER COLUMN "RequestId" TYPE text')
        connection.exec_driver_sql('ALTER TABLE "Orders" ALTER COLUMN "CreateDate" TYPE timestamp')
        connection.exec_driver_sql("ALTER TABLE stellerd.stellerd_published_orders DROP COLUMN claim_owner")
    pg_orders.engine.dispose()
    harness = job(pg_orders.url, f"spool://{spool}")
    assert mended(harness, pg_orders) == [
        '"Orders"."RequestId" is text instead of uuid',
        '"Orders"."CreateDate" is timestamp without time zone instead of timestamp with time zone',
        "each run reads all orders: the index of the pending ones is missing",
        "stellerd.stellerd_published_orders has no column claim_owner",
    ]
    pg_orders.add(2)
    assert harness.run().counters["published"] == 2


def test_db_check_says_what_mends_each_right(pg_orders: Any, poor_url: str, job: Any, spool: Path) -> None:
    harness = job(poor_url, f"spool://{spool}")
    role = sa.make_url(poor_url).username
    assert [sql for _, sql in harness.database_problems()] == [
        f'GRANT SELECT ON "Orders" TO {role}', f"CREATE SCHEMA stellerd AUTHORIZATION {role}",
    ]  # fmt: skip
    job(pg_orders.url, f"spool://{spool}").run()  # now the ledger is there, and the superuser's
    assert mended(harness, pg_orders) == [
        f'{role} may not read "Orders"', f"{role} may not enter the schema stellerd",
        f"{role} lacks SELECT, INSERT, UPDATE, DELETE on the ledger",
    ]  # fmt: skip
    pg_orders.add(2)
    assert harness.run().counters["published"] == 2


def test_a_schema_that_another_job_made_needs_a_right_in_it_alone(
    pg_orders: Any, poor_url: str, job: Any, spool: Path
) -> None:
    role = sa.make_url(poor_url).username
    harness = job(poor_url, f"spool://{spool}")
    with pg_orders.engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA stellerd")
    grant(pg_orders, poor_url, 'GRANT SELECT ON "Orders"')
    with pytest.raises(errors.JobFailed, match=f"GRANT USAGE, CREATE ON SCHEMA stellerd TO {role}"):
        harness.check()
    assert mended(harness, pg_orders) == [
        f"the ledger stellerd.stellerd_published_orders is not there and {role} may not make it"
    ]
    pg_orders.add(2)
    assert harness.run().counters["published"] == 2


def test_db_check_without_the_table(job: Any, spool: Path, tmp_path: Path, postgres_url: str) -> None:
    for url in (f"sqlite:///{tmp_path}/empty.db", postgres_url):
        ((problem, sql),) = job(url, f"spool://{spool}").database_problems()
        assert problem == 'there is no table "Orders"'
        assert "create_tables = true" in sql
        assert job(url, f"spool://{spool}", create_tables=True).database_problems() == []
