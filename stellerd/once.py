"""`stellerd run-once`: the daemon's way of running a job, for one run, with a person watching."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from stellerd import kernel, log
from stellerd.channel import Assignment, Message
from stellerd.config import Config
from stellerd.durations import format_duration
from stellerd.logpump import Sink
from stellerd.loop import Loop
from stellerd.process import Death, Process
from stellerd.signals import SignalPipe, asked_again
from stellerd.store import Store

Mode = Literal["once", "check", "settings", "schema", "databases"]
INTERRUPTED = 130
PLUGIN_CRASHED = 70


@dataclass
class Result:
    """What became of it: the run's record where there is one, else what the process said."""

    exit_code: int
    run: dict[str, Any] | None
    reason: str = ""
    detail: str = ""


class Once:
    """Forks the job's process as the supervisor would, waits for its end; `show` gets each progress message."""

    def __init__(self, config: Config, job: str, show: Callable[[Message], None]) -> None:
        self.config, self.job, self.show = config, job, show
        self.settings = config.jobs[job]
        self.loop = Loop()
        self.result: Result | None = None
        self.started: Message | None = None
        self.record: dict[str, Any] | None = None
        self.failure: Message | None = None
        self.told: Message | None = None
        self.overdue = self.interrupted = False
        self.interrupted_at = 0.0

    def run(self, mode: Mode = "once", *, dry_run: bool = False, wait_s: float = 0.0, connect: bool = True) -> Result:
        """Blocks until the process has ended. Other modes than "once" leave no record."""
        kernel.require()
        signals = SignalPipe((signal.SIGINT, signal.SIGTERM))
        self.loop.add(signals.fd, lambda events: self._interrupt() if signals.read() else None)
        assignment = Assignment(
            job=self.job, config=self.config, parent_pid=os.getpid(),
            style=log.style_of(self.config.supervisor.log_format), mode=mode, dry_run=dry_run, wait_s=wait_s,
            connect=connect,
        )  # fmt: skip
        try:
            self.process = Process(self.loop, assignment, Sink(), self._heard, self._died, pump=False)
            while self.result is None:
                self.loop.turn()
        finally:
            signals.close()
        return self.result

    def _interrupt(self) -> None:
        if self.interrupted:
            if asked_again(self.loop.clock() - self.interrupted_at):
                self.process.kill()
            return
        self.interrupted, self.interrupted_at = True, self.loop.clock()
        self.process.terminate()
        self.loop.after(self.settings.stop_grace, self.process.kill)

    def _heard(self, message: Message) -> None:
        kind = message.pop("kind")
        if kind == "run_started":
            self.started = message
            self.loop.after(self.settings.timeout, self._timeout)
        elif kind == "run_finished":
            self.record = message
        elif kind == "failed":
            self.failure = message
        elif kind == "told":
            self.told = message
        elif kind == "progress":
            self.show(message)

    def _timeout(self) -> None:
        self.overdue = True
        self.process.signal(signal.SIGABRT)
        self.loop.after(min(5.0, self.settings.stop_grace), self.process.kill)

    def _died(self, death: Death) -> None:
        if self.told is not None:
            self.result = Result(0, self.told)
        elif self.record:
            code = INTERRUPTED if self.interrupted and self.record["state"] != "ok" else self.record["exit_code"]
            self.result = Result(code, self.record, self.record["reason"])
        elif self.failure and not self.overdue and not self._lost():
            code = INTERRUPTED if self.interrupted else self.failure["code"]
            self.result = Result(code, None, self.failure["reason"], self.failure.get("detail", ""))
        else:
            self.result = self._crashed(death)

    def _lost(self) -> bool:
        """Whether the process ended itself since its lease could not be proved any more."""
        return self.failure is not None and self.failure.get("state") == "lost"

    def _crashed(self, death: Death) -> Result:
        """It ended without a word: the record it left open is closed here."""
        reason = f"the plugin's process ended: {death}"
        state, code = "crashed", PLUGIN_CRASHED
        if self.failure and self._lost():
            reason, state, code = self.failure["reason"], "lost", self.failure["code"]
        if self.overdue:
            reason, state, code = f"timeout after {format_duration(self.settings.timeout)}", "timeout", 1
        if self.interrupted:
            reason, code = "interrupted", INTERRUPTED
        if self.started is None:
            return Result(code, None, reason)
        with contextlib.closing(Store(self.config.state_url(), host=self.config.state.host)) as store:
            store.recover(self.started["key"], reason, state, self.started["id"])
            record = next((run for run in store.history(self.job, 50) if run.id == self.started["id"]), None)
        return Result(code, record.to_json() if record else None, reason)
