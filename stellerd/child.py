"""A job's process from the fork to its end: fork contract, plugin, schedule loop."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import random
import select
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import schedule
import setproctitle

from stellerd import assembly, log
from stellerd.channel import Assignment, Channel
from stellerd.config import plugin_settings
from stellerd.errors import Busy, ConfigError, JobFailed, StellerdError, Unreachable
from stellerd.registry import Loaded
from stellerd.runner import Plan, Runner, retry_at
from stellerd.secret import redact
from stellerd.signals import SignalPipe
from stellerd.status import RunRecord, from_iso, iso
from stellerd.store import Held, Store

_PR_SET_PDEATHSIG = 1  # prctl(2)
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main(assignment: Assignment, channel: Channel, log_fd: int | None) -> None:
    """Everything a job's process ever does; ends with os._exit, so that nothing of the parent's is run again.

    `log_fd` becomes its standard output and error; None: it keeps those of the parent.
    """
    code = 70
    try:
        _after_fork(assignment, channel, log_fd)
        log.configure(assignment.config.supervisor.log_level, assignment.style, marked=log_fd is not None)
        code = _live(assignment, channel)
    except StellerdError as error:
        code = error.exit_code
        _last_words(assignment, channel, code, str(error), getattr(error, "detail", ""))
    except BaseException as error:  # noqa: BLE001  whatever it was, the supervisor shall know
        _last_words(assignment, channel, code, f"{type(error).__name__}: {error}", traceback.format_exc())
    finally:
        os._exit(code)


def _last_words(assignment: Assignment, channel: Channel, code: int, reason: str, detail: str) -> None:
    reason, detail = redact(reason), redact(detail)
    channel.send("failed", reason=reason, detail=detail, code=code)
    if assignment.mode == "serve":  # there the command line says it
        log.get(job=assignment.job).error("cannot work", reason=reason, **({"traceback": detail} if detail else {}))


def _after_fork(assignment: Assignment, channel: Channel, log_fd: int | None) -> None:
    """The fork contract: die with the parent, own group, default signals, no descriptor of others, own randomness."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != assignment.parent_pid:
        os._exit(70)
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    if log_fd is not None:
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
    for fd in {int(entry.name) for entry in Path("/proc/self/fd").iterdir()} - {0, 1, 2, channel.fileno()}:
        with contextlib.suppress(OSError):  # the one that listed the folder is closed already
            os.close(fd)
    random.seed()
    gc.enable()
    faulthandler.enable()
    setproctitle.setproctitle(f"stellerd: {assignment.job}")


def _live(assignment: Assignment, channel: Channel) -> int:
    stop = Stop(channel)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    config, name = assignment.config, assignment.job
    loaded = Loaded(config.jobs[name].plugin or name, config.where("jobs", name))
    assert loaded.job is not None
    if assignment.mode == "settings":
        return _tell_settings(stop, plugin_settings(config, name, loaded.job.Settings))
    store = Store(config.state_url())
    logger = log.get(job=name)
    runner = assembly.runner(
        config, name, loaded.job, store, logger, stop.tell, wait=stop.wait,
        observe=loaded.observe(logger, name), step_down=stop.now,
    )  # fmt: skip
    if assignment.mode == "check":
        return _check(assignment, runner, stop)
    store.create()
    if death := assignment.last_death:
        store.recover(name, death["cause"], death["state"], death["run"], from_iso(death["at"]))
    else:
        store.recover(name)
    if assignment.mode == "once":
        return run_once(assignment, runner, stop)
    every = runner.every if loaded.job.kind == "periodic" else None
    stop.ready = {"job_kind": loaded.job.kind, "every": every, "last_run": _last_run(store, name)}
    return Schedule(runner, stop, config.state.keep).serve()


def _tell_settings(stop: Stop, settings: Any) -> int:
    """For `config show`: the settings with their defaults, of secrets only where they come from."""
    stop.tell("told", {"settings": settings.model_dump(mode="json") if settings else {}})
    return 0


def _check(assignment: Assignment, runner: Runner, stop: Stop) -> int:
    """For `check`: the plugin loads and its settings are right; with `connect` its servers answer too."""
    if assignment.connect:
        runner.store.create()
        assembly.check(runner)
    stop.tell("told", {})
    return 0


def _last_run(store: Store, name: str) -> dict[str, Any] | None:
    record = store.last_finished(name)
    return record.to_json() if record else None


