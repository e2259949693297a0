"""The paged catalogue as whole runs: full, incremental, shifting, cut off in the middle."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from stellerd_bamboo_sandbox import Sandbox
from stellerd_brand_sync import pagelog

BRANDS = 250
START = datetime(2026, 1, 2, 0, 10, tzinfo=UTC)
"""The sandbox's own time: its editions are half an hour each, from 2026-01-01 on."""


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(products=1000, brands=BRANDS, limits=False, drift=False) as made:
        yield made


class Paged:
    """A sync of a paged sandbox; its clock shows the sandbox's time."""

    def __init__(self, worlds: Any, url: str, sandbox: Sandbox, **settings: Any) -> None:
        user, password = sandbox.auth
        self.sandbox = sandbox
        self.world = worlds(
            url, sandbox.base_url, client_id=user, client_secret=password, catalog_api="v2", **settings
        )  # fmt: skip
        self.world.harness.clock.time = START

    def run(self, later: float = 0.0) -> tuple[Any, list[dict[str, list[str]]]]:
        """A run, and the queries it asked for pages with."""
        self.world.harness.clock.advance(later)
        seen = len(self.sandbox.calls("catalog_v2"))
        record = self.world.harness.run()
        return record, [parse_qs(call.query) for call in self.sandbox.calls("catalog_v2")[seen:]]

    def stored(self) -> set[int]:
        """Ids of the stored products."""
        return {number for (number,) in self.world.query('SELECT "Id" FROM "Products"')}

    def served(self) -> set[int]:
        """Ids of the products that the vendor has."""
        return {item["id"] for brand in self.sandbox.snapshot() for item in brand["products"]}

    def mark(self) -> dict[str, Any]:
        """What is remembered of the last fetch."""
        found: dict[str, Any] = self.world.harness.runner.services.cursor.get("fetched")
        return found


@pytest.fixture
def paged(worlds: Any, sqlite_url: str, sandbox: Sandbox) -> Paged:
    return Paged(worlds, sqlite_url, sandbox)


def _pages(queries: list[dict[str, list[str]]]) -> list[int]:
    return [int(query["PageIndex"][0]) for query in queries]


def test_v2_stores_what_v1_stores(any_url: str, worlds: Any, sandbox: Sandbox) -> None:
    paged = Paged(worlds, any_url, sandbox)
    record, queries = paged.run()
    assert (record.state, record.counters["products"], record.counters["vanished"]) == ("ok", 1000, 0)
    assert record.counters["pages"] == len(queries) == 6
    assert _pages(queries) == [0, 1, 2] * 2
    before = paged.world.everything()
    paged.world.reconfigure(catalog_api="v1")
    assert paged.run(3700)[0].counters["rows"] == 0
    assert paged.world.changed_rows(before) == {}


def test_only_what_was_modified_is_fetched_in_between(any_url: str, worlds: Any, sandbox: Sandbox) -> None:
    paged = Paged(worlds, any_url, sandbox)
    paged.run()
    gone = paged.served()
    for _ in range(50):  # to the sandbox's second of January
        sandbox.catalog.advance()
    gone -= paged.served()
    before = paged.world.everything()
    record, queries = paged.run(1800)
    assert {query["ModifiedDate"][0] for query in queries} == {"2025-12-31"}
    assert record.state == "ok"
    assert record.counters["fetched"] > 0
    assert record.counters["vanished"] == 0
    assert paged.stored() == paged.served() | gone
    assert paged.world.changed_rows(before)["Products"] == record.counters["new"] + record.counters["changed"]
    prices = {
        number: paged.world.money(price)
        for number, price in paged.world.query('SELECT "ProductId", "Min" FROM "ProductPricings"')
    }
    items = (item for brand in sandbox.snapshot() for item in brand["products"])
    assert all(prices[item["id"]] == item["price"]["min"] for item in items)


