"""More than one broker, TLS to a real one, what its operator sees of us, and a peer that is gone without a word."""

from __future__ import annotations

import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from servers import RabbitServer, free_port
from stellerd_order_queue.envelope import Envelopes, Message, iso_utc, message_id
from stellerd_order_queue.link import parameters
from stellerd_order_queue.publisher import Outcome, Wishes, open_publisher

EXCHANGE = "SharedContracts:OrderCreated"
AWAY = "amqp://u:s3cr3t@127.0.0.1:1/x"


def messages(count: int) -> list[Message]:
    made = Envelopes("amqp://h", EXCHANGE, "orderId")
    now = iso_utc(datetime.now(UTC))
    return [made.build(str(n), r := str(uuid.uuid4()), message_id(r), now) for n in range(count)]


def test_the_first_broker_that_answers_is_used(consumer: Any, orders: Any, job: Any) -> None:
    consumer.bind()
    requests = set(orders.add(5))
    assert job(orders.url, [AWAY, consumer.url]).run().counters["published"] == 5
    assert set(consumer.requests(5)) == requests


def test_when_none_answers_each_is_named(orders: Any, job: Any) -> None:
    orders.add()
    record = job(orders.url, [AWAY, AWAY.replace(":1/", ":2/")]).run()
    assert (record.state, record.exit_code) == ("failed", 69)
    assert "amqp://127.0.0.1:1/x: Connection refused" in record.reason
    assert "amqp://127.0.0.1:2/x: Connection refused" in record.reason
    assert "s3cr3t" not in record.reason


def test_the_next_broker_takes_over_in_the_middle(rabbitmq: Any, consumer: Any) -> None:
    """The first one's virtual host is deleted under the connection."""
    consumer.bind()
    name = f"gone-{uuid.uuid4().hex[:8]}"
    rabbitmq.ctl("add_vhost", name)
    rabbitmq.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    first = f"{rabbitmq.url.rpartition('/')[0]}/{name}"
    type(consumer)(first).bind()
    batch = messages(2_000)

    def feed() -> Iterator[Message]:
        for n, message in enumerate(batch):
            if n == 1_000:
                rabbitmq.ctl("delete_vhost", name)
            yield message

    with open_publisher([first, consumer.url], Wishes(EXCHANGE)) as publisher:
        outcomes: list[Outcome] = list(publisher.publish(feed()))
    assert {each.state for each in outcomes} == {"published"}
    assert set(consumer.requests(1_000)) >= {message.correlation_id for message in batch[1_000:]}


def test_a_spool_beside_a_broker_is_a_mistake(orders: Any, job: Any, spool: Path) -> None:
    orders.add()
    assert "a spool stands alone" in job(orders.url, [AWAY, f"spool://{spool}"]).run().reason


def test_what_the_operator_of_the_broker_sees(rabbitmq: Any, consumer: Any) -> None:
    with open_publisher([consumer.url], Wishes(EXCHANGE, heartbeat=17.0)):
        seen = rabbitmq.ctl("-q", "list_connections", "timeout", "client_properties")
    assert any("stellerd order_queue" in line and line.startswith("17\t") for line in seen.splitlines())


def test_a_heartbeat_in_the_url_wins() -> None:
    assert parameters("amqp://h/x?heartbeat=5", Wishes(EXCHANGE)).heartbeat == 5
    assert parameters("amqp://h/x", Wishes(EXCHANGE)).heartbeat == 30


class TlsRabbit(RabbitServer):
    """A RabbitMQ with a TLS listener besides, whose certificate an authority of our own signed."""

    def __init__(self, pki: Path) -> None:
        super().__init__()
        self.tls_port, self.pki, self.authority = free_port(), pki, pki / "ca.pem"
        usage = "-addext keyUsage=critical,keyCertSign,cRLSign"  # Python 3.13 and newer insist on it
        self._openssl(f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca {usage} -keyout ca.key -out ca.pem")
        self._openssl("req -newkey rsa:2048 -nodes -subj /CN=broker -keyout server.key -out server.csr")
        self.sign("-CA ca.pem -CAkey ca.key -CAcreateserial")
        for file in (self.authority, pki / "server.key"):
            file.chmod(0o644)
        self._lines = [
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}", f"ssl_options.cacertfile = {self.authority}",
            f"ssl_options.certfile = {pki}/server.pem", f"ssl_options.keyfile = {pki}/server.key",
            "ssl_options.verify = verify_none",
        ]  # fmt: skip

    def sign(self, by: str, names: str = "IP:127.0.0.1", days: int = 2) -> None:
        """Make the server's certificate; one of 0 days has expired at once."""
        extensions = f"subjectAltName={names}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid,issuer\n"
        (self.pki / "names").write_text(extensions)
        self._openssl(f"x509 -req -in server.csr {by} -days {days} -extfile names -out server.pem")

    def present(self, **certificate: Any) -> None:
        """Show connections from now on another certificate."""
        self.sign(**certificate)
        self.ctl("eval", "ssl:clear_pem_cache().")

    def _openssl(self, command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=self.pki, check=True, capture_output=True)

    def configuration(self) -> list[str]:
        return [*super().configuration(), *self._lines]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRabbit]:
    """A broker that speaks TLS; its certificate is for 127.0.0.1 only."""
    with TlsRabbit(tmp_path_factory.mktemp("tls")) as server:
        yield server


