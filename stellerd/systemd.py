"""What systemd is told: sd_notify(3), one datagram to $NOTIFY_SOCKET, if there is one; the priorities of log lines."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence

ERROR, INFO = b"36"  # syslog(3)
_LINE_MAX = 40 * 1024  # journald cuts at 48 KiB (LineMax=), and would look for a priority in what comes after the cut
_AGAIN_S = 0.05
_STATUS_EVERY_S = 0.1
"""At most: each one wakes the manager, and fifty jobs that come up at once are of interest as fifty."""
_UNSENT = 100


def watchdog_interval() -> float | None:
    """Seconds between two WATCHDOG=1, half of what the manager allows (sd_watchdog_enabled(3)); None: not wanted."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6


def monotonic_usec() -> str:
    """What belongs to RELOADING=1: the time it began."""
    return f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"


def notify(*lines: str) -> bool:
    """Send lines such as "READY=1"; an abstract socket's name starts with "@". False: its queue is full."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return True
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto("\n".join(lines).encode(), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT, address)
    except BlockingIOError:
        return False
    except OSError:  # no descriptor left, the manager went away: never a reason to fail
        return True
    return True


def is_journal(fd: int = 2) -> bool:
    """Whether this descriptor leads to the journal ($JOURNAL_STREAM of systemd.exec(5))."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def journal_lines(text: bytes, levels: Sequence[int] = (INFO,)) -> bytes:
    """Lines for the journal, each with its priority in front (sd-daemon(3)); `levels`: a digit each, or one for all.

    Only the first `<N>` counts, so that a line cannot name a priority of its own.
    """
    if len(levels) == 1 and len(text) <= _LINE_MAX:
        head = b"<%c>" % levels[0]
        return head + text.replace(b"\n", b"\n" + head)
    lines = text.split(b"\n")
    return b"\n".join(
        b"<%c>%b" % (level, line[at : at + _LINE_MAX])
        for line, level in zip(lines, levels if len(levels) > 1 else itertools.repeat(levels[0]), strict=False)
        for at in range(0, len(line) or 1, _LINE_MAX)
    )


class Manager:
    """Tells the service manager in order, and again what its queue did not take: a lost READY=1 ends the daemon.

    `after(seconds, callback)` sets a timer. Fifty jobs that come up at once fill the queue, which holds ten (unix(7)).
    """

    def __init__(self, after: Callable[[float, Callable[[], None]], object]) -> None:
        self._after = after
        self._unsent: deque[str] = deque(maxlen=_UNSENT)
        self._waiting = self._resting = False

    def tell(self, *lines: str) -> None:
        """Now or soon; of several states that could not be told yet, the last."""
        text = "\n".join(lines)
        if self._unsent and (self._unsent[-1] == text or (_is_status(text) and _is_status(self._unsent[-1]))):
            self._unsent.pop()
        self._unsent.append(text)
        self._send()

    def _send(self) -> None:
        while self._unsent and not self._may_wait() and notify(self._unsent[0]):
            if _is_status(self._unsent.popleft()) and not self._resting:
                self._resting = True
                self._after(_STATUS_EVERY_S, self._rested)
        if self._unsent and not self._waiting and not self._resting:
            self._waiting = True
            self._after(_AGAIN_S, self._again)

    def _may_wait(self) -> bool:
        return self._resting and len(self._unsent) == 1 and _is_status(self._unsent[0])

    def _rested(self) -> None:
        self._resting = False
        self._send()

    def _again(self) -> None:
        self._waiting = False
        self._send()


def _is_status(text: str) -> bool:
    return text.startswith("STATUS=")