def test_the_cursor_goes_on_and_a_full_refresh_sees_what_vanished(paged: Paged) -> None:
    paged.run()
    first = paged.mark()
    paged.sandbox.catalog.advance()
    assert paged.run(1800)[0].counters["vanished"] == 0
    second = paged.mark()
    assert second["at"] == pytest.approx(first["at"] + 1800, abs=10)
    assert second["full_at"] == first["full_at"]
    record, queries = paged.run(86_400)
    assert ["ModifiedDate" in query for query in queries] == [False] * 3  # brands that are known: one pass
    assert record.counters["vanished"] == len(paged.stored() - paged.served()) == 4
    assert paged.mark()["full_at"] == paged.mark()["at"] > first["at"] + 86_400


@pytest.mark.parametrize("how", ["full_compare", "full_refresh_every", "full_compare_every"])
def test_a_full_one_on_demand(paged: Paged, how: str) -> None:
    paged.run()
    paged.world.reconfigure(**{how: True if how == "full_compare" else 600.0})
    _, queries = paged.run(900)
    assert not any("ModifiedDate" in query for query in queries)


def test_an_incremental_fetch_is_not_compared_with_the_size_of_a_catalogue(paged: Paged) -> None:
    paged.world.reconfigure(max_shrink=0.0, min_products=1000)
    assert paged.run()[0].state == "ok"
    record, queries = paged.run(1800)
    assert (record.state, record.counters["fetched"], _pages(queries)) == ("ok", 0, [0])
    assert record.counters["products"] == 1000


def test_a_database_that_fails_leaves_the_cursor_where_it_was(paged: Paged) -> None:
    paged.run()
    before = paged.mark()
    for _ in range(50):
        paged.sandbox.catalog.advance()
    paged.world.do("CREATE TRIGGER stop BEFORE INSERT ON stellerd_brand_digests BEGIN SELECT no_such_function(1); END")
    record, _ = paged.run(1800)
    assert record.state == "partial"
    assert paged.mark() == before
    paged.world.do("DROP TRIGGER stop")
    record, queries = paged.run(60)
    assert (record.state, queries) == ("ok", [])  # the kept one
    assert paged.mark()["at"] == pytest.approx(before["at"] + 1800, abs=10)
    assert paged.served() <= paged.stored()


def test_another_source_begins_with_a_full_one(paged: Paged) -> None:
    paged.run()
    base = paged.world.harness.runner.settings.base_url_v2
    paged.world.reconfigure(base_url_v2=base.replace("127.0.0.1", "localhost"))
    record, queries = paged.run(1800)
    assert record.state == "ok"
    assert ["ModifiedDate" in query for query in queries] == [False] * 6


def test_pages_that_shift_once_are_read_again(paged: Paged) -> None:
    paged.sandbox.fail("page_shift", endpoint="catalog_v2", calls=[2], shift=-1)
    record, queries = paged.run()
    assert (record.state, record.counters["vanished"]) == ("ok", 0)
    assert paged.stored() == paged.served()
    assert _pages(queries) == [0, 1, 2] * 3


@pytest.mark.parametrize("shift", [-1, 1])
def test_pages_that_shift_for_ever_make_the_run_partial_and_nothing_vanish(paged: Paged, shift: int) -> None:
    paged.world.reconfigure(page_size=50)
    assert paged.run()[0].state == "ok"
    before = paged.world.everything()
    paged.sandbox.fail("page_shift", endpoint="catalog_v2", shift=shift)
    record, queries = paged.run(86_400)
    assert record.state == "partial"
    assert "the vendor names 250 brands, 249 came in 5 passes" in record.reason
    assert record.counters["vanished"] == 0
    assert paged.world.changed_rows(before) == {}
    paged.sandbox.faults.clear()
    record, queries = paged.run(1800)
    assert record.state == "ok"
    assert not any("ModifiedDate" in query for query in queries)  # the whole one is still due


