"""What a process may hold of a job, and the clock that says for how long."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

LEASE_S = 60.0
_STEP_S = 1.0


@dataclass(frozen=True)
class Claim:
    """The right to do one run, fenced by `epoch`."""

    run_id: int
    job: str
    owner: str
    epoch: int
    slot: datetime | None
    attempt: int
    until: float = math.inf
    """`boottime` up to which the lease is proved: counted from before it was asked for, so never too long."""
    lease_s: float = LEASE_S
    """How long it holds from each renewal, as its row says: a reload changes that of the next run only."""

    def fence(self) -> dict[str, Any]:
        """Parameters of a statement that does something only while the lease is this run's."""
        return {"of_job": self.job, "of_owner": self.owner, "of_epoch": self.epoch}


@dataclass(frozen=True)
class Held:
    """Somebody else has the job until `until` unless they renew it."""

    host: str
    pid: int
    until: datetime

    def __str__(self) -> str:
        return f"held by pid {self.pid} on {self.host}"


@dataclass(frozen=True)
class Taken:
    """This slot was run already, or may not be run yet."""


def boottime() -> float:
    """Seconds that also pass while this process is stopped or the machine sleeps; nobody can set them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseWatch:
    """When other processes' leases end, counted by this process's uptime from its first look at each.

    Whoever holds a lease ends within its life, by an uptime too, unless it is renewed. So a store's clock that
    somebody sets neither ends a lease early nor keeps one for ever.
    """

    def __init__(self) -> None:
        self._ends: dict[str, tuple[Any, float]] = {}
        self._ahead = math.inf
        """How far the store's clock was ahead of the uptime at most, when it was last asked."""
        self._steps: deque[tuple[float, float]] = deque(maxlen=10)
        """When it was found set forward, and by how many seconds."""

    def note(self, now: datetime, asked: float) -> None:
        """The store's clock said `now` to who asked at that `boottime`."""
        up = boottime()
        if (step := now.timestamp() - up - self._ahead) > _STEP_S:
            self._steps.append((up, step))
        self._ahead = now.timestamp() - asked

    def is_over(self, lease: Any, now: datetime) -> bool:
        """Whether a lease has ended; `lease` is its row, `now` the store's time."""
        up, renewal = boottime(), (lease.owner, lease.epoch, lease.expires_at)
        seen, end = self._ends.get(lease.job, (None, 0.0))
        if seen != renewal:
            stepped = sum(step for at, step in self._steps if up - at < lease.life)  # it may be as old as that
            left = (lease.expires_at - now + timedelta(seconds=stepped)).total_seconds()
            end = up + min(left, lease.life)
            self._ends[lease.job] = renewal, end
        return up >= end
