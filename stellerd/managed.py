"""One job as the supervisor sees it: its state, its current process, what it said last."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from stellerd.channel import Message
from stellerd.heartbeat import Heartbeat
from stellerd.loop import Timer
from stellerd.process import Death, Process
from stellerd.settings import JobSettings
from stellerd.states import Event, State
from stellerd.status import iso

EXIT_CONFIG = 78
_NUMBER, _TEXT, _TABLE = (int, float, type(None)), str, (dict, type(None))
_SAID: dict[str, dict[str, Any]] = {
    "ready": {"job_kind": _TEXT, "every": _NUMBER, "last_run": _TABLE},
    "run_started": {"id": int, "trigger": _TEXT, "kind_of_job": _TEXT},
    "run_finished": {"id": int, "state": _TEXT, "trigger": _TEXT, "reason": _TEXT, "counters": dict},
    "next_run": {"at": _TEXT, "slot": _TEXT, "trigger": _TEXT, "why": _TEXT},
    "progress": {"done": _NUMBER, "total": _NUMBER, "unit": _TEXT},
    "failed": {"reason": _TEXT},
    "trouble": {"reason": _TEXT},
    "configured": {"every": _NUMBER},
    "recycle": {"reason": _TEXT},
}
"""Each kind of message with the types of the fields that the daemon and its clients count on."""
DEGRADED_AFTER = 3


class Managed:
    """Plain data and small questions about it; the supervisor acts."""

    def __init__(self, name: str, settings: JobSettings) -> None:
        self.name, self.settings = name, settings
        self.state = State.STOPPED
        self.process: Process | None = None
        self.heartbeat: Heartbeat | None = None
        self.ready_at: float | None = None
        """Monotonic time of its `ready`."""
        self.since: Any = None
        """Aware UTC time of the last change of state."""
        self.crashes = 0
        """In a row, without `settle` seconds of uptime in between."""
        self.crash_times: deque[float] = deque(maxlen=1000)
        self.restarts = 0
        self.reason = self.detail = self.kind = ""
        self.every: float | None = None
        self.paused = False
        self.run: Message | None = None
        """The run that is on."""
        self.progress: Message | None = None
        self.last_run: dict[str, Any] | None = None
        self.next_run: dict[str, Any] | None = None
        self.failure: Message | None = None
        """What the process said before it gave up."""
        self.recycling = ""
        """Why the process ends to be replaced."""
        self.overdue = ""
        """Why the supervisor is ending it ("timeout: …")."""
        self.killed = False
        """We sent SIGKILL."""
        self.last_death: dict[str, Any] = {}
        self.timers: list[Timer] = []
        self.retry: Timer | None = None
        self.restart_wanted = self.leaving = self.was_settled = False
        self.old_lines: deque[tuple[int, str]] = deque(maxlen=200)
        self.lines_before = 0

    @property
    def pid(self) -> int | None:
        """Of its process, if there is one."""
        return self.process.pid if self.process else None

    def settled(self, now: float) -> bool:
        """Whether it was up long enough for its next crash to be forgiven."""
        return self.ready_at is not None and now - self.ready_at >= self.settings.settle

    def is_failing(self) -> bool:
        """Whether its process cannot be kept up: it waits for the next try, or that try is on."""
        return self.state in (State.BACKOFF, State.FATAL) or (self.state is State.STARTING and self.crashes > 0)

    def forgive(self) -> None:
        """It has been up for `settle` seconds."""
        self.crashes = 0

    def chance(self) -> float:
        """The random part of the backoff."""
        return random.random()

    def cause_of(self, death: Death, oom: Callable[[], bool]) -> str:
        """What a person is told about a death."""
        if self.overdue:
            return self.overdue
        if self.failure:
            return str(self.failure["reason"])
        if death.code == -9 and not self.killed:
            return f"{death}: out of memory" if oom() else f"{death}, not sent by stellerd"
        return str(death)

    def state_of_death(self) -> str:
        """What becomes of a run that its process left unfinished."""
        if self.overdue:
            return "timeout"
        return "lost" if self.failure and self.failure.get("state") == "lost" else "crashed"

    def event_of(self, death: Death, now: float) -> Event:
        """What a death means by this job's policy."""
        if self.recycling and death.code == 0:
            return Event.RECYCLED
        if death.code == EXIT_CONFIG:
            return Event.UNUSABLE
        if self.state is State.STOPPING and not self.overdue:
            return Event.ENDED
        policy = self.settings.restart
        if policy == "never" or (policy == "on-failure" and death.code == 0):
            return Event.ENDED
        self.crash_times.append(now)
        recent = sum(now - at <= self.settings.window for at in self.crash_times)
        if self.settings.max_restarts and recent > self.settings.max_restarts:
            return Event.GIVE_UP
        return Event.DIED

    def hear(self, kind: str, message: Message) -> None:
        """Take over what its process said.

        Raises: ValueError when it is not what a job says; nothing of it was taken over.
        """
        for name, types in _SAID.get(kind, {}).items():
            if not isinstance(message.get(name), types):
                raise ValueError(f"{kind}: {name} is {type(message.get(name)).__name__}")
        if kind == "ready":
            self.kind, self.every = message["job_kind"], message["every"]
            self.last_run = message["last_run"] or self.last_run
            self.last_death, self.reason, self.detail = {}, "", ""
        elif kind == "run_started":
            self.run, self.progress, self.next_run = message, None, None
        elif kind == "run_finished":
            self.run = self.progress = None
            self.last_run, self.reason = message, ""
        elif kind == "next_run":
            self.next_run, self.reason = message, ""
        elif kind == "progress":
            self.progress = message
        elif kind == "failed":
            self.failure = message
        elif kind == "trouble":
            self.reason = message["reason"]
        elif kind == "configured":
            self.every = message["every"]
        elif kind == "recycle":
            self.recycling = message["reason"]

    def cancel_timers(self) -> None:
        """Nothing that was meant for the process before shall hit the next one."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

    def forget_process(self) -> None:
        """It is gone; what belonged to it goes too."""
        self.cancel_timers()
        if self.process and self.process.log:
            self.old_lines.extend(self.process.log.since(0))
            self.lines_before = self.process.log.count
        if self.heartbeat:
            self.heartbeat.release()
        self.process = self.heartbeat = self.ready_at = self.run = self.progress = self.failure = self.next_run = None
        self.overdue = self.recycling = ""
        self.killed = False

    def lines(self, since: int) -> list[tuple[int, str]]:
        """(number, text) of the log lines after number `since` that are still kept."""
        newer = self.process.log.since(since) if self.process and self.process.log else []
        return [line for line in self.old_lines if line[0] > since] + newer

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
            "degraded": self.crashes >= DEGRADED_AFTER,
            "paused": self.paused,
            "reason": self.reason,
            "detail": self.detail,
            "every": self.every,
            "run": self.run,
            "progress": self.progress,
            "last_run": self.last_run,
            "next_run": self.next_run,
        }
