"""The one loop: an epoll over descriptors and a heap of deadlines. No deadline, no wakeup."""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_LONGEST_S = 86400.0
"""epoll_wait(2) takes no more than 2^31 ms; whoever sleeps longer wakes up once a day."""
IN, OUT = select.EPOLLIN, select.EPOLLOUT


@dataclass(order=True)
class Timer:
    """A deadline on the monotonic clock; `cancel()` is cheap."""

    at: float
    order: int
    callback: Callable[[], None] | None = field(compare=False)

    def cancel(self) -> None:
        """It will not fire."""
        self.callback = None


class Loop:
    """Callbacks for readable descriptors and for moments. `clock` is an attribute that a test may replace."""

    def __init__(self) -> None:
        self.clock = time.monotonic
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._order = itertools.count()
        self._removed: set[int] = set()
        """Descriptors of which this turn's events are void: the number may be somebody else's by now."""

    def add(self, fd: int, callback: Callable[[int], None], events: int = IN) -> None:
        """Call `callback(events)` whenever `fd` is ready."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events of a known descriptor."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget a descriptor, before it is closed. One that is not known is fine."""
        if self._callbacks.pop(fd, None):
            self._epoll.unregister(fd)
            self._removed.add(fd)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback()` once, `seconds` from now."""
        timer = Timer(self.clock() + seconds, next(self._order), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def turn(self) -> None:
        """Wait for the next thing to happen and let it."""
        ready = self._epoll.poll(self._timeout())
        self._removed.clear()
        for fd, events in ready:
            if fd not in self._removed:
                self._callbacks[fd](events)
        now = self.clock()
        while self._timers and self._timers[0].at <= now:
            timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                timer.callback()

    def _timeout(self) -> float | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        return min(max(0.0, self._timers[0].at - self.clock()), _LONGEST_S) if self._timers else None

    def close(self) -> None:
        """Give the descriptor back."""
        self._epoll.close()
