"""The merge on PostgreSQL and SQLite: exactly what changed is written, whatever was there before."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stellerd_brand_sync import catalogue, digests, tables, wire
from stellerd_brand_sync.aside import Aside
from stellerd_brand_sync.staging import Staging

from stellerd.testing import open_engine

Make = Callable[..., dict[str, Any]]
LINKS = 'SELECT b."InternalId", c."CategoryId" FROM "BrandCategories" c JOIN "Brands" b ON b."Id" = c."BrandId"'
NOW = datetime(2026, 2, 1, 12, tzinfo=UTC)


def apply(connection: sa.Connection, brands: list[dict[str, Any]], **order: Any) -> dict[str, int]:
    """Store a catalogue; the counters."""
    raws = wire.decode_v1(json.dumps({"brands": brands}).encode())
    return catalogue.store(connection, raws, catalogue.Order(NOW, **order), Aside()).counters


def test_everything_arrives_as_it_was_sent(world: Any, vendor: Any, brand: Make, product: Make) -> None:
    made = product(
        5,
        minFaceValue=0.1,
        maxFaceValue=100.25,
        count=7,
        price={"min": "0.00000001", "max": 99.5, "currencyCode": "EUR"},
    )
    vendor.catalogue([brand("7", made, categories=[1])])
    world.ok()
    [row] = world.query(
        'SELECT "InternalId", "Name", "CountryCode", "CurrencyCode", "Description", "Disclaimer", '
        '"RedemptionInstructions", "Terms", "LogoUrl", "CreatedBy", "UpdatedBy", "ModifiedDate" FROM "Brands"'
    )
    sent = brand("7")
    assert row[:-1] == ("7", "Shop 7", "US", "USD", sent["description"], None, "", sent["terms"], "", 1, 1)
    assert world.time(row[-1]) == datetime(2020, 9, 23, 15, 1, 0, 840978, UTC)
    [row] = world.query(
        'SELECT "Id", "BrandInternalId", "Name", "Count", "MinFaceValue", "MaxFaceValue" FROM "Products"'
    )
    assert row[:4] == (5, "7", "Card 5", 7)
    assert [world.money(value) for value in row[4:]] == [Decimal("0.1"), Decimal("100.25")]
    [row] = world.query('SELECT "ProductId", "CurrencyCode", "Min", "Max" FROM "ProductPricings"')
    assert row[:2] == (5, "EUR")
    assert [world.money(value) for value in row[2:]] == [Decimal("0.00000001"), Decimal("99.5")]
    assert world.query('SELECT "ProductId", "CommissionTypeId" FROM "ProductPricingConfigurations"') == [(5, 1)]
    assert world.query(LINKS) == [("7", 1)]


def test_the_same_catalogue_again_writes_nothing(world: Any) -> None:
    first = world.ok()
    before = world.everything()
    again = world.ok()
    assert world.changed_rows(before) == {}
    assert (first["new"], again["new"], again["changed"], again["unchanged"], again["rows"]) == (2, 0, 0, 2, 0)


ONE_ROW = [
    ({"price": {"min": 9.5, "max": 9.75, "currencyCode": "USD"}}, "ProductPricings"),
    ({"price": {"min": 9.5, "max": 9.5, "currencyCode": "EUR"}}, "ProductPricings"),
    ({"name": "Other"}, "Products"),
    ({"count": 0}, "Products"),
    ({"minFaceValue": 9}, "Products"),
    ({"modifiedDate": "2024-05-06T07:08:09.123457"}, "Products"),
]


@pytest.mark.parametrize(("changes", "table"), ONE_ROW)
def test_one_change_writes_one_row(
    world: Any, vendor: Any, brand: Make, product: Make, changes: dict[str, Any], table: str
) -> None:
    world.ok()
    before = world.everything()
    vendor.catalogue([brand("100", product(1), product(2, **changes))])
    counters = world.ok()
    assert world.changed_rows(before) == {table: 1}
    assert (counters["changed"], counters["unchanged"], counters["rows"]) == (1, 1, 1)
    key = "ProductId" if table == "ProductPricings" else "Id"
    rows = world.query(f'SELECT "{key}", "CreatedAt", "UpdatedAt" FROM "{table}" ORDER BY 1')
    assert [at > since for _, since, at in rows] == [False, True]


def test_a_price_that_reaches_the_face_value_changes_the_commission_too(
    world: Any, vendor: Any, brand: Make, product: Make
) -> None:
    world.ok()
    before = world.everything()
    vendor.catalogue([brand("100", product(1), product(2, price={"min": 10, "max": 10, "currencyCode": "USD"}))])
    world.ok()
    assert world.changed_rows(before) == {"ProductPricings": 1, "ProductPricingConfigurations": 1}
    types = world.query('SELECT "ProductId", "CommissionTypeId" FROM "ProductPricingConfigurations" ORDER BY 1')
    assert types == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    "changes",
    [{"name": "x"}, {"countryCode": "DE"}, {"currencyCode": "EUR"}, {"description": None}, {"disclaimer": ""},
     {"redemptionInstructions": "x"}, {"terms": "x"}, {"logoUrl": "x"}, {"modifiedDate": "2021-01-01T00:00:00"}],
)  # fmt: skip
def test_a_changed_brand_writes_that_brand(world: Any, vendor: Any, brand: Make, product: Make, changes: Any) -> None:
    world.ok()
    before = world.everything()
    vendor.catalogue([brand("100", product(1), product(2), **changes)])
    assert world.ok()["rows"] == 1
    assert world.changed_rows(before) == {"Brands": 1}
    [[column]] = world.query(f'SELECT "{next(iter(changes))[0].upper()}{next(iter(changes))[1:]}" FROM "Brands"')
    assert str(column)[:10] == str(next(iter(changes.values())))[:10]


@pytest.mark.parametrize("said_nothing", [None, "bad"])
def test_links_come_and_go_and_stay_when_nothing_is_said(
    world: Any, vendor: Any, brand: Make, product: Make, said_nothing: Any
) -> None:
    stored = []
    for categories in ([1, 2], [2, 3], said_nothing, []):
        vendor.catalogue([brand("1", product(1), categories=categories), brand("2", categories=[9])])
        world.ok()
        stored.append(world.query('SELECT "CategoryId" FROM "BrandCategories" WHERE "BrandId" = 1 ORDER BY 1'))
    assert stored == [[(1,), (2,)], [(2,), (3,)], [(2,), (3,)], []]


def test_a_brand_and_a_product_that_vanish_stay_and_are_counted(
    world: Any, vendor: Any, brand: Make, product: Make
) -> None:
    vendor.catalogue([brand("1", product(1)), brand("2", product(2), product(3))])
    world.ok()
    before = world.everything()
    vendor.catalogue([brand("1", product(1))])
    counters = world.ok()
    assert (counters["vanished"], counters["unchanged"], counters["products"], counters["brands"]) == (2, 1, 3, 2)
    assert world.changed_rows(before) == {}


def test_a_product_moves_to_another_brand(world: Any, vendor: Any, brand: Make, product: Make) -> None:
    vendor.catalogue([brand("1", product(1)), brand("2")])
    world.ok()
    vendor.catalogue([brand("1"), brand("2", product(1))])
    assert world.ok()["changed"] == 1
    query = 'SELECT p."BrandInternalId", b."InternalId" FROM "Products" p JOIN "Brands" b ON b."Id" = p."BrandId"'
    assert world.query(query) == [("2", "2")]


def test_of_two_stored_brands_the_oldest_is_the_brand(world: Any, vendor: Any, brand: Make, product: Make) -> None:
    world.create()
    insert = (
        'INSERT INTO "Brands" ("InternalId", "Name", "CountryCode", "CurrencyCode", "ModifiedDate", "CreatedAt", '
        "\"UpdatedAt\") VALUES ({}, '{}', 'US', 'USD', '2020-01-01 00:00', '2020-01-01 00:00', '2020-01-01 00:00')"
    )
    world.do(
        *(insert.format(key, name) for key, name in [("'1'", "old"), ("'1'", "twin"), ("NULL", "none"), ("NULL", "x")])
    )
    vendor.catalogue([brand("1", product(1), categories=[1])])
    counters = world.ok()
    assert world.query('SELECT "Name" FROM "Brands" ORDER BY "Id"') == [("Shop 1",), ("twin",), ("none",), ("x",)]
    assert world.query('SELECT "BrandId" FROM "Products"') == [(1,)]
    assert world.query('SELECT "BrandId" FROM "BrandCategories"') == [(1,)]
    assert counters["brands"] == 4
    assert world.ok()["rows"] == 0


def test_of_two_stored_prices_the_oldest_is_the_price(world: Any) -> None:
    world.ok()
    world.do(
        'INSERT INTO "ProductPricings" ("ProductId", "Min", "Max", "CurrencyCode", "CreatedAt", "UpdatedAt") '
        "VALUES (1, '3.00000000', '3.00000000', 'JPY', '2020-01-01 00:00:00', '2020-01-01 00:00:00')"
    )
    assert world.ok()["rows"] == 0


def test_rows_that_somebody_removed_or_changed_come_back(world: Any) -> None:
    world.ok()
    world.do(
        'DELETE FROM "ProductPricings" WHERE "ProductId" = 1', 'UPDATE "Products" SET "Name" = \'x\' WHERE "Id" = 2'
    )
    assert world.ok()["rows"] == 0  # nobody looked
    world.reconfigure(full_compare=True)
    counters = world.ok()
    assert (counters["changed"], counters["rows"]) == (2, 2)
    assert world.query('SELECT count(*) FROM "ProductPricings"') == [(2,)]


def test_a_product_without_a_price_keeps_the_price_it_had(world: Any, vendor: Any, brand: Make, product: Make) -> None:
    world.ok()
    before = world.everything()
    vendor.catalogue([brand("100", product(1), product(2, price=None, count=0)), brand("3", product(3, price=None))])
    counters = world.ok()
    assert counters["quarantined"] == 2
    assert world.changed_rows(before) == {"Brands": 1, "Products": 2}
    assert world.query('SELECT "ProductId" FROM "ProductPricings" ORDER BY 1') == [(1,), (2,)]
    assert [(row["entity"], row["key"]) for row in world.harness.quarantined()] == [("price", "2"), ("price", "3")]


def test_the_servers_time_zone_does_not_matter(postgres_url: str, worlds: Any, vendor: Any) -> None:
    world = worlds(postgres_url, vendor.base_url)
    name = postgres_url.rpartition("/")[2]
    world.do(f"ALTER DATABASE \"{name}\" SET timezone = 'Asia/Kolkata'")
    world.engine.dispose()
    world.ok()
    [[at]] = world.query('SELECT "ModifiedDate" FROM "Brands"')
    assert world.time(at) == datetime(2020, 9, 23, 15, 1, 0, 840978, UTC)


_any_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
_text = _any_text | st.text("\\\t\n\rN.", max_size=9)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(*[st.none() | _text] * 2), min_size=1, max_size=5))
def test_any_text_survives_the_copy(postgres_url: str, rows: list[tuple[Any, ...]]) -> None:
    engine = open_engine(postgres_url, "test")
    with engine.connect() as connection:
        brands = [
            (n, "x", row[0], "US", "USD", row[1], *[None] * 4, NOW.isoformat(), n, None, 0)
            for n, row in enumerate(rows)
        ]
        staging = Staging(connection)
        with staging.loading():
            staging.load("bs_brands", brands)
        assert [tuple(row) for row in connection.exec_driver_sql("SELECT name, description FROM bs_brands")] == rows
    engine.dispose()


def test_batches_make_no_difference(memory: sa.Connection, brand: Make, product: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr("stellerd_brand_sync.merge.BATCH", 3)
    brands = [brand(str(n), *(product(10 * n + m) for m in range(n))) for n in range(8)]
    assert apply(memory, brands)["new"] == 28
    assert apply(memory, brands)["rows"] == 0


def test_a_dry_merge_counts_the_same_and_writes_nothing(memory: sa.Connection, brand: Make, product: Make) -> None:
    apply(memory, [brand("1", product(1), product(2), categories=[1])])
    changed = [brand("1", product(1, name="x"), categories=[2]), brand("2", product(3))]
    before = list(memory.exec_driver_sql('SELECT * FROM "Products"'))
    dry = apply(memory, changed, write=False)
    assert list(memory.exec_driver_sql('SELECT * FROM "Products"')) == before
    assert _counts(dry) == _counts(apply(memory, changed))
    assert (dry["new"], dry["changed"], dry["vanished"], dry["products"], dry["brands"]) == (1, 1, 1, 3, 2)


def _counts(counters: dict[str, int]) -> dict[str, int]:
    return {name: number for name, number in counters.items() if not name.endswith("_ms")}


def _catalogues() -> st.SearchStrategy[list[dict[str, Any]]]:
    """Small catalogues over few keys, so that two of them overlap; ids are unique within one."""
    price = st.none() | st.tuples(st.integers(1, 3), st.sampled_from(["USD", "EUR"]))
    item = st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([None, 0, 5]), price)
    items = st.dictionaries(st.integers(1, 9), item, max_size=4)
    brand = st.tuples(st.sampled_from(["A", "B"]), st.none() | st.sets(st.integers(1, 4)), items)
    return st.dictionaries(st.sampled_from(["x", "y", "z"]), brand).map(_without_twins)


def _without_twins(drawn: dict[str, Any]) -> list[dict[str, Any]]:
    seen: set[int] = set()
    brands = []
    for key, (name, categories, items) in drawn.items():
        mine = {number: item for number, item in items.items() if number not in seen}
        seen |= mine.keys()
        brands.append({
            "internalId": key, "name": name, "countryCode": "US", "currencyCode": "USD",
            "modifiedDate": "2020-01-01T00:00:00", "categories": None if categories is None else sorted(categories),
            "products": [_product(number, item) for number, item in mine.items()],
        })  # fmt: skip
    return brands


def _product(number: int, item: tuple[str, int | None, tuple[int, str] | None]) -> dict[str, Any]:
    name, count, price = item
    return {
        "id": number, "name": name, "minFaceValue": 1, "maxFaceValue": 2, "count": count,
        "price": price and {"min": price[0], "max": price[0], "currencyCode": price[1]},
        "modifiedDate": "2020-01-01T00:00:00",
    }  # fmt: skip


class Model:
    """What the tables should hold, worked out one item at a time."""

    def __init__(self) -> None:
        self.brands: dict[str, str] = {}
        self.links: dict[str, set[int]] = {}
        self.products: dict[int, tuple[str, str, int | None]] = {}
        self.prices: dict[int, tuple[Decimal, str, int]] = {}

    def apply(self, brands: list[dict[str, Any]]) -> None:
        for brand in brands:
            key = brand["internalId"]
            self.brands[key] = brand["name"]
            if brand["categories"] is not None:
                self.links[key] = set(brand["categories"])
            for item in brand["products"]:
                self.products[item["id"]] = (key, item["name"], item["count"])
                if item["price"]:
                    value = Decimal(item["price"]["max"])
                    self.prices[item["id"]] = (value, item["price"]["currencyCode"], 1 if 2 - value > 0 else 2)

    def assert_stored(self, connection: sa.Connection) -> None:
        assert dict(_rows(connection, 'SELECT "InternalId", "Name" FROM "Brands"')) == self.brands
        products = _rows(connection, 'SELECT "Id", "BrandInternalId", "Name", "Count" FROM "Products"')
        assert {row[0]: row[1:] for row in products} == self.products
        prices = _rows(
            connection,
            'SELECT p."ProductId", p."Max", p."CurrencyCode", c."CommissionTypeId" FROM "ProductPricings" p '
            'JOIN "ProductPricingConfigurations" c ON c."ProductId" = p."ProductId"',
        )
        assert {row[0]: (Decimal(row[1]), *row[2:]) for row in prices} == self.prices
        links: dict[str, set[int]] = {}
        for key, number in _rows(connection, LINKS):
            links.setdefault(key, set()).add(number)
        assert links == {key: numbers for key, numbers in self.links.items() if numbers}


def _rows(connection: sa.Connection, query: str) -> list[Any]:
    return [tuple(row) for row in connection.exec_driver_sql(query)]


def _a_then_b(connection: sa.Connection, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    model = Model()
    for brands in (first, second):
        expected = {item["id"] for brand in brands for item in brand["products"]} - model.products.keys()
        model.apply(brands)
        counters = apply(connection, brands)
        assert counters["new"] == len(expected)
        assert (counters["products"], counters["brands"]) == (len(model.products), len(model.brands))
        model.assert_stored(connection)
        assert apply(connection, brands)["rows"] == 0
        assert apply(connection, brands, full=True)["rows"] == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=_catalogues(), second=_catalogues())
def test_any_catalogue_after_any_other_on_sqlite(memory: sa.Connection, first: Any, second: Any) -> None:
    with memory.begin_nested() as begun:
        _a_then_b(memory, first, second)
        begun.rollback()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=_catalogues(), second=_catalogues())
def test_any_catalogue_after_any_other_on_postgresql(postgres_url: str, first: Any, second: Any) -> None:
    engine = open_engine(postgres_url, "test")
    with engine.connect() as connection:  # never committed: each example begins on empty tables
        tables.create_missing(connection)
        digests.create(connection)
        _a_then_b(connection, first, second)
    engine.dispose()
