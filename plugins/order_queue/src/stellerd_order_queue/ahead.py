"""Database work beside the publishing: the next claim is made, and the last confirms are written down, meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from stellerd import Context, errors

T = TypeVar("T")
_PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
"""A server that restarts, or a cut connection, must not end a run that holds unwritten confirms."""


def persistently(ctx: Context, call: Callable[..., T], *args: Any) -> T:
    """The call's answer; tried again while the database is away, as long as `_PAUSES_S` together.

    Raises: Unreachable when it stays away or the process is to end; what else the call raises, at once.
    """
    for pause in _PAUSES_S:
        try:
            return call(*args)
        except errors.Unreachable as error:
            ctx.log.warning("the database does not answer, trying again", reason=str(error), pause=pause)
            if ctx.stopping:
                break
            time.sleep(pause)
    return call(*args)


class Ahead(Iterator[T]):
    """The items of an iterator, each made in a thread while the one before is being used.

    `close` waits for the thread and gives the item that nobody took to `unused`.
    """

    def __init__(self, items: Iterator[T], unused: Callable[[T], None]) -> None:
        self._items, self._unused = items, unused
        self._pool = ThreadPoolExecutor(1, "ahead")
        self._coming: Future[T | None] | None = self._pool.submit(next, items, None)

    def __next__(self) -> T:
        if self._coming is None:
            raise StopIteration
        coming, self._coming = self._coming, None  # when it raises there is no next one
        item = coming.result()
        if item is None:
            raise StopIteration
        self._coming = self._pool.submit(next, self._items, None)
        return item

    def close(self) -> None:
        """Let go of thread and item; an error of the item that nobody asked for is nobody's."""
        coming, self._coming = self._coming, None
        self._pool.shutdown(wait=True)
        if coming is not None and coming.exception() is None and (item := coming.result()) is not None:
            self._unused(item)


class Behind:
    """Calls made in a thread, one after another; the next waits until the last is done, so nothing piles up."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "behind")
        self._last: Future[Any] | None = None

    def do(self, call: Callable[..., Any], *args: Any) -> None:
        """Raises: what the call before raised."""
        self.wait()
        self._last = self._pool.submit(call, *args)

    def wait(self) -> None:
        """Until all calls are done. Raises: what the last one raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """`wait`, then end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown(wait=True)