class Stop:
    """Whether this process was asked to end, and what else the parent said; one place that waits for both."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.asked = False
        self.ready: dict[str, Any] | None = None
        """What to say once it is ready: a periodic job at once, a service when it first waits."""
        self.commands: list[str] = []
        self._last_progress = 0.0
        self._signals = SignalPipe(_STOP_SIGNALS, lambda number, frame: self.now())

    def now(self) -> None:
        """Ask this process to end."""
        self.asked = True

    def tell(self, kind: str, fields: dict[str, Any]) -> None:
        """An event for the parent; progress at most five times a second."""
        if kind == "progress":
            now = time.monotonic()
            if now - self._last_progress < 0.2 and fields["done"] != fields["total"]:
                return
            self._last_progress = now
        self.channel.send(kind, **fields)

    def wait(self, seconds: float) -> bool:
        """`ctx.wait`: up to `seconds`, at once when asked to end."""
        self.say_ready()
        deadline = time.monotonic() + seconds
        while not self.asked:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._signals.fd], [], [], max(0.0, left))
            if ready:
                self._signals.read()
            elif left <= 0:
                break
        return self.asked

    def say_ready(self) -> None:
        """Tell the parent, the first time."""
        if self.ready is not None:
            self.tell("ready", self.ready)
            self.ready = None

    def wait_or_command(self, seconds: float) -> str | None:
        """Between runs: the next command of the parent, or None when time is up or the process was asked to end."""
        if not self.commands and not self.asked:
            select.select([self._signals.fd, self.channel.fileno()], [], [], max(0.0, seconds))
            self._signals.read()
            self.commands += [message["kind"] for message in self.channel.receive()]
            if self.channel.closed:  # the parent is gone; PDEATHSIG is on its way
                self.now()
        return self.commands.pop(0) if self.commands and not self.asked else None


class SlotJob(schedule.Job):
    """A job of the `schedule` library whose next run comes from the store, in aware UTC.

    The library counts from the end of a run in naive local time, which loses slots at a restart and hours at a
    change of the clocks; it keeps its place as the one that ticks.
    """

    def __init__(self, scheduler: schedule.Scheduler, runner: Runner) -> None:
        super().__init__(1, scheduler)
        self.runner = runner
        self.plan: Plan | None = None
        self.failures = 0
        self.next_run: Any = None

    @property
    def should_run(self) -> bool:
        """Whether the plan's time has come."""
        return self.plan is not None and self.runner.store_now() >= self.plan.at

    def _schedule_next_run(self) -> None:
        self.plan = self.runner.plan()
        self.next_run = self.plan.at
        self.failures = 0


class Schedule:
    """The loop of a periodic job, or the one run of a service."""

    def __init__(self, runner: Runner, stop: Stop, keep_s: float) -> None:
        self.runner, self.stop, self.keep_s = runner, stop, keep_s
        self.scheduler = schedule.Scheduler()
        self.slot_job = SlotJob(self.scheduler, runner)
        self.blocked: Unreachable | Held | None = None
        self._pruned = 0.0

    def serve(self) -> int:
        """Run until asked to end; the exit code."""
        if self.runner.job.kind == "service":
            return self._serve_service()
        self.stop.say_ready()
        self._guarded(lambda: self.slot_job.do(self._tick))
        while not self.stop.asked:
            self._announce()
            command = self.stop.wait_or_command(self._seconds_to_next())
            if command == "trigger":
                self._guarded(self._triggered)
            elif not self.stop.asked:
                self._guarded(self._due)
        return 0

    def _serve_service(self) -> int:
        while isinstance(record := self.runner.run("service"), Held):
            self.stop.tell("trouble", {"reason": str(record)})
            if self.stop.wait(5.0):
                return 0
        if isinstance(record, RunRecord) and record.state != "ok":
            raise JobFailed(record.reason)
        return 0

    def _guarded(self, step: Any) -> None:
        """The store may be away for a while: say so, come back later, keep the process."""
        try:
            step()
        except Unreachable as error:
            self.slot_job.failures += 1
            self._block(error)
            log.get(job=self.runner.name).error("the state store is away", reason=str(error))

    def _block(self, by: Unreachable | Held) -> None:
        self.blocked = by
        self.stop.tell("trouble", {"reason": str(by)})

    def _due(self) -> None:
        if self.slot_job.plan is None or self.blocked:
            self.blocked = None
            self._arm()
        if self.slot_job.should_run:
            self.scheduler.run_pending()

    def _arm(self) -> None:
        if self.slot_job in self.scheduler.jobs:
            self.slot_job._schedule_next_run()
        else:
            self.slot_job.do(self._tick)

    def _triggered(self) -> None:
        self._run("operator", None)
        self._arm()  # it may have used up what the plan counted on

    def _tick(self) -> None:
        plan = self.slot_job.plan
        if plan is not None:
            self._run(plan.trigger, plan.slot)

    def _run(self, trigger: str, slot: Any) -> None:
        result = self.runner.run(trigger, slot)
        if isinstance(result, Held):
            self._block(result)
        if time.monotonic() - self._pruned > 3600:
            self.runner.store.prune(self.keep_s)
            self._pruned = time.monotonic()

    def _seconds_to_next(self) -> float:
        now = self.runner.services.now()
        if self.blocked is not None:
            return (retry_at(self.blocked, now, self.slot_job.failures) - now).total_seconds()
        return 1.0 if self.slot_job.plan is None else (self.slot_job.plan.at - now).total_seconds()

    def _announce(self) -> None:
        plan = self.slot_job.plan
        if plan is not None:
            fields = {"at": iso(plan.at), "slot": iso(plan.slot), "trigger": plan.trigger, "why": plan.why}
            self.stop.tell("next_run", fields)


def run_once(assignment: Assignment, runner: Runner, stop: Stop) -> int:
    """`stellerd run-once`: one run under the same lease, limits and history as the daemon's.

    Raises: Busy when somebody else holds the job for longer than the caller wants to wait.
    """
    deadline = time.monotonic() + assignment.wait_s
    while isinstance(result := runner.run("manual", dry_run=assignment.dry_run), Held):
        if time.monotonic() >= deadline or stop.wait(0.5):
            raise Busy(f"{assignment.job} is busy: {result}; wait for it with --wait", result.until)
    if not isinstance(result, RunRecord):
        raise ConfigError(f"{assignment.job}: {result}")
    return result.exit_code
