"""The loop: timers in order, descriptors as they come, and no wakeup without a reason."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellerd.loop import OUT, Loop


class FakeClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def loop(clock: FakeClock) -> Iterator[Loop]:
    made = Loop()
    made.clock = clock  # type: ignore[method-assign]
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_timers_fire_in_the_order_of_their_deadlines(waits: list[float]) -> None:
    loop, clock = Loop(), FakeClock()
    loop.clock = clock  # type: ignore[method-assign]
    fired: list[tuple[float, int]] = []
    for number, wait in enumerate(waits):
        loop.after(wait, lambda wait=wait, number=number: fired.append((clock.time - 1000.0 + wait * 0, number)))  # type: ignore[misc]
    clock.time += 101
    loop.turn()
    loop.close()
    assert [number for _, number in fired] == [n for _, n in sorted((1000.0 + w, n) for n, w in enumerate(waits))]


def test_timers_of_one_deadline_fire_in_the_order_they_were_set(loop: Loop, clock: FakeClock) -> None:
    fired: list[int] = []
    for number in range(5):
        loop.after(1, lambda number=number: fired.append(number))  # type: ignore[misc]
    clock.time += 1
    loop.turn()
    assert fired == [0, 1, 2, 3, 4]


def test_a_timer_fires_once(loop: Loop, clock: FakeClock) -> None:
    fired: list[int] = []
    loop.after(0, lambda: fired.append(1))
    loop.after(100, lambda: None)
    loop.turn()
    clock.time += 100
    loop.turn()
    assert fired == [1]


def test_a_timer_does_not_fire_before_its_time(loop: Loop, clock: FakeClock, pipe: tuple[int, int]) -> None:
    fired: list[int] = []
    loop.after(1, lambda: fired.append(1))
    loop.add(pipe[1], lambda events: None, OUT)
    clock.time += 0.999
    loop.turn()
    assert fired == []


def test_a_cancelled_timer_never_fires(loop: Loop, clock: FakeClock) -> None:
    fired: list[str] = []
    timer = loop.after(1, lambda: fired.append("cancelled"))
    loop.after(2, lambda: fired.append("kept"))
    timer.cancel()
    timer.cancel()
    clock.time += 5
    loop.turn()
    assert fired == ["kept"]


def test_a_timer_may_cancel_the_next_one(loop: Loop, clock: FakeClock) -> None:
    fired: list[str] = []
    loop.after(1, lambda: second.cancel())
    second = loop.after(1, lambda: fired.append("second"))
    clock.time += 1
    loop.turn()
    assert fired == []


def test_a_timer_may_set_another_one(loop: Loop, clock: FakeClock) -> None:
    fired: list[str] = []
    loop.after(1, lambda: loop.after(1, lambda: fired.append("second")))
    clock.time += 1
    loop.turn()
    clock.time += 1
    loop.turn()
    assert fired == ["second"]


def test_without_a_deadline_there_is_no_timeout(loop: Loop) -> None:
    assert loop._timeout() is None


def test_cancelled_timers_cause_no_wakeup(loop: Loop) -> None:
    for _ in range(3):
        loop.after(5, lambda: None).cancel()
    assert loop._timeout() is None


def test_the_timeout_is_the_next_deadline(loop: Loop, clock: FakeClock) -> None:
    loop.after(7, lambda: None)
    loop.after(3, lambda: None)
    assert loop._timeout() == 3
    clock.time += 10
    assert loop._timeout() == 0


def test_a_readable_descriptor_is_told(loop: Loop, pipe: tuple[int, int]) -> None:
    read: list[bytes] = []
    loop.add(pipe[0], lambda events: read.append(os.read(pipe[0], 10)))
    os.write(pipe[1], b"x")
    loop.turn()
    assert read == [b"x"]


def test_a_descriptor_removed_during_the_turn_is_not_told(loop: Loop) -> None:
    pipes = [os.pipe() for _ in range(2)]
    told: list[int] = []

    def first_come(number: int) -> None:
        told.append(number)
        loop.remove(pipes[1 - number][0])

    for number, (read, write) in enumerate(pipes):
        loop.add(read, lambda events, number=number: first_come(number))  # type: ignore[misc]
        os.write(write, b"x")
    loop.turn()
    for fd in (fd for ends in pipes for fd in ends):
        os.close(fd)
    assert len(told) == 1


def test_an_event_of_a_descriptor_is_not_told_to_the_next_owner_of_its_number(loop: Loop) -> None:
    told: list[str] = []
    first, second = os.pipe(), os.pipe()
    quiet = os.pipe()

    def take_over(mine: int, other: int) -> None:
        """Whichever is told first closes the other, whose number another, silent pipe gets."""
        loop.remove(mine)
        loop.remove(other)
        os.dup2(quiet[0], other)
        loop.add(other, lambda events: told.append("the next owner"))

    loop.add(first[0], lambda events: take_over(first[0], second[0]))
    loop.add(second[0], lambda events: take_over(second[0], first[0]))
    os.write(first[1], b"x")
    os.write(second[1], b"x")
    loop.turn()
    assert told == []
    os.write(quiet[1], b"x")
    loop.turn()
    assert told == ["the next owner"]
    for fd in (*first, *second, *quiet):
        os.close(fd)


def test_an_unknown_descriptor_can_be_removed(loop: Loop) -> None:
    loop.remove(12345)


def test_a_closed_loop_leaves_no_descriptor_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    Loop().close()
    assert len(os.listdir("/proc/self/fd")) <= before


# --- the guard


def test_a_descriptor_whose_callback_raises_is_taken_out_and_its_owner_told(loop: Loop, pipe: tuple[int, int]) -> None:
    told: list[Exception] = []
    loop.add(pipe[0], lambda events: 1 // 0, owner=told.append)  # type: ignore[arg-type, return-value]
    os.write(pipe[1], b"x")
    for _ in range(3):
        loop.after(0, lambda: None)
        loop.turn()
    assert [type(error) for error in told] == [ZeroDivisionError]
    loop.modify(pipe[0], OUT)  # its owner may not know yet


def test_a_timer_whose_callback_raises_is_its_owners(loop: Loop) -> None:
    told: list[Exception] = []
    loop.after(0, lambda: 1 // 0, owner=told.append)  # type: ignore[arg-type, return-value]
    loop.turn()
    assert [type(error) for error in told] == [ZeroDivisionError]
    assert loop._timeout() is None


def test_a_descriptor_of_the_daemons_own_is_armed_again(loop: Loop, clock: FakeClock, pipe: tuple[int, int]) -> None:
    failures, read = [OSError("once"), ValueError("twice")], list[bytes]()

    def callback(events: int) -> None:
        if failures:
            raise failures.pop()
        read.append(os.read(pipe[0], 10))

    loop.add(pipe[0], callback)
    os.write(pipe[1], b"x")
    turns = 0
    while not read:
        loop.after(0, lambda: None)
        loop.turn()
        clock.time += 0.1
        turns += 1
    assert (read, turns > 10) == ([b"x"], True)  # not without a pause


def test_the_next_owner_of_a_number_is_not_armed_for_the_one_before(loop: Loop, clock: FakeClock) -> None:
    first, second = os.pipe(), os.pipe()
    told: list[int] = []
    loop.add(first[0], lambda events: 1 // 0)  # type: ignore[arg-type, return-value]
    os.write(first[1], b"x")
    loop.turn()
    loop.remove(first[0])
    os.dup2(second[0], first[0])
    loop.add(first[0], told.append, 0)
    os.write(second[1], b"x")
    clock.time += 1
    for _ in range(2):
        loop.after(0, lambda: None)
        loop.turn()
    assert told == []
    for fd in (*first, *second):
        os.close(fd)


def test_a_timer_of_the_daemons_own_is_armed_again(loop: Loop, clock: FakeClock) -> None:
    failures, fired = [OSError("once"), ValueError("twice")], list[int]()

    def callback() -> None:
        if failures:
            raise failures.pop()
        fired.append(1)

    loop.after(0, callback)
    for _ in range(3):
        loop.turn()
        clock.time += 1
    assert (fired, loop._timeout()) == ([1], None)


@pytest.mark.parametrize("kind", ["descriptor", "timer"])
def test_what_always_fails_of_the_daemons_own_ends_it(
    loop: Loop, clock: FakeClock, pipe: tuple[int, int], kind: str
) -> None:
    def callback(*events: int) -> None:
        raise ValueError("always")

    loop.add(pipe[0], callback) if kind == "descriptor" else loop.after(0, callback)
    os.write(pipe[1], b"x")

    def turn_for_long() -> None:
        for _ in range(100):
            loop.after(0, lambda: None)
            loop.turn()
            clock.time += 0.5

    with pytest.raises(ValueError, match="always"):
        turn_for_long()
    assert clock.time >= 1002  # it was tried again


def test_timers_that_were_cancelled_long_before_their_time_take_no_room(loop: Loop) -> None:
    kept = [loop.after(1000, lambda: None) for _ in range(10)]
    for _ in range(10_000):
        loop.after(3600, lambda: None).cancel()
    assert len(loop._timers) < 200
    assert all(timer in loop._timers for timer in kept)


def test_a_wait_longer_than_the_kernel_can_count_is_no_error(loop: Loop, pipe: tuple[int, int]) -> None:
    loop.after(400 * 86400.0, lambda: None)
    read: list[bytes] = []
    loop.add(pipe[0], lambda events: read.append(os.read(pipe[0], 10)))
    os.write(pipe[1], b"x")
    loop.turn()
    assert read == [b"x"]


def test_a_deadline_years_away_does_not_keep_the_loop_from_waiting(loop: Loop, pipe: tuple[int, int]) -> None:
    seen: list[int] = []
    loop.after(3650 * 86400.0, lambda: seen.append(-1))
    loop.add(pipe[0], seen.append)
    os.write(pipe[1], b"x")
    loop.turn()
    assert seen == [1]
