"""What an operator may ask of the daemon: the whole table of commands of the control socket."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import stellerd
from stellerd.channel import Message
from stellerd.control import Command, Opens
from stellerd.errors import UsageError
from stellerd.managed import Managed
from stellerd.states import Event, State
from stellerd.status import iso

if TYPE_CHECKING:
    from stellerd.supervisor import Supervisor


class Operator:
    """Answers at once: nothing here waits for a job."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor

    def commands(self) -> dict[str, Command]:
        """name → (changes something, what to call); nothing is looked up by name anywhere else."""
        return {
            "status": (False, lambda request: self.status()),
            "logs": (False, self._logs),
            "start": (True, lambda request: self._to_job(request, self._start)),
            "stop": (True, self._stop_any),
            "restart": (True, lambda request: self._to_job(request, self._restart)),
            "run-once": (True, Opens(self.supervisor.runs.open)),
            "trigger": (True, lambda request: self._to_job(request, self._trigger)),
            "pause": (True, lambda request: self._to_job(request, lambda job: self._pause(job, True))),
            "resume": (True, lambda request: self._to_job(request, lambda job: self._pause(job, False))),
            "reload": (True, lambda request: self._reload()),
            "shutdown": (True, lambda request: self._shut_down()),
        }

    def status(self) -> dict[str, Any]:
        """The answer to `stellerd status`."""
        daemon = self.supervisor
        return {
            "version": stellerd.__version__,
            "pid": os.getpid(),
            "started_at": iso(daemon.started),
            "uptime": round((datetime.now(UTC) - daemon.started).total_seconds(), 1),
            "config": str(daemon.config.file.absolute()),
            "stopping": daemon.stopping,
            "reload_refused": daemon.refused,
            "log_lines_dropped": daemon.sink.dropped,
            "jobs": [job.to_json(daemon.loop.clock()) for job in daemon.fleet.jobs.values()],
            "run_once": daemon.runs.to_json(),
        }

    def _job(self, request: Message) -> Managed:
        name = request.get("job")
        if not isinstance(name, str) or name not in self.supervisor.fleet.jobs:
            raise UsageError(f"no job {name!r}; there are: {', '.join(self.supervisor.fleet.jobs) or 'none'}")
        return self.supervisor.fleet.jobs[name]

    def _to_job(self, request: Message, act: Callable[[Managed], str]) -> dict[str, Any]:
        job = self._job(request)
        if self.supervisor.stopping:
            raise UsageError("the daemon is stopping")
        note = act(job)
        return {**job.to_json(self.supervisor.loop.clock()), "note": note}

    def _logs(self, request: Message) -> dict[str, Any]:
        since = request.get("since", 0)
        if not isinstance(since, int):
            raise UsageError("since: a whole number")
        return {"lines": self._job(request).lines(since)}

    def _start(self, job: Managed) -> str:
        note = self.supervisor.fleet.holds.set(job.name, stopped=False)
        if job in self.supervisor.fleet.waiting:
            self.supervisor.fleet.waiting.remove(job)
        if job.state is State.STOPPING:
            job.restart_wanted = True
        self.supervisor.fleet.dispatch(job, Event.START)
        return note

    def _stop_any(self, request: Message) -> dict[str, Any]:
        """Runs that somebody asked for end too; a job that is not enabled may have nothing else."""
        name = str(request.get("job"))
        guest = self.supervisor.runs.end_those_of(name, "stopped by an operator")
        if guest and name not in self.supervisor.fleet.jobs:
            return {**guest.to_json(self.supervisor.loop.clock()), "note": ""}
        return self._to_job(request, self._stop)

    def _stop(self, job: Managed) -> str:
        if job in self.supervisor.fleet.waiting:
            self.supervisor.fleet.waiting.remove(job)
        job.restart_wanted = False
        job.reason = ""
        self.supervisor.fleet.dispatch(job, Event.STOP)
        return self.supervisor.fleet.holds.set(job.name, stopped=True)

    def _restart(self, job: Managed) -> str:
        note = self.supervisor.fleet.holds.set(job.name, stopped=False)
        self.supervisor.fleet.restart(job)
        return note

    def _trigger(self, job: Managed) -> str:
        if job.state is not State.RUNNING or job.kind == "service":
            raise UsageError(
                f"{job.name} is {job.state.value}, {job.kind or 'not up yet'}: there is nothing to trigger"
            )
        self._tell(job, "trigger")
        return ""

    def _pause(self, job: Managed, paused: bool) -> str:
        job.paused = paused
        if job.process:
            self._tell(job, "pause" if paused else "resume")
        return self.supervisor.fleet.holds.set(job.name, paused=paused)

    @staticmethod
    def _tell(job: Managed, command: str) -> None:
        if job.process is None or not job.process.tell(command):
            raise UsageError(f"{job.name} does not take commands at the moment")

    def _reload(self) -> dict[str, Any]:
        return {"changes": [change.to_json() for change in self.supervisor.reload()]}

    def _shut_down(self) -> dict[str, Any]:
        if not self.supervisor.stopping:
            self.supervisor.shut_down()
        return {"stopping": True}
