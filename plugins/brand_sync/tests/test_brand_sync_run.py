"""Whole runs: what each failure of the vendor, the limits and the database becomes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from stellerd_bamboo_sandbox import Sandbox
from stellerd_brand_sync import BrandSync, stellerd_job

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def quick(sqlite_url: str, worlds: Any, vendor: Any) -> Any:
    """A sync from `vendor` into SQLite, for what does not depend on the database."""
    return worlds(sqlite_url, vendor.base_url)


def test_the_hook_names_the_job() -> None:
    assert stellerd_job() is BrandSync
    assert BrandSync.every == "30m"
    assert BrandSync.buckets == ("bamboo_catalog",)
    assert BrandSync.limits["bamboo_catalog"] == "2/1h"


def test_the_whole_catalogue_over_http(any_url: str, worlds: Any) -> None:
    with Sandbox(drift=False) as sandbox:
        user, password = sandbox.auth
        world = worlds(any_url, sandbox.base_url, client_id=user, client_secret=password, max_shrink=None)
        counters = world.ok()
        snapshot = {item["id"]: item for brand in sandbox.snapshot() for item in brand["products"]}
        before = world.everything()
        sandbox.advance(3700)
        again = world.ok()
    assert (counters["fetched"], counters["products"], counters["new"], counters["categories"]) == (
        8026,
        8026,
        8026,
        27,
    )
    assert counters["bytes"] > 5_000_000
    assert (again["unchanged"], again["rows"]) == (8026, 0)
    assert world.changed_rows(before) == {}
    rows = world.query(
        'SELECT p."Id", p."Name", p."MinFaceValue", p."MaxFaceValue", q."Min", q."Max" FROM "Products" p '
        'JOIN "ProductPricings" q ON q."ProductId" = p."Id"'
    )
    assert len(rows) == 8026
    for number, name, *amounts in rows:
        item = snapshot[number]
        sent = [item["minFaceValue"], item["maxFaceValue"], item["price"]["min"], item["price"]["max"]]
        assert (item["name"], sent) == (name, [world.money(value) for value in amounts])


def test_postgresql_itself_says_what_was_written(
    postgres_url: str, worlds: Any, vendor: Any, brand: Make, product: Make
) -> None:
    world = worlds(postgres_url, vendor.base_url)
    world.ok()
    baseline = _written(world)
    assert baseline["Products"] == (2, 0, 0)
    world.ok()
    assert _written(world) == baseline
    vendor.catalogue([brand("100", product(1), product(2, price={"min": 9, "max": 9.5, "currencyCode": "USD"}))])
    world.ok()
    inserted, updated, deleted = baseline["ProductPricings"]
    expected = {"ProductPricings": (inserted, updated + 1, deleted), "stellerd_brand_digests": (1, 1, 0)}
    assert _written(world) == baseline | expected


def _written(world: Any) -> dict[str, tuple[int, int, int]]:
    """n_tup_ins, n_tup_upd, n_tup_del by table; a session hands in its figures when it ends, so all are ended."""
    world.harness.runner.services.engine("steller").dispose()
    world.engine.dispose()
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    world.until(lambda: world.query(others) == [(0,)])
    query = "SELECT relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables"
    return {name: tuple(figures) for name, *figures in world.query(query)}


def test_refused_credentials_are_named_and_the_secret_is_not(sqlite_url: str, worlds: Any, capfd: Any) -> None:
    with Sandbox(products=10) as sandbox:
        world = worlds(sqlite_url, sandbox.base_url, client_secret="hunter2-hunter2")
        record = world.run()
    assert (record.state, record.exit_code) == ("failed", 1)
    assert record.reason.count("answered 401; the credentials were refused") == 2
    printed = capfd.readouterr()
    assert "hunter2" not in record.reason + printed.out + printed.err
    assert "Traceback" not in record.reason + printed.out + printed.err


@pytest.mark.parametrize(
    ("status", "said"),
    [(403, "answered 403; no access"), (500, "answered 500"), (502, "answered 502"), (302, "redirect")],
)
def test_one_failed_half_leaves_the_other(
    quick: Any, vendor: Any, status: int, said: str, product: Make, brand: Make
) -> None:
    vendor.answers[vendor.V2] = (status, b"<h1>sorry</h1>")
    record = quick.run()
    assert (record.state, record.counters["products"]) == ("partial", 2)
    assert record.reason.startswith("categories: ")
    assert said in record.reason
    vendor.categories([{"id": 5, "name": "Five", "description": "new"}])
    vendor.answers[vendor.V1] = (status, b"<h1>sorry</h1>")
    record = quick.run()
    assert record.state == "partial"
    assert record.reason.startswith("catalogue: ")
    assert said in record.reason
    assert quick.query('SELECT "Name" FROM "Categories" WHERE "Id" = 5') == [("Five",)]


def test_both_halves_failed_is_a_failed_run(quick: Any, vendor: Any) -> None:
    vendor.answers = {vendor.V1: (500, b"one"), vendor.V2: (500, b"two")}
    record = quick.run()
    assert (record.state, record.exit_code) == ("failed", 1)
    assert record.reason.startswith("categories: ")
    assert "; catalogue: " in record.reason


def test_a_vendor_that_is_not_there(sqlite_url: str, worlds: Any, vendor: Any) -> None:
    gone = vendor.base_url.rpartition(":")[0] + ":1"
    record = worlds(sqlite_url, gone).run()
    assert record.state == "failed"
    assert record.reason.count("refused") == 2


def test_categories_are_updated_and_keep_what_brands_brought(
    quick: Any, vendor: Any, brand: Make, product: Make
) -> None:
    vendor.catalogue([brand("1", product(1), categories=[1, 2, 50, {"id": 60, "name": "Sixty", "description": "d"}])])
    quick.ok()
    vendor.categories([{"id": 50, "name": "Fifty", "description": None}, {"id": 60, "name": "LX", "description": "d"}])
    quick.ok()
    assert quick.query('SELECT "Id", "Name", "Description", "CreatedBy" FROM "Categories" ORDER BY 1') == [
        (1, "Entertainment", "", 1), (2, "Gaming", None, 1), (50, "Fifty", None, 1), (60, "LX", "d", 1),
    ]  # fmt: skip
    assert quick.ok()["rows"] == 0


def test_429_defers_closes_the_limit_and_sends_nothing_meanwhile(sqlite_url: str, worlds: Any) -> None:
    with Sandbox(products=50) as sandbox:
        user, password = sandbox.auth
        sandbox.fail("early_429", endpoint="catalog", calls=[1], wait=3406)
        world = worlds(sqlite_url, sandbox.base_url, client_id=user, client_secret=password)
        now = world.harness.clock()
        record = world.harness.run()
        assert (record.state, record.exit_code) == ("deferred", 75)
        assert abs(record.not_before - now - timedelta(seconds=3406)) < timedelta(seconds=2)
        assert record.counters["categories"] == 27  # the half that could be done is done
        asked = sandbox.requests
        world.harness.clock.advance(3400)
        record = world.harness.run()
        assert (record.state, "no request was sent" in record.reason) == ("deferred", True)
        assert sandbox.requests == asked
        world.harness.clock.advance(10)
        sandbox.advance(3410)
        record = world.harness.run()
        assert (record.state, record.counters["products"]) == ("ok", 50)


def test_a_third_run_within_the_hour_sends_nothing_at_all(quick: Any, vendor: Any) -> None:
    for _ in range(2):
        assert quick.harness.run().state == "ok"
        quick.harness.clock.advance(2)
    vendor.paths.clear()
    record = quick.harness.run()
    assert record.state == "deferred"
    assert vendor.paths == []
    assert record.not_before - quick.harness.clock() > timedelta(minutes=59)


def test_a_429_of_the_categories_is_their_problem_alone(quick: Any, vendor: Any) -> None:
    vendor.answers[vendor.V2] = (429, b"Please wait for 100 seconds.")
    record = quick.run()
    assert (record.state, record.counters["products"]) == ("partial", 2)
    assert record.reason.startswith("categories: bamboo_categories: the server answered 429")


def test_bad_rows_are_put_aside_and_the_rest_is_stored(any_url: str, worlds: Any) -> None:
    with Sandbox(products=600, drift=False) as sandbox:
        user, password = sandbox.auth
        sandbox.fail("bad_rows")
        world = worlds(any_url, sandbox.base_url, client_id=user, client_secret=password)
        counters = world.ok()
    aside = world.harness.quarantined()
    assert counters["quarantined"] == len(aside) > 25
    assert {item["entity"] for item in aside} == {"brand", "product", "price"}
    assert all(item["reason"] and item["payload"] for item in aside)
    prices = [item for item in aside if item["entity"] == "price"]
    assert counters["products"] > 600
    stored = world.query('SELECT count(*) FROM "Products" WHERE "Id" BETWEEN 900000000 AND 900000999')
    assert stored == [(len(prices),)]
    assert world.query('SELECT count(*) FROM "ProductPricings"') == [(counters["products"] - len(prices),)]


def test_more_bad_rows_than_anybody_reads_are_summed_up(quick: Any, vendor: Any, brand: Make, product: Make) -> None:
    bad = [product(n, name=None) for n in range(2, 1200)]
    vendor.catalogue([brand("1", product(1), *bad)])
    counters = quick.ok()
    assert counters["quarantined"] == 1198
    assert len(quick.harness.quarantined()) == 1001


@pytest.mark.parametrize("state", ["same file", "other file"])
def test_the_state_may_live_in_the_same_sqlite_file(
    state: str, tmp_path: Any, worlds: Any, vendor: Any, brand: Make, product: Make
) -> None:
    name = tmp_path / "0" / ("state.db" if state == "same file" else "steller.db")
    vendor.catalogue([brand("1", product(1), product(2, name=None))])
    world = worlds(f"sqlite:///{name}", vendor.base_url)
    assert world.ok()["quarantined"] == 1


EMPTY = [([], "0 usable products came, min_products is 1"), ([5], "0 usable products came, min_products is 1")]


@pytest.mark.parametrize(("brands", "said"), EMPTY)
def test_an_empty_catalogue_is_refused(quick: Any, vendor: Any, brands: list[Any], said: str) -> None:
    quick.ok()
    before = quick.everything()
    vendor.catalogue(brands)
    record = quick.run()
    assert record.state == "partial"
    assert said in record.reason
    assert quick.changed_rows(before) == {}
    assert len(quick.harness.quarantined()) == len(brands)


def test_a_halved_catalogue_is_refused_until_it_is_said_to_be_right(
    any_url: str, worlds: Any, vendor: Any, brand: Make, product: Make
) -> None:
    world = worlds(any_url, vendor.base_url, max_shrink=None)
    vendor.catalogue([brand("1", *(product(n) for n in range(1, 101)))])
    world.ok()
    before = world.everything()
    vendor.catalogue([brand("1", *(product(n, name="x") for n in range(1, 51)))])
    record = world.run()
    assert record.state == "partial"
    assert "50 usable products came, the last one had 100, and max_shrink is 30%" in record.reason
    assert "--set max_shrink=1" in record.reason
    assert world.changed_rows(before) == {}
    trusting = worlds(any_url, vendor.base_url, max_shrink=1)
    assert trusting.ok()["changed"] == 50


def test_shrinking_is_measured_against_the_last_catalogue_not_against_all_that_ever_was(
    quick: Any, worlds: Any, vendor: Any, brand: Make, product: Make
) -> None:
    world = worlds(quick.url, vendor.base_url, max_shrink=0.5)
    for numbers in (range(1, 101), range(61, 121), range(111, 151)):
        vendor.catalogue([brand("1", *(product(n) for n in numbers))])
        world.ok()
    assert world.query('SELECT count(*) FROM "Products"') == [(150,)]


def test_a_dry_run_leaves_an_empty_database_empty(any_url: str, worlds: Any, vendor: Any) -> None:
    world = worlds(any_url, vendor.base_url)
    record = world.run(dry_run=True)
    assert (record.state, record.counters["new"], record.counters["products"]) == ("ok", 2, 2)
    assert sa.inspect(world.engine).get_table_names() == []
    world.engine.dispose()
    assert world.ok()["new"] == 2


def test_a_dry_run_counts_what_a_run_would_do(world: Any, vendor: Any, brand: Make, product: Make) -> None:
    world.ok()
    vendor.catalogue([brand("100", product(1, count=3), product(3), product(4, name=None), categories=[4])])
    before = world.everything()
    dry = world.run(dry_run=True)
    assert world.changed_rows(before) == {}
    assert world.harness.quarantined() == []
    real = world.run()
    counts = [{k: v for k, v in record.counters.items() if not k.endswith("_ms")} for record in (dry, real)]
    assert counts[0] == counts[1]
    assert {name: real.counters[name] for name in ("new", "changed", "unchanged", "vanished", "quarantined")} == {
        "new": 1, "changed": 1, "unchanged": 0, "vanished": 1, "quarantined": 1,
    }  # fmt: skip


def test_a_secret_that_went_away_costs_no_request(sqlite_url: str, worlds: Any, vendor: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("BAMBOO_SECRET", "x")
    world = worlds(sqlite_url, vendor.base_url, client_secret={"env": "BAMBOO_SECRET"})
    world.ok()
    vendor.paths.clear()
    monkeypatch.setenv("BAMBOO_SECRET", "")
    assert world.run().reason == "client_secret: is empty"
    monkeypatch.delenv("BAMBOO_SECRET")
    record = world.run()
    assert (record.exit_code, record.reason) == (78, "client_secret: environment variable BAMBOO_SECRET is not set")
    assert vendor.paths == []


def test_progress_is_told(quick: Any) -> None:
    quick.ok()
    units = [data["unit"] for kind, data in quick.harness.events if kind == "progress"]
    assert units[-1] == "products"
    assert "brands" in units


def test_a_body_over_the_cap_is_refused(sqlite_url: str, worlds: Any, vendor: Any) -> None:
    record = worlds(sqlite_url, vendor.base_url, max_body="100B").run()
    assert "larger than 100 bytes" in record.reason
