"""The supervisors that bench/supervisor.py compares, each started by its own command with its own configuration."""

from __future__ import annotations

import compileall
import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _supervisor_proc import Ear, family, kill_in

HERE = Path(__file__).parent
JOBS = str(HERE / "_supervisor_jobs.py")
STOP_S = 120.0


class Subject:
    """One supervisor with `count` jobs of one kind; a context manager that leaves no process behind."""

    name = ""
    settles_s = 0.1
    """Uptime after which a killed job is restarted as one that had been well."""
    tick_s = 0.0
    """It looks around once in so many seconds: a kill must come at any moment of that."""

    def __init__(self, count: int, kind: str, *, log: str = "", defaults: bool = False) -> None:
        self.count, self.kind, self.log, self.defaults = count, kind, log, defaults
        self.jobs = [f"j{number}" for number in range(count)]

    def command(self) -> list[str]:
        """Write the configuration, return the command that runs in the foreground."""
        raise NotImplementedError

    def change_one_key(self) -> str:
        """Change one key of one job and make the supervisor read it; what it says."""
        raise NotImplementedError

    def extra_env(self) -> dict[str, str]:
        """For the supervisor alone."""
        return {}

    def __enter__(self) -> Subject:
        self._temporary = tempfile.TemporaryDirectory(prefix="stellerd-bench-")
        self.folder = Path(self._temporary.name).resolve()
        self.ear = Ear(self.folder)
        self.go = self.folder / "go"
        os.mkfifo(self.go)
        told = {"BENCH_FIFO": str(self.ear.fifo), "BENCH_GO": str(self.go)}
        self.env = {**os.environ, **told, **self.extra_env()}
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program is compiled
        self.out = self.folder / "out.log"
        command = self.command()
        self.begin_ns = time.monotonic_ns()
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=self.env, stdout=out, stderr=out, start_new_session=True
            )
        return self

    def __exit__(self, *error: object) -> None:
        left = family(self.pid) | {pid for pid, _ in self.ear.said.values()}
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        kill_in(self.folder, left)
        self.ear.close()
        with contextlib.suppress(OSError):  # a process that is being killed may still write
            self._temporary.cleanup()

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self.process.pid

    def until_up(self, seconds: float = 180.0) -> float:
        """Wait for every job's line; milliseconds from the command to the last of them."""
        self.ear.until(lambda: self._ended() or self._all_said(), seconds, f"{self.name}: all jobs up")
        if not self._all_said():
            raise RuntimeError(f"{self.name} ended:\n{self.out.read_text(errors='replace')[-2000:]}")
        return (max(ns for _, ns in self.ear.said.values()) - self.begin_ns) / 1e6

    def _all_said(self) -> bool:
        return len(self.ear.said) >= self.count * (2 if self.kind == "family" else 1)

    def _ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self) -> float:
        """SIGTERM; milliseconds until the supervisor has ended."""
        pidfd = os.pidfd_open(self.pid)
        begin = time.monotonic()
        self.process.terminate()
        select.select([pidfd], [], [], STOP_S)
        took = (time.monotonic() - begin) * 1000
        os.close(pidfd)
        return took

    def log_files(self) -> list[Path]:
        """Where the jobs' lines end up."""
        return [self.out]


class Floor(Subject):
    """Bare fork and pidfd."""

    name = "floor"
    preload = False

    def command(self) -> list[str]:
        """See _supervisor_floor.py; `log` is "pump" or "inherit"."""
        options = ["--preload"] if self.preload else []
        options += ["--split", str(self.out)] if self.log == "pump" else []
        return [sys.executable, str(HERE / "_supervisor_floor.py"), str(self.count), self.kind, *options]


class PreloadedFloor(Floor):
    """The same with the three libraries loaded before the fork."""

    name = "floor+libs"
    preload = True


class Supervisord(Subject):
    """supervisord 4.3, its defaults."""

    name = "supervisord"
    settles_s = 1.1  # startsecs
    tick_s = 1.0

    def command(self) -> list[str]:
        """In the foreground, with a control socket."""
        self._write()
        return [str(Path(sys.executable).with_name("supervisord")), "-n", "-c", str(self.folder / "supervisord.conf")]

    def _write(self, **first: str) -> None:
        socket, folder = self.folder / "supervisor.sock", self.folder
        text = (
            f"[supervisord]\nlogfile={folder}/supervisord.log\npidfile={folder}/supervisord.pid\n"
            f"childlogdir={folder}\nnodaemon=true\n"
            f"[unix_http_server]\nfile={socket}\n[supervisorctl]\nserverurl=unix://{socket}\n"
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
        )
        for job in self.jobs:
            text += f"[program:{job}]\ncommand={sys.executable} {JOBS} {job} {self.kind}\nautorestart=true\n"
            text += f"stdout_logfile={folder}/{job}.log\nredirect_stderr=true\n"
            text += "".join(f"{key}={value}\n" for key, value in first.items()) if job == "j0" else ""
        (folder / "supervisord.conf").write_text(text)

    def change_one_key(self) -> str:
        """`supervisorctl update` after a longer stopwaitsecs."""
        self._write(stopwaitsecs="11")
        command = [str(Path(sys.executable).with_name("supervisorctl")), "-c", str(self.folder / "supervisord.conf")]
        return subprocess.run([*command, "update"], capture_output=True, text=True, check=True).stdout

    def log_files(self) -> list[Path]:
        """One for each job, and its rotated ones."""
        return list(self.folder.glob("j*.log*"))


