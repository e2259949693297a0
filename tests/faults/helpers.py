"""What the fault tests look at: descriptors, memory, zombies and time of a real daemon."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from daemon import SERVICE, Daemon, job, until

HEAD = '[supervisor]\nholds = "holds.json"\nsocket = "control.sock"\n'
DEAF = job("signal.signal(15, signal.SIG_IGN)\nctx.wait(0)\nwhile True: time.sleep(1)", extra=SERVICE)
"""A service that ignores SIGTERM."""
EVERY_SECOND = job("return Done()", every="1s")
"""The neighbour whose slots must not notice anything."""


class FaultDaemon(Daemon):
    """A daemon with a command in front, an output or an environment of its own."""

    prefix: Sequence[str] = ()
    stderr: int | None = None
    """Descriptor of its output; None: daemon.log."""

    def start(self) -> Self:
        """Fork and exec it; returns at once."""
        with self.log_file.open("ab") as log:
            out = log if self.stderr is None else self.stderr
            command = [*self.prefix, sys.executable, "-m", "stellerd.cli", "-c", str(self.config)]
            self.process = subprocess.Popen(command, env=self.env, stderr=out, stdout=out, start_new_session=True)
        return self

    def kill_job(self, name: str, number: int = signal.SIGKILL) -> dict[str, Any]:
        """Signal the process of a running job; its entry of the status before."""
        entry = self.until_state(name, "RUNNING")
        os.kill(entry["pid"], number)
        return entry

    def until_replaced(self, before: dict[str, Any], timeout: float = 20.0) -> dict[str, Any]:
        """The job's entry once another process of it runs."""
        return self.until_job(
            before["job"], lambda entry: entry["state"] == "RUNNING" and entry["pid"] != before["pid"], timeout
        )

    def events(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The log lines with this event and these fields."""
        return [line for line in self.logs() if line["event"] == event and fields.items() <= line.items()]

    def end(self, timeout: float = 10.0) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout)


def with_proc(options: str) -> list[str]:
    """A command in front that mounts /proc anew with these options, for itself alone; skips where that is refused."""
    prefix = ["unshare", "--mount", "sh", "-c", f'mount -t proc -o {options} proc /proc && exec "$@"', "sh"]
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"a mount namespace is needed, which only root can make: {tried.stderr.strip()}")
    return prefix


def jobs(names: Sequence[str], settings: str = "") -> str:
    """TOML of jobs that share their settings."""
    return "".join(f"[jobs.{name}]\n{settings}" for name in names)


def descriptors(pid: int) -> int:
    """How many a process has open, now that it hung up on the client that asked last: the same for 50 ms."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 0.05:
        now = len(os.listdir(f"/proc/{pid}/fd"))
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.005)
    return last


def zombies(pid: int) -> list[int]:
    """Dead children that nobody reaped."""
    return [child.pid for child in psutil.Process(pid).children() if child.status() == psutil.STATUS_ZOMBIE]


def resident(pid: int) -> int:
    """Bytes of memory."""
    return int(psutil.Process(pid).memory_info().rss)


def busy_seconds(pid: int) -> float:
    """CPU time so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    began = time.monotonic()
    call()
    return time.monotonic() - began


def drift(daemon: Daemon, name: str) -> float:
    """The latest start of all runs of the schedule, in seconds after its slot."""
    listed = json.loads(daemon.cli("history", name, "--json", "-n", "1000").stdout)["runs"]
    late = [
        (datetime.fromisoformat(run["started_at"]) - datetime.fromisoformat(run["slot"])).total_seconds()
        for run in listed
        if run["trigger"] == "schedule" and run["slot"]
    ]
    assert len(late) > 2
    return max(late[:-1])  # the very first slot is the moment of the first start, in whole seconds


class NotifySocket:
    """A service manager's end of sd_notify(3), which also learns who sent each datagram."""

    def __init__(self, name: str) -> None:
        self.address = name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.received: list[tuple[int, list[str]]] = []
        """Sender's pid and lines of each datagram."""

    def lines(self) -> list[str]:
        """All lines so far."""
        while select.select([self.socket], [], [], 0)[0]:
            data, ancillary, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(12))
            pid = int.from_bytes(ancillary[0][2][:4], sys.byteorder)
            self.received.append((pid, data.decode().split("\n")))
        return [line for _, lines in self.received for line in lines]

    def until(self, start: str, count: int = 1, timeout: float = 20.0) -> str:
        """The `count`-th line that starts like this."""
        return until(
            lambda: next(iter([line for line in self.lines() if line.startswith(start)][count - 1 :]), None),
            timeout,
            start,
        )

    def close(self) -> None:
        """Give it back."""
        self.socket.close()


def write_raw(path: Path) -> socket.socket:
    """A connection to the control socket, for whatever bytes."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(str(path))
    return connection
