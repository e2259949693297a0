"""The floor of bench/supervisor.py: a supervisor that does nothing but fork, watch pidfds, restart, stop and pump.

python _supervisor_floor.py COUNT KIND [--preload] [--split FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import select
import signal

import _supervisor_jobs as jobs

_PR_SET_PDEATHSIG = 1
_CHUNK = 256 * 1024


class Floor:
    """One epoll over pidfds, log pipes and a signal pipe."""

    def __init__(self, kind: str, split: str) -> None:
        self.kind = kind
        self.epoll = select.epoll()
        self.running: dict[int, tuple[int, str]] = {}
        self.pipes: set[int] = set()
        self.rest: dict[int, bytes] = {}
        self.out = os.open(split, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if split else None
        self.lifeline = self.guardian()
        self.signals, wakeup = os.pipe2(os.O_NONBLOCK)
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        signal.set_wakeup_fd(wakeup)
        self.epoll.register(self.signals, select.EPOLLIN)

    def guardian(self) -> int:
        """A process that kills every group it was told of when its pipe ends; the pipe's end to write to."""
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(write)
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with os.fdopen(read) as lines:
                groups = {int(line) for line in lines}
            for group in groups:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            os._exit(0)
        os.close(read)
        return write

    def fork(self, name: str) -> None:
        """Start one job."""
        read, write = os.pipe() if self.out is not None else (-1, -1)
        pid = os.fork()
        if pid == 0:
            self.child(name, write)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        os.write(self.lifeline, b"%d\n" % pid)
        if self.out is not None:
            os.close(write)
            os.set_blocking(read, False)
            self.pipes.add(read)
            self.epoll.register(read, select.EPOLLIN)
        pidfd = os.pidfd_open(pid)
        self.running[pidfd] = pid, name
        self.epoll.register(pidfd, select.EPOLLIN)

    def child(self, name: str, output: int) -> None:
        """The fork contract, then the job."""
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if output >= 0:
                os.dup2(output, 1)
            os.closerange(3, 1024)
            jobs.act(name, self.kind)
        finally:
            os._exit(70)

    def turn(self) -> bool:
        """One wakeup; False once it was asked to stop."""
        for fd, _ in self.epoll.poll():
            if fd == self.signals:
                return False
            if fd in self.pipes:
                self.pump(fd)
            else:
                self.fork(self.bury(fd))
        return True

    def pump(self, fd: int) -> None:
        """Move lines, each with a tag in front."""
        data = os.read(fd, _CHUNK)
        if not data:
            self.epoll.unregister(fd)
            self.pipes.discard(fd)
            os.close(fd)
            return
        *lines, self.rest[fd] = (self.rest.get(fd, b"") + data).split(b"\n")
        if lines and self.out is not None:
            os.write(self.out, b"".join([b"j0 | %b\n" % line for line in lines]))

    def bury(self, pidfd: int) -> str:
        """Kill the group while the zombie pins its id, reap; the job's name."""
        pid, name = self.running.pop(pidfd)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        self.epoll.unregister(pidfd)
        os.close(pidfd)
        return name

    def stop(self) -> None:
        """TERM to all at once, then wait for all."""
        for pid, _ in self.running.values():
            os.killpg(pid, signal.SIGTERM)
        while self.running:
            for fd, _ in self.epoll.poll():
                if fd in self.running:
                    self.bury(fd)


def main() -> None:
    """Supervise until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int)
    parser.add_argument("kind")
    parser.add_argument("--preload", action="store_true", help="import the libraries and use them once before forking")
    parser.add_argument("--split", default="", metavar="FILE", help="pump the jobs' lines into FILE")
    given = parser.parse_args()
    if given.preload:
        jobs.three_libs()
        jobs.real_work()
        gc.collect()
        gc.freeze()
    floor = Floor(given.kind, given.split)
    for number in range(given.count):
        floor.fork(f"j{number}")
    while floor.turn():
        pass
    floor.stop()


if __name__ == "__main__":
    main()