def test_tls_to_a_real_broker(tls: TlsRabbit, pg_orders: Any, consumer: Any, job: Any) -> None:
    requests = set(pg_orders.add(600))
    vhost = tls.new_vhost().rpartition("/")[2]
    plain = type(consumer)(f"{tls.url().rpartition('/')[0]}/{vhost}")
    plain.bind()
    secure = f"amqps://guest:guest@127.0.0.1:{tls.tls_port}/{vhost}"
    record = job(pg_orders.url, secure).run()
    assert "certificate is not trusted" in record.reason
    record = job(pg_orders.url, secure.replace("127.0.0.1", "localhost"), broker_ca=str(tls.authority)).run()
    assert "certificate is not trusted" in record.reason  # issued for another name
    record = job(pg_orders.url, secure, broker_ca=str(tls.authority)).run()
    assert (record.state, record.counters["published"]) == ("ok", 600)
    assert set(plain.requests(600)) == requests


@pytest.mark.parametrize(
    ("certificate", "said"),
    [
        ({"by": "-CA ca.pem -CAkey ca.key", "days": 0}, "certificate has expired"),
        ({"by": "-CA ca.pem -CAkey ca.key", "names": "IP:10.1.2.3"}, "IP address mismatch"),
        ({"by": "-signkey server.key"}, "self-signed certificate"),
    ],
    ids=["expired", "of another host", "self-signed"],
)
def test_tls_to_a_real_broker_that_cannot_prove_who_it_is(
    certificate: dict[str, Any], said: str, tls: TlsRabbit, pg_orders: Any, job: Any
) -> None:
    pg_orders.add(3)
    tls.present(**certificate)
    url = f"amqps://guest:guest@127.0.0.1:{tls.tls_port}/%2F"
    try:
        record = job(pg_orders.url, url, broker_ca=str(tls.authority)).run()
    finally:
        tls.present(by="-CA ca.pem -CAkey ca.key")
    assert (record.state, record.counters["pending"]) == ("failed", 3)
    assert "the broker's certificate is not trusted" in record.reason
    assert said in record.reason
    assert pg_orders.sql(f"SELECT count(*) FROM {pg_orders.ledger_table}") == [(0,)]  # not even claimed


def test_a_broker_that_blocks_publishers_is_sent_one_message_a_run(
    rabbitmq: Any, pg_orders: Any, consumer: Any, job: Any
) -> None:
    """An alarm that was there before us: the run says so and claims are given back."""
    consumer.bind()
    pg_orders.add(50)
    rabbitmq.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        record = job(pg_orders.url, consumer.url, confirm_timeout="1s").run()
    finally:
        rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    assert (record.state, record.exit_code, record.counters["blocked"]) == ("failed", 69, 1)
    assert "the broker has blocked publishers (low on memory)" in record.reason
    assert pg_orders.ledger("attempts, claim_until") == [(0, None)] * 50
    record = job(pg_orders.url, consumer.url).run()
    assert (record.state, record.counters["published"]) == ("ok", 50)
    assert 50 <= sum(consumer.requests(50).values()) <= 51


def test_an_alarm_that_passes_costs_nothing_but_time(rabbitmq: Any, consumer: Any) -> None:
    consumer.bind()
    rabbitmq.ctl("set_vm_memory_high_watermark", "0.00001")
    mended = threading.Timer(1.0, rabbitmq.ctl, ("set_vm_memory_high_watermark", "0.4"))
    mended.start()
    started = time.monotonic()
    with open_publisher([consumer.url], Wishes(EXCHANGE)) as publisher:
        outcomes = list(publisher.publish(messages(700)))
    mended.join()
    assert [each.state for each in outcomes] == ["published"] * 700
    assert time.monotonic() - started > 1.0
    assert max(consumer.requests(700).values()) == 1
