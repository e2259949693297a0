"""What the kernel gives and takes: memory that is free again, and whether it killed one of ours for lack of it."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_libc = ctypes.CDLL(None)  # once, before the fork
_CGROUP = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def resident() -> int:
    """This process's resident memory in bytes (proc(5): second field of statm, in pages)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE


def trim() -> None:
    """Return to the kernel what is free (malloc_trim(3), which not every C library has)."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def give_back() -> None:
    """The same, and first free what nobody can reach any more."""
    gc.collect()
    trim()


class OomWitness:
    """Compares the kill count with the last one; without a cgroup v2 it never claims to have seen anything."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or _events_file()
        self._last = self._count()

    def _count(self) -> int:
        try:
            lines = self.file.read_text(encoding="ascii").splitlines() if self.file else []
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

    def saw_a_kill(self) -> bool:
        """True when there was one since the last call."""
        before, self._last = self._last, self._count()
        return self._last > before


def _events_file() -> Path | None:
    """memory.events of our cgroup (cgroups(7): "0::/path" is the unified hierarchy)."""
    try:
        lines = _CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    return None if path is None else _ROOT / path.lstrip("/") / "memory.events"
