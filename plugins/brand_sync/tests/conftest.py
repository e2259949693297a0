"""What the tests of brand_sync share: a vendor that says what it is told to, and a sync against a real database."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from stellerd_brand_sync import BrandSync, digests, tables, wire
from stellerd_brand_sync.aside import Aside, Item
from stellerd_brand_sync.categories import CategoryBook
from stellerd_brand_sync.decode import Decoder
from stellerd_brand_sync.rows import BrandRows

from stellerd.testing import Harness, RunRecord, open_engine

SECRET = "s3cret-wörd"
TABLES = ("Categories", "Brands", "BrandCategories", "Products", "ProductPricings", "ProductPricingConfigurations")


def make_product(number: int, **changes: Any) -> dict[str, Any]:
    """A product as the vendor writes it; `changes` by the vendor's names."""
    return {
        "id": number, "name": f"Card {number}", "minFaceValue": 10, "maxFaceValue": 10, "count": None,
        "price": {"min": 9.5, "max": 9.5, "currencyCode": "USD"}, "modifiedDate": "2024-05-06T07:08:09.1234567",
    } | changes  # fmt: skip


def make_brand(key: str, *products: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A brand as the vendor writes it; `changes` by the vendor's names."""
    return {
        "internalId": key, "name": f"Shop {key}", "countryCode": "US", "currencyCode": "USD",
        "description": "<p>Tab\there,\nbackslash \\ and \\N</p>", "disclaimer": None, "redemptionInstructions": "",
        "terms": "tërms 🎁", "logoUrl": "", "modifiedDate": "2020-09-23T15:01:00.8409786", "categories": [],
        "products": list(products),
    } | changes  # fmt: skip


class Decoded:
    """What a catalogue became."""

    def __init__(self, *brands: Any, stored: dict[int, str] | None = None) -> None:
        body = brands[0] if isinstance(brands[0], bytes) else json.dumps({"brands": brands}).encode()
        self.aside = Aside()
        self.book = CategoryBook((number, name, None) for number, name in (stored or {}).items())
        self.decoder = Decoder(self.book, self.aside)
        self.rows: list[BrandRows] = list(self.decoder.read(enumerate(wire.decode_v1(body))))

    @property
    def only(self) -> BrandRows:
        """The one brand there is."""
        [rows] = self.rows
        return rows

    @property
    def prices(self) -> list[tuple[Any, ...]]:
        """Product id, min, max, currency and commission of each price of the one brand."""
        return [(row[0], *row[7:]) for row in self.only.products if row[-1] is not None]

    @property
    def bad(self) -> Item:
        """The one thing put aside."""
        [item] = self.aside.items
        return item

    @property
    def links(self) -> list[int]:
        """Category ids of the one brand."""
        return [number for _, number in self.only.links]


@pytest.fixture(scope="session")
def decoded() -> type[Decoded]:
    """Decodes brands, or a whole body: `decoded(brand, brand, stored={1: "Name"})`."""
    return Decoded


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        vendor: Vendor = self.server.vendor  # type: ignore[attr-defined]
        vendor.paths.append(self.path)
        status, body = vendor.answers.get(self.path, (404, b"no such thing"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


class Vendor:
    """An HTTP server whose two answers are set by the test; `paths` is what was asked for, in order."""

    V1, V2 = "/api/integration/v1.0/catalog", "/api/integration/v2.0/categories"

    def __init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.vendor = self  # type: ignore[attr-defined]
        self.base_url = f"http://127.0.0.1:{self.server.server_port}"
        self.paths: list[str] = []
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.categories([{"id": 1, "name": "Entertainment", "description": ""}])
        self.catalogue([make_brand("100", make_product(1), make_product(2))])

    def catalogue(self, brands: list[Any]) -> None:
        """Answer these brands from now."""
        self.answers[self.V1] = (200, json.dumps({"brands": brands}).encode())

    def categories(self, items: list[Any]) -> None:
        """Answer these categories from now."""
        self.answers[self.V2] = (200, json.dumps(items).encode())


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    vendor = Vendor()
    thread = threading.Thread(target=vendor.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield vendor
    vendor.server.shutdown()
    thread.join()
    vendor.server.server_close()


class World:
    """One sync job, its vendor and its database."""

    def __init__(self, url: str, folder: Path, base_url: str, **settings: Any) -> None:
        self.url = url
        chosen = {
            "base_url_v1": base_url, "base_url_v2": base_url, "client_id": "me", "client_secret": SECRET,
            "create_tables": True, "max_shrink": 1,
        } | settings  # fmt: skip
        self.harness = Harness(
            BrandSync,
            name="brand_sync",
            folder=folder,
            databases={"steller": url},
            settings={key: value for key, value in chosen.items() if value is not None},
        )
        self.engine = open_engine(url, "test")

    def reconfigure(self, **settings: Any) -> None:
        """Other settings from the next run on."""
        runner = self.harness.runner
        runner.settings = runner.settings.model_copy(update=settings)

    def run(self, dry_run: bool = False) -> RunRecord:
        """A run an hour after the one before, so that no limit is in its way."""
        record = self.harness.run(dry_run=dry_run)
        self.harness.clock.advance(3700)
        return record

    def ok(self) -> dict[str, int]:
        """Run, insist on success; the counters."""
        record = self.run()
        assert record.state == "ok", record.reason
        return record.counters

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of a SELECT, times as aware datetimes and exact numbers on PostgreSQL, as texts on SQLite."""
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(statement)]

    def do(self, *statements: str) -> None:
        """Change something behind the job's back."""
        with self.engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        """Each row of each table with its physical place and writer: a row that was rewritten looks different."""
        place = "ctid, xmin::text, *" if self.engine.dialect.name == "postgresql" else "*"
        return {table: sorted(self.query(f'SELECT {place} FROM "{table}"'), key=str) for table in TABLES}

    def changed_rows(self, before: dict[str, list[tuple[Any, ...]]]) -> dict[str, int]:
        """How many rows of each table differ from `before`; tables without any are left out."""
        now = self.everything()
        found = {table: len(set(now[table]) - set(before[table])) for table in TABLES}
        return {table: number for table, number in found.items() if number}

    def create(self) -> None:
        """The platform's tables with their seed rows, as its own migrations would have made them."""
        with self.engine.begin() as connection:
            tables.create_missing(connection)

    def money(self, value: Any) -> Decimal:
        """A money column's value: numeric on PostgreSQL, text on SQLite, never a float."""
        assert isinstance(value, Decimal | str), f"{value!r} is not exact"
        return Decimal(value)

    def time(self, value: Any) -> datetime:
        """A time column's value, aware UTC."""
        if isinstance(value, str):
            return datetime.fromisoformat(value).replace(tzinfo=UTC)
        at: datetime = value
        return at.astimezone(UTC)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something another process or thread does."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "waited 20 s in vain"
            time.sleep(0.01)

    def close(self) -> None:
        """Give all connections back, so that the database can be dropped."""
        self.engine.dispose()
        self.harness.runner.services.engine("steller").dispose()
        self.harness.store.close()


Worlds = Callable[..., World]


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Worlds]:
    """Makes worlds: `worlds(url, base_url, **settings)`."""
    made: list[World] = []

    def make(url: str, base_url: str, **settings: Any) -> World:
        world = World(url, tmp_path / str(len(made)), base_url, **settings)
        made.append(world)
        return world

    yield make
    for world in made:
        world.close()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/steller.db"


@pytest.fixture(params=["postgres_url", "sqlite_url"])
def any_url(request: pytest.FixtureRequest) -> str:
    """The same test on both databases."""
    url: str = request.getfixturevalue(request.param)
    return url


@pytest.fixture
def world(any_url: str, worlds: Worlds, vendor: Vendor) -> World:
    """A sync from `vendor` on each database."""
    return worlds(any_url, vendor.base_url)


@pytest.fixture
def product() -> Callable[..., dict[str, Any]]:
    return make_product


@pytest.fixture
def brand() -> Callable[..., dict[str, Any]]:
    return make_brand


@pytest.fixture
def memory() -> Iterator[sa.Connection]:
    """An open transaction on an in-memory SQLite with the tables."""
    engine = open_engine("sqlite:///:memory:", "test")
    with engine.connect() as connection:
        tables.create_missing(connection)
        digests.create(connection)
        yield connection
    engine.dispose()
