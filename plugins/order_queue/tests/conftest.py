"""What the order tests share: a database with orders in it, a queue behind the exchange, a job to run."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pika
import pytest
import sqlalchemy as sa
from stellerd_order_queue import OrderQueue
from stellerd_order_queue.dialects import dialect_of, utc_text

from stellerd.testing import Harness

EXCHANGE = "SharedContracts:OrderCreated"
_INSERT = """INSERT INTO "Orders" ("Id", "OrderNumber", "OrderId", "RequestId", "PartnerId", "SaleTotal", "Total",
    "OrderStatusId", "Status", "CreateDate", "OrderType", "Currency", "CreatedAt", "UpdatedAt")
    VALUES (:id, 1, :order_id, :request, 1, 10, 10, 1, :status, :created, 'Card', 'EUR', :created, :created)"""


class Orders:
    """A database of the platform: its tables, and ways to put orders in and look at the ledger."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = sa.create_engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        dialect = dialect_of(self.engine)
        self.ledger_table = ("" if self.is_sqlite else "stellerd.") + "stellerd_published_orders"
        with self.engine.begin() as connection:
            for statement in dialect.create_orders:
                connection.exec_driver_sql(statement)

    def add(
        self,
        count: int = 1,
        *,
        age: timedelta = timedelta(minutes=1),
        status: str = "Created",
        order_id: int = 0,
        request: uuid.UUID | str | None = None,
        created: str | None = None,
    ) -> list[str]:
        """Insert orders of that age, a millisecond apart; returns their request ids."""
        rows = []
        for n in range(count):
            moment: Any = datetime.now(UTC) - age + timedelta(milliseconds=n)
            fresh = request or uuid.uuid4()
            rows.append(
                {
                    "id": str(uuid.uuid4()) if self.is_sqlite else uuid.uuid4(),
                    "request": str(fresh) if self.is_sqlite else fresh,
                    "order_id": order_id,
                    "status": status,
                    "created": created or (utc_text(moment) if self.is_sqlite else moment),
                }
            )
        with self.engine.begin() as connection:
            connection.execute(sa.text(_INSERT), rows)
        return [str(row["request"]) for row in rows]

    def add_many(self, count: int) -> None:
        """Insert many orders quickly (PostgreSQL)."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql(
                """INSERT INTO "Orders" ("Id", "OrderNumber", "RequestId", "PartnerId", "SaleTotal", "Total",
                "OrderStatusId", "Status", "CreateDate", "OrderType", "Currency", "CreatedAt", "UpdatedAt")
                SELECT gen_random_uuid(), n, gen_random_uuid(), 1, 10, 10, 1, 'Created',
                now() - n * interval '1 millisecond', 'Card', 'EUR', now(), now() FROM generate_series(1, %s) n""",
                (count,),
            )

    def outlive_crashes(self) -> None:
        """From now on a committed transaction is there after a crash of the test server, as in production."""
        with self.engine.begin() as connection:
            name = self.engine.url.database
            connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET synchronous_commit = on')
        self.engine.dispose()

    def requests(self) -> set[str]:
        """The request ids of all orders."""
        return {str(row[0]) for row in self.sql('SELECT "RequestId" FROM "Orders"')}

    def published(self) -> set[str]:
        """Request ids that the ledger calls published."""
        return {str(row[0]) for row in self.sql(f"SELECT request_id FROM {self.ledger_table} WHERE attempts > 0")}

    def update(self, request: str, **values: Any) -> None:
        """Change columns of the order with that request id."""
        for column, value in values.items():
            with self.engine.begin() as connection:
                connection.execute(
                    sa.text(f'UPDATE "Orders" SET "{column}" = :value WHERE CAST("RequestId" AS text) = :request'),
                    {"value": value, "request": request},
                )

    def sql(self, statement: str) -> list[Any]:
        """Rows of a query."""
        with self.engine.connect() as connection:
            return list(connection.execute(sa.text(statement)))

    def ledger(self, columns: str) -> list[Any]:
        """Columns of the ledger, by request id."""
        return self.sql(f"SELECT {columns} FROM {self.ledger_table} ORDER BY request_id")


class Consumer:
    """What stands behind the exchange: exactly what the .NET service declares."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _channel(self) -> tuple[Any, Any]:
        connection = pika.BlockingConnection(pika.URLParameters(self.url))
        return connection, connection.channel()

    def bind(self, kind: str = "classic", **arguments: Any) -> None:
        """Declare exchange, endpoint exchange, queue and bindings, as the consumer does at its start."""
        connection, channel = self._channel()
        channel.exchange_declare(EXCHANGE, "fanout", durable=True)
        channel.exchange_declare("order-created", "fanout", durable=True)
        channel.exchange_bind("order-created", EXCHANGE)
        channel.queue_declare("order-created", durable=True, arguments={"x-queue-type": kind, **arguments})
        channel.queue_bind("order-created", "order-created")
        connection.close()

    def drain(self, see: Callable[[Any, bytes], Any], enough: Callable[[], bool], deadline: float = 60.0) -> None:
        """Take all out of the queue, until it is empty and there was `enough`, or the deadline passed.

        Acknowledged after `see`: a queue that pauses, as those of a busy machine do, loses nothing here.
        """
        connection, channel = self._channel()
        channel.basic_qos(prefetch_count=2_000)
        until, last, unacknowledged = time.monotonic() + deadline, 0, 0
        for method, properties, body in channel.consume("order-created", inactivity_timeout=0.2):
            if method is not None:
                see(properties, body)
                last, unacknowledged = method.delivery_tag, unacknowledged + 1
            if unacknowledged and (method is None or unacknowledged >= 500):
                channel.basic_ack(last, multiple=True)
                unacknowledged = 0
            if method is None and not self.count(channel) and (enough() or time.monotonic() > until):
                break
        connection.close()

    def take(self, wait_for: int = 0, deadline: float = 20.0) -> list[tuple[Any, dict[str, Any]]]:
        """Properties and body of everything in the queue, once it gave `wait_for` messages."""
        got: list[tuple[Any, dict[str, Any]]] = []

        def see(properties: Any, body: bytes) -> None:
            got.append((properties, json.loads(body)))

        self.drain(see, lambda: len(got) >= wait_for, deadline)
        return got

    def message_ids(self, expected: Iterable[str] = ()) -> Counter[tuple[str, str]]:
        """(request id, message id) of all in the queue, once the expected request ids were among them."""
        found: Counter[tuple[str, str]] = Counter()
        missing = set(expected)

        def see(properties: Any, _: bytes) -> None:
            found[(properties.correlation_id, properties.message_id)] += 1
            missing.discard(properties.correlation_id)

        self.drain(see, lambda: not missing)
        return found

    @staticmethod
    def count(channel: Any) -> int:
        """Messages in the queue."""
        return int(channel.queue_declare("order-created", passive=True).method.message_count)

    def requests(self, wait_for: int = 0) -> Counter[str]:
        """How often each request id is in the queue."""
        return Counter(body["message"]["orderId"] for _, body in self.take(wait_for))


