"""A job's output on the loop, moment by moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stellerd.logpump import LogPump, Sink
from stellerd.loop import Loop
from stellerd.process import Process


class Flooded:
    """A process of which only its output is real, on a loop whose time stands still until it is moved."""

    def __init__(self, folder: Path) -> None:
        self.now, self.loop = 100.0, Loop()
        self.loop.clock = lambda: self.now
        self.read, self.write = os.pipe()
        self.process = Process.__new__(Process)
        self.process.loop, self.process.on_error = self.loop, self.raise_
        self.process.log = self.log = LogPump("it", self.read, Sink(file=folder / "log"), "text")
        self.process._pumped, self.process._rest = self.now, None
        self.loop.add(self.read, lambda events: self.process._pump())

    @staticmethod
    def raise_(error: Exception) -> None:
        raise error

    def turn(self) -> list[str]:
        """One turn that waits for nothing; the lines so far."""
        self.loop.after(0.0, lambda: None)
        self.loop.turn()
        return [text for _, text in self.log.since(0)]


@pytest.fixture
def flooded(tmp_path: Path) -> Iterator[Flooded]:
    made = Flooded(tmp_path)
    yield made
    made.log.close()
    made.loop.close()


def test_a_pipe_that_is_filled_again_at_once_is_left_to_fill(flooded: Flooded) -> None:
    os.write(flooded.write, b"one\n")
    assert flooded.turn() == ["it | one"]
    os.write(flooded.write, b"two\n")
    assert flooded.turn() == ["it | one"], "it rests"
    flooded.now += 0.002
    flooded.turn()
    assert flooded.turn() == ["it | one", "it | two"]
    flooded.now += 1
    os.write(flooded.write, b"three\n")
    assert flooded.turn()[2:] == ["it | three"], "what comes later comes at once"
    os.write(flooded.write, b"four\n")
    assert flooded.turn()[3:] == ["it | four"]
    os.close(flooded.write)


def test_a_pipe_that_hangs_up_while_it_is_left_to_fill(flooded: Flooded) -> None:
    os.write(flooded.write, b"one\n")
    flooded.turn()
    os.write(flooded.write, b"the last word")
    os.close(flooded.write)  # told although nothing was asked for
    for _ in range(4):
        flooded.turn()
    assert flooded.turn() == ["it | one", "it | the last word"]
    flooded.now += 1  # whatever was to happen then must not meet a descriptor that is gone
    assert flooded.turn() == ["it | one", "it | the last word"]
    assert flooded.loop._timers == []
