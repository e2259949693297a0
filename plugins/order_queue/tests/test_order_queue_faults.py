"""Servers and processes that break in the middle of a run: no order is lost, none is called published that is not."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
import sqlalchemy as sa
from stellerd_order_queue.envelope import Envelopes, Message, message_id

EXCHANGE = "SharedContracts:OrderCreated"
WINDOW = 500
QUARTER = 900.0
"""republish_after."""
LASTS_S = 3.0
"""How long publishing is made to last while a fault is on its way: rabbitmqctl alone takes a second."""


def sizes(scaled: int, full: int) -> Any:
    """The size for every test run, and that of `make soak`."""
    long = pytest.param(full, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])
    return pytest.mark.parametrize("count", [scaled, long])


@contextlib.contextmanager
def channel_of(url: str) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    yield connection.channel()
    connection.close()


KINDS = pytest.mark.parametrize("kind", ["classic", pytest.param("quorum", marks=pytest.mark.soak)])


def during(harness: Any, at: int, fault: Callable[[], Any]) -> list[int]:
    """`fault` happens once, when `at` orders are published; returns where that will be noted."""
    original, seen = harness.runner.services.progress, []

    def progress(done: int, total: int | None, unit: str) -> None:
        if not seen and done >= at:
            seen.append(done)
            fault()
        original(done, total, unit)

    harness.runner.services.progress = progress
    return seen


class Amid:
    """`fault` in a thread of its own, from message `at` on, while the job goes on publishing.

    Messages come a little slower until it is over, and the last ones wait for its end: it always strikes amid them.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, at: int, fault: Callable[[], Any]) -> None:
        self._count, self._at, self._made = count, at, 0
        self._pause = LASTS_S / (count - at)
        self._fault = threading.Thread(target=fault)
        self._build = Envelopes.build
        monkeypatch.setattr(Envelopes, "build", lambda *args: self._next(*args))

    def _next(self, *args: Any) -> Message:
        self._made += 1
        if self._made == self._at:
            self._fault.start()
        elif self._made > self._at and self._fault.is_alive():
            self._fault.join(60.0 if self._made > self._count - WINDOW // 2 else self._pause)
        return self._build(*args)

    def __enter__(self) -> Amid:
        return self

    def __exit__(self, *error: object) -> None:
        """Servers are as they were for whatever comes next."""
        assert self._made >= self._at, "the fault never came"
        self._fault.join(120.0)


class Killed:
    """Runs of the job in processes of their own, each ended by `kill -9` after a random time."""

    def __init__(self, job: Any, orders: Any, url: str) -> None:
        self._job, self._orders, self._url = job, orders, url
        self.turns = self.by_kill = 0

    def harness(self) -> Any:
        self.turns += 1
        made = self._job(
            self._orders.url, self._url, window=WINDOW, claim="40s", confirm_timeout="10s", republish_after="30d"
        )
        made.clock.advance(self.turns * 41)  # the dead one's claims are over
        return made

    def turn(self, longest: float) -> None:
        harness = self.harness()
        pid = os.fork()
        if pid == 0:
            try:
                harness.run()
            finally:
                os._exit(0)
        time.sleep(random.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        self.by_kill += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@sizes(20, 1_000)
def test_kill_9_again_and_again(count: int, pg_orders: Any, consumer: Any, job: Any) -> None:
    random.seed(count)
    consumer.bind()
    killed, arrived = Killed(job, pg_orders, consumer.url), Counter[tuple[str, str]]()
    assert killed.harness().run().state == "ok"  # makes the ledger
    pg_orders.add_many(20_000)
    while killed.by_kill < count:
        killed.turn(longest=0.35)
        if len(pg_orders.published()) >= 10_000:
            arrived += consumer.message_ids()
            _place(pg_orders)
            pg_orders.add_many(10_000)  # there are always that many pending
    assert killed.harness().run().state == "ok"
    arrived += consumer.message_ids(pg_orders.requests() - {request for request, _ in arrived})
    assert {request for request, _ in arrived} == pg_orders.requests()
    assert all(identity == message_id(request) for request, identity in arrived)
    twice = sum(arrived.values()) - len(arrived)
    print(f"{killed.by_kill} kills, {len(arrived)} orders, {twice} duplicates, most copies {max(arrived.values())}")
    assert twice <= killed.by_kill * WINDOW


def _place(orders: Any) -> None:
    """What is published gets its vendor's order id, and the ledger forgets it."""
    with orders.engine.begin() as connection:
        done = f"(SELECT order_id FROM {orders.ledger_table} WHERE attempts > 0)"
        connection.exec_driver_sql(f'UPDATE "Orders" SET "OrderId" = 1 WHERE "Id" IN {done}')
        connection.exec_driver_sql(f"DELETE FROM {orders.ledger_table} WHERE attempts > 0")


def close_all(rabbitmq: Any, url: str) -> None:
    rabbitmq.ctl("close_all_connections", "test")


def stop_and_start(rabbitmq: Any, url: str) -> None:
    rabbitmq.ctl("stop_app")
    rabbitmq.ctl("start_app")


def alarm(rabbitmq: Any, url: str) -> None:
    rabbitmq.ctl("set_vm_memory_high_watermark", "0.00001")


def rebind(rabbitmq: Any, url: str) -> None:
    """For a moment nothing is bound; the messages stay."""
    with channel_of(url) as channel:
        channel.exchange_unbind("order-created", EXCHANGE)
    threading.Timer(0.1, _bind, (url,)).start()


def _bind(url: str) -> None:
    with channel_of(url) as channel:
        channel.exchange_bind("order-created", EXCHANGE)


@sizes(4_000, 20_000)
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (close_all, []),
        (stop_and_start, ["is the broker up?"]),
        (alarm, ["has blocked publishers"]),
        (rebind, ["no queue is bound"]),
    ],
)
@KINDS
def test_a_broker_that_breaks_in_the_middle(
    count: int, fault: Any, expected: list[str], kind: str, rabbitmq: Any, pg_orders: Any, consumer: Any, job: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    consumer.bind(kind)
    pg_orders.add_many(count)
    harness = job(pg_orders.url, consumer.url, confirm_timeout="1s" if fault is alarm else "3s")
    try:
        with Amid(monkeypatch, count, count // 4, lambda: fault(rabbitmq, consumer.url)):
            record = harness.run()
    finally:
        if fault is alarm:
            rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    said = record
    called = pg_orders.published()
    if said.state != "ok":
        assert said.state in ("partial", "failed")
        assert any(each in said.reason for each in expected), said.reason
        record = job(pg_orders.url, consumer.url).run()
    assert record.state == "ok", record.reason
    arrived = consumer.message_ids(pg_orders.requests())
    requests = {request for request, _ in arrived}
    assert requests == pg_orders.requests() == pg_orders.published()
    assert called <= requests
    twice = sum(arrived.values()) - count
    print(
        f"{kind} {fault.__name__}: {said.state} {said.counters['published']}, then {record.state}; {twice} duplicates"
    )
    assert twice <= 2 * WINDOW


@sizes(3_000, 20_000)
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_queue_deleted_and_declared_again_under_an_open_window(
    count: int, kind: str, pg_orders: Any, consumer: Any, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the operator deleted is gone; all else arrives at once, and the deleted ones after the pause."""
    consumer.bind(kind)
    pg_orders.add_many(count)
    deleted: list[int] = []

    def delete() -> None:
        with channel_of(consumer.url) as channel:
            deleted.append(channel.queue_delete("order-created").method.message_count)
        consumer.bind(kind)

    harness = job(pg_orders.url, consumer.url, confirm_timeout="2s")
    with Amid(monkeypatch, count, count // 2, delete):
        records = [harness.run()]
    while records[-1].state != "ok":
        records.append(harness.run())
        assert len(records) < 4, records
    assert pg_orders.published() == pg_orders.requests()
    arrived = consumer.message_ids()
    gone = pg_orders.requests() - {request for request, _ in arrived}
    assert len(gone) <= count // 2 + 3 * WINDOW  # confirmed into the old queue
    harness.clock.advance(QUARTER + 1)
    assert harness.run().state == "ok"
    again = consumer.message_ids(gone)
    assert {request for request, _ in arrived | again} == pg_orders.requests()
    print(f"{kind}: {[each.state for each in records]}, deleted {deleted}, {len(gone)} went with the queue, none lost")


@sizes(3_000, 20_000)
@KINDS
def test_a_queue_that_refuses_in_the_middle(count: int, kind: str, pg_orders: Any, consumer: Any, job: Any) -> None:
    consumer.bind(kind, **{"x-max-length": count // 2, "x-overflow": "reject-publish"})
    pg_orders.add_many(count)
    harness = job(pg_orders.url, consumer.url)
    record = harness.run()
    assert (record.state, "basic.nack" in record.reason) == ("partial", True)
    assert record.counters["nacked"] == record.counters["failed"] > 0
    arrived = consumer.message_ids(pg_orders.published())
    # A quorum queue may let a few in whose refusal was on its way: more arrived than we say, never fewer
    assert pg_orders.published() <= {request for request, _ in arrived}
    assert record.counters["published"] == len(pg_orders.published())
    while (record := harness.run()).counters["pending"]:
        arrived += consumer.message_ids()
    arrived += consumer.message_ids(pg_orders.requests() - {request for request, _ in arrived})
    assert {request for request, _ in arrived} == pg_orders.requests()


@sizes(10, 100)
def test_a_database_that_restarts_and_cuts_its_clients(
    count: int, postgres_server: Any, pg_orders: Any, consumer: Any, job: Any
) -> None:
    """pg_terminate_backend until it hit `count` connections, orders coming in meanwhile; two crashes of the server."""
    consumer.bind()
    pg_orders.outlive_crashes()
    pg_orders.add_many(20_000)
    cuts: list[int] = []

    def trouble() -> None:
        crashes, deadline = [0, count // 2], time.monotonic() + 600
        while sum(cuts) < count and time.monotonic() < deadline:
            if crashes and sum(cuts) >= crashes[0]:
                crashes.pop(0)
                postgres_server.restart("immediate")
            with contextlib.suppress(Exception):  # it may be starting just now
                cuts.append(postgres_server.terminate_backends(pg_orders.url))
            time.sleep(random.uniform(0.0, 0.1))

    harness = job(pg_orders.url, consumer.url, republish_after="30d")
    thread = threading.Thread(target=trouble)
    happened = during(harness, 2_000, thread.start)
    records = [harness.run()]
    while records[-1].state != "ok" or thread.is_alive():
        if thread.is_alive():
            with contextlib.suppress(sa.exc.DBAPIError):  # cut as well
                pg_orders.add_many(2_000)
        harness.clock.advance(301)  # a claim whose release was cut off is over
        records.append(harness.run())
    thread.join()
    harness.clock.advance(301)
    assert harness.run().state == "ok"
    pg_orders.engine.dispose()  # the test's own connection was cut too
    assert happened
    arrived = consumer.message_ids(pg_orders.requests())
    assert {request for request, _ in arrived} == pg_orders.requests() == pg_orders.published()
    twice = arrived.total() - len(arrived)
    states = dict(Counter(each.state for each in records))
    print(f"{sum(cuts)} connections cut, runs {states}, {len(arrived)} orders, {twice} duplicates")
    assert sum(cuts) >= count
    assert twice <= (sum(cuts) + 2) * WINDOW


def test_a_consumer_that_is_far_behind_is_sent_nothing_twice(pg_orders: Any, consumer: Any, job: Any) -> None:
    consumer.bind()
    pg_orders.add_many(10_000)
    harness = job(pg_orders.url, consumer.url)
    assert harness.run().counters["published"] == 10_000
    for _ in range(10):
        harness.clock.advance(60)
        assert harness.run().counters["published"] == 0
    with channel_of(consumer.url) as channel:
        assert consumer.count(channel) == 10_000
