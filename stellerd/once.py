"""`stellerd run-once` and whatever else a command has a job's process do: forked here, or by the daemon on request."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any, Literal

import click

from stellerd import log, texts
from stellerd.channel import Assignment, Message
from stellerd.client import Connection
from stellerd.config import Config
from stellerd.errors import Unreachable
from stellerd.guardian import Guard
from stellerd.heartbeat import Heartbeats
from stellerd.logpump import Sink
from stellerd.loop import Loop
from stellerd.managed import Managed
from stellerd.memory import OomWitness
from stellerd.once_run import INTERRUPTED, OnceRun, Result
from stellerd.signals import SignalPipe
from stellerd.watch import Watch

_COLOR = re.compile("\x1b\\[[0-9;]*m")
Mode = Literal["once", "check", "settings", "schema", "databases"]
Show = Callable[[Message], None]
"""Gets each progress message."""


class _Attended:
    """A loop that turns until there is a result; a person's Ctrl-C and a lost terminal interrupt it."""

    def __init__(self, show: Show) -> None:
        self.loop = Loop()
        self.result: Result | None = None
        self._show = show
        self._is_gone = False
        self._interrupt: Callable[[], None] = _nothing

    def turn(self, interrupt: Callable[[], None]) -> Result:
        """Blocks until the result is there."""
        ends = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup(1)
            ends.append(signal.SIGHUP)
        signals = SignalPipe(ends)
        self.loop.add(signals.fd, lambda events: interrupt() if signals.read() else None)
        self._interrupt = interrupt
        try:
            while self.result is None:
                self.loop.turn()
        finally:
            signals.close()
        return self.result

    def show(self, message: Message) -> None:
        """Progress, for as long as somebody can see it."""
        self._to_terminal(lambda: self._show(message))

    def say(self, text: str) -> None:
        """A line on standard error."""
        self._to_terminal(lambda: click.echo(text, err=True))

    def _to_terminal(self, write: Callable[[], None]) -> None:
        if self._is_gone:
            return
        try:
            write()
        except OSError:  # the terminal is gone, and SIGHUP may have been too early or is ignored
            self._is_gone = True
            self._interrupt()


def _nothing() -> None:
    pass


def _nobody(message: Message) -> None:
    pass


class Once(_Attended):
    """Forks the job's process as the supervisor would, waits for its end; `show` gets each progress message."""

    def __init__(self, config: Config, job: str, show: Show = _nobody) -> None:
        super().__init__(show)
        self.config, self.job = config, job

    def run(self, mode: Mode = "once", *, dry_run: bool = False, wait_s: float = 0.0, connect: bool = True) -> Result:
        """Blocks until the process has ended. Other modes than "once" leave no record."""
        assignment = Assignment(
            job=self.job, config=self.config, parent_pid=os.getpid(), heartbeat=Heartbeats().slot(),
            style=log.style_of(self.config.supervisor.log_format), mode=mode, dry_run=dry_run, wait_s=wait_s,
            connect=connect, attended=True,
        )  # fmt: skip
        runs: list[OnceRun] = []
        guard = Guard(self.loop, lambda: [run.entry.pid for run in runs if run.entry.pid], lambda event, why: None)
        run = OnceRun(
            self.loop, assignment, Sink(), guard, Watch(self.loop, self._tell), OomWitness(), self._heard, self._done
        )
        runs.append(run)
        try:
            return self.turn(run.interrupt)
        finally:
            guard.close()
            self.loop.close()

    def _tell(self, event: str, job: Managed, why: str) -> None:
        log.get().error(event, job=job.name, reason=why)

    def _heard(self, kind: str, message: Message) -> None:
        if kind == "progress":
            self.show(message)

    def _done(self, result: Result) -> None:
        self.result = result


class Remote(_Attended):
    """A run that the daemon forks: what it says of it comes over `connection`, an interrupt goes back."""

    def __init__(self, connection: Connection, job: str, show: Show) -> None:
        super().__init__(show)
        self.connection, self.job = connection, job
        self._asked = 0
        self._failure: Unreachable | None = None

    def run(self, begun: Callable[[dict[str, Any]], None], **request: Any) -> Result:
        """Blocks until the run has ended; `begun` gets the daemon's first reply.

        Raises: Refused when it does not run the job; Unreachable when it is gone before the result.
        """
        begun(self.connection.ask("run-once", job=self.job, **request))
        self.loop.add(self.connection.socket.fileno(), lambda events: self._read())
        self._take()  # what came together with the reply
        result = self.turn(self._ask_for_the_end)
        if self._failure:
            raise self._failure
        return result

    def _ask_for_the_end(self) -> None:
        self._asked += 1
        if self._asked > 2:
            self.result = Result(INTERRUPTED, None, "interrupted; the daemon did not say how the run ended")
            return
        with self._failing():
            self.connection.send("end")

    def _read(self) -> None:
        with self._failing():
            self.connection.read()
            self._take()

    def _take(self) -> None:
        while (message := self.connection.take()) is not None:
            event = message.pop("event", "")
            if event == "progress":
                self.show(message)
            elif event == "lines":
                self._say_missed(message)
                self.say(str(texts.clean_lines(_COLOR.sub("", message["text"]))))
            elif event == "ending":
                self.say(f"stellerd: {texts.clean(str(message.get('reason')))}: the run is asked to end")
            elif event == "result":
                self._say_missed(message)
                self.result = Result(**{key: message[key] for key in ("exit_code", "run", "reason", "detail")})

    def _say_missed(self, message: dict[str, Any]) -> None:
        if message["missed"]:
            self.say(f"stellerd: {message['missed']} lines are in the daemon's log only")

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """The daemon is gone or talks nonsense: there will be no result."""
        try:
            yield
        except (Unreachable, LookupError) as error:
            self._failure = Unreachable(f"{error}; how the run ended is in: stellerd history {self.job}")
            self.result = Result(self._failure.exit_code, None)
