"""A real daemon in a process of its own, with plugins written on the spot; everything in one temporary folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

from stellerd import client
from stellerd.errors import Unreachable

T = TypeVar("T")
REPOSITORY = Path(__file__).parents[1]


def until(condition: Callable[[], T], timeout: float = 20.0, what: str = "") -> T:
    """The first true answer of `condition`, asked every 5 ms; fails with the last one when none comes in time."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or condition}; last answer: {answer!r}")
        time.sleep(0.005)
    return answer


def alive(pid: int) -> bool:
    """Whether there is such a process that is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in "ZX"


def job(body: str, every: str = "1h", extra: str = "") -> str:
    """Source of a plugin whose run() is `body`."""
    return (
        "import os, sys, time, signal, subprocess\n"
        "from stellerd import Context, Deferred, Done, Job, Skipped, errors, hookimpl\n"
        f"class TheJob(Job):\n    every = {every!r}\n{textwrap.indent(textwrap.dedent(extra), '    ')}\n"
        f"    def run(self, ctx):\n{textwrap.indent(textwrap.dedent(body), '        ')}\n"
        "@hookimpl\ndef stellerd_job():\n    return TheJob\n"
    )


SERVICE = "kind = 'service'"
QUIET = job("return Done()")
WAITS = job("while not ctx.wait(60): pass", extra=SERVICE)


class Daemon:
    """`stellerd run` with the plugins and the TOML text given; a context manager that leaves no process behind."""

    def __init__(
        self, folder: Path, plugins: dict[str, str], toml: str = "", *, env: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.log_file = folder / "daemon.log"
        self.socket = folder / "control.sock"
        self.config = folder / "stellerd.toml"
        self.env = {**os.environ, "PYTHONPATH": f"{install(folder, plugins)}:{REPOSITORY}", **(env or {})}
        self.env.pop("NOTIFY_SOCKET", None) if not env or "NOTIFY_SOCKET" not in env else None
        self.write(toml)
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, toml: str) -> None:
        """The configuration; state and socket are set here unless the text has them."""
        base = '[supervisor]\nholds = "holds.json"\nsocket = "control.sock"\n' if "[supervisor]" not in toml else ""
        state = '[state]\nurl = "sqlite:///state.db"\n' if "[state]" not in toml else ""
        self.config.write_text(base + state + textwrap.dedent(toml))

    def start(self) -> Self:
        """Fork and exec it; returns at once."""
        with self.log_file.open("ab") as log:
            command = [sys.executable, "-m", "stellerd.cli", "-c", str(self.config)]
            self.process = subprocess.Popen(command, env=self.env, stderr=log, stdout=log, start_new_session=True)
        return self

    def __enter__(self) -> Self:
        self.start()
        until(self._answers, what=f"control socket of {self.folder}")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log_file.read_text()
        with contextlib.suppress(Unreachable):
            return bool(self.status())
        return False

    def __exit__(self, *error: object) -> None:
        if self.process and self.process.poll() is None:
            pids = [pid for pid in self.children() if pid != self.pid]
            self.process.kill()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
        if self.process:
            self.process.wait()

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        assert self.process is not None
        return self.process.pid

    def children(self) -> list[int]:
        """Pids of the supervisor's children, guardian included."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """One command on the control socket."""
        return client.ask(self.socket, command, **fields)

    def status(self) -> dict[str, Any]:
        """The whole status."""
        return self.ask("status")

    def job(self, name: str) -> dict[str, Any]:
        """One job's entry of the status."""
        return next(entry for entry in self.status()["jobs"] if entry["job"] == name)

    def until_job(self, name: str, condition: Callable[[dict[str, Any]], Any], timeout: float = 20.0) -> dict[str, Any]:
        """The job's entry once `condition` holds for it."""
        return until(lambda: (lambda entry: entry if condition(entry) else None)(self.job(name)), timeout, name)

    def until_state(self, name: str, state: str, timeout: float = 20.0) -> dict[str, Any]:
        """The job's entry once it is in this state."""
        return self.until_job(name, lambda entry: entry["state"] == state, timeout)

    def logs(self) -> list[dict[str, Any]]:
        """Its log lines so far."""
        lines = self.log_file.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def cli(self, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A `stellerd` command with this configuration."""
        command = [sys.executable, "-m", "stellerd.cli", "-c", str(self.config), *arguments]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout, check=False)


def install(folder: Path, plugins: dict[str, str]) -> Path:
    """A folder for PYTHONPATH in which each plugin is a module with an entry point."""
    site = folder / "site"
    info = site / "test_plugins-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: test-plugins\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[stellerd]\n" + "".join(f"{name} = plugin_{name}\n" for name in plugins))
    for name, source in plugins.items():
        (site / f"plugin_{name}.py").write_text(source)
    return site
