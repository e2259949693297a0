"""Two daemons with two publishers each on one database: they share the orders, and none is published by two of them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon, until
from stellerd_order_queue.envelope import message_id

PUBLISHERS = ("left", "right")
WINDOW = 500
SHORT_CLAIMS = 'claim = "8s"\nconfirm_timeout = "2s"'
"""A test can wait for the end of a dead process's."""


def sizes(scaled: int, full: int) -> Any:
    """The size for every test run, and that of `make soak`."""
    long = pytest.param(full, marks=[pytest.mark.soak, pytest.mark.timeout(900)])
    return pytest.mark.parametrize("count", [scaled, long])


class Daemons:
    """What stands in for two hosts: daemons with a state store, an orders database and a broker in common."""

    def __init__(self, folder: Path, state: str, orders: str, broker: str, settings: str) -> None:
        self._stack = contextlib.ExitStack()
        self.hosts: list[Daemon] = []
        for name in ("north", "south"):
            place = folder / name
            place.mkdir()
            host = Daemon(place, {})
            jobs = "".join(
                f'[jobs.{each}]\nplugin = "order_queue"\nconcurrent = true\nevery = "1d"\n'
                f"[jobs.{each}.settings]\nwindow = {WINDOW}\n{settings}\n"
                for each in PUBLISHERS
            )
            host.write(
                f'[state]\nurl = "{state}"\nhost = "{name}"\n[databases.steller]\nurl = "{orders}"\n'
                f'[broker]\nurl = "{broker}"\n{jobs}'
            )
            self.hosts.append(host)

    def __enter__(self) -> Daemons:
        for host in self.hosts:
            self._stack.enter_context(host)
        until(lambda: all(each["last_run"] for each in self.entries()), 60, "a first run of every publisher")
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def entries(self) -> list[dict[str, Any]]:
        """The four jobs' entries of the status."""
        return [host.job(name) for host in self.hosts for name in PUBLISHERS]

    def begin(self) -> None:
        """All four at once."""
        self._before = {each["last_run"]["id"] for each in self.entries()}
        for host in self.hosts:
            for name in PUBLISHERS:
                host.ask("trigger", job=name)

    def runs(self, timeout: float) -> list[dict[str, Any]]:
        """What `begin` began, once all of it is over."""

        def over() -> list[dict[str, Any]]:
            found = [each["last_run"] for each in self.entries() if each["run"] is None]
            return found if len(found) == 4 and not self._before & {run["id"] for run in found} else []

        return until(over, timeout, "the end of all four runs")


@pytest.fixture
def daemons(
    tmp_path: Path, postgres_server: Any, pg_orders: Any, consumer: Any, request: pytest.FixtureRequest
) -> Iterator[Daemons]:
    """Started, with nothing to do yet."""
    consumer.bind()
    state = postgres_server.create_database()
    with Daemons(tmp_path, state, pg_orders.url, consumer.url, getattr(request, "param", "")) as made:
        yield made
    postgres_server.drop_database(state)


@sizes(6_000, 200_000)
def test_two_daemons_with_four_publishers_publish_each_order_once(
    count: int, daemons: Daemons, pg_orders: Any, consumer: Any
) -> None:
    pg_orders.add_many(count)
    daemons.begin()
    runs = daemons.runs(count / 500)
    assert {run["state"] for run in runs} == {"ok"}
    shares = [run["counters"]["published"] for run in runs]
    print(f"shares {shares}, {count / max(run['seconds'] for run in runs):,.0f} orders a second")
    assert sum(shares) == count
    assert min(shares) > 0 or count < 100_000  # of a few, the first takes all before the last is there
    arrived = consumer.message_ids(pg_orders.requests())
    assert arrived.total() == len(arrived) == count


@sizes(10_000, 200_000)
@pytest.mark.parametrize("daemons", [SHORT_CLAIMS], indirect=True, ids=["short claims"])
def test_a_publisher_that_is_killed_costs_duplicates_and_no_order(
    count: int, daemons: Daemons, pg_orders: Any, consumer: Any
) -> None:
    pg_orders.add_many(count)
    daemons.begin()
    victim = until(lambda: next((each for each in daemons.entries() if (each["progress"] or {}).get("done")), None))
    os.kill(victim["pid"], signal.SIGKILL)
    daemons.runs(count / 500)
    deadline = time.monotonic() + 60
    while pg_orders.published() != pg_orders.requests():  # what the dead one held is due when its claims are over
        assert time.monotonic() < deadline
        daemons.begin()
        daemons.runs(60)
    arrived = consumer.message_ids(pg_orders.requests())
    print(f"{arrived.total() - len(arrived)} duplicates after one kill -9")
    assert {request for request, _ in arrived} == pg_orders.requests()
    assert all(identity == message_id(request) for request, identity in arrived)
    assert arrived.total() - count <= WINDOW
