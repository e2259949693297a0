"""What a process may hold of a job, and the clock that says for how long."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any


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
