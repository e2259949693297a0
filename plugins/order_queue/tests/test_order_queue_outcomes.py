"""What became of each order is told by name: in the log, and in the ledger."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from stellerd_order_queue import job as job_module
from stellerd_order_queue.publisher import Outcome

OLD_POSTGRES = "ALTER TABLE stellerd.stellerd_published_orders DROP COLUMN failure, DROP COLUMN last_failed"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every log line, as fields; `level` among them."""
    lines: list[dict[str, Any]] = []

    def note(logger: Any, level: str, event: Any) -> Any:
        lines.append({"level": level, **event})
        raise structlog.DropEvent

    structlog.configure(processors=[note], cache_logger_on_first_use=False)
    return lines


def named(lines: list[dict[str, Any]], event: str, *fields: str) -> set[tuple[str, ...]]:
    return {tuple(line[field] for field in fields) for line in lines if line["event"] == event}


def failures(orders: Any) -> set[tuple[str, str]]:
    rows = orders.ledger("request_id, failure, last_failed")
    assert all((row[1] is None) == (row[2] is None) for row in rows)
    return {(str(row[0]), row[1]) for row in rows if row[1]}


def test_returned_messages_are_named_with_the_reason(orders: Any, job: Any, consumer: Any, told: Any) -> None:
    requests = orders.add(5)
    record = job(orders.url, consumer.url).run()
    assert record.counters["returned"] == 5
    reason = "returned: nothing is bound to exchange SharedContracts:OrderCreated"
    lines = named(told, "order not published", "level", "request", "outcome", "reason")
    assert lines == {("warning", request, "returned", reason) for request in requests}
    assert failures(orders) == {(request, f"returned: {reason}") for request in requests}


def test_published_messages_are_named_for_who_wants_to_know(orders: Any, job: Any, consumer: Any, told: Any) -> None:
    consumer.bind()
    requests = orders.add(150)
    job(orders.url, consumer.url).run()
    lines = named(told, "order published", "level", "request")
    assert lines == {("debug", request) for request in requests}
    assert failures(orders) == set()


def test_refused_messages_are_named_a_hundred_times_and_then_counted(
    pg_orders: Any, job: Any, consumer: Any, told: Any
) -> None:
    consumer.bind(**{"x-max-length": 0, "x-overflow": "reject-publish"})
    requests = set(pg_orders.add(230))
    record = job(pg_orders.url, consumer.url).run()
    assert record.counters["nacked"] == 230
    lines = named(told, "order not published", "request", "outcome")
    assert len(lines) == 100
    assert {request for request, _ in lines} <= requests
    [more] = [line for line in told if line["event"] == "orders not published, more of them"]
    assert (more["level"], more["nacked"]) == ("warning", 130)
    assert {request for request, _ in failures(pg_orders)} == requests


class Mute(contextlib.AbstractContextManager["Mute"]):
    """A broker that answers for every second message."""

    def __exit__(self, *exception: object) -> None:
        pass

    def publish(self, messages: Any) -> Iterator[Outcome]:
        for n, message in enumerate(messages):
            yield Outcome(message, *(("published", "") if n % 2 else ("unknown", "no confirm within 30 s")))


def test_unconfirmed_messages_are_named(
    orders: Any, job: Any, spool: Path, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "open_publisher", lambda *args: Mute())
    first, second = orders.add(2)
    job(orders.url, f"spool://{spool}").run()
    assert named(told, "order not published", "request", "reason") == {(first, "no confirm within 30 s")}
    assert named(told, "order published", "request") == {(second,)}
    assert failures(orders) == {(first, "unknown: no confirm within 30 s")}


def test_a_ledger_of_an_earlier_version_is_brought_up_to_date(
    orders: Any, job: Any, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders.add(2)
    harness = job(orders.url, f"spool://{spool}")
    harness.run()
    before = orders.ledger("order_id, attempts")
    with orders.engine.begin() as connection:
        for statement in (
            [OLD_POSTGRES]
            if not orders.is_sqlite
            else (
                "ALTER TABLE stellerd_published_orders DROP COLUMN failure",
                "ALTER TABLE stellerd_published_orders DROP COLUMN last_failed",
            )
        ):
            connection.exec_driver_sql(statement)
    [*_, (what, sql)] = harness.database_problems()
    assert "has no column failure" in what
    assert "ADD COLUMN failure text" in sql
    monkeypatch.setattr(job_module, "open_publisher", lambda *args: Mute())
    again = job(orders.url, f"spool://{spool}")
    assert again.run().state == "ok"
    assert orders.ledger("order_id, attempts") == before
    assert not any("failure" in what for what, _ in again.database_problems())


def test_who_may_not_change_the_ledger_goes_on_without_names(
    orders: Any, job: Any, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = orders.add()
    monkeypatch.setattr("stellerd_order_queue.ledger.Ledger._names_failures", lambda ledger: False)
    monkeypatch.setattr(job_module, "open_publisher", lambda *args: Mute())
    harness = job(orders.url, f"spool://{spool}")
    assert "not confirmed" in harness.run().reason
    monkeypatch.undo()
    record = job(orders.url, f"spool://{spool}").run()  # its claim was given back
    assert (record.counters["published"], first in orders.published()) == (1, True)