def test_what_was_modified_and_did_not_all_come_is_asked_for_again(paged: Paged) -> None:
    paged.world.reconfigure(page_size=10)
    paged.run()
    before = paged.mark()
    for _ in range(50):
        paged.sandbox.catalog.advance()
    paged.sandbox.fail("page_shift", endpoint="catalog_v2", shift=1)
    record, _ = paged.run(1800)
    assert (record.state, paged.mark()) == ("partial", before)
    paged.sandbox.faults.clear()
    record, queries = paged.run(1800)
    assert record.state == "ok"
    assert queries[0]["ModifiedDate"] == ["2025-12-31"]
    assert paged.served() <= paged.stored()


def test_small_letters_and_clamped_pages(paged: Paged) -> None:
    paged.world.reconfigure(page_size=1000)
    paged.sandbox.fail("pageindex", endpoint="catalog_v2")
    record, queries = paged.run()
    assert (record.state, record.counters["products"]) == ("ok", 1000)
    assert [(q["PageIndex"], q["PageSize"]) for q in queries[:3]] == [
        (["0"], ["1000"]), (["1"], ["100"]), (["2"], ["100"]),
    ]  # fmt: skip


def test_pages_keep_within_the_vendors_limit(worlds: Any, sqlite_url: str) -> None:
    clock = [0.0]
    with Sandbox(products=500, brands=BRANDS, drift=False, clock=lambda: clock[0]) as sandbox:
        paged = Paged(worlds, sqlite_url, sandbox)
        paged.world.harness.runner.services.wait = None
        start = paged.world.harness.clock.time

        def wait(seconds: float) -> bool:
            paged.world.harness.clock.advance(seconds)
            clock[0] = (paged.world.harness.clock.time - start).total_seconds()
            return False

        paged.world.harness.runner.services.wait = wait
        record, queries = paged.run()
    assert (record.state, len(queries)) == ("ok", 6)
    assert [call.status for call in sandbox.calls("catalog_v2")] == [200] * 6


def test_a_process_that_shall_end_waits_for_no_page(paged: Paged) -> None:
    harness = paged.world.harness
    answered = paged.sandbox.calls

    def wait(seconds: float) -> bool:
        harness.clock.advance(seconds)
        return len(answered("catalog_v2")) >= 2 and seconds > 0

    paged.world.harness.runner.services.wait = wait
    record, queries = paged.run()
    assert (record.state, _pages(queries)) == ("deferred", [0, 1])
    assert record.not_before - harness.clock() < timedelta(seconds=2)
    assert paged.stored() == set()


def _log(paged: Paged) -> Path:
    return Path(paged.world.harness.folder / "jobs" / "brand_sync" / pagelog.NAME)


def test_a_pull_that_is_deferred_goes_on_with_the_page_that_is_missing(paged: Paged) -> None:
    paged.world.reconfigure(page_size=50)  # five pages, read twice
    for call in (3, 8):
        paged.sandbox.fail("early_429", endpoint="catalog_v2", calls=[call], wait=600)
    began = paged.world.harness.clock()
    records = [paged.run(later) for later in (0, 601, 601)]
    assert [record.state for record, _ in records] == ["deferred", "deferred", "ok"]
    assert [_pages(queries) for _, queries in records] == [[0, 1, 2], [2, 3, 4, 0, 1], [1, 2, 3, 4]]
    assert paged.stored() == paged.served()
    assert sum(record.counters["pages"] for record, _ in records) == 10
    assert paged.mark()["at"] == pytest.approx(began.timestamp(), abs=10)
    assert not _log(paged).exists()


@pytest.mark.parametrize("form", ["plain_long", "unreadable"])
def test_a_page_that_is_refused_for_seconds_is_asked_for_again_in_the_same_run(paged: Paged, form: Any) -> None:
    paged.sandbox.refuse_as(form, "none")
    paged.sandbox.fail("early_429", endpoint="catalog_v2", calls=[2, 3, 5], wait=1)
    record, queries = paged.run()
    assert (record.state, _pages(queries)) == ("ok", [0, 1, 1, 1, 2, 2, 0, 1, 2])
    assert record.counters["pages"] == 6


