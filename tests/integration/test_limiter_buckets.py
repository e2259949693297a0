"""Rate limits on SQLite and PostgreSQL: exact among processes that crash, kept over restarts, learned from servers."""

from __future__ import annotations

import os
import random
import signal
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from grants import grants, in_any, keep_grants

from stellerd.durations import parse_rate
from stellerd.errors import ConfigError, RateLimited, Unreachable
from stellerd.limiter import Limit, Limiter
from stellerd.schema import buckets, hits
from stellerd.store import Store
from stellerd.testing import Clock

START = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def postgres_database(postgres_server: Any) -> Iterator[str]:
    made = postgres_server.create_database()
    yield made
    postgres_server.drop_database(made)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store: a file, or a schema of its own, which is quicker to have than a database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    database, schema = request.getfixturevalue("postgres_database"), f"s{uuid.uuid4().hex}"
    with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{database}?options=-csearch_path%3D{schema}"


@pytest.fixture
def clock() -> Clock:
    return Clock(START)


@pytest.fixture
def state(url: str, clock: Clock) -> Iterator[Store]:
    made = Store(url, clock)
    made.create()
    yield made
    made.close()


def limit(*rates: str, margin: float | None = 0.0, max_learned: float = 86400.0) -> Limit:
    return Limit(tuple(parse_rate(rate) for rate in rates), margin, max_learned)


def limiter(state: Store, *rates: str, margin: float | None = 0.0, **more: float) -> Limiter:
    return Limiter(state, {"b": limit(*rates, margin=margin, **more)})


def granted(limiter: Limiter, times: int = 100) -> int:
    """How many slots there are at this moment."""
    return next((n for n in range(times) if limiter.try_acquire("b") is not None), times)


def never(seconds: float) -> bool:
    raise AssertionError(f"asked to wait {seconds} s")


# --- the window


def test_a_bucket_grants_its_limit_and_says_when_the_next_slot_is(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "2/1h")
    assert bucket.try_acquire("b") is None
    clock.advance(9)
    assert bucket.try_acquire("b") is None
    clock.advance(100)
    assert bucket.try_acquire("b") == START + timedelta(hours=1)


def test_the_next_slot_is_there_at_its_moment_and_not_before(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "2/1h")
    granted(bucket)
    clock.advance(3599.999)
    assert granted(bucket) == 0
    clock.advance(0.001)
    assert granted(bucket) == 2


def test_the_window_slides_with_each_grant(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "2/10s")
    granted(bucket, 1)
    clock.advance(6)
    granted(bucket, 1)
    clock.advance(4)
    assert granted(bucket) == 1
    clock.advance(5.9)
    assert granted(bucket) == 0


def test_of_several_windows_each_holds(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "2/1s", "3/1m")
    assert granted(bucket) == 2
    clock.advance(1)
    assert granted(bucket) == 1
    clock.advance(1)
    assert bucket.try_acquire("b") == START + timedelta(minutes=1)


def test_the_longer_window_may_come_first(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "3/1m", "2/1s")
    assert granted(bucket) == 2


@pytest.mark.parametrize(("period", "margin"), [("10s", 0.2), ("1s", 0.02), ("1h", 1.0)])
def test_a_window_has_a_margin_for_clocks_and_networks(state: Store, clock: Clock, period: str, margin: float) -> None:
    bucket = limiter(state, f"1/{period}", margin=None)
    granted(bucket)
    free = bucket.try_acquire("b")
    assert free == START + timedelta(seconds=parse_rate(f"1/{period}").period + margin)


def test_a_named_margin_is_added_as_it_is(state: Store) -> None:
    bucket = limiter(state, "1/10s", margin=3.0)
    granted(bucket)
    assert bucket.try_acquire("b") == START + timedelta(seconds=13)


def test_a_step_of_the_clock_backwards_grants_nothing_early(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "2/1h")
    granted(bucket)
    clock.advance(-7200)
    assert granted(bucket) == 0
    clock.advance(7200 + 3600)
    assert granted(bucket) == 2


def test_old_grants_are_forgotten(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "2/10s")
    for _ in range(5):
        granted(bucket)
        clock.advance(90_000)
    granted(bucket)
    with state.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(hits)).scalar_one() == 2


def test_grants_survive_the_process(url: str, state: Store, clock: Clock) -> None:
    assert granted(limiter(state, "2/1h")) == 2
    again = Store(url, clock)
    try:
        assert granted(limiter(again, "2/1h")) == 0
    finally:
        again.close()


def test_buckets_do_not_share_slots(state: Store) -> None:
    both = Limiter(state, {"b": limit("1/1h"), "c": limit("1/1h")})
    assert both.try_acquire("b") is None
    assert both.try_acquire("c") is None


def test_a_new_rate_counts_the_grants_there_are(state: Store) -> None:
    granted(limiter(state, "2/1h"))
    assert granted(limiter(state, "5/1h")) == 3
    with state.reading() as connection:
        assert connection.execute(sa.select(buckets.c.rates)).scalar_one() == "5/1h"


