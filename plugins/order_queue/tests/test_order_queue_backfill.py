"""What a person asks `run-once` for: orders of a time, one order, and a list of what would be sent."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from stellerd_order_queue import delivery
from stellerd_order_queue.settings import OrderQueueSettings

from stellerd import errors

Take = Callable[[], Counter[str]]
DAY = timedelta(days=1)


def day(back: int) -> str:
    return (datetime.now(UTC) - back * DAY).date().isoformat()


def at_noon(back: int) -> timedelta:
    """The age of an order created at noon of that day."""
    return datetime.now(UTC) - datetime.fromisoformat(f"{day(back)}T12:00:00+00:00")


def test_the_orders_of_a_day_go_out_again_though_they_are_not_due(
    orders: Any, job: Any, spool: Path, spooled: Take
) -> None:
    wanted = set(orders.add(3, age=at_noon(40)))
    orders.add(2, age=at_noon(39))
    orders.add(2, age=at_noon(41))
    job(orders.url, f"spool://{spool}").run()
    assert sum(spooled().values()) == 7
    harness = job(orders.url, f"spool://{spool}", since=day(40), until=day(39))
    harness.clock.advance(1)
    record = harness.run()
    assert set(spooled()) == wanted
    assert (record.state, record.counters["pending"], record.counters["republished"]) == ("ok", 3, 3)
    assert sorted(row[0] for row in orders.ledger("attempts")) == [1, 1, 1, 1, 2, 2, 2]


def test_the_schedule_forces_nothing(orders: Any, job: Any, spool: Path, spooled: Take) -> None:
    orders.add(3, age=at_noon(40))
    harness = job(orders.url, f"spool://{spool}", since=day(40), until=day(39))
    harness.run()
    assert sum(spooled().values()) == 3
    harness.clock.advance(1)
    assert harness.run(slot=harness.clock()).counters["pending"] == 0


def test_one_order_by_either_id(orders: Any, job: Any, spool: Path, spooled: Take) -> None:
    wanted, other = orders.add(2)
    (key,) = (str(row[0]) for row in orders.sql('SELECT "Id", "RequestId" FROM "Orders"') if str(row[1]) == wanted)
    assert job(orders.url, f"spool://{spool}", order=key.upper()).run().counters["published"] == 1
    assert set(spooled()) == {wanted}
    assert job(orders.url, f"spool://{spool}", order=other).run().counters["published"] == 1
    assert set(spooled()) == {other}


def test_one_order_that_need_not_be_sent_says_why(orders: Any, job: Any, spool: Path) -> None:
    (placed,), (failed,) = orders.add(order_id=4711), orders.add(status="Failed")
    record = job(orders.url, f"spool://{spool}", order=placed).run()
    assert record.state == "skipped"
    assert "is placed: the vendor's order id is 4711" in record.reason
    record = job(orders.url, f"spool://{spool}", order=failed).run()
    assert (record.state, 'its status is "Failed"' in record.reason) == ("skipped", True)
    record = job(orders.url, f"spool://{spool}", order=str(uuid.uuid4())).run()
    assert (record.state, "no order has this" in record.reason) == ("failed", True)
    assert not spool.exists() or not list(spool.iterdir())


def test_a_dry_run_lists_what_would_be_sent(
    orders: Any, job: Any, spool: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = orders.add(30, age=at_noon(40))
    others = orders.add(3)
    record = job(orders.url, f"spool://{spool}", since=day(40), until=day(39)).run(dry_run=True)
    written = "".join(capfd.readouterr())
    assert record.counters["pending"] == 30
    assert all(request in written for request in wanted)
    assert not any(request in written for request in others)
    assert orders.sql('SELECT count(*) FROM "Orders"') == [(33,)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"since": "yesterday"}, "not a date"),
        ({"since": "2026-02-02", "until": "2026-02-01"}, "until must be later than since"),
        ({"claim": "10s"}, "claim must be at least 4 times confirm_timeout"),
        ({"order": "4711"}, "not an order"),
    ],
)
def test_what_cannot_be_asked_for(settings: dict[str, str], said: str, orders: Any, job: Any, spool: Path) -> None:
    with pytest.raises(errors.ConfigError, match=said):
        job(orders.url, f"spool://{spool}", **settings)


def test_dates_are_utc_unless_they_say_otherwise() -> None:
    raw = {"since": date(2026, 2, 1), "until": "2026-02-01T23:00:00+09:00"}  # --set hands over what TOML reads
    settings = OrderQueueSettings.model_validate(raw)
    assert settings.since == datetime(2026, 2, 1, tzinfo=UTC)
    assert settings.until == datetime(2026, 2, 1, 14, tzinfo=UTC)


def test_younger_orders_are_left_alone(orders: Any, job: Any, spool: Path, spooled: Take) -> None:
    orders.add(age=timedelta(seconds=30))
    ripe = set(orders.add(age=timedelta(seconds=90)) + orders.add(age=3 * DAY))
    record = job(orders.url, f"spool://{spool}", min_age="1m").run()
    assert set(spooled()) == ripe
    assert record.counters["pending"] == 2


def test_stuck_orders_make_the_run_partial_and_raise_an_alarm(
    orders: Any, job: Any, spool: Path, spooled: Take, capfd: pytest.CaptureFixture[str]
) -> None:
    (request,) = orders.add()
    harness = job(orders.url, f"spool://{spool}", max_attempts=2, republish_after="1m", republish_cap="1m")
    assert [harness.run().state, harness.clock.advance(61), harness.run().state] == ["ok", None, "ok"]
    capfd.readouterr()
    record = harness.run()
    (key,) = (str(row[0]) for row in orders.ledger("order_id"))
    assert (record.state, record.counters["stuck"], record.counters["pending"]) == ("partial", 1, 0)
    assert f"1 orders are still pending after 2 publications (oldest {key})" in record.reason
    (alarm,) = (line for line in "".join(capfd.readouterr()).splitlines() if "orders are stuck" in line)
    assert "[error" in alarm
    harness.clock.advance(61)
    assert harness.run().counters["published"] == 1  # never dropped
    assert spooled() == Counter({request: 1})  # one file: the same message


def test_an_order_placed_after_its_claim_is_not_published(
    orders: Any, job: Any, spool: Path, spooled: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RECHECK_S", 0.0)
    placed, closed, still = orders.add(3)
    original = delivery.Delivery._put_aside

    def claimed(self: Any, refusals: Any) -> None:
        orders.update(placed, OrderId=99)
        orders.update(closed, Status="Failed")
        original(self, refusals)

    monkeypatch.setattr(delivery.Delivery, "_put_aside", claimed)
    harness = job(orders.url, f"spool://{spool}")
    record = harness.run()
    assert set(spooled()) == {still}
    assert (record.state, record.counters["changed"], record.counters["published"]) == ("ok", 2, 1)
    reason = "placed, closed or given another RequestId since it was claimed"
    assert [each["reason"] for each in harness.quarantined()] == [reason] * 2
    assert orders.sql(f"SELECT count(*) FROM {orders.ledger_table} WHERE claim_until IS NOT NULL") == [(0,)]
