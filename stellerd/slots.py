"""The grid of slots: `first + n * every`, in aware UTC. Pure arithmetic."""

from __future__ import annotations

from datetime import datetime, timedelta
from math import floor

_TOLERANCE = timedelta(seconds=1)


def slot_at(first: datetime, every: float, when: datetime) -> datetime:
    """The newest slot that is not after `when` (before the first one: the first)."""
    return first + timedelta(seconds=every) * max(0, floor((when - first).total_seconds() / every + 1e-9))


def slot_after(first: datetime, every: float, when: datetime) -> datetime:
    """The first slot that is after `when`."""
    return first if when < first else slot_at(first, every, when) + timedelta(seconds=every)


def is_missed(slot: datetime, now: datetime) -> bool:
    """Whether nothing was there to run it when it came."""
    return now - slot > _TOLERANCE
