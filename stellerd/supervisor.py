"""The supervisor: one thread, one loop; it forks, watches, restarts and stops jobs and knows nothing of their work."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from stellerd import config, log, signals, systemd
from stellerd.channel import DUMP_SIGNAL
from stellerd.config import Config
from stellerd.control import Control, Occupied
from stellerd.errors import ConfigError, StellerdError, UsageError
from stellerd.fleet import Fleet
from stellerd.logpump import Sink
from stellerd.loop import Loop, say
from stellerd.managed import Managed
from stellerd.operator import Operator
from stellerd.redaction import redact
from stellerd.reload import Change, Effect, changes
from stellerd.run_requests import RunRequests
from stellerd.settings import frozen
from stellerd.signals import SignalPipe
from stellerd.states import Event, State
from stellerd.status import iso
from stellerd.texts import short_line

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
FIRST_WORD_S = 5.0
"""READY is said at the latest so long after the start."""
_OCCUPIED_S, _LOOK_AGAIN_S = 10.0, 0.05
_REASON_CHARS = 200
"""How much of a refused reload's reason the service manager is told."""


class Supervisor:
    """Built from a valid configuration; `run()` returns the exit code when every job has ended."""

    def __init__(self, config: Config, sink: Sink, style: str) -> None:
        self.config, self.sink, self.style = config, sink, style
        self.loop = Loop()
        self.manager = systemd.Manager(self.loop.after)
        self.log = log.get()
        self.started = datetime.now(UTC)
        self.fleet = Fleet(config, self.loop, sink, style, self.announce)
        self.runs = RunRequests(self.fleet)
        self.stopping = False
        self.refused: dict[str, str] | None = None
        """When (`at`) and why (`reason`) the last reload changed nothing; None once one was good."""
        self._announced = False
        self._asked = 0.0
        """When it was asked to end."""
        self._began = self.loop.clock()

    # --- life

    def run(self) -> int:
        """Start everything, turn the loop until all is over."""
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # grandchildren that are left over come to us
        self.fleet.post_guard()
        handlers = {
            signal.SIGTERM: self.handle_term, signal.SIGINT: self.handle_term, signal.SIGCHLD: self.handle_chld,
            signal.SIGHUP: self.handle_hup, signal.SIGUSR1: self.handle_usr1, signal.SIGQUIT: self.handle_quit,
        }  # fmt: skip
        self.signals = SignalPipe(handlers)
        signals.release()
        self.loop.add(self.signals.fd, lambda events: self._on_signals(handlers))
        try:
            self._open_control()
            if not self.stopping:
                self._admit_admins()
                self._start_all()
            while not (self.stopping and self.fleet.all_down()):
                self.loop.turn()
        finally:
            signals.hold(handlers)  # without their handlers they would make another end of this one
            self._close()
        self.log.info("stopped")
        return 0

    def _admit_admins(self) -> None:
        """A folder that is not as it should be locks out some operators; no job has to stay down for it."""
        settings = self.config.supervisor
        if settings.admin_group:
            try:
                self.control.admit(settings.admin_group, self.config.path(settings.admin_socket))
            except StellerdError as error:
                self.log.error("no socket for the admin group", group=settings.admin_group, reason=str(error))

    def _open_control(self) -> None:
        """While another daemon that starts is at it, wait a moment, and heed signals meanwhile.

        Raises: Unreachable
        """
        path = self.config.path(self.config.supervisor.socket)
        while not self.stopping:
            try:
                self.control = Control(self.loop, path, Operator(self).commands())
                return
            except Occupied:
                if self.loop.clock() - self._began > _OCCUPIED_S:
                    raise
            self.loop.after(_LOOK_AGAIN_S, lambda: None)
            self.loop.turn()

    def _start_all(self) -> None:
        self.log.info("started", pid=os.getpid(), config=str(self.config.file), jobs=list(self.fleet.jobs))
        for job in self.fleet.jobs.values():
            self.fleet.admit(job)
        self.fleet.start_waiting()
        self.announce()
        self.loop.after(FIRST_WORD_S, self.announce)
        if interval := systemd.watchdog_interval():
            self._feed_watchdog(interval)

    def _feed_watchdog(self, interval: float) -> None:
        """A timer of this very loop: when the loop hangs, the watchdog starves."""
        self.manager.tell("WATCHDOG=1")
        self.loop.after(interval, lambda: self._feed_watchdog(interval))

    def _close(self) -> None:
        for job in self.fleet.everybody():
            with contextlib.suppress(OSError):
                if job.process:
                    job.process.kill()
        if hasattr(self, "control"):
            self.control.close()
        self.fleet.guard.close()
        self.loop.remove(self.signals.fd)
        self.signals.close()
        self.loop.close()

    def announce(self) -> None:
        """READY once every job has had its first word: up, failed, or waiting to be tried again.

        A job that hangs before it does not keep the service manager waiting, which would end all the others.
        """
        states = [job.state for job in self.fleet.jobs.values()]
        up = states.count(State.RUNNING)
        late = self.loop.clock() - self._began >= FIRST_WORD_S
        waiting = not late and (self.fleet.waiting or State.STARTING in states)
        status = f"STATUS={self.fleet.summary()}"
        if self.refused:
            status += f"; reload refused: {short_line(self.refused['reason'], _REASON_CHARS)}"
        if not self._announced and not waiting and not self.stopping:
            self._announced = True
            self.manager.tell("READY=1", status)
            failing = [job.name for job in self.fleet.jobs.values() if job.is_failing()]
            self.log.info("ready", up=up, jobs=len(states), **({"failing": failing} if failing else {}))
        else:
            self.manager.tell(status)

    # --- signals

    def _on_signals(self, handlers: Mapping[signal.Signals, Callable[[], None]]) -> None:
        for number in self.signals.read():
            try:
                handlers[number]()
            except Exception as error:  # noqa: BLE001  the guard of all signals: the next one may be SIGTERM
                say("internal error in a signal's handler", error, signal=number.name)

    def handle_term(self) -> None:
        """Stop gracefully; the second time at once."""
        if not self.stopping:
            self.shut_down()
        elif signals.asked_again(self.loop.clock() - self._asked):
            self.log.warning("asked again: killing what is left")
            self.fleet.kill_all()

    def handle_chld(self) -> None:
        """Bury our own dead, reap what they left to us, notice who was stopped."""
        with contextlib.suppress(ChildProcessError):
            while info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                ours = self.fleet.of_pid(info.si_pid)
                if ours:
                    self.fleet.bury(ours)
                elif info.si_pid == self.fleet.guard.pid:
                    self.fleet.guard.look()
                else:
                    os.waitpid(info.si_pid, 0)
        with contextlib.suppress(ChildProcessError):
            while info := os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOHANG):
                if info.si_pid == self.fleet.guard.pid:
                    os.kill(info.si_pid, signal.SIGKILL)  # asleep it guards nobody; its death brings a new one
                elif job := self.fleet.of_pid(info.si_pid):
                    self.fleet.watch.was_stopped(job)

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
        for job in self.fleet.everybody():
            if job.process and (job.ready_at is not None or job.run):  # before that its handler may not be in place
                job.process.signal(DUMP_SIGNAL)

    def shut_down(self) -> None:
        """TERM to all groups at once, one deadline for all."""
        self.stopping, self._asked = True, self.loop.clock()
        self.fleet.waiting.clear()
        timeout = self.config.supervisor.stop_timeout
        self.manager.tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int((timeout + 5) * 1e6)}")
        self.log.info("stopping")
        self.runs.end_all("the daemon is stopping")
        for job in self.fleet.jobs.values():
            job.restart_wanted = False
            self.fleet.dispatch(job, Event.STOP)
        self.loop.after(timeout, self.fleet.kill_all)

    # --- reload

    def reload(self) -> list[Change]:
        """Read the file again; only when all of it is valid does anything change.

        Raises: ConfigError, UsageError; nothing was changed.
        """
        if self.stopping:
            raise UsageError("the daemon is stopping")
        if self._announced:
            self.manager.tell("RELOADING=1", systemd.monotonic_usec())
        try:
            new = config.load(str(self.config.file))
            new.require_usable()
        except ConfigError as error:
            self.refused = {"at": iso(datetime.now(UTC)), "reason": redact(str(error))}
            self.log.error("reload refused; the old configuration stays in force", reason=str(error))
            raise
        else:
            self.refused = None
        finally:
            if self._announced:
                self.manager.tell("READY=1")
            self.announce()
        found = changes(self.config, new)
        self.config = self.fleet.config = frozen(new, self.config)
        self.runs.end_those_not_in(new.jobs, "the job was removed from the configuration")
        log.set_level(new.supervisor.log_level)
        self.log.info("reloaded", changes=[change.to_json() for change in found])
        self._apply(found)
        return found

    def _apply(self, found: list[Change]) -> None:
        everybody = any(not change.job for change in found)
        wanted = {name: settings for name, settings in self.config.jobs.items() if settings.enabled}
        for job in list(self.fleet.jobs.values()):
            with self.fleet.guarding(job):
                if job.name not in wanted:  # also one that was removed before and is still ending
                    self.fleet.leave(job)
                elif not job.leaving:
                    job.settings = wanted[job.name]
                    self._apply_to(job, {change.effect for change in found if change.job == job.name}, everybody)
        for name, settings in wanted.items():
            known = self.fleet.jobs.get(name)
            if known is None or known.leaving:
                job = self.fleet.jobs[name] = known or Managed(name, settings)
                job.leaving, job.settings = False, settings
                self.fleet.admit(job)
        self.fleet.start_waiting()

    def _apply_to(self, job: Managed, mine: set[Effect], everybody: bool) -> None:
        if "restart" in mine or (job.state is State.FATAL and (mine or everybody)):
            self.fleet.restart(job)
        elif job.process and (mine or everybody):
            job.process.configure(self.config.text)
        elif job.state is State.FATAL:
            self.fleet.dispatch(job, Event.START)
