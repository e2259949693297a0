"""Orders per second, from the database to a confirmed message, beside peers and the broker's own limit.

    python bench/orders.py [ORDERS] [--others N]      default 20000; 1000 and 200000 are the other usual sizes

Every way publishes the same envelope, persistent, mandatory, confirmed, from a fanout exchange to one durable queue,
in a process of its own. The ways take turns and the best of three counts: other load only ever slows. Slow peers
publish fewer messages. The pending orders lie among N others (2,000,000) in a PostgreSQL that syncs every commit. A
whole run surveys, claims, publishes and marks; its ratio is to publishing alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import pika
import sqlalchemy as sa
from _orders_ways import EXCHANGE, aio, blocking, celery_send_task, kombu_producer, ours, raw
from _table import Table
from servers import PostgresServer, RabbitServer
from stellerd_order_queue import OrderQueue
from stellerd_order_queue.dialects import dialect_of
from stellerd_order_queue.ledger import CLAIM, TABLE, Ledger
from stellerd_order_queue.records import Rules, Span

from stellerd.testing import Harness

QUEUE = "order-created"
TRIES = 3
PEERS_MOST = 20_000
"""A queue of 200,000 messages is slower for everybody: beside the peers stellerd fills it no deeper than they do."""
MOST_MIB = 48
"""Same for 20,000 and 200,000 orders: nothing grows with their number."""
IDLE = 1_000
"""Pending orders of the run that has nothing to do: all were published a short while ago."""


def in_a_child(work: Callable[[], float]) -> tuple[float, float]:
    """Seconds that `work` says it took, and by how many MiB the child's peak memory grew over it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            seconds = work()
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            os.write(writer, json.dumps([seconds, grown]).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    if not answer:
        raise SystemExit("a measurement failed; its traceback is above")
    seconds, grown = json.loads(answer)
    return seconds, grown


def whole_run(database: str, url: str, count: int) -> float:
    """The job: survey, claim, publish and mark, with a state store."""
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(OrderQueue, databases={"steller": database}, broker=url, folder=Path(folder))
        started = time.perf_counter()
        record = harness.run()
        seconds = time.perf_counter() - started
    assert record.counters["published"] == count, record
    return seconds


def several(number: int, database: str, url: str) -> tuple[float, int]:
    """Seconds in which that many runs at a time, a process each, publish all orders; and how many were published."""
    reader, writer = os.pipe()
    pids = []
    started = time.perf_counter()
    for _ in range(number):
        if (pid := os.fork()) == 0:
            with tempfile.TemporaryDirectory() as folder:
                record = Harness(OrderQueue, databases={"steller": database}, broker=url, folder=Path(folder)).run()
            os.write(writer, f"{record.counters['published']}\n".encode())
            os._exit(0)
        pids.append(pid)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        shares = [int(line) for line in pipe]  # ends with the last of them
    seconds = time.perf_counter() - started
    for pid in pids:
        os.waitpid(pid, 0)
    return seconds, sum(shares)


# --- the scene


def bind(url: str, kind: str) -> None:
    """A fresh queue of that kind behind the exchange."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.exchange_declare(EXCHANGE, "fanout", durable=True)
    channel.queue_delete(QUEUE)
    channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": kind})
    channel.queue_bind(QUEUE, EXCHANGE)
    connection.close()


class Platform:
    """The platform's database: pending orders, newest first, among others that are done."""

    def __init__(self, server: PostgresServer, pending: int, done: int) -> None:
        self.url = server.create_database()
        self.engine = sa.create_engine(self.url)
        with self.engine.begin() as connection:
            for statement in dialect_of(self.engine).create_orders:
                connection.exec_driver_sql(statement)
        self._insert(0, pending)
        self._insert(1, done)
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql('VACUUM ANALYZE "Orders"')
        self.ledger().create()

    def _insert(self, order_id: int, count: int) -> None:
        insert = sa.text(
            """INSERT INTO "Orders" ("Id", "OrderNumber", "OrderId", "RequestId", "PartnerId", "SaleTotal", "Total",
            "OrderStatusId", "Status", "CreateDate", "OrderType", "Currency", "CreatedAt", "UpdatedAt")
            SELECT gen_random_uuid(), n, :order_id, gen_random_uuid(), 1, 10, 10, 1, 'Created',
            now() - n * interval '50 ms', 'Card', 'EUR', now(), now() FROM generate_series(1, :count) n"""
        )
        with self.engine.begin() as connection:
            connection.execute(insert, {"order_id": order_id, "count": count})

    def ledger(self) -> Ledger:
        """A ledger with the job's default rules."""
        return Ledger(self.engine, "steller", Rules(("Failed", "Succeeded"), 8, 900.0, 21_600.0, 300.0))

    def forget(self) -> None:
        """As if nothing had been published yet."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql(f"TRUNCATE stellerd.{TABLE}")
        self.engine.dispose()  # children are forked: no connection may be open


Measured = tuple[float, float]
"""Messages per second, and MiB by which the peak memory grew."""


def turn(url: str, kind: str, count: int, way: Callable[[str, int], float]) -> Measured:
    """One measurement on a fresh queue."""
    bind(url, kind)
    seconds, grown = in_a_child(lambda: way(url, count))
    return count / seconds, grown


def turn_of_a_run(platform: Platform, url: str, kind: str, count: int) -> Measured:
    """The same for a whole run."""
    platform.forget()
    return turn(url, kind, count, lambda url, count: whole_run(platform.url, url, count))


def turn_of_several(platform: Platform, url: str, kind: str, count: int, number: int) -> Measured:
    """The same for whole runs at a time."""
    platform.forget()
    bind(url, kind)
    seconds, published = several(number, platform.url, url)
    assert published == count, published
    return count / seconds, 0.0


def rates(platform: Platform, url: str, kind: str, count: int) -> dict[str, Measured]:
    """The best of `TRIES` turns of every way."""
    seen: dict[str, list[Measured]] = {}
    for _ in range(TRIES):
        for name, most, way in (
            ("blocking", 3_000, blocking),
            ("kombu", 3_000, kombu_producer),
            ("celery", 3_000, celery_send_task),
            ("aio", PEERS_MOST, aio),
            ("as aio", PEERS_MOST, ours),
            ("raw", count, raw),
            ("ours", count, ours),
        ):
            seen.setdefault(name, []).append(turn(url, kind, min(count, most), way))
        seen.setdefault("run", []).append(turn_of_a_run(platform, url, kind, count))
    return {name: max(each) for name, each in seen.items()}


def fill(table: Table, kind: str, count: int, each: dict[str, Measured], over_blocking: int) -> None:
    """The rows of one kind of queue."""
    ours, as_peers, run = each["ours"], each["as aio"], each["run"]
    run_target = ">= 0.5x" if count >= PEERS_MOST else None  # of a short run, connecting is the larger part
    for title, name in (
        ("pika, confirm each", "blocking"),
        ("kombu, confirm each", "kombu"),
        ("celery send_task, confirm each", "celery"),
        ("aio-pika, 1,000 at a time", "aio"),
        ("bare socket: the broker's limit", "raw"),
    ):
        table.row(f"{kind}: {title}", [*each[name], None])
    cells = [*as_peers, None]
    for peer, name, target in (
        ("confirm each", "blocking", f">= {over_blocking}x"),
        ("aio-pika", "aio", ">= 2.3x"),
        ("kombu", "kombu", None),
        ("celery", "celery", None),
    ):
        table.row(f"{kind}: stellerd publishing, to {peer}", cells, target, as_peers[0] / each[name][0])
    table.row(f"{kind}: stellerd publishing, to the limit", [*ours, None], ">= 0.7x", ours[0] / each["raw"][0])
    table.row(f"{kind}: stellerd whole run, to publishing", [*run, None], run_target, run[0] / ours[0])
    table.row(f"{kind}: stellerd whole run, MiB", [run[1], None, None], f"<= {MOST_MIB} MiB")


def together(table: Table, platform: Platform, url: str, count: int) -> None:
    """What more publishers bring; they share this machine's cores with broker and database."""
    one = 0.0
    for number in (1, 2, 4):
        rate = max(turn_of_several(platform, url, "quorum", count, number)[0] for _ in range(TRIES))
        one = one or rate
        table.row(f"quorum: {number} whole runs at a time, to one", [rate, None, None], None, rate / one)


def steps(table: Table, platform: Platform, count: int) -> None:
    """What the database takes for each step, all orders together."""
    platform.forget()
    ledger, now, spent = platform.ledger(), datetime.now(UTC), dict.fromkeys(("query", "claim", "mark"), 0.0)
    started = time.perf_counter()
    ledger.survey(now, now - timedelta(days=1))
    table.row("survey of the pending orders", [None, None, (time.perf_counter() - started) * 1000])
    pages, left = ledger.pages(now, Span()), count
    while left:
        before = time.perf_counter()
        page = next(pages)
        spent["query"] += time.perf_counter() - before
        left -= len(page)
        for at in range(0, len(page), CLAIM):
            before = time.perf_counter()
            claimed, _ = ledger.claim(page[at : at + CLAIM], now)
            between = time.perf_counter()
            ledger.mark_published([each.key for each in claimed], now)
            spent["claim"] += between - before
            spent["mark"] += time.perf_counter() - between
    for name, seconds in spent.items():
        table.row(f"{name}, all orders", [count / seconds, None, seconds * 1000])


def idle_ms(platform: Platform) -> float:
    """Milliseconds of the database for a run with nothing due: its pending orders were published a while ago."""
    now = datetime.now(UTC)
    platform.forget()
    ledger = platform.ledger()
    for page in ledger.pages(now, Span()):
        claimed, _ = ledger.claim(page, now)
        ledger.mark_published([each.key for each in claimed], now)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        ledger.follow_clock()
        survey = ledger.survey(now, now - timedelta(days=1))
        times.append(time.perf_counter() - started)
        assert (survey.pending, survey.recent_due, survey.older_due) == (IDLE, 0, 0)
    platform.engine.dispose()
    return sorted(times)[10] * 1000


def main() -> None:
    """Measure, print, exit 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("orders", nargs="?", type=int, default=20_000)
    parser.add_argument("--others", type=int, default=2_000_000)
    given = parser.parse_args()
    count = given.orders
    table = Table(f"Orders: {count:,} pending among {given.others:,}", ["msg/s", "peak +MiB", "ms"])
    with PostgresServer(durable=True) as postgres, RabbitServer() as rabbit:
        platform = Platform(postgres, count, given.others)
        for kind, over_blocking in (("classic", 9), ("quorum", 18)):
            fill(table, kind, count, rates(platform, rabbit.url(), kind, count), over_blocking)
        together(table, platform, rabbit.url(), count)
        steps(table, platform, count)
        platform.engine.dispose()
        idle = idle_ms(Platform(postgres, IDLE, given.others))
        table.row(f"run with nothing due, {IDLE:,} pending", [None, None, idle], "<= 5 ms", ok=idle <= 5)
    table.finish()


if __name__ == "__main__":
    main()
