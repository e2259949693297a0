"""A wait until a time of day that notices when somebody sets the clock (timerfd_create(2); Python has it from 3.13)."""

from __future__ import annotations

import ctypes
import errno
import os
import time

_libc = ctypes.CDLL(None, use_errno=True)  # once, before the fork
_CLOCK_REALTIME = 0
_TFD_NONBLOCK, _TFD_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 1, 2


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class WallTimer:
    """`fd` is readable when the time has come, and as soon as the clock was set: then look again."""

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(_CLOCK_REALTIME, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, seconds: float | None) -> None:
        """Fire `seconds` from now by the clock on the wall; None: never."""
        value = _Timespec(0, 0)
        if seconds is not None:
            nanoseconds = max(1, time.time_ns() + int(seconds * 1e9))
            value = _Timespec(nanoseconds // 10**9, nanoseconds % 10**9)
        spec = _Itimerspec(_Timespec(0, 0), value)
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        if _libc.timerfd_settime(self.fd, flags, ctypes.byref(spec), None) < 0:
            number = ctypes.get_errno()
            if number != errno.ECANCELED:  # it tells that the clock was set since the last time, and is armed anew
                raise OSError(number, "timerfd_settime")

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)
