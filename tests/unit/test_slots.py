"""The grid of slots keeps its promises for any interval, moment and step of the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from stellerd.slots import is_missed, slot_after, slot_at

FIRST = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)
firsts = st.integers(-200_000_000, 200_000_000).map(lambda seconds: FIRST + timedelta(seconds=seconds))
everys = st.one_of(st.integers(1, 7 * 86400).map(float), st.integers(1, 86400000).map(lambda ms: ms / 1000))
offsets = st.timedeltas(timedelta(days=-400), timedelta(days=400))


@given(firsts, everys, offsets)
def test_the_slot_at_a_moment_is_the_newest_one_not_after_it(first: datetime, every: float, offset: timedelta) -> None:
    when = first + offset
    slot = slot_at(first, every, when)
    rounding = timedelta(microseconds=every * 1e-3 + 2)
    assert first <= slot
    if when >= first:
        assert slot <= when + rounding
        assert when - slot < timedelta(seconds=every) + rounding


@given(firsts, everys, offsets)
def test_the_slot_after_a_moment_is_after_it_and_at_most_one_interval_away(
    first: datetime, every: float, offset: timedelta
) -> None:
    when = first + offset
    slot = slot_after(first, every, when)
    assert slot > when
    assert slot == first or slot - when <= timedelta(seconds=every) * 1.001 + timedelta(microseconds=2)


@given(firsts, everys, st.integers(0, 100_000))
def test_the_slot_after_a_slot_is_the_next_one_and_never_itself(first: datetime, every: float, n: int) -> None:
    slot = first + timedelta(seconds=every) * n
    assert slot_after(first, every, slot) == first + timedelta(seconds=every) * (n + 1)


@given(firsts, everys, st.integers(0, 100_000))
def test_a_slot_is_on_the_grid_it_came_from(first: datetime, every: float, n: int) -> None:
    slot = first + timedelta(seconds=every) * n
    assert slot_at(first, every, slot) == slot


@given(firsts, everys, offsets)
def test_a_moment_before_the_first_slot_waits_for_it(first: datetime, every: float, offset: timedelta) -> None:
    when = first - abs(offset) - timedelta(microseconds=1)
    assert slot_at(first, every, when) == slot_after(first, every, when) == first


@given(everys, st.lists(st.timedeltas(timedelta(hours=-30), timedelta(hours=30)), min_size=2, max_size=30))
def test_no_step_of_the_clock_runs_a_slot_twice(every: float, steps: list[timedelta]) -> None:
    """A scheduler that always asks for the first slot after its last one, while the clock jumps about."""
    now, last = FIRST, FIRST
    ran = [FIRST]
    for step in steps:
        now += step
        if slot_after(FIRST, every, last) <= now:
            last = max(slot_at(FIRST, every, now), slot_after(FIRST, every, last))
            ran.append(last)
    assert len(set(ran)) == len(ran)
    assert ran == sorted(ran)


@given(firsts, everys, offsets)
def test_a_time_zone_changes_no_slot(first: datetime, every: float, offset: timedelta) -> None:
    from zoneinfo import ZoneInfo

    when = (first + offset).astimezone(ZoneInfo("Europe/Berlin"))
    assert slot_after(first, every, when) == slot_after(first, every, first + offset)


def test_a_slot_is_missed_only_when_its_second_is_over() -> None:
    assert not is_missed(FIRST, FIRST + timedelta(seconds=1))
    assert is_missed(FIRST, FIRST + timedelta(seconds=1.01))
    assert not is_missed(FIRST, FIRST - timedelta(days=1))
