"""A job's line to its parent: whatever ends a wait ends it at once."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stellerd import memory
from stellerd.channel import Channel
from stellerd.line import Line


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Line]]:
    parent, child = Channel.pair()
    line = Line(child, {signal.SIGTERM})
    yield parent, line
    line._signals.close()
    parent.close()
    child.close()


def shortly(act: Callable[[], Any], after_s: float = 0.05) -> threading.Timer:
    timer = threading.Timer(after_s, act)
    timer.start()
    return timer


@pytest.mark.timeout(30)
@pytest.mark.parametrize("how", ["a signal", "another thread"])
def test_a_wait_ends_at_once_when_the_process_shall_end(ends: tuple[Channel, Line], how: str) -> None:
    _, line = ends
    timer = shortly(line.stop if how == "another thread" else lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert line.wait(3600)
    timer.join()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("how", ["a signal", "another thread", "the parent is gone"])
def test_waiting_for_a_command_ends_at_once_too(ends: tuple[Channel, Line], how: str) -> None:
    parent, line = ends
    acts = {"a signal": lambda: os.kill(os.getpid(), signal.SIGTERM), "another thread": line.stop}
    timer = shortly(acts.get(how, parent.close))
    assert line.next_command(None) is None
    assert line.stopping
    timer.join()


def test_a_wait_is_as_long_as_asked(ends: tuple[Channel, Line]) -> None:
    began = time.monotonic()
    assert not ends[1].wait(0.1)
    assert time.monotonic() - began >= 0.1


def test_before_a_long_wait_memory_goes_back_when_it_grew_but_not_each_time(
    ends: tuple[Channel, Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, line = ends
    given: list[str] = []
    size = memory.resident()
    monkeypatch.setattr(memory, "resident", lambda: size)
    monkeypatch.setattr(memory, "give_back", lambda: given.append("back"))

    def wait_for_long() -> None:
        timer = shortly(lambda: parent.send("trigger"), 0.0)
        assert line.next_command(60.0)
        timer.join()

    wait_for_long()
    assert given == [], "it is as lean as it was"
    size += 100_000_000
    line.wait(0.01)
    assert given == [], "that is no time to tidy up"
    for _ in range(3):
        wait_for_long()
        size += 100_000_000
    assert given == ["back"], "once a minute at most"


def test_commands_come_one_by_one_and_in_order(ends: tuple[Channel, Line]) -> None:
    parent, line = ends
    parent.send("trigger")
    parent.send("pause")
    commands = [line.next_command(None), line.next_command(None)]
    assert [command and command["kind"] for command in commands] == ["trigger", "pause"]


def test_readiness_is_said_once_and_before_the_first_wait(ends: tuple[Channel, Line]) -> None:
    parent, line = ends
    line.ready = {"job_kind": "service"}
    line.wait(0)
    line.wait(0)
    assert [message["kind"] for message in parent.receive()] == ["ready"]


def test_progress_is_told_seldom_but_its_end_always(ends: tuple[Channel, Line]) -> None:
    parent, line = ends
    for done in range(1001):
        line.tell("progress", {"done": done, "total": 1000, "unit": ""})
    told = [message["done"] for message in parent.receive()]
    assert told[-1] == 1000
    assert len(told) < 20


def test_a_process_with_more_than_1024_descriptors_waits_as_any_other() -> None:
    """select(2) ends at descriptor 1,023; a daemon of 400 jobs has more when it forks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    parent, child = Channel.pair()
    line = Line(child, {signal.SIGUSR1})
    try:
        assert line.channel.fileno() > 1024
        assert not line.wait(0.01)
        parent.send("trigger")
        assert line.next_command(5) == {"kind": "trigger"}
        assert line.next_command(0.01) is None
    finally:
        line.close()
        parent.close()
        child.close()
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
