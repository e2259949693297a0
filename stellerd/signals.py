"""Signals as descriptors: handlers do nothing, the loop reads which ones came."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from types import FrameType

_HELD = {signal.SIGHUP, signal.SIGUSR1}
_SAME_ASK_S = 1.0


def hold(numbers: Iterable[signal.Signals] = _HELD) -> None:
    """Keep these, by default what only a running daemon can do and what would end another process, until `release`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def release() -> None:
    """There are handlers now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


def asked_again(seconds: float) -> bool:
    """Whether a request to end, so long after the first one, is a second one.

    timeout(1) signals its child and then its whole group, make passes on what it gets: that is one request.
    """
    return seconds >= _SAME_ASK_S


def _nothing(number: int, frame: FrameType | None) -> None:
    """Python writes the number to the wakeup descriptor; that is all that is needed."""


class SignalPipe:
    """The wakeup descriptor of this process. `fd` is readable when a signal came; `read()` says which."""

    def __init__(self, numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None] = _nothing):
        self._handler = handler
        self.fd, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, handler) for number in numbers}

    def add(self, number: signal.Signals) -> None:
        """One more signal."""
        if number not in self._old:
            self._old[number] = signal.signal(number, self._handler)

    def read(self) -> list[signal.Signals]:
        """The signals that came, each once, in order."""
        try:
            return [signal.Signals(number) for number in dict.fromkeys(os.read(self.fd, 4096))]
        except BlockingIOError:
            return []

    def wake(self, number: signal.Signals) -> None:
        """Make `fd` readable as this signal would; for another thread."""
        with contextlib.suppress(BlockingIOError):  # it is readable already
            os.write(self._write, bytes([number]))

    def close(self) -> None:
        """Put back what was there before."""
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.close(self.fd)
        os.close(self._write)
