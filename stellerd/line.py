"""A job process's line to its parent: events one way, commands and the wish to end the other way."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from stellerd import memory
from stellerd.channel import Channel, Message
from stellerd.errors import LeaseLost
from stellerd.redaction import redact_all
from stellerd.signals import SignalPipe
from stellerd.walltimer import WallTimer

_PROGRESS_EVERY_S = 0.2
_LONGEST_S = 86400.0  # poll(2) counts milliseconds in an int
_LONG_S, _TRIM_EVERY_S, _WORTH_BYTES = 5.0, 60.0, 2 * 1024 * 1024
"""Before a wait of at least so long memory goes back to the kernel, no more often than that, when it grew by that."""


def readable(descriptors: list[int], seconds: float | None = None) -> list[int]:
    """Wait until some of them are: those. None of them when `seconds` or a day are over. select(2) ends at descriptor
    1,023."""
    poll = select.poll()
    for fd in descriptors:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(None if seconds is None else min(seconds, _LONGEST_S) * 1000)]


class Line:
    """One place that waits for whatever may end a wait: time, a signal, the parent."""

    def __init__(self, channel: Channel, stop_signals: set[signal.Signals]) -> None:
        self.channel = channel
        self.stopping = False
        self.ready: dict[str, Any] | None = None
        """What to say once this process is ready: a periodic job at once, a service when it first waits."""
        self.commands: list[Message] = []
        self.observe: Callable[[Message], None] | None = None
        """Takes what the parent tells of the runs of other jobs."""
        self.hears_while_waiting = False
        """A service hears of them in `ctx.wait`; other jobs between two runs."""
        self._last_progress = 0.0
        self._trimmed, self._resident = -math.inf, memory.resident()
        self._signals = SignalPipe(stop_signals, lambda number, frame: self.stop())
        self._wall = WallTimer()

    def stop_on(self, number: signal.Signals) -> None:
        """Take this signal too for the wish that this process ends."""
        self._signals.add(number)

    def stop(self) -> None:
        """Ask this process to end; from any thread, and from a signal's handler."""
        self.stopping = True
        self._signals.wake(signal.SIGTERM)  # the main thread may be waiting

    def end_at_once(self, why: str) -> None:
        """End this process and its group now, with nothing that could wait; its run is lost. From any thread."""
        self.channel.shout("failed", reason=why, detail="", code=LeaseLost.exit_code, state="lost")
        os.killpg(0, signal.SIGKILL)

    def close(self) -> None:
        """Give back what the signals and the clock are waited for with."""
        self._signals.close()
        self._wall.close()

    def tell(self, kind: str, fields: dict[str, Any]) -> None:
        """An event for the parent; progress at most five times a second, its end always."""
        if kind == "progress":
            now = time.monotonic()
            if now - self._last_progress < _PROGRESS_EVERY_S and fields["done"] != fields["total"]:
                return
            self._last_progress = now
        self.channel.send(kind, **redact_all(fields))

    def say_ready(self) -> None:
        """Tell the parent, the first time."""
        if self.ready is not None:
            self.tell("ready", self.ready)
            self.ready = None

    def wait(self, seconds: float) -> bool:
        """`ctx.wait`: up to `seconds`; True, at once, when this process was asked to end."""
        self.say_ready()
        self._lie_down(seconds)
        deadline = time.monotonic() + seconds
        awaited = [self._signals.fd, *([self.channel.fileno()] if self.hears_while_waiting else [])]
        while not self.stopping:
            left = deadline - time.monotonic()
            ready = readable(awaited, max(0.0, left))
            if self._signals.fd in ready:
                self._signals.read()
            elif ready:
                self._hear()
            elif left <= 0:
                break
        return self.stopping

    def _lie_down(self, seconds: float | None) -> None:
        now = time.monotonic()
        is_long = seconds is None or seconds >= _LONG_S
        if not is_long or self.stopping or now - self._trimmed < _TRIM_EVERY_S:
            return
        if memory.resident() - self._resident >= _WORTH_BYTES:
            memory.give_back()
            self._trimmed, self._resident = now, memory.resident()

    def unread(self) -> list[Message]:
        """The commands that came and that nobody will obey here."""
        with contextlib.suppress(ValueError):
            self.commands += self.channel.receive()
        return self.commands

    def next_command(self, seconds: float | None) -> Message | None:
        """Between runs: the next command of the parent. None when the time on the wall has come, when the clock was
        set or when the process was asked to end; `seconds` None: there is no such time."""
        if not self.commands and not self.stopping:
            self._wall.set(seconds)
            self._lie_down(seconds)
            ready = [self.channel.fileno()]
            while ready == [self.channel.fileno()] and not self.commands and not self.stopping:
                ready = readable([self._signals.fd, self.channel.fileno(), self._wall.fd])
                self._signals.read()
                self._hear()
        return self.commands.pop(0) if self.commands and not self.stopping else None

    def _hear(self) -> None:
        """Keep the commands that came; observers are told at once."""
        for message in self.channel.receive():
            if message["kind"] != "observe":
                self.commands.append(message)
            elif self.observe:
                self.observe(message)
        if self.channel.closed:  # the parent is gone; PDEATHSIG is on its way
            self.stop()
