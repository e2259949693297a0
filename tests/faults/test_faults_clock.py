"""A clock on the wall that jumps: the grid of slots stays, no slot runs twice, the latest one is made up for."""

from __future__ import annotations

import errno
import select
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from stellerd import Context, Done, Job, walltimer
from stellerd.channel import Channel
from stellerd.line import Line
from stellerd.testing import Harness
from stellerd.walltimer import WallTimer

HALF_HOUR = timedelta(minutes=30)


class Ticks(Job):
    """Does nothing, every 30 minutes."""

    every = "30m"

    def run(self, ctx: Context) -> Done:
        """One slot."""
        return Done()


def turn(harness: Harness) -> tuple[str, datetime] | None:
    """What the schedule does when it is woken now: the slot that it runs, or nothing."""
    plan = harness.runner.plan()
    if plan.at > harness.clock():
        return None
    record = harness.runner.run(plan.trigger, plan.slot)
    assert getattr(record, "state", None) == "ok", record
    return plan.trigger, plan.slot


def ran(harness: Harness, minutes: int, step: int = 1) -> list[tuple[str, datetime]]:
    """The slots of so many minutes, with a look at the clock each `step`."""
    found = []
    for _ in range(0, minutes, step):
        harness.clock.advance(step * 60)
        if slot := turn(harness):
            found.append(slot)
    return found


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    """A job in the middle of its grid: its first three slots were run."""
    made = Harness(Ticks, folder=tmp_path)
    first = turn(made)
    assert first is not None
    assert [trigger for trigger, _ in ran(made, 61)] == ["schedule"] * 2
    return made


def last(harness: Harness) -> datetime:
    """The newest slot that was run."""
    record = harness.store.last_scheduled("job")
    assert record is not None
    assert record.slot is not None
    return record.slot


def test_a_jump_of_an_hour_forward_makes_up_for_the_latest_slot_once_and_keeps_the_grid(harness: Harness) -> None:
    before = last(harness)
    harness.clock.advance(3600)
    assert turn(harness) == ("catch-up", before + 2 * HALF_HOUR)
    assert turn(harness) is None
    assert ran(harness, 60) == [("schedule", before + n * HALF_HOUR) for n in (3, 4)]


def test_a_jump_of_two_hours_back_runs_no_slot_twice_and_loses_none(harness: Harness) -> None:
    before = last(harness)
    harness.clock.advance(-7200)
    assert turn(harness) is None
    assert harness.runner.plan().slot == before + HALF_HOUR
    assert ran(harness, 180) == [("schedule", before + n * HALF_HOUR) for n in (1, 2)]


def test_jumps_to_and_fro_never_run_a_slot_twice(harness: Harness) -> None:
    for seconds in (3600, -7200, 7200, -3600, 90_000, -90_000, 60, -60, 93_600, 1800):
        harness.clock.advance(seconds)
        for _ in range(3):
            turn(harness)
    slots = [run.slot for run in harness.store.history("job", 1000) if run.slot is not None]
    assert len(slots) == len(set(slots))
    first = min(slots)
    assert {(slot - first) % HALF_HOUR for slot in slots} == {timedelta(0)}


def test_the_wall_timer_comes_at_its_time_and_not_before() -> None:
    timer = WallTimer()
    began = time.monotonic()
    timer.set(0.2)
    assert select.select([timer.fd], [], [], 5)[0]
    assert 0.15 < time.monotonic() - began < 2
    timer.set(None)
    assert not select.select([timer.fd], [], [], 0)[0]
    timer.set(-5)
    assert select.select([timer.fd], [], [], 5)[0], "what is past is now"
    timer.close()


def test_a_timer_that_was_cancelled_by_a_set_clock_can_be_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """timerfd_settime(2) then says ECANCELED although it has armed the timer. No test may set this host's clock, so
    the answer is put on."""
    timer = WallTimer()
    real = walltimer._libc.timerfd_settime

    class Libc:
        @staticmethod
        def timerfd_settime(*arguments: Any) -> int:
            real(*arguments)
            monkeypatch.setattr("ctypes.get_errno", lambda: errno.ECANCELED)
            return -1

    monkeypatch.setattr(walltimer, "_libc", Libc)
    timer.set(0.05)
    assert select.select([timer.fd], [], [], 5)[0]
    monkeypatch.undo()
    timer.close()


def test_any_other_refusal_of_the_wall_timer_is_told() -> None:
    timer = WallTimer()
    timer.close()
    with pytest.raises(OSError, match="timerfd_settime"):
        timer.set(1)


def test_whatever_fires_the_wall_timer_makes_the_schedule_look_again() -> None:
    """A set clock and a reached time arrive the same way: a wait for an hour is over at once."""
    parent, child = Channel.pair()
    line = Line(child, set())
    real = line._wall.set
    line._wall.set = lambda seconds: real(0.05)  # type: ignore[method-assign]
    began = time.monotonic()
    assert line.next_command(3600) is None
    assert not line.stopping
    assert time.monotonic() - began < 2
    line._signals.close()
    line._wall.close()
    parent.close()
    child.close()
