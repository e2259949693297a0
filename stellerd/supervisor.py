"""The supervisor: one thread, one loop; it forks, watches, restarts and stops jobs and knows nothing of their work."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from stellerd import backoff, config, log, states, systemd
from stellerd.channel import DUMP_SIGNAL, Assignment, Message
from stellerd.config import Config
from stellerd.control import Control
from stellerd.errors import ConfigError, StellerdError, UsageError
from stellerd.guardian import Guard
from stellerd.heartbeat import Heartbeats
from stellerd.holds import Holds
from stellerd.logpump import Sink
from stellerd.loop import Loop
from stellerd.managed import Managed
from stellerd.memory import OomWitness
from stellerd.operator import Operator
from stellerd.process import Death, Process
from stellerd.reload import Change, Effect, changes
from stellerd.signals import SignalPipe
from stellerd.states import Action, Event, State
from stellerd.status import iso
from stellerd.watch import Watch

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
FIRST_WORD_S = 5.0
"""READY is said at the latest so long after the start."""


class Supervisor:
    """Built from a valid configuration; `run()` returns the exit code when every job has ended."""

    def __init__(self, config: Config, sink: Sink, style: str) -> None:
        self.config, self.sink, self.style = config, sink, style
        self.loop = Loop()
        self.log = log.get()
        self.started = datetime.now(UTC)
        self.holds = Holds(config.path(config.supervisor.holds))
        self.heartbeats = Heartbeats()
        self.watch = Watch(self.loop, lambda event, job, why: self.log.error(event, job=job.name, reason=why))
        self.oom = OomWitness()
        self.jobs = {name: Managed(name, job) for name, job in config.jobs.items() if job.enabled}
        self.waiting: list[Managed] = []
        """Jobs that start once those they come `after` had their first try."""
        self.stopping = False
        self.guard: Guard
        self._announced = False
        self._began = self.loop.clock()

    # --- life

    def run(self) -> int:
        """Start everything, turn the loop until all is over."""
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # grandchildren that are left over come to us
        self.guard = Guard(self.loop, lambda: [job.pid for job in self.jobs.values() if job.pid], self._tell_of_guard)
        handlers = {
            signal.SIGTERM: self.handle_term, signal.SIGINT: self.handle_term, signal.SIGCHLD: self.handle_chld,
            signal.SIGHUP: self.handle_hup, signal.SIGUSR1: self.handle_usr1, signal.SIGQUIT: self.handle_quit,
        }  # fmt: skip
        self.signals = SignalPipe(handlers)
        self.loop.add(self.signals.fd, lambda events: self._on_signals(handlers))
        try:
            self.control = Control(
                self.loop, self.config.path(self.config.supervisor.socket), Operator(self).commands()
            )
            self._start_all()
            while not (self.stopping and self._all_down()):
                self.loop.turn()
        finally:
            self._close()
        self.log.info("stopped")
        return 0

    def _start_all(self) -> None:
        self.log.info("started", pid=os.getpid(), config=str(self.config.file), jobs=list(self.jobs))
        for job in self.jobs.values():
            self._admit(job)
        self._start_waiting()
        self.announce()
        self.loop.after(FIRST_WORD_S, self.announce)
        if interval := systemd.watchdog_interval():
            self._feed_watchdog(interval)

    def _feed_watchdog(self, interval: float) -> None:
        """A timer of this very loop: when the loop hangs, the watchdog starves."""
        systemd.notify("WATCHDOG=1")
        self.loop.after(interval, lambda: self._feed_watchdog(interval))

    def _admit(self, job: Managed) -> None:
        """Let a job that is new start in its turn, unless an operator holds it."""
        job.paused = job.name in self.holds.paused
        if job.name in self.holds.stopped:
            job.reason = "stopped by an operator; start it with: stellerd start"
        elif job.process:  # it was removed a moment ago and is still ending
            self.restart(job)
        else:
            self.waiting.append(job)

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
        if hasattr(self, "control"):
            self.control.close()
        self.guard.close()
        self.loop.remove(self.signals.fd)
        self.signals.close()
        self.loop.close()

    def _all_down(self) -> bool:
        return all(job.process is None for job in self.jobs.values())

    def _tell_of_guard(self, event: str, why: str) -> None:
        self.log.warning(event, **({"reason": why} if why else {}))

    def announce(self) -> None:
        """READY once every job has had its first word: up, failed, or waiting to be tried again.

        A job that hangs before it does not keep the service manager waiting, which would end all the others.
        """
        up = sum(job.state is State.RUNNING for job in self.jobs.values())
        late = self.loop.clock() - self._began >= FIRST_WORD_S
        waiting = not late and (self.waiting or any(job.state is State.STARTING for job in self.jobs.values()))
        status = f"STATUS={up} of {len(self.jobs)} jobs up"
        if not self._announced and not waiting and not self.stopping:
            self._announced = True
            systemd.notify("READY=1", status)
            self.log.info("ready", up=up, jobs=len(self.jobs))
        else:
            systemd.notify(status)

    # --- signals

    def _on_signals(self, handlers: Mapping[signal.Signals, Callable[[], None]]) -> None:
        for number in self.signals.read():
            handlers[number]()

    def handle_term(self) -> None:
        """Stop gracefully; the second time at once."""
        if self.stopping:
            self.log.warning("asked again: killing what is left")
            self._kill_all()
        else:
            self.shut_down()

    def handle_chld(self) -> None:
        """Bury our own dead, reap what they left to us, notice who was stopped."""
        with contextlib.suppress(ChildProcessError):
            while info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                ours = self._job_of(info.si_pid)
                if ours and ours.process:
                    ours.process.bury()
                elif info.si_pid == self.guard.pid:
                    self.guard.look()
                else:
                    os.waitpid(info.si_pid, 0)
        with contextlib.suppress(ChildProcessError):
            while info := os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOHANG):
                if info.si_pid == self.guard.pid:
                    os.kill(info.si_pid, signal.SIGKILL)  # asleep it guards nobody; its death brings a new one
                elif job := self._job_of(info.si_pid):
                    self.watch.was_stopped(job)

    def _job_of(self, pid: int) -> Managed | None:
        return next((job for job in self.jobs.values() if job.pid == pid), None)

    def handle_hup(self) -> None:
        """Reload; what is wrong with the new file is in the log, the old one stays in force."""
        with contextlib.suppress(StellerdError):
            self.reload()

    def handle_usr1(self) -> None:
        """Open the log file anew."""
        try:
            self.sink.reopen()
        except StellerdError as error:
            self.log.error("log file not reopened", reason=str(error))

    def handle_quit(self) -> None:
        """Every process's Python stacks into the log."""
        self.log.warning("stacks asked for", traceback="".join(traceback.format_stack()))
        for job in self.jobs.values():
            if job.process and job.ready_at is not None:  # before that its handler may not be in place
                job.process.signal(DUMP_SIGNAL)

    def shut_down(self) -> None:
        """TERM to all groups at once, one deadline for all."""
        self.stopping = True
        self.waiting.clear()
        timeout = self.config.supervisor.stop_timeout
        systemd.notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int((timeout + 5) * 1e6)}")
        self.log.info("stopping")
        for job in self.jobs.values():
            job.restart_wanted = False
            self.dispatch(job, Event.STOP)
        self.loop.after(timeout, self._kill_all)

    def _kill_all(self) -> None:
        for job in self.jobs.values():
            if job.process:
                self.log.warning("killed: did not end in time", job=job.name)
                job.process.kill()

    # --- reload

    def reload(self) -> list[Change]:
        """Read the file again; only when all of it is valid does anything change.

        Raises: ConfigError, UsageError; nothing was changed.
        """
        if self.stopping:
            raise UsageError("the daemon is stopping")
        if self._announced:
            systemd.notify("RELOADING=1", systemd.monotonic_usec())
        try:
            new = config.load(str(self.config.file))
            if problems := new.problems_of_secrets():
                raise ConfigError(problems)
        except ConfigError as error:
            self.log.error("reload refused; the old configuration stays in force", reason=str(error))
            raise
        finally:
            if self._announced:
                systemd.notify("READY=1")
        found = changes(self.config, new)
        self.config = new
        log.set_level(new.supervisor.log_level)
        self.log.info("reloaded", changes=[change.to_json() for change in found])
        self._apply(found)
        return found

    def _apply(self, found: list[Change]) -> None:
        everybody = any(not change.job for change in found)
        for name in list(self.jobs):
            mine = {change.effect for change in found if change.job == name}
            job = self.jobs[name]
            if "stop" in mine:
                job.leaving = True
                if job in self.waiting:
                    self.waiting.remove(job)
                self.dispatch(job, Event.STOP)
                self._forget_if_gone(job)
            else:
                job.settings = self.config.jobs[name]
                self._apply_to(job, mine, everybody)
        for change in found:
            if change.effect == "start":
                job = self.jobs.setdefault(change.job, Managed(change.job, self.config.jobs[change.job]))
                job.leaving, job.settings = False, self.config.jobs[change.job]
                self._admit(job)
        self._start_waiting()

    def _apply_to(self, job: Managed, mine: set[Effect], everybody: bool) -> None:
        if "restart" in mine or (job.state is State.FATAL and (mine or everybody)):
            self.restart(job)
        elif job.process and (mine or everybody):
            job.process.configure(self.config.text)
        elif job.state is State.FATAL:
            self.dispatch(job, Event.START)

    def _forget_if_gone(self, job: Managed) -> None:
        if job.leaving and job.process is None:
            self.jobs.pop(job.name, None)

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
            self.announce()

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
        try:
            job.process = Process(
                self.loop, assignment, self.sink,
                lambda message: self._on_message(job, message), lambda death: self._on_death(job, death),
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
            "run": job.run["id"] if job.run else None, "state": "timeout" if job.overdue else "crashed",
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
        self._forget_if_gone(job)

    def _on_message(self, job: Managed, message: Message) -> None:
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
