"""The one loop: an epoll over descriptors and a heap of deadlines. No deadline, no wakeup.

At its edge stands the guard: an exception that a callback lets out goes to the callback's owner, never further. Where
there is no owner the callback is the daemon's own, and is tried again.
"""

from __future__ import annotations

import heapq
import itertools
import select
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from stellerd import log

IN, OUT = select.EPOLLIN, select.EPOLLOUT
_AGAIN_S = 0.5
_TRIES = 5
"""A callback of the daemon's own that fails so often in a row ends the daemon: without it nothing works."""
_FEW = 64
_LONGEST_S = 86400.0  # epoll_wait(2) counts milliseconds in an int, which is 25 days

Owner = Callable[[Exception], None]
"""Whoever a callback belongs to: called with what the callback raised, once its descriptor is no longer watched."""


@dataclass(order=True)
class Timer:
    """A deadline on the monotonic clock; `cancel()` is cheap."""

    at: float
    order: int
    callback: Callable[[], None] | None = field(compare=False)
    """None once it has fired or was cancelled."""
    owner: Owner | None = field(compare=False, default=None)
    failures: int = field(compare=False, default=0)

    def cancel(self) -> None:
        """It will not fire."""
        self.callback = None


@dataclass
class _Watched:
    """A descriptor's callback."""

    callback: Callable[[int], None]
    events: int
    owner: Owner | None
    failures: int = 0


class Loop:
    """Callbacks for readable descriptors and for moments. `clock` is an attribute that a test may replace."""

    def __init__(self) -> None:
        self.clock = time.monotonic
        self._epoll = select.epoll()
        self._watched: dict[int, _Watched] = {}
        self._timers: list[Timer] = []
        self._room = _FEW
        """How many timers there may be before the cancelled ones are thrown out."""
        self._order = itertools.count()
        self._removed: set[int] = set()
        """Descriptors of which this turn's events are void: the number may be somebody else's by now."""

    def add(self, fd: int, callback: Callable[[int], None], events: int = IN, *, owner: Owner | None = None) -> None:
        """Call `callback(events)` whenever `fd` is ready. `owner`: see the module."""
        self._epoll.register(fd, events)
        self._watched[fd] = _Watched(callback, events, owner)

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events of a descriptor. One that is not known is fine."""
        if watched := self._watched.get(fd):
            watched.events = events
            self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget a descriptor, before it is closed. One that is not known is fine."""
        if self._watched.pop(fd, None):
            self._epoll.unregister(fd)
            self._removed.add(fd)

    def after(self, seconds: float, callback: Callable[[], None], *, owner: Owner | None = None) -> Timer:
        """Call `callback()` once, `seconds` from now. `owner`: see the module."""
        timer = Timer(self.clock() + seconds, next(self._order), callback, owner)
        self._push(timer)
        return timer

    def _push(self, timer: Timer) -> None:
        if len(self._timers) >= self._room:  # those that were cancelled long before their time
            self._timers = [one for one in self._timers if one.callback is not None]
            heapq.heapify(self._timers)
            self._room = max(_FEW, 2 * len(self._timers))
        heapq.heappush(self._timers, timer)

    def turn(self) -> None:
        """Wait for the next thing to happen and let it.

        Raises: whatever a callback of the daemon's own raised _TRIES times in a row.
        """
        ready = self._epoll.poll(self._timeout())
        self._removed.clear()
        for fd, events in ready:
            if fd not in self._removed:
                self._tell(fd, events)
        now = self.clock()
        while self._timers and self._timers[0].at <= now:
            self._fire(heapq.heappop(self._timers))

    def _tell(self, fd: int, events: int) -> None:
        watched = self._watched[fd]
        try:
            watched.callback(events)
            watched.failures = 0
        except Exception as error:  # noqa: BLE001  the guard of all descriptors
            if self._watched.get(fd) is not watched:
                self._blame(watched.owner, error)
            elif watched.owner:
                self.remove(fd)  # else it would be ready again at once, without end
                watched.owner(error)
            else:
                watched.failures = self._count(watched.failures, error)
                self._rest(fd, watched)

    def _rest(self, fd: int, watched: _Watched) -> None:
        wanted = watched.events

        def again() -> None:
            if self._watched.get(fd) is watched:  # else the number is somebody else's by now
                self.modify(fd, wanted)

        self.modify(fd, 0)
        self.after(_AGAIN_S, again)

    def _fire(self, timer: Timer) -> None:
        callback, timer.callback = timer.callback, None
        if callback is None:
            return
        try:
            callback()
        except Exception as error:  # noqa: BLE001  the guard of all timers
            if timer.owner:
                timer.owner(error)
            else:
                timer.failures = self._count(timer.failures, error)
                timer.callback, timer.at = callback, self.clock() + _AGAIN_S
                self._push(timer)

    def _blame(self, owner: Owner | None, error: Exception) -> None:
        if owner:
            owner(error)
        else:
            say("internal error", error)

    def _count(self, failures: int, error: Exception) -> int:
        """One more failure in a row of the daemon's own; raises it when there were enough."""
        say("internal error; tried again", error)
        if failures + 1 >= _TRIES:
            raise error
        return failures + 1

    def _timeout(self) -> float | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        return min(max(0.0, self._timers[0].at - self.clock()), _LONGEST_S) if self._timers else None

    def close(self) -> None:
        """Give the descriptor back."""
        self._epoll.close()


def say(event: str, error: Exception, **fields: object) -> None:
    """An error that nobody foresaw, with its traceback, into the log."""
    stack = "".join(traceback.format_exception(error))
    log.get().error(event, **fields, reason=f"{type(error).__name__}: {error}", traceback=stack)
