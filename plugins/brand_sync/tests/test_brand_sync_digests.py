"""Brands that look as they did are left out, and only those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from stellerd_brand_sync import digests
from stellerd_brand_sync.decode import Decoder

Make = Callable[..., dict[str, Any]]
KEPT = "SELECT internal_id FROM {} ORDER BY 1"


def kept(world: Any) -> list[str]:
    """Internal ids that the table of digests knows."""
    table = digests._NAMES[world.engine.dialect.name]
    return [row[0] for row in world.query(KEPT.format(table))]


@pytest.fixture
def decoded_brands(monkeypatch: Any) -> list[int]:
    """Positions of the brands that were decoded."""
    seen: list[int] = []
    whole = Decoder._whole

    def watch(self: Decoder, position: int, raw: Any) -> Any:
        seen.append(position)
        return whole(self, position, raw)

    monkeypatch.setattr(Decoder, "_whole", watch)
    return seen


def test_only_brands_whose_bytes_changed_are_decoded(
    world: Any, vendor: Any, brand: Make, product: Make, decoded_brands: list[int]
) -> None:
    brands = [brand(str(n), product(n)) for n in range(1, 6)]
    vendor.catalogue(brands)
    world.ok()
    decoded_brands.clear()
    brands[3]["name"] = "Other"
    vendor.catalogue(brands)
    counters = world.ok()
    assert decoded_brands == [3]
    assert (counters["fetched"], counters["unchanged"], counters["rows"], counters["brands"]) == (5, 5, 1, 5)


def test_everything_is_compared_now_and_then_and_on_demand(world: Any, vendor: Any, decoded_brands: list[int]) -> None:
    world.ok()
    world.do('UPDATE "Products" SET "Name" = \'x\' WHERE "Id" = 2')
    world.harness.clock.advance(22 * 3600)
    assert world.ok()["rows"] == 0
    world.harness.clock.advance(3600)
    assert world.ok()["rows"] == 1
    decoded_brands.clear()
    world.ok()
    assert decoded_brands == []
    world.reconfigure(full_compare=True)
    world.ok()
    assert decoded_brands == [0]


def test_a_new_mapping_compares_everything(
    world: Any, vendor: Any, decoded_brands: list[int], monkeypatch: Any
) -> None:
    world.ok()
    monkeypatch.setattr("stellerd_brand_sync.digests.MAPPING", digests.MAPPING + 1)
    decoded_brands.clear()
    world.ok()
    world.ok()
    assert decoded_brands == [0]


def test_rows_that_are_missing_are_noticed_at_once(world: Any) -> None:
    world.ok()
    world.do('DELETE FROM "ProductPricings"', 'DELETE FROM "ProductPricingConfigurations"', 'DELETE FROM "Products"')
    assert world.ok()["new"] == 2


def test_what_was_put_aside_is_said_again(world: Any, vendor: Any, brand: Make, product: Make) -> None:
    vendor.catalogue([brand("1", product(1), product(2, name=None)), brand("2", product(3))])
    assert world.ok()["quarantined"] == 1
    assert world.ok()["quarantined"] == 1
    assert kept(world) == ["2"]


def test_a_brand_that_was_away_is_looked_at_again(world: Any, vendor: Any, brand: Make, product: Make) -> None:
    both = [brand("1", product(1)), brand("2", product(2))]
    vendor.catalogue(both)
    world.ok()
    vendor.catalogue(both[:1])
    assert world.ok()["vanished"] == 1
    assert kept(world) == ["1"]
    world.do('UPDATE "Products" SET "Count" = 0 WHERE "Id" = 2')
    vendor.catalogue(both)
    assert world.ok()["rows"] == 1


@pytest.mark.parametrize("claim", ["product", "brand"])
@pytest.mark.parametrize("first", [True, False])
def test_what_an_unchanged_brand_has_is_not_given_away_unseen(
    world: Any, vendor: Any, brand: Make, product: Make, claim: str, first: bool
) -> None:
    old = brand("1", product(1), product(2))
    vendor.catalogue([old])
    world.ok()
    new = brand("2", product(1, name="mine")) if claim == "product" else brand("1", product(3), name="mine")
    vendor.catalogue([new, old] if first else [old, new])
    assert world.ok()["quarantined"] == 1
    owner = {("product", True): "2", ("product", False): "1"}.get((claim, first), "1")
    assert world.query('SELECT "BrandInternalId" FROM "Products" WHERE "Id" = 1') == [(owner,)]
    names = {row[0] for row in world.query('SELECT "Name" FROM "Brands"')}
    assert names == ({"Shop 1", "Shop 2"} if claim == "product" else {"mine" if first else "Shop 1"})


def test_a_brand_that_comes_twice_is_named_every_time(world: Any, vendor: Any, brand: Make, product: Make) -> None:
    vendor.catalogue([brand("1", product(1)), brand("1", product(1))])
    assert [world.ok()["quarantined"] for _ in range(3)] == [1, 1, 1]


def test_without_a_right_to_make_the_table_all_is_compared_and_said(
    postgres_url: str, worlds: Any, vendor: Any, capfd: Any, decoded_brands: list[int]
) -> None:
    owner = worlds(postgres_url, vendor.base_url)
    owner.create()
    role = f"r_{make_url(postgres_url).database}"
    owner.do(f"CREATE ROLE {role} LOGIN", f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    try:
        url = make_url(postgres_url).set(username=role).render_as_string()
        world = worlds(url, vendor.base_url, create_tables=False)
        assert world.ok()["new"] == 2
        assert world.ok()["unchanged"] == 2
        assert decoded_brands == [0, 0]
        assert "no table to keep digests in" in capfd.readouterr().out
    finally:
        owner.do(f"DROP OWNED BY {role}", f"DROP ROLE {role}")
