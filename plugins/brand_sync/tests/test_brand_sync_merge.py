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
    assert world.ok()["quarantined"] == 0  # the vendor's word for it: no reason to complain
    assert world.changed_rows(before) == {"Brands": 1, "Products": 2}
    assert world.query('SELECT "ProductId" FROM "ProductPricings" ORDER BY 1') == [(1,), (2,)]
    assert world.query('SELECT "ProductId" FROM "ProductPricingConfigurations" ORDER BY 1') == [(1,), (2,)]


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
    """Small catalogues over few keys, so that two of them overlap, with twins and with items that cannot be stored."""
    price = st.sampled_from([None, "bad"]) | st.tuples(st.integers(1, 3), st.sampled_from(["USD", "EUR"]))
    item = st.tuples(st.integers(1, 7), st.sampled_from(["a", "b", None]), st.sampled_from([None, 0, 5]), price)
    ids = st.lists(st.integers(1, 4), max_size=3)
    categories = st.none() | ids | st.just("bad") | ids.map(lambda some: [{"id": n, "name": f"C{n}"} for n in some])
    currency = st.sampled_from(["USD", "USD", "USD", "bad"])
    brand = st.tuples(
        st.sampled_from(["x", "y", "z"]), st.sampled_from(["A", "B"]), currency, categories, st.lists(item, max_size=4)
    )
    return st.lists(brand, max_size=4).map(lambda drawn: [_brand(*one) for one in drawn])


def _brand(key: str, name: str, currency: str, categories: Any, items: list[Any]) -> dict[str, Any]:
    return {
        "internalId": key, "name": name, "countryCode": "US", "currencyCode": currency, "categories": categories,
        "modifiedDate": "2020-01-01T00:00:00", "products": [_product(*item) for item in items],
    }  # fmt: skip


def _product(number: int, name: str | None, count: int | None, price: Any) -> dict[str, Any]:
    if isinstance(price, tuple):
        price = {"min": price[0], "max": price[0], "currencyCode": price[1]}
    return {
        "id": number, "name": name, "minFaceValue": 1, "maxFaceValue": 2, "count": count, "price": price,
        "modifiedDate": "2020-01-01T00:00:00",
    }  # fmt: skip


class Model:
    """What the tables should hold, worked out one item at a time."""

    def __init__(self, out_of_stock: bool) -> None:
        self.out_of_stock = out_of_stock
        self.brands: dict[str, str] = {}
        self.links: dict[str, set[int]] = {}
        self.products: dict[int, tuple[str, str, int | None]] = {}
        self.prices: dict[int, tuple[Decimal, str, int]] = {}
        self.categories: set[int] = set()

    def apply(self, brands: list[dict[str, Any]]) -> dict[str, int]:
        """Take a catalogue over; the counters that this should give."""
        before, had_price = dict(self.products), dict(self.prices)
        self.taken: set[int] = set()
        self.doubtful: set[str] = set()
        taken_brands: set[str] = set()
        for brand in brands:
            if brand["currencyCode"] != "bad" and brand["internalId"] not in taken_brands:
                taken_brands.add(brand["internalId"])
                self._take(brand)
        came = {item["id"] for brand in brands for item in brand["products"]}
        gone = {n for n, product in self.products.items() if n not in came and product[0] not in self.doubtful}
        for number in gone if self.out_of_stock else ():
            self.products[number] = (*self.products[number][:2], 0)
        same = {n for n in self.taken if (before.get(n), had_price.get(n)) == (self.products[n], self.prices.get(n))}
        new = len(self.taken - before.keys())
        fetched = sum(len(brand["products"]) for brand in brands)
        return {
            "fetched": fetched, "new": new, "changed": len(self.taken) - new - len(same), "unchanged": len(same),
            "unusable": fetched - len(self.taken), "vanished": len(gone), "products": len(self.products),
            "brands": len(self.brands),
        }  # fmt: skip

    def _take(self, brand: dict[str, Any]) -> None:
        key, categories = brand["internalId"], brand["categories"]
        self.brands[key] = brand["name"]
        if isinstance(categories, list):
            self.links[key] = {item["id"] if isinstance(item, dict) else item for item in categories}
            self.categories |= self.links[key]
        for item in brand["products"]:
            if item["name"] is None or item["id"] in self.taken:
                if item["name"] is not None:
                    self.doubtful.add(key)  # a second product of one id may be any other
                continue
            self.taken.add(item["id"])
            self.products[item["id"]] = (key, item["name"], item["count"])
            if isinstance(item["price"], dict):
                value = Decimal(item["price"]["max"])
                self.prices[item["id"]] = (value, item["price"]["currencyCode"], 1 if 2 - value > 0 else 2)

    def assert_stored(self, connection: sa.Connection) -> None:
        assert dict(_rows(connection, 'SELECT "InternalId", "Name" FROM "Brands"')) == self.brands
        products = _rows(connection, 'SELECT "Id", "BrandInternalId", "Name", "Count" FROM "Products"')
        assert {row[0]: row[1:] for row in products} == self.products
        owners = 'SELECT count(*) FROM "Products" p JOIN "Brands" b ON b."Id" = p."BrandId"'
        assert _rows(connection, f'{owners} AND b."InternalId" = p."BrandInternalId"') == [(len(self.products),)]
        prices = _rows(
            connection,
            'SELECT p."ProductId", p."Max", p."CurrencyCode", c."CommissionTypeId" FROM "ProductPricings" p '
            'JOIN "ProductPricingConfigurations" c ON c."ProductId" = p."ProductId"',
        )
        assert {row[0]: (Decimal(row[1]), *row[2:]) for row in prices} == self.prices
        assert {row[0] for row in _rows(connection, 'SELECT "Id" FROM "Categories"')} == self.categories
        links: dict[str, set[int]] = {}
        for key, number in _rows(connection, LINKS):
            links.setdefault(key, set()).add(number)
        assert links == {key: numbers for key, numbers in self.links.items() if numbers}


def _rows(connection: sa.Connection, query: str) -> list[Any]:
    return [tuple(row) for row in connection.exec_driver_sql(query)]


def _one_after_the_other(connection: sa.Connection, catalogues: list[Any], out_of_stock: bool) -> None:
    model = Model(out_of_stock)
    for brands in catalogues:
        expected = model.apply(brands)
        dry = apply(connection, brands, out_of_stock=out_of_stock, write=False)
        counters = apply(connection, brands, out_of_stock=out_of_stock)
        assert {name: counters[name] for name in expected} == expected
        assert _counts(dry) == _counts(counters)
        model.assert_stored(connection)
        for full in (False, True):
            again = apply(connection, brands, out_of_stock=out_of_stock, full=full)
            assert (again["rows"], again["vanished"]) == (0, expected["vanished"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(catalogues=st.lists(_catalogues(), min_size=2, max_size=3), out_of_stock=st.booleans())
def test_any_catalogue_after_any_other_on_sqlite(memory: sa.Connection, catalogues: Any, out_of_stock: bool) -> None:
    with memory.begin_nested() as begun:
        _one_after_the_other(memory, catalogues, out_of_stock)
        begun.rollback()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(catalogues=st.lists(_catalogues(), min_size=2, max_size=3), out_of_stock=st.booleans())
def test_any_catalogue_after_any_other_on_postgresql(postgres_url: str, catalogues: Any, out_of_stock: bool) -> None:
    engine = open_engine(postgres_url, "test")
    with engine.connect() as connection:  # never committed: each example begins on empty tables
        tables.create_missing(connection)
        digests.create(connection)
        _one_after_the_other(connection, catalogues, out_of_stock)
    engine.dispose()
