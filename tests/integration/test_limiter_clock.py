"""Rate limits while somebody sets the clock: never a grant early, and no bucket closed for good."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stellerd.buckets import Buckets
from stellerd.durations import parse_rate
from stellerd.limiter import Limit, Limiter
from stellerd.status import from_iso
from stellerd.store import Store
from stellerd.testing import Clock

START = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
YEAR_S = 365 * 86400.0


class Machine:
    """A host: its clock can be set, its uptime cannot."""

    def __init__(self) -> None:
        self.clock, self.up = Clock(START), 1000.0

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.up += seconds


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def limiter(tmp_path: Path, machine: Machine) -> Iterator[Limiter]:
    """On SQLite: there the host's clock is the store's."""
    state = Store(f"sqlite:///{tmp_path}/state.db", machine.clock)
    state.uptime = lambda: machine.up
    state.create()
    yield limiter_of(state)
    state.close()


def limiter_of(state: Store) -> Limiter:
    return Limiter(state, {"b": Limit((parse_rate("2/1h"),), 0.0, breaker_failures=1)})


def use_up(limiter: Limiter) -> None:
    assert [limiter.try_acquire("b") for _ in range(2)] == [None, None]


@pytest.mark.parametrize("step", [-YEAR_S, -7200, -600, 600, 7200, YEAR_S])
def test_grants_move_with_the_clock_of_their_boot(limiter: Limiter, machine: Machine, step: float) -> None:
    use_up(limiter)
    machine.advance(1800)
    machine.clock.advance(step)
    free = START + timedelta(seconds=step) + HOUR
    assert limiter.closed_until("b") == free
    assert limiter.try_acquire("b") == free
    machine.advance(1799)
    assert limiter.try_acquire("b") == free
    machine.advance(1)
    assert limiter.closed_until("b") is None
    use_up(limiter)


@pytest.mark.parametrize("step", [-7200, 7200])
def test_a_learned_wait_moves_with_the_clock(limiter: Limiter, machine: Machine, step: float) -> None:
    limiter.learn("b", 3000)
    machine.clock.advance(step)
    assert limiter.closed_until("b") == START + timedelta(seconds=step + 3000)
    [shown] = Buckets(limiter.store, limiter.limits).show("b")
    assert (shown["source"], shown["next_slot"]) == ("server", shown["not_before"])
    assert limiter.learn("b", 10) == START + timedelta(seconds=step + 3000)
    machine.advance(3000)
    use_up(limiter)


@pytest.mark.parametrize("step", [-7200, -3600, 3600, 7200])
@pytest.mark.parametrize("used", [False, True], ids=["new bucket", "used bucket"])
def test_what_an_operator_closed_stays_closed_for_so_long(
    limiter: Limiter, machine: Machine, step: float, used: bool
) -> None:
    """Whether the clock was set before or after that, and nobody asked in between."""
    if used:
        assert limiter.try_acquire("b") is None
    machine.clock.advance(step)
    Buckets(limiter.store, limiter.limits).set("b", closed_s=7200)
    assert limiter.closed_until("b") == START + timedelta(seconds=step + 7200)
    machine.clock.advance(step)
    free = START + timedelta(seconds=2 * step + 7200)
    assert limiter.closed_until("b") == free
    machine.advance(7199)
    assert limiter.try_acquire("b") == free
    machine.advance(1)
    assert limiter.try_acquire("b") is None


@pytest.mark.parametrize("step", [-7200, 7200])
def test_an_operators_rate_holds_for_so_long(limiter: Limiter, machine: Machine, step: float) -> None:
    admin = Buckets(limiter.store, limiter.limits)
    admin.set("b", rates=(parse_rate("5/1s"),), for_s=3600)
    machine.clock.advance(step)
    [shown] = admin.show("b")
    assert from_iso(shown["override"]["until"]) == START + timedelta(seconds=step + 3600)
    machine.advance(3599)
    assert [limiter.try_acquire("b") for _ in range(4)] == [None] * 4
    machine.advance(1)
    assert limiter.try_acquire("b") is not None
    assert admin.show("b")[0]["override"] is None


def test_a_step_is_followed_once(limiter: Limiter, machine: Machine) -> None:
    use_up(limiter)
    machine.clock.advance(7200)
    for _ in range(3):
        assert limiter.try_acquire("b") == START + timedelta(hours=3)


def test_a_clock_that_is_slewed_moves_nothing(limiter: Limiter, machine: Machine) -> None:
    use_up(limiter)
    machine.clock.advance(0.1)
    assert limiter.try_acquire("b") == START + HOUR


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    made: str = request.getfixturevalue("postgres_url")
    return made


@pytest.fixture
def after_boot(url: str) -> Iterator[tuple[Limiter, Clock]]:
    """A store of which nobody knows by what clock it was written; its clock."""
    clock = Clock(START)
    state = Store(url, clock)
    state.create()
    yield limiter_of(state), clock
    state.close()


def test_grants_of_a_clock_that_was_a_year_ahead_count_as_of_now(after_boot: tuple[Limiter, Clock]) -> None:
    limiter, clock = after_boot
    use_up(limiter)
    clock.advance(-YEAR_S)
    assert limiter.closed_until("b") == clock() + HOUR
    free = limiter.try_acquire("b")
    assert free == clock() + HOUR
    clock.advance(3599)
    assert limiter.try_acquire("b") == free
    clock.advance(1)
    use_up(limiter)


@pytest.mark.parametrize(("how", "longest_s"), [("server", 3000.0), ("breaker", 86400.0)])
def test_a_bucket_that_was_closed_by_such_a_clock_opens(
    after_boot: tuple[Limiter, Clock], how: str, longest_s: float
) -> None:
    limiter, clock = after_boot
    if how == "server":
        limiter.learn("b", 3000)
    else:
        limiter.report("b", answered=False)
    clock.advance(-YEAR_S)
    free = clock() + timedelta(seconds=longest_s)
    assert limiter.try_acquire("b") == free
    clock.advance(longest_s - 1)
    assert limiter.try_acquire("b") == free
    clock.advance(1)
    assert limiter.try_acquire("b") is None


def test_an_operator_may_close_for_as_long_as_they_like(after_boot: tuple[Limiter, Clock]) -> None:
    limiter, clock = after_boot
    Buckets(limiter.store, limiter.limits).set("b", closed_s=YEAR_S)
    assert limiter.try_acquire("b") == clock() + timedelta(seconds=YEAR_S)
