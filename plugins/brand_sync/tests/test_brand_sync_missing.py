"""Products that vanish and come again, the counters that tell of it, and what a dry run says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import structlog

Make = Callable[..., dict[str, Any]]
STOCK = 'SELECT "Id", "Count" FROM "Products" ORDER BY 1'


@pytest.fixture
def emptying(any_url: str, worlds: Any, vendor: Any) -> Any:
    """A sync that says of vanished products that there are none left."""
    return worlds(any_url, vendor.base_url, on_missing="out-of-stock")


def test_vanished_products_are_out_of_stock_until_they_come_again(
    emptying: Any, vendor: Any, brand: Make, product: Make
) -> None:
    both = [brand("1", product(1, count=7), product(2)), brand("2", product(3, count=None), product(4, count=0))]
    vendor.catalogue(both)
    emptying.ok()
    before = emptying.everything()
    vendor.catalogue([brand("1", product(2))])  # a product and a whole brand
    counters = emptying.ok()
    assert emptying.query(STOCK) == [(1, 0), (2, None), (3, 0), (4, 0)]
    assert emptying.changed_rows(before) == {"Products": 2}  # the fourth had none left as it was
    assert (counters["vanished"], counters["rows"], counters["changed"]) == (3, 2, 0)
    again = emptying.ok()
    assert (again["vanished"], again["rows"]) == (3, 0)
    vendor.catalogue(both)
    assert emptying.ok()["vanished"] == 0
    assert emptying.query(STOCK) == [(1, 7), (2, None), (3, None), (4, 0)]


@pytest.mark.parametrize("first", ["keep", "out-of-stock"])
def test_a_change_of_the_setting_holds_from_the_next_run(
    first: str, world: Any, vendor: Any, brand: Make, product: Make
) -> None:
    second = "keep" if first == "out-of-stock" else "out-of-stock"
    vendor.catalogue([brand("1", product(1), product(2))])
    world.reconfigure(on_missing=first)
    world.ok()
    vendor.catalogue([brand("1", product(1))])
    world.ok()
    world.reconfigure(on_missing=second)
    world.ok()
    assert world.query(STOCK) == [(1, None), (2, 0)]  # what is out of stock stays so: nobody knows better
    assert world.ok()["rows"] == 0


NOT_GONE = [
    {"products": [{"id": 2, "name": None}]},  # a product that cannot be read
    {"currencyCode": "$"},  # a brand that cannot be stored
    {"products": "none"},  # a brand whose products cannot even be told
]


@pytest.mark.parametrize("changes", NOT_GONE)
def test_what_came_in_a_bad_form_has_not_vanished(
    changes: dict[str, Any], emptying: Any, vendor: Any, brand: Make, product: Make
) -> None:
    old = [brand("1", product(1)), brand("2", product(2))]
    vendor.catalogue(old)
    emptying.ok()
    vendor.catalogue([old[0], old[1] | changes])
    counters = emptying.ok()
    assert (counters["vanished"], counters["quarantined"]) == (0, 1)
    assert emptying.query(STOCK) == [(1, None), (2, None)]


def test_a_product_that_came_in_a_bad_form_is_remembered_until_it_really_goes(
    emptying: Any, vendor: Any, brand: Make, product: Make
) -> None:
    vendor.catalogue([brand("1", product(1)), brand("2", product(2))])
    emptying.ok()
    owner = brand("1")  # nothing bad about this one
    vendor.catalogue([owner, brand("2", product(2), {"id": 1, "name": None})])
    assert [emptying.ok()["vanished"] for _ in range(2)] == [0, 0]
    vendor.catalogue([owner, brand("2", product(2))])
    assert emptying.ok()["vanished"] == 1
    assert emptying.query(STOCK) == [(1, 0), (2, None)]


def test_a_brand_refused_by_a_constraint_has_not_vanished(
    emptying: Any, vendor: Any, brand: Make, product: Make
) -> None:
    vendor.catalogue([brand("1", product(1)), brand("2", product(2)), brand("3", product(3))])
    emptying.ok()
    emptying.do('CREATE UNIQUE INDEX trouble ON "Products" ("Name")')
    vendor.catalogue([brand("1", product(1)), brand("2", product(2, name="Card 1"))])
    counters = emptying.ok()
    assert (counters["vanished"], counters["unusable"], counters["quarantined"]) == (1, 1, 1)
    assert emptying.query(STOCK) == [(1, None), (2, None), (3, 0)]


def consistent(counters: dict[str, int]) -> None:
    """Whatever came is exactly one of four things."""
    parts = [counters[name] for name in ("new", "changed", "unchanged", "unusable")]
    assert min(parts) >= 0, counters
    assert counters["fetched"] == sum(parts), counters


def test_each_product_that_came_is_counted_once(world: Any, vendor: Any, brand: Make, product: Make) -> None:
    vendor.catalogue([brand("1", product(1), product(2)), brand("2", product(3)), brand("4", product(9))])
    first = world.ok()
    vendor.catalogue([
        brand("1", product(1), product(2, count=5), product(2), product(4, minFaceValue=-1), product(5)),
        brand("2", product(3)), brand("3", product(6), product(7), currencyCode="x"), brand("2", product(8)), 17,
    ])  # fmt: skip
    counters = world.ok()
    consistent(first)
    consistent(counters)
    names = ("fetched", "new", "changed", "unchanged", "unusable", "vanished", "quarantined", "products", "brands")
    assert [first[name] for name in names] == [4, 4, 0, 0, 0, 0, 0, 4, 3]
    # unusable: the twin of 2, the negative 4, both of brand 3, the one of the second brand 2; 17 may stand for brand 4
    assert [counters[name] for name in names] == [9, 1, 1, 2, 5, 0, 5, 5, 3]
    phases = {"fetch_ms", "stage_ms", "merge_ms", "commit_ms", "categories_ms"}
    assert phases <= counters.keys()
    assert counters["bytes"] == len(vendor.answers[vendor.V1][1])


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every log line of level info, as fields."""
    lines: list[dict[str, Any]] = []

    def note(logger: Any, name: str, event: Any) -> Any:
        if name == "info":
            lines.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[note], cache_logger_on_first_use=False)
    return lines


