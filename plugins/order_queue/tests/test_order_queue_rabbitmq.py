"""Publishing to a real RabbitMQ: nothing is lost, nothing is marked that the broker does not answer for."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from stellerd_order_queue.envelope import CONTENT_TYPE, Envelopes, Message, iso_utc, message_id
from stellerd_order_queue.link import confirmed_tags
from stellerd_order_queue.publisher import Outcome, Wishes, open_publisher

from stellerd import errors

EXCHANGE = "SharedContracts:OrderCreated"


def messages(url: str, count: int) -> list[Message]:
    made = Envelopes(url, EXCHANGE, "orderId")
    now = iso_utc(datetime.now(UTC))
    return [made.build(str(n), r := str(uuid.uuid4()), message_id(r), now) for n in range(count)]


def wishes(**changes: Any) -> Wishes:
    return Wishes(**{"exchange": EXCHANGE, "window": 500, "confirm_timeout": 20.0, "connect_timeout": 10.0, **changes})


def publish(url: str, batch: Any, **changes: Any) -> list[Outcome]:
    with open_publisher([url], wishes(**changes)) as publisher:
        return list(publisher.publish(batch))


def states(outcomes: list[Outcome]) -> Counter[str]:
    return Counter(outcome.state for outcome in outcomes)


def admin(url: str) -> tuple[Any, Any]:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    return connection, connection.channel()


def with_side_effect(batch: list[Message], at: int, effect: Callable[[], Any]) -> Iterator[Message]:
    """The messages; `effect` happens when number `at` is asked for."""
    for n, message in enumerate(batch):
        if n == at:
            effect()
        yield message


class Proxy:
    """Stands between publisher and broker, and can swallow what the broker answers."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._broker = (parts.hostname, parts.port)
        self._server = socket.create_server(("127.0.0.1", 0))
        port = self._server.getsockname()[1]
        self.url = url.replace(f":{parts.port}/", f":{port}/")
        self._sockets: list[socket.socket] = []
        self._holding = self._for_good = self._until_goodbye = False
        self._late: list[tuple[socket.socket, bytes]] = []
        self._held = threading.Event()

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.close()
        self._cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                broker = socket.create_connection(self._broker)
                self._sockets += [client, broker]
                self._holding = False  # a new connection can open
                threading.Thread(target=self._pump, args=(client, broker, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(broker, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not answers and data[7:11] == b"\x00\x14\x00\x28":  # channel.close, before the connection's
                    self._let_go()
                if answers and self._until_goodbye:
                    self._late.append((sink, data))
                elif answers and self._swallows(data):
                    self._held.set()
                else:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _swallows(self, data: bytes) -> bool:
        is_ack = data[7:11] == b"\x00\x3c\x00\x50"  # a frame's class and method: basic.ack
        return self._holding or (self._for_good and is_ack)

    def _let_go(self) -> None:
        self._until_goodbye = False
        for sink, data in self._late:
            sink.sendall(data)
        self._late.clear()

    def hold_answers_until_goodbye(self) -> None:
        self._until_goodbye = True

    def hold_answers(self) -> None:
        self._holding = True

    def hold_acks_for_good(self) -> None:
        self._for_good = True

    def cut_once_held_answers_pile_up(self) -> None:
        assert self._held.wait(10)
        self._cut()

    def _cut(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._sockets.clear()


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_20000_orders_arrive_each_valid_and_none_twice(kind: str, pg_orders: Any, consumer: Any, job: Any) -> None:
    pg_orders.add_many(20_000)
    consumer.bind(kind)
    record = job(pg_orders.url, consumer.url).run()
    assert (record.state, record.counters["published"], record.counters["returned"]) == ("ok", 20_000, 0)
    arrived = consumer.take(wait_for=20_000)
    assert Counter(body["message"]["orderId"] for _, body in arrived) == Counter(pg_orders.requests())
    for properties, body in arrived:
        request = body["message"]["orderId"]
        assert body["messageId"] == properties.message_id == message_id(request)
        assert body["correlationId"] == properties.correlation_id == request
        assert body["messageType"] == ["urn:message:SharedContracts:OrderCreated"]
        assert (properties.content_type, properties.delivery_mode) == (CONTENT_TYPE, 2)
    assert job(pg_orders.url, consumer.url).run().counters["pending"] == 0


def test_nothing_bound_marks_nothing_and_says_so(orders: Any, consumer: Any, job: Any) -> None:
    requests = set(orders.add(1_200))
    harness = job(orders.url, consumer.url)
    record = harness.run()
    assert record.state == "failed"
    assert f"no queue is bound to exchange {EXCHANGE}; start the consumer once" in record.reason
    assert record.counters["published"] == 0
    assert 500 <= record.counters["returned"] <= 1_000  # it does not go on for ever
    assert {row[0] for row in orders.ledger("attempts")} <= {0}
    consumer.bind()
    record = harness.run()  # at once: nothing waits for a claim to end
    assert (record.state, record.counters["published"], record.counters["republished"]) == ("ok", 1_200, 0)
    assert consumer.requests(1_200) == Counter(requests)


def test_a_queue_bound_in_the_middle(consumer: Any) -> None:
    consumer.bind()
    connection, channel = admin(consumer.url)
    channel.exchange_unbind("order-created", EXCHANGE)
    batch = messages(consumer.url, 3_000)
    feed = with_side_effect(batch, 2_000, lambda: channel.exchange_bind("order-created", EXCHANGE))
    outcomes = publish(consumer.url, feed)
    connection.close()
    published = {outcome.message.correlation_id for outcome in outcomes if outcome.state == "published"}
    assert set(states(outcomes)) == {"returned", "published"}
    assert len(outcomes) == 3_000
    assert consumer.requests(len(published)) == Counter(published)


def test_connections_closed_by_the_operator_lose_nothing(rabbitmq: Any, consumer: Any) -> None:
    consumer.bind()
    batch = messages(consumer.url, 5_000)
    feed = with_side_effect(batch, 2_500, lambda: rabbitmq.ctl("close_all_connections", "test"))
    outcomes = publish(consumer.url, feed)
    assert states(outcomes) == {"published": 5_000}
    arrived = consumer.requests(5_000)
    assert set(arrived) == {message.correlation_id for message in batch}
    assert sum(arrived.values()) - 5_000 <= 500  # what was on its way went out again, under the same ids


def test_an_exchange_deleted_in_the_middle_is_declared_again(consumer: Any) -> None:
    consumer.bind()
    connection, channel = admin(consumer.url)
    batch = messages(consumer.url, 2_000)
    feed = with_side_effect(batch, 1_000, lambda: channel.exchange_delete(EXCHANGE))
    outcomes = publish(consumer.url, feed)
    connection.close()
    assert len(outcomes) == 2_000
    published = {outcome.message.correlation_id for outcome in outcomes if outcome.state == "published"}
    assert published <= set(consumer.requests(len(published)))  # more: what arrived unanswered, and came back later


def test_what_a_broken_connection_left_open_is_sent_again_under_the_same_ids(consumer: Any) -> None:
    consumer.bind()
    with Proxy(consumer.url) as proxy:
        batch = messages(proxy.url, 400)
        feed = with_side_effect(batch, 200, proxy.hold_answers)
        closer = threading.Thread(target=proxy.cut_once_held_answers_pile_up)
        closer.start()
        outcomes = publish(proxy.url, feed, window=100)
        closer.join()
    assert states(outcomes) == {"published": 400}
    arrived = consumer.take(wait_for=401)
    twice = Counter(properties.message_id for properties, _ in arrived)
    assert set(twice) == {message.id for message in batch}
    assert 400 < sum(twice.values()) <= 500  # answered by nobody, so sent twice: no more than a window


def test_a_confirm_that_comes_while_the_connection_is_being_closed_counts(consumer: Any) -> None:
    consumer.bind()
    with Proxy(consumer.url) as proxy:
        batch = messages(proxy.url, 20)
        feed = with_side_effect(batch, 10, proxy.hold_answers_until_goodbye)
        outcomes = publish(proxy.url, feed, window=10, confirm_timeout=0.5)
    assert Counter(outcome.message.id for outcome in outcomes) == Counter(message.id for message in batch)
    assert states(outcomes) == {"published": 20}
    assert set(consumer.requests(20).values()) == {1}  # nothing was sent again


def test_a_message_is_sent_twice_at_most_in_one_run(consumer: Any) -> None:
    consumer.bind()
    with Proxy(consumer.url) as proxy:
        feed = with_side_effect(messages(proxy.url, 10), 0, proxy.hold_acks_for_good)
        outcomes = publish(proxy.url, feed, window=10, confirm_timeout=0.5)
    assert states(outcomes) == {"unknown": 10}
    assert "no confirm within 0.5 s" in outcomes[0].reason
    assert set(consumer.requests(20).values()) == {2}


def test_a_full_queue_refuses_and_the_order_stays_pending(orders: Any, consumer: Any, job: Any) -> None:
    requests = set(orders.add(30))
    consumer.bind(**{"x-max-length": 10, "x-overflow": "reject-publish"})
    harness = job(orders.url, consumer.url, window=3)
    record = harness.run()
    assert record.state == "partial"
    assert (record.counters["published"], record.counters["failed"]) == (10, 1)  # a third of it: the first no is enough
    assert "basic.nack" in record.reason
    arrived = consumer.requests(10)
    for _ in range(2):
        assert harness.run().counters["published"] == 10
        arrived += consumer.requests(10)
    assert arrived == Counter(requests)


def test_no_confirm_in_time_is_unknown_not_published(rabbit_server: Any, consumer: Any) -> None:
    consumer.bind()
    batch = messages(consumer.url, 600)
    seen: list[Outcome] = []
    with open_publisher([consumer.url], wishes(window=100, confirm_timeout=1.0, connect_timeout=1.0)) as publisher:
        feed = with_side_effect(batch, 300, lambda: os.kill(rabbit_server.pid, signal.SIGSTOP))
        try:
            with pytest.raises(errors.Unreachable, match=r"no answer in time|no answer within 1 s"):
                seen.extend(publisher.publish(feed))
        finally:
            os.kill(rabbit_server.pid, signal.SIGCONT)
    taken = states(seen)
    assert set(taken) == {"published", "unknown"}
    assert "no confirm within 1 s" in next(each.reason for each in seen if each.state == "unknown")
    published = {each.message.correlation_id for each in seen if each.state == "published"}
    arrived = consumer.requests(len(published))
    assert published <= set(arrived)


def test_a_broker_that_dies_gives_every_order_back(rabbit_server: Any, orders: Any, consumer: Any, job: Any) -> None:
    """kill -9 of the whole broker in the middle of a run; the run after its return delivers the rest."""
    requests = set(orders.add(6_000))
    consumer.bind()
    rabbit_server.ctl("eval", "mnesia:dump_log().")  # else a crash may undo the binding of a moment ago
    harness = job(orders.url, consumer.url, connect_timeout="2s")
    original = harness.runner.services.progress
    died = []

    def progress(done: int, total: int | None, unit: str) -> None:
        if not died:
            died.append(done)
            rabbit_server.kill()
        original(done, total, unit)

    harness.runner.services.progress = progress
    try:
        record = harness.run()
    finally:
        rabbit_server.start()
    assert died
    assert (record.state, record.exit_code) == ("failed", 69)
    assert record.counters["published"] < 6_000
    record = harness.run()
    assert record.state == "ok"
    arrived = consumer.requests(6_000)
    assert set(arrived) == requests


def test_kill_9_of_the_job_in_the_middle_loses_nothing(pg_orders: Any, consumer: Any, job: Any) -> None:
    pg_orders.add_many(20_000)
    consumer.bind()
    connection, channel = admin(consumer.url)
    pid = os.fork()
    if pid == 0:
        try:
            job(pg_orders.url, consumer.url).run()
        finally:
            os._exit(1)  # only if it was quicker than the kill
    deadline = time.monotonic() + 20
    while consumer.count(channel) < 3_000 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    connection.close()
    harness = job(pg_orders.url, consumer.url)
    harness.clock.advance(301)  # the dead one's claims are over
    assert harness.run().state == "ok"
    arrived = consumer.requests(20_000)
    assert set(arrived) == pg_orders.requests()
    assert sum(arrived.values()) - 20_000 <= 1_500  # a window


def test_only_the_message_exchange_is_declared(rabbitmq: Any, consumer: Any) -> None:
    publish(consumer.url, messages(consumer.url, 1))
    vhost = consumer.url.rpartition("/")[2].replace("%2F", "/")
    ours = rabbitmq.ctl("-q", "list_exchanges", "-p", vhost, "name", "type", "durable", "--no-table-headers")
    named = [line.split("\t") for line in ours.splitlines() if line.strip() and not line.startswith(("amq.", "\t"))]
    assert named == [[EXCHANGE, "fanout", "true"]]
    assert rabbitmq.ctl("-q", "list_queues", "-p", vhost, "name", "--no-table-headers").strip() == ""


def test_an_exchange_of_another_kind_is_named(consumer: Any) -> None:
    connection, channel = admin(consumer.url)
    channel.exchange_declare(EXCHANGE, "direct", durable=True)
    connection.close()
    with pytest.raises(errors.JobFailed, match="exists, but is not fanout and durable"):
        publish(consumer.url, [])


def test_a_user_that_may_only_write_is_enough_when_the_exchange_is_there(rabbitmq: Any, consumer: Any) -> None:
    consumer.bind()
    vhost = consumer.url.rpartition("/")[2].replace("%2F", "/")
    name = f"writer-{uuid.uuid4().hex[:8]}"
    rabbitmq.ctl("add_user", name, "pw")
    rabbitmq.ctl("set_permissions", "-p", vhost, name, "", f"^{EXCHANGE}$", "")
    try:
        url = consumer.url.replace("guest:guest", f"{name}:pw")
        assert states(publish(url, messages(url, 3))) == {"published": 3}
    finally:
        rabbitmq.ctl("delete_user", name)


@pytest.mark.parametrize(
    ("outstanding", "tag", "multiple", "expected"),
    [
        ([1, 2, 3], 2, False, [2]),
        ([1, 2, 3], 2, True, [1, 2]),
        ([2, 5, 9], 5, True, [2, 5]),
        ([2, 5, 9], 0, True, [2, 5, 9]),
        ([4], 3, True, []),
    ],
)
def test_tags_that_a_confirm_means(outstanding: list[int], tag: int, multiple: bool, expected: list[int]) -> None:
    assert list(confirmed_tags(outstanding, tag, multiple)) == expected