class Circus(Subject):
    """circus 0.19 from an environment of its own. It looks around once a second; its default would be every five."""

    name = "circus"
    settles_s = 0.2
    tick_s = 1.0
    home = Path()
    """The virtual environment it is installed in."""

    def command(self) -> list[str]:
        """In the foreground, with its endpoint on a unix socket."""
        self._write()
        return [str(self.home / "bin" / "circusd"), str(self.folder / "circus.ini")]

    def _write(self, **first: str) -> None:
        text = (
            f"[circus]\nendpoint=ipc://{self.folder}/endpoint\npubsub_endpoint=ipc://{self.folder}/pubsub\n"
            "statsd=False\nhttpd=False\ncheck_delay=1\n"
        )
        for job in self.jobs:
            text += f"[watcher:{job}]\ncmd={sys.executable} {JOBS} {job} {self.kind}\ncopy_env=True\n"
            if self.log == "pump":
                text += f"stdout_stream.class=FileStream\nstdout_stream.filename={self.folder}/{job}.log\n"
            text += "".join(f"{key}={value}\n" for key, value in first.items()) if job == "j0" else ""
        (self.folder / "circus.ini").write_text(text)

    def change_one_key(self) -> str:
        """`circusctl reloadconfig` after a longer graceful_timeout."""
        self._write(graceful_timeout="31")
        command = [str(self.home / "bin" / "circusctl"), "--endpoint", f"ipc://{self.folder}/endpoint"]
        return subprocess.run([*command, "reloadconfig"], capture_output=True, text=True, check=True).stdout

    def log_files(self) -> list[Path]:
        """One for each job."""
        return list(self.folder.glob("j*.log"))


_PLUGIN = """
from _supervisor_jobs import act
from stellerd import Job, hookimpl

class BenchJob(Job):
    kind = "service"

    def run(self, ctx):
        def wait():
            while not ctx.wait(3600):
                pass
        act(ctx.job, {kind!r}, wait)

@hookimpl
def stellerd_job():
    return BenchJob
"""


class Stellerd(Subject):
    """The daemon with a service plugin written on the spot; children share what the daemon preloads by default."""

    name = "stellerd"
    settles_s = 0.3

    def extra_env(self) -> dict[str, str]:
        """The plugin, and the notify socket of a service manager."""
        site = self.folder / "site"
        info = site / "bench_plugin-1.dist-info"
        info.mkdir(parents=True)
        needs = ["pika", "psycopg", "requests"] if self.kind in ("libs", "work") else []
        said = "".join(f"Requires-Dist: {name}\n" for name in needs)  # by which the daemon knows what to preload
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bench-plugin\nVersion: 1\n{said}")
        (info / "entry_points.txt").write_text("[stellerd]\nbench = bench_plugin\n")
        (site / "bench_plugin.py").write_text(_PLUGIN.format(kind=self.kind))
        compileall.compile_dir(site, quiet=1)
        path = [str(site), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(path), "NOTIFY_SOCKET": str(self.ear.notify)}

    def command(self) -> list[str]:
        """`stellerd -c FILE run`."""
        self._write()
        return [str(Path(sys.executable).with_name("stellerd")), "-c", str(self.folder / "stellerd.toml"), "run"]

    def _write(self, **first: Any) -> None:
        """`log`: "pump" as JSON lines (default), "text", or "inherit"; `settle` is short so that trials can be many."""
        style = "text" if self.log == "text" else "auto"
        text = f'[supervisor]\nsocket = "control.sock"\nholds = "holds.json"\nlog_format = "{style}"\n'
        text += '[state]\nurl = "sqlite:///state.db"\n'
        for job in self.jobs:
            text += f'[jobs.{job}]\nplugin = "bench"\n'
            text += "" if self.defaults else 'settle = "200ms"\n'
            text += 'log = "inherit"\n' if self.log == "inherit" else ""
            text += "".join(f'{key} = "{value}"\n' for key, value in first.items()) if job == "j0" else ""
        (self.folder / "stellerd.toml").write_text(text)

    def until_up(self, seconds: float = 180.0) -> float:
        """Until the daemon tells its service manager READY, too."""
        lines = super().until_up(seconds)
        self.ear.until(lambda: self.ear.ready_ns > 0, seconds, "stellerd: READY=1")
        return max(lines, (self.ear.ready_ns - self.begin_ns) / 1e6)

    def change_one_key(self) -> str:
        """`stellerd reload` after another timeout."""
        self._write(timeout="59m")
        command = [str(Path(sys.executable).with_name("stellerd")), "-c", str(self.folder / "stellerd.toml"), "reload"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=self.folder)
        if "timeout" not in done.stdout:
            raise RuntimeError(f"stellerd reload does not name the changed key: {done.stdout!r}")
        return done.stdout


def install_circus(folder: Path) -> str:
    """Install circus into a virtual environment at `folder`, unless it is there; why it is not, or an empty text."""
    Circus.home = folder
    if (folder / "bin" / "circusd").exists():
        return ""
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "circus==0.19.0"]
        subprocess.run(pip, check=True, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        return f"circus cannot be installed: {said[-1] if said else error}"
    return ""
