"""The schedule of a job's process: `schedule` ticks, the store says when."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import schedule

from stellerd import config, log, memory
from stellerd.channel import Message
from stellerd.claims import Held
from stellerd.config import Config
from stellerd.durations import format_size
from stellerd.errors import ConfigError, JobFailed, Unreachable
from stellerd.line import Line
from stellerd.pruning import PAUSE_S, Pruner
from stellerd.runner import HELD_POLL_S, Asked, Plan, Runner, retry_s
from stellerd.settings import JobSettings, frozen
from stellerd.status import RunRecord


class SlotJob(schedule.Job):
    """A job of the `schedule` library whose next run comes from the store, in aware UTC.

    The library counts from the end of a run in naive local time, which loses slots at a restart and hours at a
    change of the clocks; it keeps its place as the one that ticks.
    """

    def __init__(self, scheduler: schedule.Scheduler, ticker: Ticker) -> None:
        super().__init__(1, scheduler)
        self.ticker = ticker
        self.plan: Plan | None = None
        """Of the schedule."""
        self.asked: Asked | None = None
        """Of an operator."""
        self.next_run: Any = None

    @property
    def next(self) -> Plan | Asked | None:
        """What to run next: what an operator asked for when that is due earlier or the schedule is paused."""
        plan = None if self.ticker.paused else self.plan
        return self.asked if self.asked and (plan is None or self.asked.at <= plan.at) else plan

    @property
    def should_run(self) -> bool:
        """Whether its time has come."""
        plan = self.next
        return plan is not None and not plan.held and self.ticker.runner.store_now() >= plan.at

    def _schedule_next_run(self) -> None:
        self.ticker.keep_trigger()
        self.plan, self.asked = self.ticker.runner.plan(), self.ticker.runner.asked()
        self.next_run = self.plan.at
        self.ticker.failures = 0


class Ticker:
    """Turns until asked to end, or until the process is to be replaced.

    `build` makes a runner of a configuration; `prepare` is called before anything else, again while the store is away.
    """

    def __init__(
        self,
        config: Config,
        build: Callable[[Config], Runner],
        line: Line,
        paused: bool,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.build, self.line, self.paused, self.prepare = config, build, line, paused, prepare
        self.runner = build(config)
        self.scheduler = schedule.Scheduler()
        self.slot_job = SlotJob(self.scheduler, self)
        self.blocked: Unreachable | Held | None = None
        self.failures = self.runs = 0
        self._triggered = False
        """The daemon passed a trigger on that is not kept in the store yet."""
        self._said: Any = None
        self._pruner = Pruner(self.runner.store)

    def serve(self) -> int:
        """The exit code."""
        while not self._guarded(self.prepare):
            if self._waited():
                return 0
        self.blocked, self.failures = None, 0
        if self.runner.job.kind == "service":
            return self._serve_service()
        self.line.say_ready()
        self._guarded(self._arm)
        while not self.line.stopping:
            self._announce()
            message = self._next_command()
            if message:
                self._obey(message)
            elif not self.line.stopping:
                self._guarded(self._due)
            if why := self._worn_out():
                self.line.tell("recycle", {"reason": why})
                break
        self._take_unread()
        return 0

    def _take_unread(self) -> None:
        """At the end: a trigger that came while the last run was on is for the next process to find."""
        self._triggered |= any(message["kind"] == "trigger" for message in self.line.unread())
        self._guarded(self.keep_trigger)

    def keep_trigger(self) -> None:
        """What an operator asked for is in the store before the daemon may forget it.

        Raises: Unreachable when the store is.
        """
        if self._triggered:
            self.runner.ask()
            self._triggered = False
            self.line.tell("triggered", {})

    def _serve_service(self) -> int:
        while (record := self._served()) is None:
            if self._waited():
                return 0
        if record.state != "ok":
            raise JobFailed(record.reason)
        return 0

    def _waited(self) -> bool:
        """Wait for what is in the way; True when this process was asked to end."""
        assert self.blocked is not None
        return self.line.wait(retry_s(self.blocked, self.failures))

    def _served(self) -> RunRecord | None:
        """The record of a service's run; None while somebody else runs it or the store is away."""
        ended: list[RunRecord] = []

        def serve() -> None:
            result = self.runner.store.holder(self.runner.key) or self.runner.run("service")
            if isinstance(result, Held):
                self.failures = 0
                self._block(result)
            elif isinstance(result, RunRecord):
                ended.append(result)

        self._guarded(serve)
        return ended[0] if ended else None

    # --- when

    def _guarded(self, step: Callable[[], Any]) -> bool:
        """The store may be away for a while: say so, come back later, keep the process."""
        try:
            step()
        except Unreachable as error:
            self.failures += 1
            self._block(error)
            if self.failures & (self.failures - 1) == 0:  # the 1st, 2nd, 4th, 8th …: it may be away for long
                log.get(job=self.runner.name).error("the state store is away", reason=str(error))
            return False
        return True

    def _block(self, by: Unreachable | Held) -> None:
        self.blocked = by
        self.line.say_ready()  # a standby is up, and its `ready` must not wipe out why it waits
        if self._said != str(by):  # once, not at each look
            self._say("trouble", {"reason": str(by)}, str(by))

    def _say(self, kind: str, fields: dict[str, Any], said: Any) -> None:
        self.line.tell(kind, fields)
        self._said = said

    def _due(self) -> None:
        if self._is_held() and self.runner.store.holder(self.runner.key):
            return  # the other one's run goes on
        if self.blocked or self.slot_job.plan is None or self.slot_job.plan.held:
            self.blocked = None
            self._arm()
        if self.slot_job.should_run:
            self.scheduler.run_pending()

    def _is_held(self) -> bool:
        return isinstance(self.blocked or (self.slot_job.plan and self.slot_job.plan.held), Held)

    def _arm(self) -> None:
        """Ask the store anew."""
        if self.slot_job in self.scheduler.jobs:
            self.slot_job._schedule_next_run()
        else:
            self.slot_job.do(self._tick)

    def _seconds_to_next(self) -> float | None:
        """By the store's clock, which may differ from this host's."""
        if self.paused and not (self._triggered or self.slot_job.asked or isinstance(self.blocked, Unreachable)):
            return None
        plan = self.slot_job.next
        if blocked := self.blocked or (plan and plan.held):
            return retry_s(blocked, self.failures)
        left: list[float] = []
        if plan is None or not self._guarded(lambda: left.append((plan.at - self.runner.store_now()).total_seconds())):
            return HELD_POLL_S
        return left[0]

    def _next_command(self) -> Message | None:
        """What ends the wait for the next slot; in the meantime old records are forgotten, step by step."""
        seconds = self._seconds_to_next()
        while (
            self.blocked is None
            and (seconds is None or seconds > PAUSE_S)
            and self._pruner.step(self.config.state.keep)
        ):
            message = self.line.next_command(PAUSE_S)
            if message or self.line.stopping:
                return message
            seconds = self._seconds_to_next()
        return self.line.next_command(seconds)

    def _announce(self) -> None:
        plan = self.slot_job.next or self.slot_job.plan
        if plan is not None and not self.blocked and self._said != (fields := plan.to_json()):
            self._say("next_run", fields, fields)

    # --- what

    def _tick(self) -> None:
        plan = self.slot_job.next
        if isinstance(plan, Asked):
            if held := self.runner.store.holder(self.runner.key):
                self._block(held)
                return
            if self.runner.asked() is None:  # another host was quicker
                return
        if plan is not None:
            self._run(plan.trigger, plan.slot)

    def _run(self, trigger: str, slot: Any) -> None:
        result = self.runner.run(trigger, slot)
        if isinstance(result, Held):
            self._block(result)
        elif isinstance(result, RunRecord):
            self.runs += 1
            self._said = None

    def _obey(self, message: Message) -> None:
        """One command of the parent; others than these it does not send."""
        kind = message["kind"]
        if kind == "trigger":
            self._triggered = True
        elif kind in ("pause", "resume"):
            self.paused = kind == "pause"
        elif kind == "configure":
            self._configure(message["text"])
        self._guarded(self._arm)

    def _configure(self, text: str) -> None:
        """A reload: new settings, limits and intervals from the next run on, or the old ones when they are wrong."""
        try:
            new = frozen(config.parse(text, self.config.file), self.config)
            self.runner = self.build(new)
        except ConfigError as error:
            log.get(job=self.runner.name).error("reload refused; the old settings stay in force", reason=str(error))
            self.line.tell("trouble", {"reason": str(error)})
            return
        self.config = new
        log.set_level(new.supervisor.log_level)
        mine: JobSettings = new.jobs[self.runner.name]
        self.line.stop_on(signal.Signals[f"SIG{mine.stop_signal}"])
        known = {"stop_signal": mine.stop_signal, "heartbeat_timeout": mine.heartbeat_timeout}
        self.line.tell("configured", {"every": self.runner.every, **known})

    def _worn_out(self) -> str:
        """Why this process is to be replaced by a fresh one, if it is."""
        limits: JobSettings = self.config.jobs[self.runner.name]
        if limits.max_runs and self.runs >= limits.max_runs:
            return f"max_runs: {self.runs} runs"
        if limits.max_rss and self.runs and (size := memory.resident()) > limits.max_rss:
            return f"max_rss: {size:,} bytes are more than {format_size(limits.max_rss)}"
        return ""
