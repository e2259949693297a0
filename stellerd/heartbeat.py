"""Signs of life: each job's process stamps a shared memory slot, the supervisor looks only when it has a reason to."""

from __future__ import annotations

import mmap
import struct
import time

_STAMP = struct.Struct("=d")
_SLOTS = 4096 // _STAMP.size


class Heartbeats:
    """Made before the first fork; every child inherits the memory."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SLOTS * _STAMP.size)
        self._free = list(range(_SLOTS))

    def slot(self) -> Heartbeat | None:
        """A slot for one process, or None when all are taken: that process is not watched."""
        return Heartbeat(self, self._free.pop(0)) if self._free else None

    def stamp(self, number: int) -> None:
        """Write the monotonic time, which all processes of a host share."""
        _STAMP.pack_into(self._memory, number * _STAMP.size, time.monotonic())

    def read(self, number: int) -> float:
        """The time last written."""
        stamp: float = _STAMP.unpack_from(self._memory, number * _STAMP.size)[0]
        return stamp

    def give_back(self, number: int) -> None:
        """Its process is over."""
        self._free.append(number)


class Heartbeat:
    """One process's slot."""

    def __init__(self, beats: Heartbeats, number: int) -> None:
        self._beats, self._number = beats, number
        self.stamp()

    def stamp(self) -> None:
        """I am alive."""
        self._beats.stamp(self._number)

    def last(self) -> float:
        """Monotonic time of the last sign of life."""
        return self._beats.read(self._number)

    def release(self) -> None:
        """Nobody stamps it any more."""
        self._beats.give_back(self._number)
