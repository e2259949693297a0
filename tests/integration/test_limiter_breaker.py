"""The circuit breaker and operators' rates: one column closes a bucket for everybody, one probe opens it again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from pruned import prune

from stellerd.buckets import Buckets, operations_of
from stellerd.durations import parse_rate
from stellerd.limiter import Limit, Limiter
from stellerd.schema import buckets, hits
from stellerd.store import Store
from stellerd.testing import Clock

START = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)
PAUSE = timedelta(seconds=60)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    made: str = request.getfixturevalue("postgres_url")
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock(START)


@pytest.fixture
def state(url: str, clock: Clock) -> Iterator[Store]:
    made = Store(url, clock)
    made.create()
    yield made
    made.close()


def limiter(state: Store, rate: str = "100/1h", failures: int = 3) -> Limiter:
    return Limiter(state, {"b": Limit((parse_rate(rate),), 0.0, breaker_failures=failures, breaker_pause=60.0)})


def fail(bucket: Limiter, times: int) -> datetime | None:
    """Until when the last failure closed it."""
    until = None
    for _ in range(times):
        assert bucket.try_acquire("b") is None
        until = bucket.report("b", answered=False)
    return until


def override(state: Store, rates: str | None, until: datetime | None = None) -> None:
    with state.begin() as connection:
        connection.execute(sa.update(buckets).values(override_rates=rates, override_until=until))


def test_the_last_of_so_many_failures_opens_the_circuit(state: Store, clock: Clock) -> None:
    bucket = limiter(state)
    assert fail(bucket, 2) is None
    assert fail(bucket, 1) == START + PAUSE
    assert bucket.try_acquire("b") == START + PAUSE
    assert bucket.closed_until("b") == START + PAUSE


def test_an_answer_between_failures_starts_the_count_anew(state: Store) -> None:
    bucket = limiter(state)
    fail(bucket, 2)
    bucket.report("b", answered=True)
    assert fail(bucket, 2) is None


def test_failures_of_all_processes_count_together(url: str, state: Store, clock: Clock) -> None:
    fail(limiter(state), 2)
    other = Store(url, clock)
    try:
        assert fail(limiter(other), 1) == START + PAUSE
    finally:
        other.close()


def test_one_probe_is_let_through_after_the_pause(state: Store, clock: Clock) -> None:
    bucket = limiter(state)
    fail(bucket, 3)
    clock.advance(60)
    assert bucket.try_acquire("b") is None
    assert bucket.try_acquire("b") == START + 2 * PAUSE


def test_a_probe_may_take_its_time(state: Store, clock: Clock) -> None:
    bucket = limiter(state)
    fail(bucket, 3)
    clock.advance(60)
    assert bucket.try_acquire("b", takes_s=300) is None
    clock.advance(299)
    assert bucket.try_acquire("b", takes_s=300) == START + PAUSE + timedelta(seconds=300)


def test_a_probe_that_succeeds_closes_the_circuit(state: Store, clock: Clock) -> None:
    bucket = limiter(state)
    fail(bucket, 3)
    clock.advance(60)
    assert bucket.try_acquire("b") is None
    bucket.report("b", answered=True)
    assert fail(bucket, 2) is None


def test_a_probe_that_fails_opens_it_for_another_pause(state: Store, clock: Clock) -> None:
    bucket = limiter(state)
    fail(bucket, 3)
    clock.advance(60)
    assert fail(bucket, 1) == START + 2 * PAUSE
    assert bucket.try_acquire("b") == START + 2 * PAUSE


def test_a_probe_whose_process_died_is_followed_by_another(state: Store, clock: Clock) -> None:
    bucket = limiter(state)
    fail(bucket, 3)
    clock.advance(60)
    assert bucket.try_acquire("b") is None
    clock.advance(60)
    assert bucket.try_acquire("b") is None


def test_a_probe_waits_for_the_window_too(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "3/1h")
    fail(bucket, 3)
    clock.advance(60)
    assert bucket.try_acquire("b") == START + timedelta(hours=1)


def test_what_the_server_said_holds_longer_than_the_pause(state: Store, clock: Clock) -> None:
    bucket = limiter(state)
    for _ in range(3):
        bucket.try_acquire("b")
    bucket.learn("b", 3000)
    for _ in range(3):
        assert bucket.report("b", answered=False) is None
    assert bucket.try_acquire("b") == START + timedelta(seconds=3000)


def test_a_429_to_the_probe_is_an_answer(state: Store, clock: Clock) -> None:
    bucket = limiter(state)
    fail(bucket, 3)
    clock.advance(60)
    assert bucket.try_acquire("b", takes_s=300) is None
    assert bucket.learn("b", 5) == START + timedelta(seconds=65)
    clock.advance(5)
    assert [bucket.try_acquire("b") for _ in range(2)] == [None, None]


def test_no_threshold_means_no_breaker(state: Store) -> None:
    assert fail(limiter(state, failures=0), 20) is None


def test_of_many_processes_one_sends_the_probe(url: str, tmp_path: Path) -> None:
    state = Store(url)
    state.create()
    bucket = limiter(state)
    fail(bucket, 3)
    with state.begin() as connection:
        connection.execute(sa.update(buckets).values(not_before=datetime.now(UTC) - timedelta(seconds=1)))
    state.close()
    pids = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 42 if limiter(Store(url)).try_acquire("b") is None else 0
            finally:
                os._exit(code)
        pids.append(pid)
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert sorted(ends) == [0] * 7 + [42]


# --- an operator's rates


def test_an_operators_rate_holds_in_place_of_the_configured(state: Store) -> None:
    bucket = limiter(state, "5/1h")
    assert bucket.try_acquire("b") is None
    override(state, "2/1h")
    assert bucket.try_acquire("b") is None
    assert bucket.try_acquire("b") == START + timedelta(hours=1)
    assert bucket.closed_until("b") == START + timedelta(hours=1)
    override(state, None)
    assert bucket.try_acquire("b") is None


def test_an_operators_rate_ends_by_itself(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "5/1h")
    bucket.try_acquire("b")
    override(state, "1/1h", START + timedelta(minutes=10))
    clock.advance(599)
    assert bucket.try_acquire("b") is not None
    clock.advance(1)
    assert bucket.try_acquire("b") is None


def test_an_operators_short_window_forgets_no_grant_of_the_configured_one(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "2/1h")
    bucket.try_acquire("b")
    bucket.try_acquire("b")
    override(state, "10/1s, 20/1m")
    clock.advance(120)
    assert bucket.try_acquire("b") is None
    override(state, None)
    assert bucket.try_acquire("b") == START + timedelta(hours=1, seconds=0)


# --- pruning


def hits_left(state: Store) -> int:
    with state.reading() as connection:
        count: int = connection.execute(sa.select(sa.func.count()).select_from(hits)).scalar_one()
        return count


def test_pruning_forgets_grants_that_no_window_counts(state: Store, clock: Clock) -> None:
    limiter(state, "5/1h").try_acquire("b")
    clock.advance(1800)
    prune(state, 60)
    assert hits_left(state) == 1
    clock.advance(7200)
    prune(state, 86400)
    assert hits_left(state) == 1
    prune(state, 60)
    assert hits_left(state) == 0


def test_pruning_counts_an_operators_longer_window(state: Store, clock: Clock) -> None:
    limiter(state, "5/1h").try_acquire("b")
    override(state, "5/12h")
    clock.advance(8 * 3600)
    prune(state, 60)
    assert hits_left(state) == 1


def test_pruning_forgets_what_people_did_long_ago(state: Store, clock: Clock) -> None:
    found = Buckets(state, limiter(state).limits)
    found.set("b", closed_s=1.0)
    clock.advance(100)
    found.reset("b")
    prune(state, 60)
    assert [done["action"] for done in operations_of(state, 10)] == ["limits reset"]