def test_a_page_that_is_refused_again_and_again_defers_the_run(paged: Paged) -> None:
    paged.sandbox.fail("early_429", endpoint="catalog_v2", calls=list(range(2, 20)), wait=1)
    record, queries = paged.run()
    assert (record.state, _pages(queries)) == ("deferred", [0, 1, 1, 1, 1])


@pytest.mark.parametrize("how", ["cut", "flipped", "emptied", "old", "other size", "other source", "link", "forbidden"])
def test_pages_that_cannot_be_trusted_are_fetched_again(paged: Paged, how: str, tmp_path: Path) -> None:
    paged.world.reconfigure(page_size=50)
    paged.sandbox.fail("early_429", endpoint="catalog_v2", calls=[3], wait=600)
    paged.run()
    file, later = _log(paged), 601.0
    data = file.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    if how == "cut":
        file.write_bytes(data[:-10])
    elif how == "flipped":
        file.write_bytes(data[:-10] + bytes([data[-10] ^ 1]) + data[-9:])
    elif how == "emptied":
        file.write_bytes(b"")
    elif how == "old":
        later = 3601.0
    elif how == "other size":
        paged.world.reconfigure(page_size=100)
    elif how == "other source":
        paged.world.reconfigure(base_url_v2=paged.world.harness.runner.settings.base_url_v2.replace("0.0.1", "0.0.2"))
        paged.world.reconfigure(base_url_v2=paged.world.harness.runner.settings.base_url_v2.replace("0.0.2", "0.0.1"))
        file.write_bytes(data.replace(b'"source":"', b'"source":"0'))
    elif how == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        paged.world.reconfigure(keep_payload=False)
    record, queries = paged.run(later)
    assert record.state == "ok", record.reason
    assert _pages(queries)[0] == (1 if how in ("cut", "flipped") else 0)
    assert paged.stored() == paged.served()


def test_a_dry_run_uses_the_pages_and_keeps_none(paged: Paged) -> None:
    paged.run()
    paged.world.reconfigure(full_compare=True)
    paged.sandbox.fail("early_429", endpoint="catalog_v2", calls=[8, 11], wait=600)
    paged.world.harness.clock.advance(1800)
    assert paged.world.harness.run(dry_run=True).state == "deferred"
    assert not _log(paged).exists()
    assert paged.run(601)[0].state == "deferred"
    before = _log(paged).read_bytes()
    paged.world.harness.clock.advance(601)
    seen = len(paged.sandbox.calls("catalog_v2"))
    assert paged.world.harness.run(dry_run=True).state == "ok"
    assert len(paged.sandbox.calls("catalog_v2")) - seen < 3
    assert _log(paged).read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"max_body": 200_000}, "larger than"), ({"timeout": 1e-9}, "within")],
    ids=["cap", "deadline"],
)
def test_all_pages_have_one_cap_and_one_deadline(paged: Paged, settings: dict[str, Any], said: str) -> None:
    record, queries = paged.run()
    size = record.counters["bytes"] // 6
    if "max_body" in settings:
        settings = {"max_body": int(size * 2.5)}
    paged.world.reconfigure(full_compare=True, **settings)
    record, queries = paged.run(1800)
    assert record.state in ("partial", "failed")
    assert said in record.reason
    assert len(queries) <= 3


def test_the_schedule_waits_for_the_limit_that_is_used(paged: Paged) -> None:
    runner = paged.world.harness.runner
    runner.limiter.learn("bamboo_catalog", 3000)
    assert runner.plan().why == ""
    assert paged.run()[0].state == "ok"
    runner.limiter.learn("bamboo_catalog_v2", 3000)
    assert runner.plan().why == "waits for the limit bamboo_catalog_v2"
    record, queries = paged.run(60)
    assert (record.state, queries) == ("deferred", [])
