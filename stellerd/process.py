"""One job's process: fork, talk, stop, reap. It reports to the supervisor and decides nothing."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import multiprocess.context
import multiprocess.popen_fork
import multiprocess.process

from stellerd import log
from stellerd.channel import Assignment, Channel, Message
from stellerd.logpump import LogPump, Sink
from stellerd.loop import IN, OUT, Loop, Owner, Timer

_FLOOD_S = 0.001
"""Lines that come within so long of the last ones: about what it takes to fill a pipe."""
SIGTERM = int(signal.SIGTERM)
ALL_SIGNALS = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}


class Death:
    """How a process ended."""

    def __init__(self, code: int) -> None:
        self.code = code
        """Exit code; below zero: the signal that killed it."""

    def __str__(self) -> str:
        if self.code >= 0:
            return f"exit code {self.code}"
        with contextlib.suppress(ValueError):
            return f"signal {-self.code} ({signal.Signals(-self.code).name})"
        return f"signal {-self.code}"


def _raise(error: Exception) -> None:
    raise error


class Process:
    """A forked child in its own process group, with its channel and log pipe on the loop.

    `on_error` gets what its callbacks raise: see `loop`.
    """

    def __init__(
        self,
        loop: Loop,
        assignment: Assignment,
        sink: Sink,
        on_message: Callable[[Message], None],
        on_death: Callable[[Death], None],
        *,
        on_error: Owner = _raise,
        pump: bool = True,
        lines_before: int = 0,
    ) -> None:
        self.loop, self.on_message, self.on_death, self.on_error = loop, on_message, on_death, on_error
        self.over = False
        """It is reaped: its number may be another process's by now."""
        self._pumped = -math.inf
        self._rest: Timer | None = None
        """Until when its lines are left in the pipe."""
        self._configuration: str | None = None
        """What it has yet to be told, once it reads again."""
        self.channel, theirs = Channel.pair()
        log_read, log_write = os.pipe2(os.O_CLOEXEC) if pump else (None, None)
        assignment.log_mark = log.new_mark() if pump else ""
        self.log = (
            LogPump(assignment.job, log_read, sink, assignment.style, lines_before, assignment.log_mark)
            if log_read is not None
            else None
        )
        try:
            self._child = _spawn(assignment, theirs, log_write)
        except BaseException:
            self._close()
            raise
        finally:
            theirs.close()
            if log_write is not None:
                os.close(log_write)
        self.pid: int = self._child.pid
        try:
            self._watch_over()
        except OSError:  # one that cannot be watched over must not live
            os.kill(self.pid, signal.SIGKILL)
            self._child.join()
            self._close()
            raise
        with contextlib.suppress(OSError):  # on both sides, so that neither has to wait for the other; it may be gone
            os.setpgid(self.pid, self.pid)

    def _watch_over(self) -> None:
        self.pidfd = os.pidfd_open(self.pid)
        self.loop.add(self.pidfd, lambda events: self.bury(), owner=self.on_error)
        self.loop.add(self.channel.fileno(), self._on_channel, owner=self.on_error)
        if self.log:
            self.loop.add(self.log.fd, lambda events: self._pump(), owner=self.on_error)

    def _on_channel(self, events: int) -> None:
        if events & OUT:
            self._tell_configuration()
        if events & ~OUT:
            self._hear()

    def tell(self, command: str) -> bool:
        """One command; False when it does not take any now."""
        return self.channel.send(command)

    def relay(self, hook: str, job: str, run: Message) -> None:
        """Tell its observers of another job's run, at most once: what it has no room for it never hears of."""
        self.channel.send("observe", hook=hook, job=job, run=run)
        self._send_rest()

    def configure(self, text: str) -> None:
        """Tell it of a new configuration. One that does not read for long, since a run is on, gets the last one."""
        self._configuration = text
        self._tell_configuration()

    def _tell_configuration(self) -> None:
        if self._configuration is not None and self.channel.send("configure", text=self._configuration):
            self._configuration = None
        self._send_rest()

    def _send_rest(self) -> None:
        finished = self.channel.flush() and self._configuration is None
        if not self.channel.closed:
            self.loop.modify(self.channel.fileno(), IN if finished else IN | OUT)

    def _hear(self) -> None:
        try:
            messages = self.channel.receive()
        except ValueError:  # it does not speak our protocol: it must go
            self.channel.closed = True
            self.loop.remove(self.channel.fileno())
            self.kill()
            return
        if self.channel.closed:
            self.loop.remove(self.channel.fileno())
        for message in messages:
            self.on_message(message)

    def _pump(self) -> None:
        """A pipe that was filled again at once is left to fill: a flood is moved in few large pieces."""
        if not self.log:
            return
        self._end_rest()  # a hang-up is told meanwhile too (epoll_ctl(2))
        if not self.log.pump():
            self.loop.remove(self.log.fd)
            return
        before, self._pumped = self._pumped, self.loop.clock()
        if self._pumped - before < _FLOOD_S:
            self.loop.modify(self.log.fd, 0)
            self._rest = self.loop.after(_FLOOD_S, self._end_rest, owner=self.on_error)

    def _end_rest(self) -> None:
        if self._rest and self.log:
            self._rest.cancel()
            self._rest = None
            self.loop.modify(self.log.fd, IN)

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def terminate(self, number: int = SIGTERM) -> None:
        """Ask the whole group to end; a stopped one is woken, or it would never hear of it."""
        self._signal_group(number)
        self._signal_group(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: int) -> None:
        if not self.over:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def is_stopped(self) -> bool:
        """Whether a signal stopped it (state T of proc(5))."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_bytes()
        except OSError:
            return False
        return stat[stat.rindex(b")") + 2 :][:1] in (b"T", b"t")

    def bury(self) -> None:
        """Last words, then the group, then the zombie: while it is unreaped its group id cannot be another's."""
        if self.over or os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        try:
            self.kill()
            self._hear_last()
            if self.log:
                self.log.drain()
        finally:  # whatever its last words were: it is dead, and its supervisor must know
            death = Death(self._child.exitcode)
            self.over = True
            self._close()
            self._child.close()
            self.on_death(death)

    def _hear_last(self) -> None:
        with contextlib.suppress(ValueError):
            for message in self.channel.receive():
                self.on_message(message)

    def _close(self) -> None:
        self.loop.remove(self.channel.fileno())
        self.channel.close()
        if self._rest:
            self._rest.cancel()
            self._rest = None
        if self.log:
            self.loop.remove(self.log.fd)
            self.log.close()
        if hasattr(self, "pidfd"):
            self.loop.remove(self.pidfd)
            os.close(self.pidfd)


