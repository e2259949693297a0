"""Database sessions that end at any moment of a sync: every reader sees all of a catalogue or nothing of it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from stellerd.testing import open_engine

Make = Callable[..., dict[str, Any]]
# Everything that a reader sees in one snapshot, in a few bytes
STATE = """
SELECT md5(concat_ws('|',
  (SELECT string_agg(concat_ws(',', "InternalId", "Name"), ';' ORDER BY "InternalId") FROM "Brands"),
  (SELECT string_agg(concat_ws(',', p."Id", p."BrandInternalId", b."InternalId", p."Name", p."Count", q."Max",
                     c."CommissionTypeId"), ';' ORDER BY p."Id", q."Id", c."Id")
     FROM "Products" p LEFT JOIN "Brands" b ON b."Id" = p."BrandId"
     LEFT JOIN "ProductPricings" q ON q."ProductId" = p."Id"
     LEFT JOIN "ProductPricingConfigurations" c ON c."ProductId" = p."Id"),
  (SELECT string_agg(concat_ws(',', b."InternalId", l."CategoryId"), ';' ORDER BY b."InternalId", l."CategoryId")
     FROM "BrandCategories" l JOIN "Brands" b ON b."Id" = l."BrandId")))"""
KILL = """
SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = 'stellerd' AND state <> 'idle'"""
SPARED = "SET application_name = 'test'"
LONGEST_S = 540


class Reader:
    """Polls the whole state from a session of its own; `seen` are the different ones."""

    def __init__(self, url: str) -> None:
        self.seen: set[str] = set()
        self.looks = 0
        self._stop = threading.Event()
        self._engine = open_engine(url, "reader")
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def _poll(self) -> None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(SPARED)
            while not self._stop.is_set():
                self.seen.add(connection.execute(sa.text(STATE)).scalar_one())
                self.looks += 1

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._engine.dispose()


def catalogues(brand: Make, product: Make) -> list[list[dict[str, Any]]]:
    """Two catalogues that differ in every kind of row: products that move, come and go, prices, links, names."""
    one, two = [], []
    for n in range(60):
        numbers = range(100 * n + 1, 100 * n + 11)
        one.append(brand(str(n), *map(product, numbers), categories=[1, 2]))
        other = [product(m, count=m, price={"min": 5, "max": 10, "currencyCode": "EUR"}) for m in numbers[:8]]
        moved = [product(100 * ((n + 1) % 60) + 9, name="moved")]
        two.append(brand(str(n), *other, *moved, name="Other", categories=[2, 3]))
    return [one, two]


def killed_and_whole(world: Any, vendor: Any, brand: Make, product: Make, moments: int) -> None:
    """Kill the sync's sessions at so many random moments, each time from one catalogue to the other."""
    both = catalogues(brand, product)
    world.reconfigure(on_missing="out-of-stock")
    states, took = [], 0.0
    for number in (0, 1, 0, 1):  # each as it is after the other one
        vendor.catalogue(both[number])
        began = time.monotonic()
        world.ok()
        took = time.monotonic() - began
        states.append(world.query(STATE)[0][0])
    allowed = set(states[2:])
    assert len(allowed) == 2
    hits, deadline = 0, time.monotonic() + LONGEST_S
    now, chance = 1, random.Random(7)
    killer = open_engine(world.url, "killer")
    with Reader(world.url) as reader, killer.connect().execution_options(isolation_level="AUTOCOMMIT") as kill:
        kill.exec_driver_sql(SPARED)
        while hits < moments:
            assert time.monotonic() < deadline, f"only {hits} of {moments} sessions were killed in time"
            vendor.catalogue(both[1 - now])
            records: list[Any] = []
            thread = threading.Thread(target=lambda kept=records: kept.append(world.run()))
            thread.start()
            thread.join(chance.uniform(0, took))
            hit = kill.execute(sa.text(KILL)).scalar_one()
            thread.join(60)
            hits += hit
            state = world.query(STATE)[0][0]
            whole = records[0].state == "ok"
            assert state in allowed, records[0].reason
            assert state == states[2 + (1 - now)] or not whole
            assert hit or whole, records[0].reason
            world.ok()  # what the kill prevented
            assert world.query(STATE)[0][0] == states[2 + (1 - now)]
            now = 1 - now
    killer.dispose()
    assert reader.seen == allowed
    assert reader.looks > hits


def test_a_sync_killed_at_any_moment_is_whole_or_not_there(
    postgres_url: str, worlds: Any, vendor: Any, brand: Make, product: Make
) -> None:
    killed_and_whole(worlds(postgres_url, vendor.base_url), vendor, brand, product, moments=8)


@pytest.mark.soak
def test_a_sync_killed_at_a_hundred_moments_is_whole_or_not_there(
    postgres_url: str, worlds: Any, vendor: Any, brand: Make, product: Make
) -> None:
    killed_and_whole(worlds(postgres_url, vendor.base_url), vendor, brand, product, moments=100)