def test_a_longer_window_of_a_new_configuration_counts_what_was_before(state: Store, clock: Clock) -> None:
    for _ in range(2):
        assert granted(limiter(state, "2/1h")) == 2
        clock.advance(3600)
    assert limiter(state, "4/3h").try_acquire("b") == START + timedelta(hours=3)


def test_another_daemons_short_window_forgets_nothing_of_a_long_one(state: Store, clock: Clock) -> None:
    long, short = limiter(state, "2/1h"), limiter(state, "20/10s")
    assert granted(long) == 2
    for _ in range(3):
        clock.advance(20)
        granted(short)
    assert long.try_acquire("b") is not None
    with state.reading() as connection:
        oldest = connection.execute(sa.select(sa.func.min(hits.c.at).label("at"))).scalar_one()
    assert oldest == START


def test_grants_are_not_kept_without_end_where_there_are_many(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "100/1s")
    granted(bucket)
    clock.advance(101)
    granted(bucket, 100)
    with state.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(hits)).scalar_one() == 100


@pytest.mark.parametrize("ask", ["try_acquire", "closed_until", "learn"])
def test_an_unknown_bucket_says_what_to_add(state: Store, ask: str) -> None:
    arguments = (None,) if ask == "learn" else ()
    with pytest.raises(ConfigError, match=r'limits\.zzz: missing; add \[limits\.zzz\] with a rate such as "2/1h"'):
        getattr(limiter(state, "1/1s"), ask)("zzz", *arguments)


# --- looking without spending


def test_looking_spends_nothing(state: Store) -> None:
    bucket = limiter(state, "2/1h")
    assert [bucket.closed_until("b") for _ in range(5)] == [None] * 5
    assert granted(bucket) == 2


def test_looking_says_when_the_next_slot_is(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "2/1h")
    granted(bucket)
    assert bucket.closed_until("b") == START + timedelta(hours=1)
    clock.advance(3600)
    assert bucket.closed_until("b") is None


# --- waiting


def test_a_near_slot_is_waited_for_in_place(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "1/5s")
    granted(bucket)
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        clock.advance(seconds)
        return False

    bucket.acquire("b", wait, patience=10.0)
    assert sum(waits) == pytest.approx(5, abs=0.01)


def test_a_slot_beyond_patience_is_not_waited_for(state: Store) -> None:
    bucket = limiter(state, "1/1h")
    granted(bucket)
    with pytest.raises(RateLimited, match="b: limit used up, next slot at 2026-03-29 01:30:00 UTC") as caught:
        bucket.acquire("b", never, patience=10.0)
    assert (caught.value.until, caught.value.exit_code) == (START + timedelta(hours=1), 75)


def test_a_process_that_shall_end_stops_waiting(state: Store) -> None:
    bucket = limiter(state, "1/5s")
    granted(bucket)
    with pytest.raises(RateLimited):
        bucket.acquire("b", lambda seconds: True)


def test_a_wait_that_was_asked_to_end_spends_nothing(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "1/5s")
    granted(bucket)
    with pytest.raises(RateLimited):
        bucket.acquire("b", lambda seconds: True)
    clock.advance(5)
    assert granted(bucket) == 1


# --- what a server says


def test_a_learned_wait_closes_the_bucket_for_everybody(url: str, state: Store, clock: Clock) -> None:
    assert limiter(state, "2/1h").learn("b", 3406) == START + timedelta(seconds=3406)
    other = Store(url, clock)
    try:
        assert limiter(other, "2/1h").try_acquire("b") == START + timedelta(seconds=3406)
    finally:
        other.close()


def test_a_learned_wait_ends(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "2/1h")
    bucket.learn("b", 60)
    clock.advance(60)
    assert granted(bucket) == 2


def test_an_unreadable_wait_closes_for_one_full_window(state: Store) -> None:
    assert limiter(state, "1/1s", "2/1h").learn("b", None) == START + timedelta(hours=1)


@pytest.mark.parametrize("cap", [86400.0, 90.0])
@pytest.mark.parametrize("seconds", [10**9, float("inf"), 86401])
def test_a_learned_wait_is_capped(state: Store, seconds: float, cap: float) -> None:
    assert limiter(state, "2/1h", max_learned=cap).learn("b", seconds) == START + timedelta(seconds=cap)


def test_a_shorter_wait_never_opens_sooner(state: Store) -> None:
    bucket = limiter(state, "2/1h")
    bucket.learn("b", 3000)
    assert bucket.learn("b", 5) == START + timedelta(seconds=3000)
    assert bucket.try_acquire("b") == START + timedelta(seconds=3000)


def test_a_longer_wait_closes_for_longer(state: Store) -> None:
    bucket = limiter(state, "2/1h")
    bucket.learn("b", 5)
    assert bucket.learn("b", 3000) == START + timedelta(seconds=3000)


