"""A hostile vendor: one bad value of each kind in one brand of fifty costs that brand, or a part of it, and no more."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stellerd_brand_sync import catalogue, mend, values, wire
from stellerd_brand_sync.aside import Aside

from stellerd import errors

Make = Callable[..., dict[str, Any]]
BRANDS = 50
GUILTY = 17
"""Internal id of the brand that has the bad value; its products are 171, 172 and 173, the bad one is 172."""


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def text(value: Any) -> bytes:
    return json.dumps(value).encode()


# Where: a key of the brand, "product." and a key of its second product, "price." and a key of that one's price; the
# value as bytes of JSON, or of what should have been JSON; the key that it is quarantined by
TABLE: list[tuple[str, bytes, str]] = [
    ("internalId", b"null", "Shop 17"), ("internalId", b'""', "Shop 17"), ("internalId", b'"  "', "Shop 17"),
    ("internalId", b"17", "17"), ("internalId", b'"16"', "16"),
    ("internalId", b"[]", "Shop 17"), ("internalId", text("x" * 1001), "x" * 200),
    ("internalId", text("1\0007"), "1\ufffd7"), ("internalId", b'"1\xff7"', "1\ufffd7"),
    ("name", b"null", "17"), ("name", b"5", "17"), ("name", b"{}", "17"), ("name", text("a\0b"), "17"),
    ("name", b'"a\xffb"', "17"), ("name", b'"a\xc3"', "17"), ("name", b'"\xed\xa0\xbc"', "17"),
    ("name", b'"half \\ud83c pair"', "17"), ("name", text("x" * 1001), "17"), ("name", deep(961), "17"),
    ("name", deep(5_000), "17"), ("name", b'"a\x01b"', "17"), ("name", b'"a\nb"', "17"), ("name", b'"\\x"', "17"),
    ("name", b"NaN", "17"), ("name", b"Infinity", "17"), ("name", b"tru", "17"), ("name", b"01", "17"),
    ("name", b"'single'", "17"), ("name", b'"a",', "17"), ("name", b"", "17"),
    ("countryCode", b"null", "17"), ("countryCode", b'"Germany"', "17"), ("countryCode", b"49", "17"),
    ("currencyCode", b'"usd"', "17"), ("currencyCode", b'"USD\\n"', "17"), ("currencyCode", b'"\xd0\xa3SD"', "17"),
    ("description", b"7", "17"), ("description", text("x" * 100_001), "17"), ("terms", b'"\xff"', "17"),
    ("modifiedDate", b'"soon"', "17"), ("modifiedDate", b"null", "17"), ("modifiedDate", b"1700000000", "17"),
    ("modifiedDate", b'"0000-00-00T00:00:00"', "17"), ("modifiedDate", text("٢٠٢٤-01-01T00:00:00"), "17"),
    ("products", b"null", "17"), ("products", b'"none"', "17"), ("products", b"{}", "17"), ("products", b"0", "17"),
    ("products", b"[null]", "17, product 0"), ("products", b"[[]]", "17, product 0"),
    ("products", b"[{}]", "17, product 0"), ("products", b'["171"]', "17, product 0"),
    ("categories", b'"Gaming"', "17"), ("categories", b"[[]]", "17"), ("categories", b"[1.5]", "17"),
    ("categories", deep(961), "17"), ("categories", b'[{"id":0,"name":"x"}]', "17"),
    ("categories", b'["No such thing"]', "No such thing"), ("categories", b"[" + b"9" * 5_000 + b"]", "17"),
    ("product", b"null", "17, product 1"), ("product", deep(3_000), "17, product 1"),
    ("product", b"172", "17, product 1"),
    ("product.id", b"null", "17, product 1"), ("product.id", b'"172"', "172"), ("product.id", b"0", "0"),
    ("product.id", b"-172", "-172"), ("product.id", b"2147483648", "2147483648"), ("product.id", b"172.5", "172.5"),
    ("product.id", b"9" * 5_000, "17, product 1"), ("product.id", b"true", "17, product 1"),
    ("product.id", b"171", "171"), ("product.id", b"1e999", "inf"), ("product.id", deep(961), "17, product 1"),
    ("product.name", b"null", "172"), ("product.name", b'"\xfe"', "172"), ("product.name", text("\0"), "172"),
    ("product.name", b'"\\udf81"', "172"), ("product.name", text("x" * 1001), "172"),
    ("product.minFaceValue", b'"sNaN"', "172"), ("product.maxFaceValue", b'"sNaN"', "172"),
    ("product.maxFaceValue", b'"NaN"', "172"), ("product.maxFaceValue", b'"-Infinity"', "172"),
    ("product.maxFaceValue", b'"1_000"', "172"), ("product.maxFaceValue", text("١٠٠٠"), "172"),
    ("product.maxFaceValue", b"null", "172"), ("product.maxFaceValue", b"true", "172"),
    ("product.maxFaceValue", b"[10]", "172"), ("product.maxFaceValue", b'"0x10"', "172"),
    ("product.maxFaceValue", b"1e999999", "172"), ("product.maxFaceValue", b"9" * 5_000, "172"),
    ("product.maxFaceValue", b"-1", "172"), ("product.maxFaceValue", b"10.00001", "172"),
    ("product.maxFaceValue", b"5", "172"), ("product.maxFaceValue", b"1e-999999", "172"),
    ("product.count", b"-1", "172"), ("product.count", b'"1_000"', "172"), ("product.count", b"1.5", "172"),
    ("product.count", b"1e3", "172"), ("product.count", text("١٠"), "172"), ("product.count", b"9" * 5_000, "172"),
    ("product.count", b'""', "172"), ("product.modifiedDate", b'"2024-13-01T00:00:00"', "172"),
    ("price", b'"9.50"', "172"), ("price", b"9.5", "172"), ("price", b"[]", "172"), ("price", b"{}", "172"),
    ("price", deep(961), "172"), ("price.min", b'"sNaN"', "172"), ("price.max", b'"sNaN"', "172"),
    ("price.max", b'"1_0"', "172"), ("price.max", text("٩"), "172"), ("price.max", b"1", "172"),
    ("price.max", b"99999999999", "172"), ("price.max", b"null", "172"), ("price.currencyCode", b'"$"', "172"),
    ("price.currencyCode", b'"\xff"', "172"), ("price.currencyCode", b"978", "172"),
]  # fmt: skip
# The whole item, instead of a brand: whose it is cannot be told, so that nothing counts as missing
ITEMS = [b"null", b"17", b'"brand 17"', b"[]", b"{}", b"true", b"NaN", deep(961), deep(100_000), b"{bad}"]
_MARK = "\u2603"


def body_of(make: Make, product: Make, where: str = "", value: bytes = b"") -> bytes:
    """Fifty brands of three products each, `value` in its place in one of them."""
    brands = [make(str(n), *(product(10 * n + k) for k in (1, 2, 3)), categories=[1]) for n in range(1, BRANDS + 1)]
    part, _, key = where.rpartition(".")
    guilty = brands[GUILTY - 1]
    if where == "item":
        brands[GUILTY - 1] = _MARK  # type: ignore[call-overload]
    elif where == "product":
        guilty["products"][1] = _MARK
    elif where == "price" or part == "product":
        guilty["products"][1][key] = _MARK
    elif part == "price":
        guilty["products"][1]["price"][key] = _MARK
    elif where:
        guilty[key] = _MARK
    return json.dumps({"brands": brands}).encode().replace(json.dumps(_MARK).encode(), value)


def country(body: bytes, code: str) -> bytes:
    """The same catalogue, every brand changed."""
    return body.replace(b'"countryCode": "US"', b'"countryCode": "%s"' % code.encode())


def stored(query: Callable[[str], list[Any]], code: str) -> None:
    """All brands but the guilty one are as they came last; no product has gone or is said to be out of stock."""
    others = f"""SELECT count(*) FROM "Brands" WHERE "CountryCode" = '{code}' AND "InternalId" <> '{GUILTY}'"""
    assert query(others) == [(BRANDS - 1,)]
    assert query('SELECT count(*) FROM "Products"')[0][0] >= 3 * BRANDS
    assert query('SELECT "Id" FROM "Products" WHERE "Count" = 0') == []


def test_the_table_is_long_enough_and_says_nothing_twice() -> None:
    assert len(TABLE) + len(ITEMS) >= 60
    assert len({(where, value) for where, value, _ in TABLE}) == len(TABLE)


@pytest.mark.parametrize(("where", "value", "key"), TABLE, ids=lambda each: repr(each)[:30])
def test_one_bad_value_costs_one_brand(  # the second time the bad brand is looked at again, and nothing is written
    where: str, value: bytes, key: str, memory: sa.Connection, brand: Make, product: Make
) -> None:
    def store(body: bytes) -> tuple[dict[str, int], Aside]:
        aside = Aside()
        order = catalogue.Order(now=datetime.now(UTC), out_of_stock=True)
        return catalogue.store(memory, wire.decode_v1(body), order, aside).counters, aside

    def query(statement: str) -> list[Any]:
        return [tuple(row) for row in memory.exec_driver_sql(statement)]

    assert store(bytearray(body_of(brand, product)))[0]["new"] == 3 * BRANDS
    body = country(body_of(brand, product, where, value), "DE")
    for first in (True, False):
        counters, aside = store(bytearray(body))
        [item] = aside.items
        assert (item.key, counters["vanished"], aside.faults) == (key, 0, [])
        assert bool(counters["rows"]) is first
        stored(query, "DE")


# In whole runs: one of each way to fail, on both databases; the long form takes all
RUNS = [
    ("internalId", b'"1\xff7"', "1\ufffd7"), ("name", b'"a\xffb"', "17"), ("name", deep(961), "17"),
    ("name", b"NaN", "17"), ("products", b"null", "17"),
    ("product.id", b"9" * 5_000, "17, product 1"), ("price.max", b'"sNaN"', "172"),
]  # fmt: skip


def whole_runs(world: Any, vendor: Any, brand: Make, product: Make, table: list[tuple[str, bytes, str]]) -> None:
    vendor.answers[vendor.V1] = (200, body_of(brand, product))
    assert world.ok()["products"] == 3 * BRANDS
    for n, (where, value, key) in enumerate(table):
        code = ("DE", "FR")[n % 2]
        vendor.answers[vendor.V1] = (200, country(body_of(brand, product, where, value), code))
        asked = vendor.paths.count(vendor.V1)
        counters = world.ok()
        assert (counters["quarantined"], counters["vanished"]) == (1, 0)
        assert [item["key"] for item in world.harness.quarantined()] == [key]
        assert vendor.paths.count(vendor.V1) == asked + 1
        stored(world.query, code)


def test_a_run_with_a_bad_value_is_ok_and_the_next_one_asks_again(
    any_url: str, worlds: Any, vendor: Any, brand: Make, product: Make
) -> None:
    whole_runs(worlds(any_url, vendor.base_url, on_missing="out-of-stock"), vendor, brand, product, RUNS)


@pytest.mark.soak
def test_runs_with_every_bad_value(any_url: str, worlds: Any, vendor: Any, brand: Make, product: Make) -> None:
    whole_runs(worlds(any_url, vendor.base_url, on_missing="out-of-stock"), vendor, brand, product, TABLE)


@pytest.mark.parametrize("value", ITEMS, ids=lambda value: repr(value[:10]))
def test_an_item_that_is_no_brand_costs_itself_and_nothing_is_missing(
    value: bytes, memory: sa.Connection, brand: Make, product: Make
) -> None:
    aside = Aside()
    order = catalogue.Order(now=datetime.now(UTC), out_of_stock=True)
    catalogue.store(memory, wire.decode_v1(body_of(brand, product)), order, aside)
    body = country(body_of(brand, product, "item", value), "DE")
    counters = catalogue.store(memory, wire.decode_v1(bytearray(body)), order, aside).counters
    assert ([item.key for item in aside.items], counters["vanished"]) == (["brand 16"], 0)
    stored(lambda statement: [tuple(row) for row in memory.exec_driver_sql(statement)], "DE")


def test_an_error_that_nobody_foresaw_costs_one_brand_and_is_told(
    any_url: str, worlds: Any, vendor: Any, brand: Make, product: Make, monkeypatch: Any, capfd: Any
) -> None:
    world = worlds(any_url, vendor.base_url, on_missing="out-of-stock")
    vendor.answers[vendor.V1] = (200, body_of(brand, product))
    world.ok()
    line = values.line

    def trouble(name: str, text: str) -> str:
        return {}[name] if text == "trouble" else line(name, text)  # a KeyError

    monkeypatch.setattr(values, "line", trouble)
    for where, key in (("name", "17"), ("product.name", "172")):
        vendor.answers[vendor.V1] = (200, country(body_of(brand, product, where, b'"trouble"'), "DE"))
        assert (world.ok()["quarantined"], [item["key"] for item in world.harness.quarantined()]) == (1, [key])
        assert "fault of brand_sync (KeyError: 'name')" in world.harness.quarantined()[0]["reason"]
        assert "Traceback" in capfd.readouterr().out
        stored(world.query, "DE")


@pytest.mark.parametrize("levels", [961, 5_000, 100_000])
@pytest.mark.parametrize("where", ["id", "name", "unknown"])
def test_deep_nesting_in_the_categories_costs_that_category(
    levels: int, where: str, quick: Any, vendor: Any, capfd: Any
) -> None:
    item = b'{"id":7,"name":"x","%s":%s}' % (where.encode(), deep(levels))
    vendor.answers[vendor.V2] = (200, b'[{"id":1,"name":"One"},' + item + b"]")
    counters = quick.ok()
    assert (counters["products"], counters["categories"] + counters["quarantined"]) == (2, 2)
    assert "Traceback" not in capfd.readouterr().out


def test_a_fault_in_one_half_is_told_and_leaves_the_other(quick: Any, monkeypatch: Any, capfd: Any) -> None:
    def fault(*args: Any) -> Any:
        raise RecursionError("too deep")

    monkeypatch.setattr("stellerd_brand_sync.job.read_list", fault)
    record = quick.run()
    assert (record.state, record.counters["products"]) == ("partial", 2)
    assert record.reason == "categories: a fault of brand_sync, RecursionError: too deep; see the log"
    assert "Traceback" in capfd.readouterr().out


@pytest.fixture
def quick(sqlite_url: str, worlds: Any, vendor: Any) -> Any:
    return worlds(sqlite_url, vendor.base_url)


def test_random_damage_ends_in_a_refusal_or_in_a_stored_catalogue(
    memory: sa.Connection, brand: Make, product: Make
) -> None:
    """Seeded; the seed of a failure is in its message."""
    body = json.dumps({"brands": [brand(str(n), product(10 * n + 1), categories=[1, "Gaming"]) for n in range(5)]})
    for seed in range(300):
        chance = random.Random(seed)
        damaged = bytearray(body.encode())
        for _ in range(chance.randint(1, 4)):
            at, size = chance.randrange(len(damaged)), chance.choice((0, 1, 1, 3))
            damaged[at : at + size] = chance.choice((b"", chance.randbytes(1), b'"', b"[", b"}", b"\\u", b"9" * 5_000))
        aside = Aside()
        try:
            brands = wire.decode_v1(damaged)
        except errors.BadReply:
            continue
        catalogue.store(memory, brands, catalogue.Order(now=datetime.now(UTC), out_of_stock=True), aside)
        assert aside.faults == [], seed


_json = st.recursive(
    st.none() | st.text(max_size=6) | st.integers(),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=3), some, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_json, min_size=1, max_size=5))
def test_a_body_is_cut_where_its_items_are(items: list[Any]) -> None:
    for body, name in (({"a": [[1, 2]], "brands": items, "b": {"brands": [3]}}, b"brands"), (items, b"")):
        parts = mend.split(json.dumps(body).encode(), name)
        assert parts is not None
        assert [json.loads(bytes(item)) for item in parts.items] == items
        assert json.loads(parts.rest) == (body | {"brands": []} if isinstance(body, dict) else [])


@pytest.mark.parametrize("piece", [b'"', b'\\"', b"[", b'"\\', b"\\ud83c"])
def test_a_body_of_millions_of_signs_is_refused_in_no_time(piece: bytes) -> None:
    body = bytearray(b'{"brands":[' + piece * 300_000)
    began = time.monotonic()
    with pytest.raises(errors.BadReply):
        wire.decode_v1(body)
    assert time.monotonic() - began < 10  # it is half a second; a quadratic way would take an hour
