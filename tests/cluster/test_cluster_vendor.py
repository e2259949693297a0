"""The vendor's limit while hosts are restarted again and again and a person types `run-once`: never a call too many in
any hour, as the sandbox's own log says, and never one too few when work is due. An hour is shorter here."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cluster.hosts import Cluster, Host, cluster
from grants import grants, in_any, keep_grants
from stellerd_bamboo_sandbox import Sandbox

from stellerd.store import Store

CALLS, HOURS = 2, 3
MARGIN_S = 1.0  # as for a real hour: the network and this machine are not scaled
BUCKET = "bamboo_catalog"
ANSWER_S = 0.4  # the body takes so long, so that restarts meet requests that are under way
DONE, NOT_NOW = 0, 75
GONE = 69  # of a run by the daemon: that was killed, or hung up while it stopped


@dataclass(frozen=True)
class Scale:
    """How long an hour is, and what happens in it."""

    hour_s: float
    restart_every_s: float
    typed_within_s: float
    late_s: float
    """Longest time from the moment a slot is free until it is used: a killed host's lease runs out, a daemon starts."""


def toml(sandbox: Sandbox, scale: Scale) -> str:
    """Both hosts always have work to do: the job is due far more often than the vendor allows."""
    return f"""
        [limits.{BUCKET}]
        rate = "{CALLS}/{scale.hour_s:g}s"
        margin = "{MARGIN_S:g}s"
        [jobs.brand_sync]
        every = "1s"
        [jobs.brand_sync.settings]
        base_url_v1 = "{sandbox.base_url}"
        base_url_v2 = "{sandbox.base_url}"
        client_id = "{sandbox.auth[0]}"
        client_secret = "{sandbox.auth[1]}"
        database = "ledger"
        create_tables = true
    """


class Person:
    """Types `run-once brand_sync` on one host or the other, at random; `exits` are the exit codes."""

    def __init__(self, hosts: list[Host], scale: Scale) -> None:
        self.hosts, self.scale = hosts, scale
        self.exits: Counter[int] = Counter()
        self._gone = threading.Event()
        self._thread = threading.Thread(target=self._type)

    def __enter__(self) -> Person:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._gone.set()
        self._thread.join()

    def _type(self) -> None:
        while not self._gone.wait(random.uniform(0, self.scale.typed_within_s)):
            words = random.choice([(), ("--wait=5s",), ("--dry-run",)])
            said = random.choice(self.hosts).cli("run-once", "brand_sync", *words)
            self.exits[said.returncode] += 1


def restart(host: Host, *, hard: bool) -> None:
    """As an operator does, or as a power cut does."""
    if hard:
        host.kill()
    else:
        assert host.process is not None
        host.process.terminate()
        assert host.process.wait(30) == 0
    host.start_again()


def three_hours(them: Cluster, scale: Scale) -> tuple[Counter[int], int]:
    """The person's exit codes, and how often a host was killed."""
    kills = 0
    over = time.monotonic() + HOURS * scale.hour_s
    with Person(them.hosts, scale) as person:
        for host, hard in zip(itertools.cycle(them.hosts), itertools.cycle((False, False, True, True)), strict=False):
            due = time.monotonic() + scale.restart_every_s
            if due > over:
                break
            restart(host, hard=hard)
            kills += hard
            time.sleep(max(0.0, due - time.monotonic()))  # the minute itself is what is waited for
        time.sleep(max(0.0, over - time.monotonic()))
    return person.exits, kills


def longest_unused(spent: list[datetime], begin: datetime, end: datetime, span: timedelta) -> float:
    """The longest time that a slot was free and nobody took it, in seconds. Each is free `span` after it was taken."""
    free = [begin] * CALLS + [at + span for at in spent]
    taken = [*spent, *[end] * CALLS]
    return max((then - since).total_seconds() for since, then in zip(free, taken, strict=True))


def judge(sandbox: Sandbox, state: Any, scale: Scale, begin: datetime, end: datetime, kills: int) -> dict[str, Any]:
    """What the sandbox's log and the store have to say."""
    calls, spent = sandbox.calls("catalog"), grants(state, BUCKET)
    assert in_any(scale.hour_s, sorted(call.at for call in calls)) <= CALLS
    assert "limited" not in {call.outcome for call in calls}, "the vendor had to refuse one"
    assert len(spent) - kills <= len(calls) <= len(spent), "a request without a slot, or slots that were thrown away"
    unused = longest_unused(spent, begin, end, timedelta(seconds=scale.hour_s + MARGIN_S))
    assert unused < scale.late_s, f"a slot was free for {unused:.1f} s though work was due"
    return {"calls": len(calls), "slots spent": len(spent), "longest unused, s": round(unused, 2)}


@contextmanager
def world(folder: Path, server: Any, scale: Scale) -> Iterator[tuple[Cluster, Sandbox]]:
    """The vendor, and two hosts on one PostgreSQL."""
    state, platform = server.create_database(), server.create_database()
    vendor = Sandbox(products=64, catalog_calls=CALLS, catalog_window=scale.hour_s)
    vendor.fail("slow_body", endpoint="catalog", seconds=ANSWER_S)
    try:
        store = Store(state)
        store.create()
        keep_grants(store)
        store.close()
        with vendor as sandbox, cluster(folder, state, platform, {}, toml(sandbox, scale)) as them:
            yield them, sandbox
    finally:
        for url in (state, platform):
            server.drop_database(url)


def hold(folder: Path, server: Any, scale: Scale) -> None:
    with world(folder, server, scale) as (them, sandbox):
        begin = datetime.now(UTC)
        exits, kills = three_hours(them, scale)
        found = judge(sandbox, them.store, scale, begin, datetime.now(UTC), kills)
        states = dict(Counter(run.state for run in them.store.history("brand_sync", 100_000)))
        print(found, "killed", kills, "run-once exits", dict(exits), "runs", states)
        assert set(exits) <= {DONE, NOT_NOW, GONE}, exits
        assert exits[GONE] <= 2 * kills + 2, "the daemon that ran it went away, hard or not, more often than it did"


def test_three_short_hours_of_restarts_and_a_person(tmp_path: Path, postgres_server: Any) -> None:
    hold(tmp_path, postgres_server, Scale(hour_s=5.0, restart_every_s=2.5, typed_within_s=2.0, late_s=5.0))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_three_hours_of_restarts_each_minute_and_a_person(tmp_path: Path, postgres_server: Any) -> None:
    hold(tmp_path, postgres_server, Scale(hour_s=180.0, restart_every_s=3.0, typed_within_s=9.0, late_s=12.0))
