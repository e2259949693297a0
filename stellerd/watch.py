"""Watches over a job's process: a run that takes too long, a process that shows no sign of life or was stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Protocol

from stellerd.durations import format_duration
from stellerd.loop import Loop
from stellerd.managed import Managed
from stellerd.process import Process

_ABORT_GRACE_S = 5.0
STOPPED_GRACE_S = 30.0
"""How long a process may be stopped by a signal when its job names no heartbeat_timeout."""


class After(Protocol):
    """Sets a timer that belongs to a job's process, or to its run that is on."""

    def __call__(self, job: Managed, seconds: float, callback: Callable[[], None], *, of_run: bool = False) -> None: ...


class Watch:
    """Arms timers for the supervisor; what it finds ends as the death of the process, with `overdue` as its cause."""

    def __init__(self, loop: Loop, after: After, tell: Callable[[str, Managed, str], None]) -> None:
        self.loop, self.after, self.tell = loop, after, tell

    def run_started(self, job: Managed) -> None:
        """From now on its run has `timeout`, unless it is a service, and its process a heartbeat to keep."""
        assert job.run is not None
        if job.run["kind_of_job"] != "service":
            process, run = job.process, job.run["id"]
            self.after(job, job.settings.timeout, lambda: self._timeout(job, process, run), of_run=True)
        if job.settings.heartbeat_timeout:
            self._listen(job, job.process, job.settings.heartbeat_timeout)

    def _timeout(self, job: Managed, process: Process | None, run: int) -> None:
        if process is not None and job.process is process and job.run and job.run["id"] == run:
            limit = format_duration(job.settings.timeout)
            self.end(job, process, f"timeout: the run took longer than {limit}")

    def _listen(self, job: Managed, process: Process | None, timeout: float) -> None:
        """Look when the last sign of life is `timeout` old; a newer one moves the look into the future."""
        if process is None or job.process is not process or job.heartbeat is None or job.run is None:
            return
        left = job.heartbeat.last() + timeout - self.loop.clock()
        if left <= 0:
            self.end(job, process, f"heartbeat: no sign of life for {format_duration(timeout)}")
        else:
            self.after(job, left, lambda: self._listen(job, process, timeout), of_run=True)

    def was_stopped(self, job: Managed) -> None:
        """Somebody sent SIGSTOP: it has its heartbeat_timeout to come back, whether a run is on or not."""
        process = job.process
        grace = job.settings.heartbeat_timeout or STOPPED_GRACE_S
        self.tell("a process was stopped by a signal", job, f"ended in {format_duration(grace)} unless it continues")
        self.after(job, grace, lambda: self._still_stopped(job, process, grace))

    def _still_stopped(self, job: Managed, process: Process | None, grace: float) -> None:
        if process is not None and job.process is process and process.is_stopped():
            self.end(job, process, f"heartbeat: stopped by a signal for {format_duration(grace)}")

    def end(self, job: Managed, process: Process, why: str) -> None:
        """All its stacks into the log, then the end."""
        if job.overdue:
            return
        job.overdue = why
        self.tell("a process is ended; its stacks follow", job, why)
        process.signal(signal.SIGABRT)
        process.signal(signal.SIGCONT)
        grace = min(_ABORT_GRACE_S, job.settings.stop_grace)
        self.after(job, grace, lambda: self._kill(job, process))

    def _kill(self, job: Managed, process: Process) -> None:
        if job.process is process:
            job.killed = True
            process.kill()
