"""Orders per second, from the database to a confirmed message, beside peers and the broker's own limit.

    python bench/orders.py [ORDERS]         default 20000; 1000 and 200000 are the other usual sizes

Every way publishes the same envelope, persistent, mandatory, confirmed, from a fanout exchange to one durable queue,
in a process of its own. The ways take turns and the best of three counts: other load only ever slows. Slow peers
publish fewer messages. A whole run surveys, claims, publishes and marks; its ratio is to publishing alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import select
import socket
import struct
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import aio_pika
import pika
import sqlalchemy as sa
from _table import Table
from pika import frame, spec
from servers import PostgresServer, RabbitServer
from stellerd_order_queue import OrderQueue
from stellerd_order_queue.dialects import dialect_of
from stellerd_order_queue.envelope import CONTENT_TYPE, Envelopes, Message, iso_utc, message_id
from stellerd_order_queue.ledger import Ledger, Rules, Span
from stellerd_order_queue.publisher import Wishes, open_publisher

from stellerd.testing import Harness

EXCHANGE = "SharedContracts:OrderCreated"
QUEUE = "order-created"
RAW_WINDOW = 1_000
RAW_CHUNK = 100
TRIES = 3
PEERS_MOST = 20_000
"""A queue of 200,000 messages is slower for everybody: beside the peers stellerd fills it no deeper than they do."""
MOST_MIB = 48
"""Same for 20,000 and 200,000 orders: nothing grows with their number."""


def messages(url: str, count: int) -> Iterator[Message]:
    """Envelopes built one by one, as the job does."""
    made = Envelopes(url, EXCHANGE, "orderId")
    for n in range(count):
        yield made.build(str(n), r := str(uuid.uuid4()), message_id(r), iso_utc(datetime.now(UTC)))


def properties(message: Message) -> Any:
    return pika.BasicProperties(
        content_type=CONTENT_TYPE, delivery_mode=2, message_id=message.id, correlation_id=message.correlation_id
    )


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


# --- the ways


def blocking(url: str, count: int) -> float:
    """pika BlockingConnection, each message confirmed before the next."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    started = time.perf_counter()
    for message in messages(url, count):
        channel.basic_publish(EXCHANGE, "", message.body, properties(message), mandatory=True)
    seconds = time.perf_counter() - started
    connection.close()
    return seconds


def aio(url: str, count: int) -> float:
    """aio-pika, windows of 1,000 publications awaited together."""

    async def run() -> float:
        connection = await aio_pika.connect(url)
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.get_exchange(EXCHANGE)
        started = time.perf_counter()
        source = messages(url, count)
        for start in range(0, count, 1_000):
            batch = [next(source) for _ in range(min(1_000, count - start))]
            await asyncio.gather(
                *(
                    exchange.publish(
                        aio_pika.Message(
                            each.body,
                            content_type=CONTENT_TYPE,
                            delivery_mode=2,
                            message_id=each.id,
                            correlation_id=each.correlation_id,
                        ),
                        "",
                        mandatory=True,
                    )
                    for each in batch
                )
            )
        seconds = time.perf_counter() - started
        await connection.close()
        return seconds

    return asyncio.run(run())


def raw(url: str, count: int) -> float:
    """Prepared frames through a bare socket, a window of confirms: what the broker can take here."""
    chosen = pika.URLParameters(url)
    wire = Wire(chosen)
    prepared = [b"".join(frames_of(each)) for each in messages(url, count)]
    chunks = [b"".join(prepared[n : n + RAW_CHUNK]) for n in range(0, count, RAW_CHUNK)]
    started = time.perf_counter()
    sent = confirmed = 0
    unsent = b""
    waiting = iter(chunks)
    while confirmed < count:
        if not unsent and sent - confirmed <= RAW_WINDOW - RAW_CHUNK and sent < count:
            unsent = next(waiting)
            sent = min(count, sent + RAW_CHUNK)
        readable, writable, _ = select.select([wire.socket], [wire.socket] if unsent else [], [])
        if writable:
            unsent = unsent[wire.socket.send(unsent) :]
        if readable:
            confirmed = wire.confirmed_up_to()
    return time.perf_counter() - started


