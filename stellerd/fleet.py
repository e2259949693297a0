"""The jobs' processes: who starts when, what a death leads to, who ends."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime

from stellerd import backoff, log, registry, states
from stellerd.channel import Assignment, Message
from stellerd.config import Config
from stellerd.guardian import Guard
from stellerd.heartbeat import Heartbeats
from stellerd.holds import Holds
from stellerd.logpump import Sink
from stellerd.loop import Loop
from stellerd.managed import Managed
from stellerd.memory import OomWitness
from stellerd.process import Death, Process
from stellerd.states import Action, Event, State
from stellerd.status import iso
from stellerd.texts import short_line
from stellerd.watch import Watch

_FAILING = {State.BACKOFF: "in backoff", State.STARTING: "tried again", State.FATAL: "FATAL"}
_NAMED, _REASON_CHARS = 3, 120
"""How many failing jobs `summary` names, and how much of each reason it shows."""


class Fleet:
    """All jobs by name. `changed()` is called whenever a job's state has changed."""

    def __init__(self, config: Config, loop: Loop, sink: Sink, style: str, changed: Callable[[], None]) -> None:
        self.config, self.loop, self.sink, self.style, self.changed = config, loop, sink, style, changed
        self.log = log.get()
        self.holds = Holds(config.path(config.supervisor.holds))
        self.heartbeats = Heartbeats()
        self.watch = Watch(loop, lambda event, job, why: self.log.error(event, job=job.name, reason=why))
        self.oom = OomWitness()
        self.jobs = {name: Managed(name, job) for name, job in config.jobs.items() if job.enabled}
        self.guests: list[Managed] = []
        """The processes of runs that somebody asked for, beside those of the table."""
        self.waiting: list[Managed] = []
        """Jobs that start once those they come `after` had their first try."""
        self.guard: Guard

    def post_guard(self) -> None:
        """From now on all dies with this process."""
        self.guard = Guard(self.loop, lambda: [job.pid for job in self.everybody() if job.pid], self._tell_of_guard)

    def everybody(self) -> list[Managed]:
        """All that may have a process."""
        return [*self.jobs.values(), *self.guests]

    def _tell_of_guard(self, event: str, why: str) -> None:
        self.log.warning(event, **({"reason": why} if why else {}))

    def admit(self, job: Managed) -> None:
        """Let a job that is new start in its turn, unless an operator holds it."""
        job.paused = job.name in self.holds.paused
        if job.name in self.holds.stopped:
            job.reason = "stopped by an operator; start it with: stellerd start"
        elif job.process:  # it was removed a moment ago and is still ending
            self.restart(job)
        else:
            self.waiting.append(job)

    def start_waiting(self) -> None:
        """Start what waits for nobody any more. A job that failed holds nobody up: it had its try."""
        for job in list(self.waiting):
            others = [self.jobs[name] for name in job.settings.after if name in self.jobs]
            held_by = [other.name for other in others if other in self.waiting or other.state is State.STARTING]
            if held_by:
                job.reason = f"waits for {', '.join(held_by)}"
            elif job in self.waiting:
                self.waiting.remove(job)
                job.reason = ""
                self.dispatch(job, Event.START)

    def all_down(self) -> bool:
        """Whether no job has a process."""
        return not self.guests and all(job.process is None for job in self.jobs.values())

    def summary(self) -> str:
        """One short line for the service manager: how many jobs are up, and which fail and why."""
        states = [job.state for job in self.jobs.values()]
        failing = [job for job in self.jobs.values() if job.is_failing()]
        named = [
            f"{job.name} {_FAILING[job.state]}: {short_line(job.reason, _REASON_CHARS) or 'no reason given'}"
            for job in failing[:_NAMED]
        ]
        more = [f"{len(failing) - _NAMED} more fail"] if len(failing) > _NAMED else []
        return "; ".join([f"{states.count(State.RUNNING)} of {len(states)} jobs up", *named, *more])

    def of_pid(self, pid: int) -> Managed | None:
        """The job whose process it is."""
        return next((job for job in self.everybody() if job.pid == pid), None)

    def kill_all(self) -> None:
        """SIGKILL to every group."""
        for job in self.everybody():
            if job.process:
                self.log.warning("killed: did not end in time", job=job.name)
                job.process.kill()

    def forget_if_gone(self, job: Managed) -> None:
        """Drop a job that is no longer configured once its process has ended."""
        if job.leaving and job.process is None:
            self.jobs.pop(job.name, None)

    def dispatch(self, job: Managed, event: Event) -> None:
        """The table says what happens; this carries it out."""
        before = job.state
        job.state, action = states.step(job.state, event)
        if job.state is not before:
            job.since = datetime.now(UTC)
        if event in (Event.START, Event.STOP) and job.retry:
            job.retry.cancel()
            job.retry = None
        if action is Action.SPAWN:
            self._spawn(job)
        elif action is Action.TERMINATE:
            self._terminate(job)
        elif action is Action.RETRY:
            self._retry(job)
        if job.state is not before:
            self.start_waiting()
            self.changed()

    def restart(self, job: Managed) -> None:
        """Stop and start it, whatever it is doing."""
        if job.process:
            job.restart_wanted = True
            self.dispatch(job, Event.STOP)
        else:
            self.dispatch(job, Event.START)

    def _spawn(self, job: Managed) -> None:
        job.heartbeat = self.heartbeats.slot()
        assignment = Assignment(
            job=job.name, config=self.config, parent_pid=os.getpid(), heartbeat=job.heartbeat, paused=job.paused,
            style=self.style, last_death=job.last_death,
        )  # fmt: skip
        with contextlib.suppress(
            Exception
        ):  # the child finds it read already; what is wrong with it, it will say itself
            registry.installed()
        try:
            job.process = Process(
                self.loop, assignment, self.sink,
                lambda message: self.on_message(job, message), lambda death: self._on_death(job, death),
                pump=job.settings.log == "pump", lines_before=job.lines_before,
            )  # fmt: skip
        except OSError as error:  # no process or descriptor to be had now: try again later, as after a crash
            job.forget_process()
            job.reason = f"cannot fork: {os.strerror(error.errno or 0)}"
            self.log.error("cannot fork", job=job.name, reason=job.reason)
            job.crashes += 1
            self.dispatch(job, Event.DIED)
            return
        self.guard.watch(job.process.pid)
        self.log.debug("forked", job=job.name, pid=job.process.pid)

    def _terminate(self, job: Managed) -> None:
        if job.process:
            process = job.process
            process.terminate(signal.Signals[f"SIG{job.settings.stop_signal}"])
            job.timers.append(self.loop.after(job.settings.stop_grace, lambda: self._grace_is_over(job, process)))

    def _grace_is_over(self, job: Managed, process: Process) -> None:
        if job.process is process:
            self.log.warning("killed: did not end within its grace", job=job.name, pid=process.pid)
            job.killed = True
            process.kill()

    def _retry(self, job: Managed) -> None:
        wait = backoff.delay(
            job.crashes, job.crashes == 1 and job.was_settled, base=job.settings.backoff,
            cap=job.settings.backoff_cap, chance=job.chance(),
        )  # fmt: skip
        job.restarts += 1
        if wait:
            self.log.info("restarts later", job=job.name, wait_s=round(wait, 2), crashes=job.crashes)
        job.retry = self.loop.after(wait, lambda: self.dispatch(job, Event.TIMER))

    def _on_death(self, job: Managed, death: Death) -> None:
        assert job.process is not None
        pid, now = job.process.pid, self.loop.clock()
        self.guard.forget(pid)
        asked = job.state is State.STOPPING and not job.overdue
        cause, event = job.cause_of(death, self.oom.saw_a_kill), job.event_of(death, now)
        job.was_settled = job.settled(now)
        job.last_death = {
            "run": job.run["id"] if job.run else None, "state": job.state_of_death(),
            "cause": cause, "at": iso(datetime.now(UTC)),
        }  # fmt: skip
        job.detail = str(job.failure.get("detail", "")) if job.failure else ""
        job.reason = "" if asked else job.recycling or cause
        if event is Event.RECYCLED:
            job.restarts += 1
            self.log.info("replaced", job=job.name, pid=pid, reason=job.recycling)
        elif not asked:
            job.crashes = 1 if job.was_settled else job.crashes + 1
            self.log.error("died", job=job.name, pid=pid, cause=cause, settled=job.was_settled)
        job.forget_process()
        self.dispatch(job, event)
        if job.restart_wanted and job.state is State.STOPPED:
            job.restart_wanted = False
            self.dispatch(job, Event.START)
        self.forget_if_gone(job)

    def on_message(self, job: Managed, message: Message) -> None:
        """What a job says of itself."""
        try:
            self._heed(job, message)
        except (LookupError, TypeError, ValueError) as error:  # a plugin on our line must not take the daemon down
            self.log.error("killed: said what no job says", job=job.name, reason=f"{type(error).__name__}: {error}")
            if job.process:
                job.process.kill()

    def _heed(self, job: Managed, message: Message) -> None:
        kind = str(message.pop("kind", ""))
        if kind == "run_started":
            message["started_at"] = iso(datetime.now(UTC))
        job.hear(kind, message)
        if kind == "ready":
            job.ready_at = self.loop.clock()
            job.timers.append(self.loop.after(job.settings.settle, job.forgive))
            self.log.info("ready", job=job.name, pid=job.pid)
            self.dispatch(job, Event.READY)
        elif kind == "run_started":
            self.watch.run_started(job)
