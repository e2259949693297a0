"""What the kernel gives and takes: memory that is free again, and whether it killed one of ours for lack of it."""

from __future__ import annotations

import ctypes
from pathlib import Path

_libc = ctypes.CDLL(None)  # once, before the fork
_CGROUP = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def give_back() -> None:
    """Return to the kernel what was freed (malloc_trim(3), which not every C library has)."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


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
