"""Two hosts on one store, one of which is killed, stopped or cut off again and again: each slot is run once or recorded
as lost, never two at a time.

What is done to whom comes from a seed, which is printed; STELLERD_CHAOS_SEED does it all again.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.hosts import WRITES_DOWN, Cluster, Host, cluster
from daemon import until

LEASE_S = 2.0
TAKEOVER_S = LEASE_S + 5.0


def killed(host: Host) -> Callable[[], None]:
    host.kill()
    return host.start_again


def stopped(host: Host) -> Callable[[], None]:
    host.signal(signal.SIGSTOP)
    return lambda: host.signal(signal.SIGCONT)


def cut_off(host: Host) -> Callable[[], None]:
    host.proxy.cut()
    return host.proxy.heal


def unheard(host: Host) -> Callable[[], None]:
    host.proxy.hole()
    return host.proxy.heal


FAULTS = (killed, stopped, cut_off, unheard)


class Chaos:
    """Does one thing after another to whoever is at a run, and keeps a record."""

    def __init__(self, them: Cluster) -> None:
        self.cluster = them
        self.seed = int(os.environ.get("STELLERD_CHAOS_SEED") or random.randrange(1_000_000))
        self.dice = random.Random(self.seed)
        print(f"STELLERD_CHAOS_SEED={self.seed}", flush=True)
        self.takeovers: list[tuple[str, float]] = []
        self.woken: list[float] = []

    def strike(self, fault: Callable[[Host], Callable[[], None]], longest: float) -> None:
        """The fault lasts longer than the lease, and the run would too; the other host takes over meanwhile."""
        host = self.cluster.holder(stubborn=True)
        began = time.time()
        print(f"{began:.2f} {host.name} is {fault.__name__}", flush=True)
        heal = fault(host)
        took = self.cluster.seconds_until_step_of(self.cluster.other(host), began, TAKEOVER_S + 5)
        self.takeovers.append((fault.__name__, took))
        time.sleep(max(0.0, began + LEASE_S * 1.5 + self.dice.uniform(0, longest) - time.time()))
        heal()
        if fault is stopped:
            self.woken.append(time.time())


def judge(chaos: Chaos) -> dict[str, Any]:
    """What the ledger and the store have to say; fails when anything ran twice or at the same time."""
    rows = chaos.cluster.ledger.rows()
    epochs = [row.epoch for row in rows if row.what == "step"]
    assert epochs == sorted(epochs), "two runs wrote at the same time"
    refused = [row for row in rows if row.what == "refused"]
    for row in refused:  # only a process that was stopped may be late, and only until it notices
        assert any(-0.1 <= row.at - woken < 0.5 for woken in chaos.woken), f"a late write without a stop: {row}"
    runs = [run for run in chaos.cluster.store.history("ledger", 100_000) if run.slot]
    attempts: dict[Any, list[str]] = {}
    for run in reversed(runs):
        attempts.setdefault(run.slot, []).append(run.state)
    done = Counter(row.slot for row in rows if row.what == "done")
    for slot, states in attempts.items():
        assert states.count("ok") <= 1, f"{slot} ran twice: {states}"
        assert states.count("lost") <= 2, f"{slot} was tried again and again: {states}"
        assert "running" not in states[:-1], f"{slot}: {states}"
        assert done[slot.isoformat()] <= 1 + states.count("lost"), f"{slot}: {states}"
        assert len(states) == 1 or set(states[:-1]) <= {"lost", "deferred"}, f"{slot}: {states}"
    assert len({row.host for row in rows}) == 2, "one host alone did everything"
    every = sorted(attempts)
    gaps = [after for before, after in itertools.pairwise(every) if (after - before).total_seconds() > 1.5]
    first = {run.slot: run.trigger for run in reversed(runs)}
    assert {first[slot] for slot in gaps} <= {"catch-up", "retry", "deferred"}, "a slot was passed over"
    return {"slots": len(attempts), "states": dict(Counter(s for states in attempts.values() for s in states)),
            "refused": len(refused), "gaps": len(gaps)}  # fmt: skip


@pytest.fixture
def chaos(tmp_path: Path, postgres_server: Any) -> Iterator[Chaos]:
    """Two hosts on PostgreSQL, with a network each."""
    state, ledger = postgres_server.create_database(), postgres_server.create_database()
    try:
        with cluster(tmp_path, state, ledger, {"ledger": WRITES_DOWN}, "[jobs.ledger]\n") as them:
            yield Chaos(them)
    finally:
        for url in (state, ledger):
            postgres_server.drop_database(url)


def report(chaos: Chaos) -> None:
    found = judge(chaos)
    slowest = {name: round(max(s for n, s in chaos.takeovers if n == name), 2) for name, _ in chaos.takeovers}
    print(f"seed {chaos.seed}:", found, "slowest takeover", slowest, "of", len(chaos.takeovers))
    assert max(took for _, took in chaos.takeovers) < TAKEOVER_S


def test_whatever_happens_to_a_host_each_slot_is_run_once(chaos: Chaos) -> None:
    for fault in chaos.dice.sample(FAULTS, len(FAULTS)):
        chaos.strike(fault, 0.5)
    until(lambda: len({row.host for row in chaos.cluster.ledger.rows("step", time.time() - 60)}) == 2)
    report(chaos)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ten_minutes_of_faults(chaos: Chaos) -> None:
    over = time.monotonic() + 600
    while time.monotonic() < over:
        chaos.strike(chaos.dice.choice(FAULTS), 4.0)
    report(chaos)