@pytest.mark.parametrize("seconds", [0, -5])
def test_no_wait_at_all_closes_nothing(state: Store, seconds: float) -> None:
    bucket = limiter(state, "2/1h")
    bucket.learn("b", seconds)
    assert granted(bucket) == 2


def test_what_was_learned_can_be_looked_up(state: Store) -> None:
    limiter(state, "2/1h").learn("b", 3406)
    with state.reading() as connection:
        row = connection.execute(sa.select(buckets)).one()
    assert (row.source, row.learned_wait, row.not_before) == ("server", 3406.0, START + timedelta(seconds=3406))


# --- no store, no request


def test_a_store_that_is_away_grants_nothing(tmp_path: Path) -> None:
    state = Store("postgresql+psycopg://u:canary-4711@127.0.0.1:1/db")
    with pytest.raises(Unreachable, match=r"state store \(postgresql://127\.0\.0\.1:1/db\)"):
        limiter(state, "2/1h").acquire("b", never)


def test_a_store_that_goes_away_grants_nothing(url: str, state: Store) -> None:
    bucket = limiter(state, "1/1h")
    with state.begin() as connection:
        connection.execute(sa.text("ALTER TABLE hits RENAME TO not_there"))
    with pytest.raises((Unreachable, psycopg.ProgrammingError)):
        bucket.acquire("b", never)
    with state.begin() as connection:
        connection.execute(sa.text("ALTER TABLE not_there RENAME TO hits"))
    assert granted(bucket) == 1


def test_a_slot_is_spent_before_the_answer_is_given(url: str, clock: Clock) -> None:
    """Whoever is killed the moment it may go on has spent its slot."""
    state = Store(url, clock)
    state.create()
    state.close()
    pid = os.fork()
    if pid == 0:
        limiter(Store(url, clock), "1/1h").acquire("b", never)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    again = Store(url, clock)
    try:
        assert granted(limiter(again, "1/1h")) == 0
    finally:
        again.close()


# --- many processes


def hammer(url: str, rates: tuple[str, ...], until: float) -> None:
    def wait(seconds: float) -> bool:
        time.sleep(min(seconds, 0.05))
        return time.monotonic() > until

    bucket = limiter(Store(url), *rates, margin=None)
    try:
        while time.monotonic() < until:
            bucket.acquire("b", wait, patience=60)
    except RateLimited:
        return


def test_many_processes_never_exceed_the_limit_though_one_is_killed(url: str) -> None:
    rates = ("20/2s", "8/250ms")
    state = Store(url)
    state.create()
    keep_grants(state)
    until = time.monotonic() + 4.3
    pids = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            code: Any = 1
            try:
                hammer(url, rates, until)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    while len(grants(state)) < 15 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(pids[3], signal.SIGKILL)
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    moments = grants(state)
    state.close()
    assert sorted(ends) == [-9] + [0] * 7
    for rate in map(parse_rate, rates):
        assert in_any(rate.period, moments) == rate.limit  # all of it, and never more


class Strict:
    """A server that counts from a request's arrival, up to 60 ms after it left."""

    def __init__(self, period: float) -> None:
        self.random, self.period = random.Random(7), period
        self.last = START - timedelta(days=1)
        self.refused = 0

    def accepts(self, left: datetime) -> bool:
        arrived = left + timedelta(seconds=self.random.uniform(0, 0.06))
        if arrived - self.last < timedelta(seconds=self.period):
            self.refused += 1
            return False
        self.last = arrived
        return True


def test_the_margin_learns_from_requests_that_came_too_early(state: Store, clock: Clock) -> None:
    bucket, server = limiter(state, "1/1s", margin=None), Strict(1.0)
    for _ in range(200):
        while (free := bucket.try_acquire("b")) is not None:
            clock.time = free
        if not server.accepts(clock()):
            bucket.learn("b", 1)
    assert 1 <= server.refused <= 5


def test_a_429_long_after_the_window_is_a_neighbours_and_teaches_no_margin(state: Store, clock: Clock) -> None:
    bucket = limiter(state, "1/1s", margin=None)
    for _ in range(5):
        assert bucket.try_acquire("b") is None
        bucket.learn("b", 10)
        clock.advance(10)
    assert bucket.try_acquire("b") is None
    assert bucket.closed_until("b") == clock() + timedelta(seconds=1.02)


def test_the_margin_never_grows_beyond_a_second_or_half_a_window(state: Store, clock: Clock) -> None:
    for rate, window in (("1/1s", 1.52), ("1/1h", 3602.0)):
        bucket = limiter(state, rate, margin=None)
        for _ in range(20):
            while (free := bucket.try_acquire("b")) is not None:
                clock.time = free
            bucket.learn("b", 0)
        assert bucket.closed_until("b") == clock() + timedelta(seconds=window)