@pytest.fixture(params=["sqlite", "postgres"])
def orders(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Orders]:
    """The platform's database, once of each kind."""
    url = f"sqlite:///{tmp_path}/steller.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    made = Orders(url)
    yield made
    made.engine.dispose()


@pytest.fixture
def make_orders() -> type[Orders]:
    """For a test that brings its own database."""
    return Orders


@pytest.fixture
def pg_orders(postgres_url: str) -> Iterator[Orders]:
    """The platform's database on PostgreSQL."""
    made = Orders(postgres_url)
    yield made
    made.engine.dispose()


@pytest.fixture
def consumer(rabbitmq_vhost: str) -> Consumer:
    """A consumer that has not been started yet: nothing is bound."""
    return Consumer(rabbitmq_vhost)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A folder to publish to."""
    return tmp_path / "spool"


Job = Callable[..., Harness]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Makes a harness for a database and a broker URL with settings."""

    def make(database: str, broker: str, **settings: Any) -> Harness:
        return Harness(
            OrderQueue, settings=settings, databases={"steller": database}, broker=broker, folder=tmp_path,
            name="order_queue",
        )  # fmt: skip

    return make


@pytest.fixture
def spooled(spool: Path) -> Callable[[], Counter[str]]:
    """Takes the request ids out of the spool, as a consumer would."""

    def take() -> Counter[str]:
        found: Counter[str] = Counter()
        for file in spool.glob("*.json"):
            found[json.loads(file.read_bytes())["message"]["orderId"]] += 1
            file.unlink()
        return found

    return take
