"""How bench/supervisor.py sees processes: what they say on a FIFO, what /proc knows of them, when they are gone."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

Said = dict[str, tuple[int, int]]
"""Job name → (pid, monotonic ns) of the last process that said it was up."""


class Ear:
    """A FIFO on which job processes say that they are up, and a socket like systemd's for a daemon that says READY."""

    def __init__(self, folder: Path) -> None:
        self.fifo, self.notify = folder / "fifo", folder / "notify"
        os.mkfifo(self.fifo)
        self._fd = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK)  # also a writer: it never sees an end
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.notify))
        self._rest = ""
        self.said: Said = {}
        self.count = 0
        """Lines heard so far."""
        self.ready_ns = 0
        """When READY=1 came, if ever."""

    def listen(self, seconds: float) -> None:
        """Hear what there is, waiting up to `seconds` for the first of it."""
        for fd in select.select([self._fd, self._socket], [], [], max(0.0, seconds))[0]:
            if fd is self._socket:
                if b"READY=1" in self._socket.recv(4096).split(b"\n"):
                    self.ready_ns = time.monotonic_ns()
                continue
            *lines, self._rest = (self._rest + os.read(self._fd, 65536).decode()).split("\n")
            for name, pid, ns in (line.split() for line in lines):
                self.said[name] = int(pid), int(ns)
            self.count += len(lines)

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Listen until `condition()`. Raises: TimeoutError."""
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"not within {seconds:g} s: {what}")
            self.listen(min(left, 1.0))

    def for_seconds(self, seconds: float) -> int:
        """Listen all that time; how many lines came."""
        before, deadline = self.count, time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.listen(left)
        return self.count - before

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._fd)
        self._socket.close()


def children(pid: int) -> set[int]:
    """Pids of a process's children, of all its threads."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found.update(map(int, (task / "children").read_text().split()))
    return found


def family(pid: int) -> set[int]:
    """The process and all below it."""
    found = {pid}
    for child in children(pid):
        found |= family(child)
    return found


@dataclass(frozen=True)
class Load:
    """What a process has used since its start."""

    cpu_ms: float
    wakeups: int

    def __sub__(self, other: Load) -> Load:
        return Load(self.cpu_ms - other.cpu_ms, self.wakeups - other.wakeups)


def load(pids: Iterable[int]) -> Load:
    """Together, all threads: CPU to the nanosecond (schedstat) and how often they went to sleep by themselves."""
    cpu_ns = wakeups = 0
    for task in (task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()):
        cpu_ns += int((task / "schedstat").read_text().split()[0])
        switches = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.MULTILINE)
        wakeups += int(switches[1]) if switches else 0
    return Load(cpu_ns / 1e6, wakeups)


def uss_mib(pid: int) -> float:
    """Memory that this process shares with nobody."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", text, re.MULTILINE))) / 1024


def time_gone(pids: Iterable[int], end: Callable[[], None], seconds: float) -> tuple[float, int]:
    """Call `end`; milliseconds until the last of these processes was gone, and how many never were."""
    with contextlib.ExitStack() as stack:
        poll = select.poll()
        waiting = set()
        for pid in pids:
            pidfd = os.pidfd_open(pid)
            stack.callback(os.close, pidfd)
            poll.register(pidfd, select.POLLIN)
            waiting.add(pidfd)
        begin = last = time.monotonic()
        end()
        while waiting and (left := begin + seconds - time.monotonic()) > 0:
            for pidfd, _ in poll.poll(left * 1000):
                last = time.monotonic()
                poll.unregister(pidfd)
                waiting.discard(pidfd)
        return (last - begin) * 1000, len(waiting)


def kill_in(folder: Path, pids: Iterable[int]) -> None:
    """SIGKILL to those that work in `folder`: a pid that is somebody else's by now is left alone."""
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cwd").readlink() == folder:
                os.kill(pid, signal.SIGKILL)


class Page(http.server.BaseHTTPRequestHandler):
    """5,000 items as JSON, for the jobs that do real work."""

    body = json.dumps([{"name": f"item-{n}", "price": f"{n}.00", "text": "x" * 100} for n in range(5000)]).encode()

    def do_GET(self) -> None:
        """Any path."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@contextlib.contextmanager
def page() -> Iterator[str]:
    """URL of the page, served on loopback for as long as the block lasts."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
