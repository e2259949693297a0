"""What stellerd needs of the kernel beyond files and sockets, and what to do where it is refused."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

from stellerd.errors import ConfigError
from stellerd.walltimer import WallTimer

_REFUSALS = (errno.EPERM, errno.EACCES, errno.ENOSYS)


def require() -> None:
    """Try what cannot be done without; a container's or a unit's seccomp filter may forbid it.

    Raises: ConfigError naming the system call and the cure.
    """
    _try("pidfd_open", _watch_a_process)
    _try("timerfd_create", lambda: WallTimer().close())


def _watch_a_process() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        _try("pidfd_send_signal", lambda: signal.pidfd_send_signal(pidfd, 0))
    finally:
        os.close(pidfd)


def _try(call: str, attempt: Callable[[], None]) -> None:
    try:
        attempt()
    except OSError as error:
        if error.errno in _REFUSALS:
            raise ConfigError(
                f"the system call {call} is refused ({os.strerror(error.errno)}); no job can be supervised without it: "
                "allow it in the container's seccomp profile (docker run --security-opt seccomp=FILE) or in the unit's "
                "SystemCallFilter=; it needs Linux 5.3 or newer"
            ) from None
        raise
