"""Imported before anything else by the command line: a request to end that comes during the imports must not be lost.

The kernel drops a signal for PID 1 that has no handler (pid_namespaces(7)), and a container's command is PID 1.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    """As the signal itself would: nothing has begun that needs an orderly end."""
    os._exit(128 + number)


if os.getpid() == 1:
    signal.signal(signal.SIGTERM, _end)
