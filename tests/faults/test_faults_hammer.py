"""Sixteen processes at one bucket while one of them is killed again and again: never a grant too many, few too few."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from grants import grants, in_any, keep_grants

from stellerd.durations import parse_rate
from stellerd.limiter import Limit, Limiter
from stellerd.store import Store

PROCESSES = 16
KILLS_PER_S = 2.0


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    made: str = request.getfixturevalue("postgres_url")
    return made


def forked(url: str, rate: str, until: float) -> int:
    """A process that takes every slot it gets; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        bucket = Limiter(Store(url), {"b": Limit((parse_rate(rate),))})
        while time.monotonic() < until:
            free = bucket.try_acquire("b")
            if free is not None:
                time.sleep(min(0.02, max(0.0, (free - bucket._now()).total_seconds())))
        code = 0
    finally:
        os._exit(code)


def hammer(url: str, rate: str, seconds: float) -> list[int]:
    """Exit codes of the processes that were not killed; each killed one has a successor."""
    until = time.monotonic() + seconds
    pids = [forked(url, rate, until) for _ in range(PROCESSES)]
    while time.monotonic() + 1 / KILLS_PER_S < until:
        time.sleep(random.uniform(0.5, 1.0) / KILLS_PER_S)
        victim = pids.pop(random.randrange(PROCESSES))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        pids.append(forked(url, rate, until))
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def never_too_many_and_few_too_few(url: str, rate: str, seconds: float) -> None:
    state = Store(url)
    state.create()
    keep_grants(state)
    ends = hammer(url, rate, seconds)
    moments, parsed = grants(state), parse_rate(rate)
    state.close()
    possible = parsed.limit * (int(seconds // parsed.period) + (seconds % parsed.period > 1))
    most = in_any(parsed.period, moments)
    print(f"{len(moments)} grants of {possible} possible; at most {most} in any {parsed.period:g} s")
    assert ends == [0] * PROCESSES, "a process failed: a deadlock, or a store that was away"
    assert most <= parsed.limit
    assert len(moments) >= 0.95 * possible


def test_16_processes_of_which_one_dies_every_half_second(url: str) -> None:
    never_too_many_and_few_too_few(url, "50/2s", 5.9)


@pytest.mark.soak
@pytest.mark.timeout(180)
def test_16_processes_hammer_for_a_minute(url: str) -> None:
    never_too_many_and_few_too_few(url, "50/10s", 60.0)
