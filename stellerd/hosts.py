"""Which host and process this is, and whether another process of this host still lives.

`name` is `[state] host`, what the configuration calls this host; "": what the host calls itself.
"""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import Any


@functools.cache
def boot() -> str:
    """An identity of the time since this kernel was started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


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
    """When a living process began, in clock ticks since boot (proc(5): field 22 of stat); None when there is none.

    Guards against a reused pid, and unlike a time of day it does not move when somebody sets the clock.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name before it may hold blanks and brackets
    return None if fields[0] in (b"Z", b"X") else float(fields[19])


def is_gone(its_machine: str, pid: int, its_start: float, name: str = "") -> bool:
    """True only when that process can be looked up from here and is no more."""
    if its_machine != machine(name):
        return False
    return started(pid) != its_start
