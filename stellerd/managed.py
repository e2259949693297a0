"""One job as the supervisor sees it: its state, its current process, what it said last."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from stellerd.channel import Message
from stellerd.config import JobSettings
from stellerd.loop import Timer
from stellerd.process import Death, Process
from stellerd.states import State
from stellerd.status import iso

EXIT_CONFIG = 78


class Managed:
    """Plain data and small questions about it; the supervisor acts."""

    def __init__(self, name: str, settings: JobSettings) -> None:
        self.name, self.settings = name, settings
        self.state = State.STOPPED
        self.process: Process | None = None
        self.ready_at: float | None = None
        """Monotonic time of its `ready`."""
        self.since: Any = None
        """Aware UTC time of the last change of state."""
        self.crashes = 0
        """In a row, without `settle` seconds of uptime in between."""
        self.restarts = 0
        self.reason = ""
        self.detail = ""
        self.kind = ""
        self.every: float | None = None
        self.run: Message | None = None
        """The run that is on."""
        self.progress: Message | None = None
        self.last_run: dict[str, Any] | None = None
        self.next_run: dict[str, Any] | None = None
        self.failure: Message | None = None
        """What the process said before it gave up."""
        self.overdue = ""
        """Why the supervisor is ending it ("timeout after 20m")."""
        self.last_death: dict[str, Any] = {}
        self.timers: list[Timer] = []
        self.retry: Timer | None = None
        self.restart_wanted = False
        self.old_lines: deque[str] = deque(maxlen=200)

    @property
    def pid(self) -> int | None:
        """Of its process, if there is one."""
        return self.process.pid if self.process else None

    def settled(self, now: float) -> bool:
        """Whether it was up long enough for its next crash to be forgiven."""
        return self.ready_at is not None and now - self.ready_at >= self.settings.settle

    def chance(self) -> float:
        """The random part of the backoff."""
        return random.random()

    def cause_of(self, death: Death) -> str:
        """What a person is told about a death."""
        if self.overdue:
            return self.overdue
        if self.failure:
            return str(self.failure["reason"])
        return str(death)

    def cancel_timers(self) -> None:
        """Nothing that was meant for the process before shall hit the next one."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

    def forget_process(self) -> None:
        """It is gone; what belonged to it goes too."""
        self.cancel_timers()
        if self.process and self.process.log:
            self.old_lines.extend(self.process.log.tail)
        self.process = self.ready_at = self.run = self.progress = self.failure = None
        self.overdue = ""

    def to_json(self, now: float) -> dict[str, Any]:
        """One entry of `status`."""
        return {
            "job": self.name,
            "plugin": self.settings.plugin or self.name,
            "kind": self.kind or None,
            "state": self.state.value,
            "since": iso(self.since) if self.since else None,
            "pid": self.pid,
            "uptime": None if self.ready_at is None else round(now - self.ready_at, 1),
            "restarts": self.restarts,
            "degraded": self.crashes >= 3,
            "reason": self.reason,
            "detail": self.detail,
            "every": self.every,
            "run": self.run,
            "progress": self.progress,
            "last_run": self.last_run,
            "next_run": self.next_run,
        }
