"""Which orders a run takes: window, fallback, statuses; on SQLite and PostgreSQL, published to a spool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from stellerd_order_queue.job import passes
from stellerd_order_queue.records import Survey

Take = Callable[[], Counter[str]]
DAYS = timedelta(days=3)


@pytest.fixture
def run(orders: Any, job: Any, spool: Path, spooled: Take) -> Callable[..., set[str]]:
    """One run with settings; returns the request ids it published."""
    harnesses: dict[str, Any] = {}

    def once(**settings: Any) -> set[str]:
        harness = harnesses.setdefault(str(settings), job(orders.url, f"spool://{spool}", **settings))
        record = harness.run()
        found = spooled()
        assert record.counters["published"] == sum(found.values()), record
        return set(found)

    return once


def test_only_orders_without_vendor_id_and_outside_excluded_statuses(orders: Any, run: Any) -> None:
    wanted = [
        request for status in ("Created", "Queued", "Pending", "PROCESSING", "PartialFailed", "")
        for request in orders.add(status=status)
    ]  # fmt: skip
    for status in ("Failed", "failed", "FAILED", "Succeeded", "sUcCeEdEd"):
        orders.add(status=status)
    orders.add(order_id=4711)
    assert run() == set(wanted)


def test_statuses_to_exclude_are_a_setting_in_any_case(orders: Any, run: Any) -> None:
    orders.add(status="Cancelled")
    (failed,) = orders.add(status="Failed")
    assert run(exclude_statuses=["cANCELLED"]) == {failed}


def test_nothing_pending_is_an_ok_run_that_needs_no_broker(orders: Any, job: Any) -> None:
    record = job(orders.url, "amqp://127.0.0.1:1/x").run()
    assert (record.state, record.counters["pending"], record.counters["published"]) == ("ok", 0, 0)


def test_older_orders_wait_for_no_quiet_day(orders: Any, run: Any) -> None:
    """The old service looked at older orders only when there was no recent one: on a busy day, never."""
    old = orders.add(3, age=DAYS)
    for _ in range(3):  # in every run a new order comes in
        (new,) = orders.add()
        published = run()
        assert new in published
        if old:
            assert published == {new, *old}
            old = []
        else:
            assert published == {new}


def test_newer_orders_go_first(orders: Any, run: Any) -> None:
    orders.add(5, age=DAYS)
    recent = orders.add(5)
    assert run(limit=5) >= set(recent[:4])


def test_with_a_limit_a_flood_of_new_orders_does_not_starve_older_ones(orders: Any, run: Any) -> None:
    old = set(orders.add(3, age=DAYS))
    for _ in range(3):
        orders.add(30)
        assert len(run(limit=10) & old) == 1


def test_never_leaves_older_orders_alone(orders: Any, run: Any) -> None:
    orders.add(age=DAYS)
    assert run(fallback="never") == set()
    recent = set(orders.add())
    assert run(fallback="never") == recent


def test_always_takes_the_oldest_first(orders: Any, run: Any) -> None:
    oldest, middle = orders.add(age=2 * DAYS) + orders.add(age=DAYS)
    (newest,) = orders.add()
    taken = [run(fallback="always", limit=1) for _ in range(3)]
    assert taken == [{oldest}, {middle}, {newest}]


def test_lookback_is_measured_from_the_creation_date(orders: Any, run: Any) -> None:
    inside = set(orders.add(age=timedelta(minutes=59)))
    orders.add(age=timedelta(minutes=61))
    assert run(fallback="never", lookback="1h") == inside


@pytest.mark.parametrize("created", ["no date at all", "", "0001-01-01T00:00:00"])
def test_sqlite_an_order_with_an_unreadable_date_is_an_old_one(
    created: str, tmp_path: Path, make_orders: Any, job: Any, spool: Path, spooled: Take
) -> None:
    orders = make_orders(f"sqlite:///{tmp_path}/odd.db")
    odd = set(orders.add(created=created))
    job(orders.url, f"spool://{spool}").run()
    assert set(spooled()) == odd


def test_a_date_in_iso_form_with_an_offset_counts_at_its_instant(orders: Any, run: Any) -> None:
    two_hours_ago = datetime.now(UTC) - timedelta(hours=2)
    text = (two_hours_ago + timedelta(hours=9)).strftime("%Y-%m-%dT%H:%M:%S+09:00")
    expected = set(orders.add(created=text))
    assert run(fallback="never", lookback="1h") == set()
    assert run(fallback="never", lookback="3h") == expected


def test_a_dry_run_changes_nothing(orders: Any, job: Any, spool: Path) -> None:
    orders.add(3)
    orders.add(2, age=DAYS)
    harness = job(orders.url, f"spool://{spool}")
    record = harness.run(dry_run=True)
    assert (record.state, record.counters["pending"]) == ("ok", 5)
    assert not spool.exists()
    tables = "sqlite_master WHERE name" if orders.is_sqlite else "pg_class WHERE relname"
    assert orders.sql(f"SELECT 1 FROM {tables} = 'stellerd_published_orders'") == []
    harness.run()
    assert harness.run(dry_run=True).counters["pending"] == 0


@pytest.mark.parametrize(
    ("recent", "older", "limit", "quotas"),
    [
        (0, 50, 10, [0, 10]),
        (50, 0, 10, [10, 0]),
        (50, 50, 10, [9, 1]),
        (50, 50, 100, [50, 50]),
        (4, 50, 10, [4, 6]),
        (50, 50, 1, [1, 0]),
        (500, 500, 100, [90, 10]),
        (5, 5, 0, [None, None]),
    ],
)
def test_shares_of_a_limit(recent: int, older: int, limit: int, quotas: list[int | None]) -> None:
    planned = passes(Survey(recent, older, 0, 0, recent + older), "when-empty", limit, datetime.now(UTC))
    assert [each.quota for each in planned] == quotas
