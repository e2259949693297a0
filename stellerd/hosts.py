"""Which host and process this is, and whether another process of this host still lives.

`name` is `[state] host`, what the configuration calls this host; "": what the host calls itself.
"""

from __future__ import annotations

import functools
import os
import re
import select
import socket
import uuid
from pathlib import Path
from typing import Any

BOOT_ID_VARIABLE = "STELLERD_BOOT_ID"
_KERNEL_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BOOT_ID = re.compile("[0-9a-f]{32}")


@functools.cache
def boot() -> str:
    """An identity of the time since this kernel was started: the kernel's boot id in lower case without dashes.

    Under systemd's `ProcSubset=pid` /proc/sys is hidden; there the unit says it (`Environment=STELLERD_BOOT_ID=%b`).
    Where neither tells, one that only this process and its forks share: then a lease's time alone counts.
    """
    for told in (_kernel_says(), os.environ.get(BOOT_ID_VARIABLE, "")):
        plain = told.strip().replace("-", "").lower()
        if _BOOT_ID.fullmatch(plain):
            return plain
    return f"unknown-{uuid.uuid4().hex}"


def _kernel_says() -> str:
    try:
        return _KERNEL_BOOT_ID.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def knows_boot() -> bool:
    """Whether `boot` is the kernel's, so that processes of this machine know each other."""
    return _BOOT_ID.fullmatch(boot()) is not None


@functools.cache
def machine(name: str = "") -> str:
    """An identity in which a pid means something: one boot of one kernel, one pid namespace.

    Two names on one machine are two hosts: then the lease alone counts between them.
    """
    return f"{boot()}/{os.readlink('/proc/self/ns/pid')}{f'/{name}' if name else ''}"


def this_host(name: str = "") -> str:
    """The name that records show."""
    return name or socket.gethostname()


def this_process(name: str = "") -> dict[str, Any]:
    """host, machine, pid and start time, as the lease keeps them."""
    pid = os.getpid()
    return {"host": this_host(name), "machine": machine(name), "pid": pid, "pid_started": started(pid) or 0.0}


def started(pid: int) -> float | None:
    """When a process began, in clock ticks since boot (proc(5): field 22 of stat); None when /proc does not show it.

    Guards against a reused pid, and unlike a time of day it does not move when somebody sets the clock.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return float(stat[stat.rindex(b")") + 2 :].split()[19])  # the name before it may hold blanks and brackets


def is_gone(its_machine: str, pid: int, its_start: float, name: str = "") -> bool:
    """True only when that process can be looked up from here and is no more.

    /proc may hide a living process (hidepid, systemd's ProtectProc): that it shows nothing is no proof.
    """
    if its_machine != machine(name):
        return False
    if not _exists(pid):
        return True
    start = started(pid)
    return start is not None and its_start > 0 and start != its_start  # another process has its number


def _exists(pid: int) -> bool:
    """Whether there is such a process that has not ended, a zombie being none; True when the kernel does not tell."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError:  # not permitted here, or no descriptor left
        return _can_be_signalled(pid)
    try:
        poll = select.poll()  # any number, unlike select(2)
        poll.register(pidfd, select.POLLIN)
        return not poll.poll(0)  # readable once it has ended (pidfd_open(2))
    finally:
        os.close(pidfd)


def _can_be_signalled(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
