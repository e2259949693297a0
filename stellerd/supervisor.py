"""The supervisor: one thread, one loop; it forks, watches, restarts and stops jobs and knows nothing of their work."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import stellerd
from stellerd import backoff, log, states, systemd
from stellerd.channel import Assignment, Message
from stellerd.config import Config
from stellerd.control import Control
from stellerd.durations import format_duration
from stellerd.errors import UsageError
from stellerd.guardian import Guardian
from stellerd.logpump import Sink
from stellerd.loop import Loop
from stellerd.managed import EXIT_CONFIG, Managed
from stellerd.process import Death, Process
from stellerd.signals import SignalPipe
from stellerd.states import Action, Event, State
from stellerd.status import iso

_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_ABORT_GRACE_S = 5.0


class Supervisor:
    """Built from a valid configuration; `run()` returns the exit code when every job has ended."""

    def __init__(self, config: Config, sink: Sink, style: str) -> None:
        self.config, self.sink, self.style = config, sink, style
        self.loop = Loop()
        self.log = log.get()
        self.started = datetime.now(UTC)
        self.jobs = {name: Managed(name, job) for name, job in config.jobs.items() if job.enabled}
        self.stopping = False
        self.waiting: list[Managed] = []
        self.guardian: Guardian
        self._announced = False

    # --- life

    def run(self) -> int:
        """Start everything, turn the loop until all is over."""
        self.guardian = Guardian()
        self.loop.add(self.guardian.pidfd, lambda events: self._guardian_died())
        self.signals = SignalPipe(_HANDLED)
        self.loop.add(self.signals.fd, lambda events: self._on_signals())
        self.control = Control(self.loop, self.config.path(self.config.supervisor.socket), self._commands())
        try:
            self.log.info("started", pid=os.getpid(), config=str(self.config.file), jobs=list(self.jobs))
            self.waiting = list(self.jobs.values())
            self._start_waiting()
            self._announce()
            while not (self.stopping and self._all_down()):
                self.loop.turn()
        finally:
            self._close()
        self.log.info("stopped")
        return 0

    def _start_waiting(self) -> None:
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

    def _close(self) -> None:
        for job in self.jobs.values():
            if job.process:
                job.process.kill()
        self.control.close()
        self.loop.remove(self.guardian.pidfd)
        self.guardian.close()
        self.loop.remove(self.signals.fd)
        self.signals.close()
        self.loop.close()

    def _all_down(self) -> bool:
        return all(job.process is None for job in self.jobs.values())

    def _guardian_died(self) -> None:
        self.loop.remove(self.guardian.pidfd)
        self.guardian.close()
        self.log.warning("the guardian was killed; a new one is started")
        self.guardian = Guardian()
        self.loop.add(self.guardian.pidfd, lambda events: self._guardian_died())
        for job in self.jobs.values():
            if job.pid:
                self.guardian.watch(job.pid)

    def _announce(self) -> None:
        """READY once every job has had its first word: up, failed, or waiting to be tried again."""
        up = sum(job.state is State.RUNNING for job in self.jobs.values())
        waiting = self.waiting or any(job.state is State.STARTING for job in self.jobs.values())
        status = f"STATUS={up} of {len(self.jobs)} jobs up"
        if not self._announced and not waiting and not self.stopping:
            self._announced = True
            systemd.notify("READY=1", status)
            self.log.info("ready", up=up, jobs=len(self.jobs))
        else:
            systemd.notify(status)

    # --- signals

    def _on_signals(self) -> None:
        for number in self.signals.read():
            getattr(self, f"handle_{number.name.removeprefix('SIG').lower()}")()

    def handle_term(self) -> None:
        """Stop gracefully; the second time at once."""
        if self.stopping:
            self.log.warning("asked again: killing what is left")
            for job in self.jobs.values():
                if job.process:
                    job.process.kill()
            return
        self.shut_down()

    handle_int = handle_term

    def handle_chld(self) -> None:
        """Bury our own dead and reap what they left to us."""
        while True:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) if self._has_children() else None
            if info is None:
                return
            ours = next((job.process for job in self.jobs.values() if job.pid == info.si_pid), None)
            if ours:
                ours.bury()
            elif info.si_pid == self.guardian.pid:
                return  # its own descriptor tells
            else:
                os.waitpid(info.si_pid, 0)

    def _has_children(self) -> bool:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def shut_down(self) -> None:
        """TERM to all groups at once, one deadline for all."""
        self.stopping = True
        self.waiting.clear()
        systemd.notify("STOPPING=1")
        self.log.info("stopping")
        for job in self.jobs.values():
            job.restart_wanted = False
            self.dispatch(job, Event.STOP)
        self.loop.after(self.config.supervisor.stop_timeout, self._kill_all)

    def _kill_all(self) -> None:
        for job in self.jobs.values():
            if job.process:
                self.log.warning("killed: did not end in time", job=job.name)
                job.process.kill()

    # --- one job

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
            self._start_waiting()
            self._announce()

    def _spawn(self, job: Managed) -> None:
        assignment = Assignment(
            job=job.name, config=self.config, parent_pid=os.getpid(),
            style=self.style, last_death=job.last_death,
        )  # fmt: skip
        try:
            job.process = Process(
                self.loop, assignment, self.sink,
                lambda message: self._on_message(job, message), lambda death: self._on_death(job, death),
                pump=job.settings.log == "pump",
            )  # fmt: skip
        except OSError as error:  # no process or descriptor to be had now: try again later, as after a crash
            job.reason = f"cannot fork: {os.strerror(error.errno or 0)}"
            self.log.error("cannot fork", job=job.name, reason=job.reason)
            job.crashes += 1
            self.dispatch(job, Event.DIED)
            return
        self.guardian.watch(job.process.pid)
        self.log.debug("forked", job=job.name, pid=job.process.pid)

    def _terminate(self, job: Managed) -> None:
        if job.process:
            process = job.process
            process.terminate()
            job.timers.append(self.loop.after(job.settings.stop_grace, lambda: self._grace_is_over(job, process)))

    def _grace_is_over(self, job: Managed, process: Process) -> None:
        if job.process is process:
            self.log.warning("killed: did not end within its grace", job=job.name, pid=process.pid)
            process.kill()

    def _retry(self, job: Managed) -> None:
        now = self.loop.clock()
        settled = job.settled(now)
        wait = backoff.delay(
            job.crashes, settled, base=job.settings.backoff, cap=job.settings.backoff_cap, chance=job.chance()
        )
        job.restarts += 1
        if wait:
            self.log.info("restarts later", job=job.name, wait_s=round(wait, 2), crashes=job.crashes)
        job.retry = self.loop.after(wait, lambda: self.dispatch(job, Event.TIMER))

    def _on_death(self, job: Managed, death: Death) -> None:
        assert job.process is not None
        self.guardian.forget(job.process.pid)
        cause, code = job.cause_of(death), death.code
        stopped = job.state is State.STOPPING
        asked = stopped and not job.overdue
        now = self.loop.clock()
        settled = job.settled(now)
        run = job.run["id"] if job.run else None
        job.last_death = {
            "run": run,
            "state": "timeout" if job.overdue else "crashed",
            "cause": cause,
            "at": iso(datetime.now(UTC)),
        }
        job.detail = str(job.failure.get("detail", "")) if job.failure else ""
        job.reason = "" if asked else cause
        if not asked:
            job.crashes = 1 if settled else job.crashes + 1
            self.log.error("died", job=job.name, pid=job.process.pid, cause=cause, up=settled)
        job.next_run = None
        ready_at = job.ready_at
        job.forget_process()
        job.ready_at = ready_at  # the backoff asks how long it was up
        self.dispatch(job, Event.UNUSABLE if code == EXIT_CONFIG else Event.DIED)
        job.ready_at = None
        if job.restart_wanted and job.state is State.STOPPED:
            job.restart_wanted = False
            self.dispatch(job, Event.START)

    def _on_message(self, job: Managed, message: Message) -> None:
        handler = getattr(self, f"_said_{message.get('kind')}", None) if message.get("kind") in _EVENTS else None
        if handler:
            handler(job, {key: value for key, value in message.items() if key != "kind"})

    def _said_ready(self, job: Managed, message: Message) -> None:
        job.ready_at = self.loop.clock()
        job.kind, job.every = message["job_kind"], message["every"]
        job.last_run = message["last_run"] or job.last_run
        job.last_death, job.reason, job.detail = {}, "", ""
        job.timers.append(self.loop.after(job.settings.settle, lambda: self._is_settled(job)))
        self.log.info("ready", job=job.name, pid=job.pid)
        self.dispatch(job, Event.READY)

    def _is_settled(self, job: Managed) -> None:
        job.crashes = 0

    def _said_failed(self, job: Managed, message: Message) -> None:
        job.failure = message

    def _said_run_started(self, job: Managed, message: Message) -> None:
        job.run, job.progress, job.next_run = message | {"started_at": iso(datetime.now(UTC))}, None, None
        if message["kind_of_job"] != "service":
            process = job.process
            job.timers.append(self.loop.after(job.settings.timeout, lambda: self._timeout(job, process, message["id"])))

    def _timeout(self, job: Managed, process: Process | None, run: int) -> None:
        if process is None or job.process is not process or not job.run or job.run["id"] != run:
            return
        job.overdue = f"timeout: the run took longer than {format_duration(job.settings.timeout)}"
        self.log.error("run timed out; its stacks follow", job=job.name, run=run)
        process.signal(signal.SIGABRT)
        process.signal(signal.SIGCONT)
        grace = min(_ABORT_GRACE_S, job.settings.stop_grace)
        job.timers.append(self.loop.after(grace, lambda: self._grace_is_over(job, process)))

    def _said_run_finished(self, job: Managed, message: Message) -> None:
        job.run = job.progress = None
        job.last_run, job.reason = message, ""

    def _said_progress(self, job: Managed, message: Message) -> None:
        job.progress = message

    def _said_next_run(self, job: Managed, message: Message) -> None:
        job.next_run, job.reason = message, ""

    def _said_trouble(self, job: Managed, message: Message) -> None:
        job.reason = message["reason"]

    # --- commands of the operator

    def _commands(self) -> dict[str, tuple[bool, Callable[[Message], dict[str, Any]]]]:
        """name → (changes something, what to call); the whole list, nothing is looked up by name elsewhere."""
        return {
            "status": (False, lambda request: self.status()),
            "start": (True, lambda request: self._to_job(request, self._start)),
            "stop": (True, lambda request: self._to_job(request, lambda job: self.dispatch(job, Event.STOP))),
            "restart": (True, lambda request: self._to_job(request, self._restart)),
            "trigger": (True, lambda request: self._to_job(request, self._trigger)),
            "shutdown": (True, lambda request: self._shut_down_by_request()),
        }

    def _to_job(self, request: Message, act: Callable[[Managed], None]) -> dict[str, Any]:
        name = request.get("job")
        if name not in self.jobs:
            raise UsageError(f"no job {name!r}; there are: {', '.join(self.jobs) or 'none'}")
        act(self.jobs[name])
        return self.jobs[name].to_json(self.loop.clock())

    def _start(self, job: Managed) -> None:
        if job in self.waiting:
            self.waiting.remove(job)
        if job.state is State.STOPPING:
            job.restart_wanted = True
        self.dispatch(job, Event.START)

    def _restart(self, job: Managed) -> None:
        if job.process:
            job.restart_wanted = True
            self.dispatch(job, Event.STOP)
        else:
            self.dispatch(job, Event.START)

    def _trigger(self, job: Managed) -> None:
        if job.state is not State.RUNNING or job.kind == "service":
            raise UsageError(f"{job.name} is {job.kind or job.state.value}: nothing to trigger")
        if job.process is None or not job.process.channel.send("trigger"):
            raise UsageError(f"{job.name} does not take commands at the moment")

    def _shut_down_by_request(self) -> dict[str, Any]:
        if not self.stopping:
            self.shut_down()
        return {"stopping": True}

    def status(self) -> dict[str, Any]:
        """The answer to `stellerd status`."""
        return {
            "version": stellerd.__version__,
            "pid": os.getpid(),
            "started_at": iso(self.started),
            "uptime": round((datetime.now(UTC) - self.started).total_seconds(), 1),
            "config": str(self.config.file.absolute()),
            "stopping": self.stopping,
            "log_lines_dropped": self.sink.dropped,
            "jobs": [job.to_json(self.loop.clock()) for job in self.jobs.values()],
        }


_EVENTS = frozenset({"ready", "failed", "run_started", "run_finished", "progress", "next_run", "trouble"})