class _Popen(multiprocess.popen_fork.Popen):  # type: ignore[misc]
    """As the library's, but without its pipes: we have the pidfd, and they stay open for good when a fork fails."""

    def _launch(self, process: Any) -> None:
        self.sentinel = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                code = process._bootstrap()
            finally:
                os._exit(code)


class _ForkProcess(multiprocess.context.ForkProcess):  # type: ignore[misc]
    @staticmethod
    def _Popen(process: Any) -> _Popen:
        return _Popen(process)


def _spawn(assignment: Assignment, channel: Channel, log_fd: int | None) -> Any:
    """Fork. No signal may reach the child while it still has our handlers; no thread may hold a lock."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1 or threading.active_count() != 1:
        raise RuntimeError(f"{threads} threads in the supervisor: a fork now could deadlock the child")
    child = _ForkProcess(target=_enter, args=(assignment, channel, log_fd), name=assignment.job)
    old = signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
    try:
        child.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    # multiprocess would reap it at any later start(), before its group was killed
    multiprocess.process._children.discard(child)
    return child


def _enter(assignment: Assignment, channel: Channel, log_fd: int | None) -> None:
    """In the child: its side of the code is imported here, unless it was preloaded."""
    from stellerd import child

    child.main(assignment, channel, log_fd)
