"""sd_notify(3): one datagram to $NOTIFY_SOCKET; silently nothing when there is none."""

from __future__ import annotations

import os
import socket
import time


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
    """Send lines such as "READY=1"; an abstract socket's name starts with "@". True when a manager was told."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto("\n".join(lines).encode(), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT, address)
    except OSError:  # no descriptor left, the manager went away, its queue is full: never a reason to fail
        return False
    return True