def frames_of(message: Message) -> tuple[bytes, ...]:
    method = frame.Method(1, spec.Basic.Publish(exchange=EXCHANGE, routing_key="", mandatory=True)).marshal()
    header = frame.Header(1, len(message.body), properties(message)).marshal()
    return method, header, frame.Body(1, message.body).marshal()


class Wire:
    """Just enough AMQP 0-9-1 to publish with confirms."""

    def __init__(self, chosen: Any) -> None:
        self.socket = socket.create_connection((chosen.host, chosen.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._loose: set[int] = set()
        self._up_to = 0
        self.socket.sendall(frame.ProtocolHeader().marshal())
        self._expect(spec.Connection.Start)
        secret = f"\0{chosen.credentials.username}\0{chosen.credentials.password}"
        self._say(0, spec.Connection.StartOk({}, "PLAIN", secret, "en_US"))
        tune = self._expect(spec.Connection.Tune)
        self._say(0, spec.Connection.TuneOk(tune.channel_max, tune.frame_max, 0))
        self._say(0, spec.Connection.Open(chosen.virtual_host))
        self._expect(spec.Connection.OpenOk)
        for request, answer in (
            (spec.Channel.Open(), spec.Channel.OpenOk),
            (spec.Confirm.Select(), spec.Confirm.SelectOk),
        ):
            self._say(1, request)
            self._expect(answer)

    def _say(self, channel: int, method: Any) -> None:
        self.socket.sendall(frame.Method(channel, method).marshal())

    def _expect(self, kind: Any) -> Any:
        while True:
            used, found = frame.decode_frame(self._buffer)
            if found is not None:
                self._buffer = self._buffer[used:]
                assert isinstance(found.method, kind), found
                return found.method
            self._buffer += self.socket.recv(65536)

    def confirmed_up_to(self) -> int:
        """How many messages are confirmed; a frame of basic.ack is 21 bytes, its tag at 11, `multiple` at 19."""
        self._buffer += self.socket.recv(262144)
        whole = len(self._buffer) // 21 * 21
        for at in range(0, whole, 21):
            assert self._buffer[at + 7 : at + 11] == b"\x00\x3c\x00\x50", "not an ack"
            (tag,) = struct.unpack_from(">Q", self._buffer, at + 11)
            if self._buffer[at + 19]:
                self._up_to = max(self._up_to, tag)
            else:
                self._loose.add(tag)
        self._buffer = self._buffer[whole:]
        while self._up_to + 1 in self._loose:
            self._up_to += 1
            self._loose.discard(self._up_to)
        self._loose = {tag for tag in self._loose if tag > self._up_to} if self._loose else self._loose
        return self._up_to


def ours(url: str, count: int) -> float:
    """stellerd's publisher, window 500, envelopes built on the way."""
    with open_publisher([url], Wishes(EXCHANGE)) as publisher:
        started = time.perf_counter()
        published = sum(each.state == "published" for each in publisher.publish(messages(url, count)))
        seconds = time.perf_counter() - started
    assert published == count
    return seconds


def whole_run(database: str, url: str, count: int) -> float:
    """The job: survey, claim, publish and mark, with a state store."""
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(OrderQueue, databases={"steller": database}, broker=url, folder=Path(folder))
        started = time.perf_counter()
        record = harness.run()
        seconds = time.perf_counter() - started
    assert record.counters["published"] == count, record
    return seconds


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


def new_database(server: PostgresServer, pending: int, done: int) -> str:
    """A platform database with that many pending orders among others."""
    url = server.create_database()
    engine = sa.create_engine(url)
    insert = sa.text(
        """INSERT INTO "Orders" ("Id", "OrderNumber", "OrderId", "RequestId", "PartnerId", "SaleTotal", "Total",
        "OrderStatusId", "Status", "CreateDate", "OrderType", "Currency", "CreatedAt", "UpdatedAt")
        SELECT gen_random_uuid(), n, :order_id, gen_random_uuid(), 1, 10, 10, 1, 'Created',
        now() - n * interval '50 ms', 'Card', 'EUR', now(), now() FROM generate_series(1, :count) n"""
    )
    with engine.begin() as connection:
        for statement in dialect_of(engine).create_orders:
            connection.exec_driver_sql(statement)
        connection.execute(insert, {"order_id": 0, "count": pending})
        connection.execute(insert, {"order_id": 1, "count": done})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql('VACUUM ANALYZE "Orders"')
    engine.dispose()
    return url


Measured = tuple[float, float]
"""Messages per second, and MiB by which the peak memory grew."""


def turn(url: str, kind: str, count: int, way: Callable[[str, int], float]) -> Measured:
    """One measurement on a fresh queue."""
    bind(url, kind)
    seconds, grown = in_a_child(lambda: way(url, count))
    return count / seconds, grown


def turn_of_a_run(postgres: PostgresServer, url: str, kind: str, count: int) -> Measured:
    """The same for a whole run, on a fresh database."""
    database = new_database(postgres, count, 0)
    try:
        return turn(url, kind, count, lambda url, count: whole_run(database, url, count))
    finally:
        postgres.drop_database(database)


def rates(postgres: PostgresServer, url: str, kind: str, count: int) -> dict[str, Measured]:
    """The best of `TRIES` turns of every way."""
    seen: dict[str, list[Measured]] = {}
    for _ in range(TRIES):
        for name, most, way in (
            ("blocking", 3_000, blocking),
            ("aio", PEERS_MOST, aio),
            ("as aio", PEERS_MOST, ours),
            ("raw", count, raw),
            ("ours", count, ours),
        ):
            seen.setdefault(name, []).append(turn(url, kind, min(count, most), way))
        seen.setdefault("run", []).append(turn_of_a_run(postgres, url, kind, count))
    return {name: max(each) for name, each in seen.items()}


def fill(table: Table, kind: str, count: int, each: dict[str, Measured], over_blocking: int) -> None:
    """The rows of one kind of queue."""
    ours, as_peers, run = each["ours"], each["as aio"], each["run"]
    run_target = ">= 0.5x" if count >= PEERS_MOST else None  # of a short run, connecting is the larger part
    for title, name in (
        ("pika, confirm each", "blocking"),
        ("aio-pika, 1,000 at a time", "aio"),
        ("bare socket: the broker's limit", "raw"),
    ):
        table.row(f"{kind}: {title}", each[name])
    table.row(
        f"{kind}: stellerd publishing, to confirm each",
        as_peers,
        f">= {over_blocking}x",
        as_peers[0] / each["blocking"][0],
    )
    table.row(f"{kind}: stellerd publishing, to aio-pika", as_peers, ">= 2.3x", as_peers[0] / each["aio"][0])
    table.row(f"{kind}: stellerd publishing, to the limit", ours, ">= 0.7x", ours[0] / each["raw"][0])
    table.row(f"{kind}: stellerd whole run, to publishing", run, run_target, run[0] / ours[0])
    table.row(f"{kind}: stellerd whole run, MiB", (run[1], None), f"<= {MOST_MIB} MiB")


def idle_ms(postgres: PostgresServer) -> float:
    """Milliseconds of the database for a run without anything due: 1,000 published orders among 200,000 others."""
    engine = sa.create_engine(new_database(postgres, 1_000, 200_000))
    now = datetime.now(UTC)
    ledger = Ledger(engine, "steller", Rules(("Failed", "Succeeded"), 8, 900.0, 21_600.0, 300.0))
    ledger.create()
    for page in ledger.pages(now, Span()):
        claimed, _ = ledger.claim(page, now)
        ledger.mark_published([each.key for each in claimed], now)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        survey = ledger.survey(now, now - timedelta(days=1))
        times.append(time.perf_counter() - started)
        assert (survey.pending, survey.recent_due, survey.older_due) == (1_000, 0, 0)
    engine.dispose()
    return sorted(times)[10] * 1000


def main() -> None:
    """Measure, print, exit 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("orders", nargs="?", type=int, default=20_000)
    count = parser.parse_args().orders
    table = Table(f"Orders: {count:,} pending", ["msg/s", "peak +MiB"])
    with PostgresServer() as postgres, RabbitServer() as rabbit:
        for kind, over_blocking in (("classic", 9), ("quorum", 18)):
            fill(table, kind, count, rates(postgres, rabbit.url(), kind, count), over_blocking)
        table.row("run with nothing due, ms in the database", (idle_ms(postgres), None), "<= 5 ms")
    table.finish()


if __name__ == "__main__":
    main()
