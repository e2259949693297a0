"""The ways to publish orders that bench/orders.py compares: peers, the broker's limit, and stellerd's publisher.

Each takes the broker's URL and a number of messages, and returns the seconds; connecting is not counted.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import aio_pika
import celery
import kombu
import pika
from pika import frame, spec
from stellerd_order_queue.envelope import CONTENT_TYPE, Envelopes, Message, iso_utc, message_id
from stellerd_order_queue.publisher import Wishes, open_publisher

EXCHANGE = "SharedContracts:OrderCreated"
RAW_WINDOW = 1_000
RAW_CHUNK = 100


def messages(url: str, count: int) -> Iterator[Message]:
    """Envelopes built one by one, as the job does."""
    made = Envelopes(url, EXCHANGE, "orderId")
    for n in range(count):
        yield made.build(str(n), r := str(uuid.uuid4()), message_id(r), iso_utc(datetime.now(UTC)))


def properties(message: Message) -> Any:
    return pika.BasicProperties(
        content_type=CONTENT_TYPE, delivery_mode=2, message_id=message.id, correlation_id=message.correlation_id
    )


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


def kombu_producer(url: str, count: int) -> float:
    """kombu, each message confirmed before the next: the transport knows no other way."""
    with kombu.Connection(url, transport_options={"confirm_publish": True}) as connection:
        producer = kombu.Producer(connection.channel())
        producer.publish(b"{}", exchange=EXCHANGE, routing_key="", delivery_mode=2)  # connects and learns to confirm
        started = time.perf_counter()
        for message in messages(url, count):
            producer.publish(
                message.body, exchange=EXCHANGE, routing_key="", mandatory=True, delivery_mode=2,
                content_type=CONTENT_TYPE, content_encoding="utf-8", message_id=message.id,
                correlation_id=message.correlation_id,
            )  # fmt: skip
        return time.perf_counter() - started


def celery_send_task(url: str, count: int) -> float:
    """celery's send_task with confirms: the same ids in an envelope of its own."""
    app = celery.Celery(broker=url)
    app.conf.update(broker_transport_options={"confirm_publish": True}, task_ignore_result=True)
    with app.producer_pool.acquire(block=True) as producer:

        def send(message: Message) -> None:
            app.send_task(
                "OrderCreated", (message.correlation_id,), task_id=message.id, producer=producer, exchange=EXCHANGE,
                routing_key="", mandatory=True, ignore_result=True,
            )  # fmt: skip

        send(next(messages(url, 1)))
        started = time.perf_counter()
        for message in messages(url, count):
            send(message)
        return time.perf_counter() - started


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
