"""A tiny process that outlives the supervisor by a moment and kills what it left behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable

import setproctitle

from stellerd.loop import Loop
from stellerd.texts import reason_of

_RETRY_S = 1.0


class Guardian:
    """Sleeps on a pipe. When the supervisor is gone the pipe ends, and every process group it was told of dies."""

    def __init__(self) -> None:
        read, self._pipe = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _watch(read)
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(read)
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            os.close(self._pipe)
            os.waitpid(self.pid, 0)
            raise

    def watch(self, group: int) -> None:
        """From now on this process group dies with the supervisor."""
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """This process group is over."""
        self._tell(f"-{group}\n")

    def _tell(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it was killed: its pidfd tells the supervisor, who makes a new one
            os.write(self._pipe, text.encode())

    def is_dead(self) -> bool:
        """Whether it ended; it is not reaped by asking."""
        return os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def close(self) -> None:
        """Let it go and wait for its end."""
        os.close(self._pipe)
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)


class Guard:
    """Sees to it that there is a guardian, and a new one when it is killed, that knows all of `groups()`."""

    def __init__(self, loop: Loop, groups: Callable[[], Iterable[int]], tell: Callable[[str, str], None]) -> None:
        self.loop, self.groups, self.tell = loop, groups, tell
        self._guardian: Guardian | None = None
        self._post()

    @property
    def pid(self) -> int | None:
        """Of the guardian, unless there is none at the moment."""
        return self._guardian.pid if self._guardian else None

    def _post(self) -> None:
        try:
            self._guardian = guardian = Guardian()
        except OSError as error:  # no process or descriptor to be had now
            self.tell("no guardian now; tried again", reason_of(error))
            self.loop.after(_RETRY_S, self._post)
            return
        self.loop.add(guardian.pidfd, lambda events: self.look())
        for group in self.groups():
            guardian.watch(group)

    def watch(self, group: int) -> None:
        """From now on this process group dies with the supervisor."""
        if self._guardian:
            self._guardian.watch(group)

    def forget(self, group: int) -> None:
        """This process group is over."""
        if self._guardian:
            self._guardian.forget(group)

    def look(self) -> None:
        """Replace it if it is dead."""
        if self._guardian and self._guardian.is_dead():  # else an event of the one before, whose number it has
            self.close()
            self.tell("the guardian was killed; a new one is started", "")
            self._post()

    def close(self) -> None:
        """Let it go and wait for its end."""
        if self._guardian:
            self.loop.remove(self._guardian.pidfd)
            self._guardian.close()
            self._guardian = None


def _watch(pipe: int) -> None:
    """The guardian's whole life; never returns."""
    try:
        setproctitle.setproctitle("stellerd: guardian")
        os.setsid()  # a terminal's Ctrl-C is for the supervisor
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.closerange(3, pipe)
        os.closerange(pipe + 1, 65536)
        _kill(_groups_at_the_end(pipe))
    finally:
        os._exit(0)


def _groups_at_the_end(pipe: int) -> set[int]:
    groups: set[int] = set()
    with os.fdopen(pipe, encoding="ascii") as lines:
        for line in lines:
            (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    return groups


def _kill(groups: set[int]) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
