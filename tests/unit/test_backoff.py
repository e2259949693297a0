"""The wait before a restart stays within its bounds whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellerd.backoff import delay

crashes = st.integers(1, 10**6)
bases = st.floats(0.01, 100)
chances = st.floats(0, 1)


@given(crashes, bases, st.floats(1, 100), chances)
def test_a_wait_is_never_shorter_than_base_nor_longer_than_the_cap_but_for_the_spread(
    count: int, base: float, times: float, chance: float
) -> None:
    cap = base * times
    assert 0.89 * base <= delay(count, False, base=base, cap=cap, chance=chance) <= 1.11 * cap


@given(crashes, bases, chances)
def test_more_crashes_never_wait_less(count: int, base: float, chance: float) -> None:
    waits = [delay(n, False, base=base, cap=60 * base, chance=chance) for n in (count, count + 1)]
    assert waits[0] <= waits[1]


@given(crashes, bases, chances)
def test_a_job_that_had_settled_comes_back_at_once(count: int, base: float, chance: float) -> None:
    assert delay(count, True, base=base, cap=base, chance=chance) == 0.0


@pytest.mark.parametrize(("count", "wait"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (8, 60.0), (1000, 60.0)])
def test_waits_double_up_to_the_cap(count: int, wait: float) -> None:
    assert delay(count, False, base=0.5, cap=60.0, chance=0.5) == pytest.approx(wait)


def test_jobs_that_fell_together_come_back_apart() -> None:
    assert len({delay(3, False, base=0.5, cap=60.0, chance=n / 10) for n in range(11)}) == 11
