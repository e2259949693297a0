"""One run that a person asked for: forked, watched, ended and judged alike by the command itself and by the daemon."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from stellerd import log
from stellerd.channel import Assignment, Message
from stellerd.config import Config
from stellerd.errors import UsageError
from stellerd.guardian import Guard
from stellerd.logpump import Sink
from stellerd.loop import Loop
from stellerd.managed import Managed
from stellerd.memory import OomWitness
from stellerd.process import Death, Process
from stellerd.status import iso
from stellerd.watch import Watch

INTERRUPTED = 130
PLUGIN_CRASHED = 70
_CLOSING_S = 10.0
"""The longest that recording a crash may take: the store may be away, and the daemon may be stopping."""


@dataclass(frozen=True)
class Result:
    """What became of it: the run's record where there is one, else what the process said; `detail`: a traceback."""

    exit_code: int
    run: dict[str, Any] | None
    reason: str = ""
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """Its fields, for the control socket."""
        return asdict(self)


@dataclass(frozen=True)
class Ending:
    """Why it was asked to end, and the exit code that stands for that."""

    reason: str
    exit_code: int


class OnceRun:
    """`entry` is what is known of its process; `show(kind, fields)` gets what it tells on the way, `done` the result.

    `lines(text)` gets what it prints and logs, where that goes into a pipe. Raises: OSError when it cannot be forked.
    """

    def __init__(
        self, loop: Loop, assignment: Assignment, sink: Sink, guard: Guard, watch: Watch, oom: OomWitness,
        show: Callable[[str, Message], None], done: Callable[[Result], None],
        lines: Callable[[bytes], None] = lambda text: None,
    ) -> None:  # fmt: skip
        self.loop, self.assignment, self.sink, self.guard, self.watch, self.oom = (
            loop, assignment, sink, guard, watch, oom,
        )  # fmt: skip
        self.show, self.done, self.lines = show, done, lines
        self.entry = Managed(assignment.job, assignment.config.jobs[assignment.job])
        self.began = datetime.now(UTC)
        self.ending: Ending | None = None
        self.started: Message | None = None
        self.record: Message | None = None
        self.told: Message | None = None
        self._fork(assignment, self._died)

    def _fork(self, assignment: Assignment, on_death: Callable[[Death], None]) -> None:
        pump = not assignment.attended and self.entry.settings.log == "pump"
        self.entry.heartbeat = assignment.heartbeat
        self.entry.process = Process(self.loop, assignment, self.sink, self._heard, on_death, pump=pump)
        self.guard.watch(self.entry.process.pid)
        if self.entry.process.log:
            self.entry.process.log.also = self.lines

    def end(self, reason: str, exit_code: int) -> None:
        """Ask it to end within its grace, unless it was asked already; `exit_code` stands for `reason`."""
        process = self.entry.process
        if process is None or self.ending:
            return
        self.ending = Ending(reason, exit_code)
        process.terminate()
        self.entry.timers.append(self.loop.after(self.entry.settings.stop_grace, process.kill))

    def interrupt(self) -> None:
        """Ctrl-C: end it; the second time, kill it."""
        if self.ending and self.entry.process:
            self.entry.process.kill()
        self.end("interrupted", INTERRUPTED)

    def _heard(self, message: Message) -> None:
        try:
            self._heed(message)
        except Exception as error:  # noqa: BLE001  a plugin on our line must not take this process down
            log.get().error("killed: protocol violation", job=self.entry.name, reason=repr(error))
            self.entry.failure = {"reason": f"protocol violation: {error!r}", "code": PLUGIN_CRASHED}
            if self.entry.process:
                self.entry.process.kill()

    def _heed(self, message: Message) -> None:
        kind = str(message.pop("kind", ""))
        if kind == "run_started":
            message["started_at"] = iso(datetime.now(UTC))
        code = {"run_finished": "exit_code", "failed": "code"}.get(kind)
        if code and not isinstance(message.get(code), int):
            raise ValueError(f"{kind}: {code} is {type(message.get(code)).__name__}")
        self.entry.hear(kind, message)
        if kind == "run_started":
            self.started = message
            self.watch.run_started(self.entry)
        elif kind == "run_finished":
            self.record = message
        elif kind == "told":
            self.told = message
        if kind in ("run_started", "progress"):
            self.show(kind, message)

    def _died(self, death: Death) -> None:
        result, state = self._judged(death), self.entry.state_of_death()
        self._forget()
        if self.started is None or result.run is not None:
            self.done(result)
        else:
            self._close_record(self.started, state, result)

    def _forget(self) -> None:
        if self.entry.process:
            self.guard.forget(self.entry.process.pid)
        self.entry.forget_process()

    def _judged(self, death: Death) -> Result:
        """What it said of its end, or what is to be said of it."""
        if self.told is not None and self.assignment.mode != "once":
            return Result(0, self.told)
        if self.record is not None:
            cut = self.ending and self.record["state"] != "ok"
            code = self.ending.exit_code if self.ending and cut else self.record["exit_code"]
            return Result(code, self.record, self.record["reason"])
        failure, cause = self.entry.failure or {}, self.entry.cause_of(death, self.oom.saw_a_kill)
        code = 1 if self.entry.overdue else failure.get("code", PLUGIN_CRASHED)
        if not self.entry.overdue and not failure:
            cause = self.ending.reason if self.ending else f"the plugin's process ended: {cause}"
        return Result(self.ending.exit_code if self.ending else code, None, cause, str(failure.get("detail", "")))

    def _close_record(self, run: Message, state: str, result: Result) -> None:
        """The record it left open is closed by another process of the job: this one knows no database."""
        death = {
            "run": run["id"], "key": str(run.get("key") or self.entry.name), "state": state, "cause": result.reason,
            "at": iso(datetime.now(UTC)),
        }  # fmt: skip
        closing = replace(self.assignment, mode="close", heartbeat=None, last_death=death)
        self.told = None

        def closed(end: Death) -> None:
            self._forget()
            self.done(replace(result, run=(self.told or {}).get("run")))

        try:
            self._fork(closing, closed)
        except OSError as error:
            log.get().error("cannot fork; the run's record stays open", job=self.entry.name, reason=str(error))
            self.done(result)
            return
        assert self.entry.process is not None
        self.entry.timers.append(self.loop.after(_CLOSING_S, self.entry.process.kill))


def with_sets(config: Config, job: str, sets: tuple[str, ...]) -> Config:
    """The configuration with `key=value` settings of one job changed; a value is TOML, or else a plain text.

    Raises: UsageError when there is no such job or one has no "=".
    """
    if job not in config.jobs:
        raise UsageError(f'{config.file}: no job "{job}"; there are: {", ".join(config.jobs) or "none"}')
    changes: dict[str, Any] = {}
    for item in sets:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {item}: write KEY=VALUE")
        try:
            changes[key] = tomllib.loads(f"value = {text}")["value"]
        except RecursionError:
            raise UsageError(f"--set {key}: nested too deep") from None
        except ValueError:  # no TOML, or a number of thousands of digits
            changes[key] = text
    entry = config.jobs[job]
    changed = entry.model_copy(update={"settings": entry.settings | changes})
    return config.model_copy(update={"jobs": config.jobs | {job: changed}})
