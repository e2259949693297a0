"""The grid of slots: `first + n * every`, in aware UTC. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Interval:
    """The interval in force. Its grid has no slots from before `since`: until then only `due`, the next slot of the
    interval before, can have been missed."""

    every: float
    since: datetime | None = None
    due: datetime | None = None

    def next_after(self, first: datetime, last: datetime) -> datetime:
        """The first slot after `last` that is or was one."""
        slot = slot_after(first, self.every, last)
        if self.since is None or slot > self.since:
            return slot
        if self.due is not None and last < self.due <= self.since:
            return self.due
        return slot_after(first, self.every, self.since)

    def latest(self, first: datetime, slot: datetime, now: datetime) -> datetime:
        """The newest slot from the missed `slot` to `now`."""
        newest = slot_at(first, self.every, now)
        return slot if self.since is not None and newest <= self.since else newest

    def changed(self, every: float, first: datetime, last: datetime | None, now: datetime) -> Interval:
        """The one that follows it now."""
        return Interval(every, now, self.next_after(first, last) if last else None)