def dry(world: Any, said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a dry run, without what all lines have."""
    said.clear()
    before = world.everything()
    record = world.run(dry_run=True)
    assert record.state == "ok", record.reason
    assert world.changed_rows(before) == {}
    kept = [{key: value for key, value in line.items() if key not in ("job", "run")} for line in said]
    return [line for line in kept if line["event"].startswith(("would", "vanished"))]


def test_a_dry_run_says_what_a_run_would_write(
    said: list[dict[str, Any]], emptying: Any, vendor: Any, brand: Make, product: Make
) -> None:
    vendor.catalogue([
        brand("1", product(1), product(2, count=4), product(3), categories=[1, 2]), brand("2", product(4)),
        brand("5", product(7), product(8)),
    ])  # fmt: skip
    emptying.ok()
    assert dry(emptying, said) == []
    long = "<p>" + "x" * 500
    vendor.categories([{"id": 1, "name": "Fun", "description": ""}, {"id": 30, "name": "Petrol"}])
    vendor.catalogue([
        brand("1", product(1, count=3, price={"min": 9.5, "max": 10, "currencyCode": "EUR"}), product(3),
              categories=[2, 50], description=long, terms=None),
        brand("3", product(6), categories=[1]), brand("5", product(8)),
    ])  # fmt: skip
    lines = dry(emptying, said)
    exact = emptying.engine.dialect.name == "postgresql"
    prices = "9.50000000 -> 10.00000000" if exact else '"9.50000000" -> "10.00000000"'
    old = brand("1")["description"]
    assert lines == [
        {"event": "would change category", "category": 1, "Name": '"Entertainment" -> "Fun"'},
        {"event": "would add category", "category": 30, "Name": "Petrol"},
        {"event": "would add category", "category": 50, "Name": "Category 50"},
        {"event": "would add brand", "brand": "3", "Name": "Shop 3"},
        {"event": "would change brand", "brand": "1", "Description": f'"{old}" -> "{long[:60]}…"',
         "Terms": '"tërms 🎁" -> null'},
        {"event": "would link brand", "brand": "1", "categories": "-1 +50"},
        {"event": "would add product", "product": 6, "brand": "3", "Name": "Card 6"},
        {"event": "would change product", "product": 1, "brand": "1", "Count": "null -> 3", "price.Max": prices,
         "price.CurrencyCode": '"USD" -> "EUR"', "CommissionTypeId": "1 -> 2"},
        {"event": "vanished product", "product": 2, "brand": "1", "Name": "Card 2", "Count": "4 -> 0"},
        {"event": "vanished product", "product": 4, "brand": "2", "Name": "Card 4", "Count": "null -> 0"},
        {"event": "vanished product", "product": 7, "brand": "5", "Name": "Card 7", "Count": "null -> 0"},
    ]  # fmt: skip
    emptying.ok()
    assert [line["event"] for line in dry(emptying, said)] == ["vanished product"] * 3  # said as long as they are gone


def test_a_dry_run_lists_so_many_and_counts_the_rest(
    said: list[dict[str, Any]], emptying: Any, vendor: Any, brand: Make, product: Make, monkeypatch: Any
) -> None:
    monkeypatch.setattr("stellerd_brand_sync.diff.LINES", 2)
    vendor.catalogue([brand(str(n), product(n), categories=[1]) for n in range(1, 6)])
    emptying.ok()
    vendor.catalogue([brand(str(n), product(n, name="x"), name="y", categories=[]) for n in range(2, 7)])
    lines = dry(emptying, said)
    events = [line["event"] for line in lines]
    assert max(events.count(event) for event in events) <= 2
    assert [line for line in lines if line["event"].endswith("more")] == [
        {"event": "would change brand: more", "brands": 2}, {"event": "would link brand: more", "brands": 2},
        {"event": "would change product: more", "products": 2},
    ]  # fmt: skip
    vendor.catalogue([brand("1", product(1), categories=[1])])
    assert dry(emptying, said)[-1] == {"event": "vanished product: more", "products": 2}


@pytest.mark.parametrize("style", ["json", "text"])
def test_the_vendors_text_cannot_drive_a_terminal(
    style: str, logged: Any, worlds: Any, sqlite_url: str, vendor: Any, brand: Make, product: Make
) -> None:
    lines = logged(style)
    world = worlds(sqlite_url, vendor.base_url)
    world.ok()
    lines.clear()
    evil = "a\r\n[info] run finished \x1b]0;x\x07\x9b2J"
    vendor.catalogue([brand("1" + evil, product(1, name=evil), name=evil), brand("100", product(2, name=evil))])
    vendor.categories([{"id": 1, "name": evil, "description": evil}])
    assert world.run(dry_run=True).state == "ok"
    assert sum("run finished" in line for line in lines) > 4
    assert all(line.isprintable() for line in lines), [line for line in lines if not line.isprintable()]
