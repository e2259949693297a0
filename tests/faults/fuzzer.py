"""Random operations on a real daemon, replayable by their seed, and what has to hold after each of them."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from daemon import alive, until
from faults.helpers import FaultDaemon, descriptors, resident

from stellerd.client import Refused

WINDOW_S, LIMIT = 1.0, 3
SITE = """
import mmap, os, struct
from datetime import UTC, datetime, timedelta
if path := os.environ.get("FUZZ_CLOCK"):  # the test's clock: this host's, and what the test adds to it
    with open(path, "rb") as file:
        shared = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
    import stellerd.store as store
    whole = store.Store.__init__
    def init(self, url, clock=None, **more):
        now = lambda: datetime.now(UTC) + timedelta(seconds=struct.unpack("=d", shared[:8])[0])
        whole(self, url, clock or now, **more)
        self.uptime = store.boottime if self._pool.is_sqlite else None
    store.Store.__init__ = init
"""
JOB = """
import json, os, signal, subprocess, sys, time
from datetime import timedelta
from decimal import Decimal
from stellerd import Deferred, Done, Job, Skipped, errors, hookimpl

def note(what, ctx, **more):
    row = {{"what": what, "at": time.monotonic(), "job": ctx.job, "run": ctx.run_id, "pid": os.getpid(), **more}}
    fd = os.open(os.environ["FUZZ_NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, json.dumps(row).encode() + b"\\n")
    os.close(fd)

class TheJob(Job):
    every = "300ms"
    kind = "{kind}"
    limits = {{"shared": "3/1s"}}
    def run(self, ctx):
        slot = ctx.slot.isoformat() if ctx.trigger in ("schedule", "catch-up", "deferred", "retry") else None
        note("begin", ctx, slot=slot, trigger=ctx.trigger)
        {body}
        note("end", ctx, slot=slot, trigger=ctx.trigger)

@hookimpl
def stellerd_job():
    return TheJob
"""
BODIES = {
    "quick": "ctx.wait(0.02)",
    "limited": """
        for _ in range(3):
            began = time.monotonic()
            if ctx.limiter.try_acquire("shared") is None:
                note("grant", ctx, since=began)
        """,
    "flaky": """
        ends = ctx.run_id % 8
        if ends == 0: os._exit(3)
        if ends == 1: raise ValueError("flaky")
        if ends == 2: return Deferred(ctx.now() + timedelta(seconds=0.3), "later")
        if ends == 3: raise errors.RateLimited("shared", ctx.now() + timedelta(seconds=0.3))
        if ends == 4: ctx.counters["rows"] = Decimal("NaN")
        if ends == 5: print("a line\\\\n" * 2000)
        if ends == 6: subprocess.Popen(["sleep", "300"])
        """,
    "slow": "while not ctx.wait(0.05) and ctx.now() - ctx.slot < timedelta(seconds=3): pass",
    "deaf": "ctx.wait(0); signal.signal(15, signal.SIG_IGN)\n        while True: time.sleep(0.2)",
}
PLUGINS = {
    name: JOB.format(kind="service" if name == "deaf" else "periodic", body=body.strip())
    for name, body in BODIES.items()
} | {"broken": "raise ImportError('this plugin is broken')\n"}
CHOICES: dict[str, list[str]] = {
    "every": ["'200ms'", "'1s'", "'1h'"], "max_runs": ["0", "1", "2"], "heartbeat_timeout": ["'700ms'", "'5s'"],
    "stop_signal": ["'TERM'", "'INT'", "'USR1'"], "timeout": ["'1s'", "'1h'", "'60d'"], "settle": ["'0s'", "'100ms'"],
    "restart": ["'always'", "'on-failure'"], "env": ["{ A = '1' }", "{ A = '2' }"], "enabled": ["false", "true"],
    "after": ["['quick']", "[]"], "misfire": ["'once'", "'skip'"], "log": ["'pump'", "'inherit'"],
}  # fmt: skip
WRONG = [
    "evry = 1\n", "[jobs.x]\n" * 2, f"x = {'[' * 3000}{']' * 3000}\n", f"x = {'9' * 5000}\n", "\udcff\n",
    f"[jobs.quick.settings]\nx = {'[' * 300}{']' * 300}\n", "[supervisor.x]\n", "[jobs.NO]\n",
    "[limits.y]\nrate = '0/0s'\n", "[supervisor]\nholds = '/'\n", '[supervisor]\nsocket = "a\\u0000"\n',
    '[supervisor]\nlog_file = "\\u0000"\n',
]  # fmt: skip


def command_of(pid: int) -> bytes:
    """Its command line; empty when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


class Fuzz:
    """One daemon and its operations. Everything that can be filled up lies on the small file system `disk`."""

    def __init__(self, folder: Path, disk: Path, seed: int) -> None:
        self.folder, self.disk = folder, disk
        self.random = random.Random(seed)
        self.notes, clock = folder / "notes", folder / "clock"
        clock.write_bytes(struct.pack("=d", 0.0))
        with clock.open("r+b") as file:
            self.clock = mmap.mmap(file.fileno(), 8)
        self.head = (
            f'[supervisor]\nsocket = "control.sock"\nholds = "{disk}/holds.json"\nlog_file = "{disk}/log"\n'
            f'stop_timeout = "5s"\n[state]\nurl = "sqlite:///{disk}/state.db"\n'
        )
        self.jobs: dict[str, dict[str, str]] = {name: {} for name in PLUGINS}
        env = {"FUZZ_NOTES": str(self.notes), "FUZZ_CLOCK": str(clock)}
        self.daemon = FaultDaemon(folder, PLUGINS, self.toml(), env=env)
        (folder / "site" / "sitecustomize.py").write_text(SITE)
        (disk / "holds.json").write_text('{"stopped": [5, null], "paused": ["quick"]}')  # by somebody else's hand
        self.once: subprocess.Popen[bytes] | None = None
        self.lock: sqlite3.Connection | None = None
        self.stopped: set[int] = set()
        self.seen: set[int] = set()
        self.heaviest = 0
        operations: dict[Callable[[], object], int] = {
            self.tell: 30, self.reload_changed: 12, self.reload_wrong: 5, self.reload_twice: 4, self.kill: 10,
            self.stop_process: 4, self.go_on: 6, self.kill_guardian: 1, self.signal_daemon: 4, self.step_clock: 4,
            self.fill_disk: 1, self.free_disk: 6, self.lock_store: 1, self.unlock_store: 6, self.run_once: 1,
            self.restart_and_remove: 3, self.ask_nonsense: 3, self.read: 4,
        }  # fmt: skip
        self.operations = list(operations)
        self.weights = list(operations.values())

    def toml(self) -> str:
        """The configuration of the jobs that there are to be."""
        quick = "stop_grace = '300ms'\nbackoff = '20ms'\nbackoff_cap = '100ms'\n"
        tables = [
            f"[jobs.{name}]\n{quick}" + "".join(f"{key} = {value}\n" for key, value in keys.items())
            for name, keys in self.jobs.items()
        ]
        return self.head + "".join(tables)

    # --- operations

    def ask(self, command: str, **fields: Any) -> None:
        """A refusal is an answer; an error that nobody foresaw is none."""
        try:
            self.daemon.ask(command, **fields)
        except Refused as refused:
            if refused.exit_code == 70:
                raise AssertionError(f"{command}: {refused}") from refused

    def tell(self) -> str:
        """One command to one job, which may not be there."""
        commands = ["start", "start", "start", "stop", "restart", "trigger", "trigger", "pause", "resume", "resume"]
        command, job = self.random.choice(commands), self.random.choice(list(PLUGINS))
        self.ask(command, job=job)
        return f"{command} {job}"

    def reload_changed(self) -> str:
        """A job comes, goes or changes."""
        name = self.random.choice(list(PLUGINS))
        if name in self.jobs and self.random.random() < 0.4:
            del self.jobs[name]
            for keys in self.jobs.values():
                keys.pop("after", None)
            said = f"without {name}"
        else:
            key = self.random.choice(list(CHOICES))
            value = self.random.choice(CHOICES[key])
            keys = self.jobs.setdefault(name, {})
            if not (key == "after" and (name == "quick" or "quick" not in self.jobs)):
                keys[key] = value
            said = f"{name}.{key} = {keys.get(key)}"
        self.write_and_reload(self.toml())
        return said

    def write_and_reload(self, text: str) -> None:
        """By the command or by the signal."""
        self.daemon.config.write_text(text)
        if self.random.random() < 0.7:
            self.ask("reload")
        else:
            os.kill(self.daemon.pid, signal.SIGHUP)

    def reload_wrong(self) -> str:
        """A file that must be refused; the right one is written back."""
        text = self.random.choice(WRONG)
        whole = text if text.startswith("[supervisor]") else self.toml() + text
        self.daemon.config.write_bytes(whole.encode("utf-8", "surrogateescape"))
        try:
            self.daemon.ask("reload")
        except Refused as refused:
            if refused.exit_code != 78:
                raise
        else:
            raise AssertionError(f"accepted: {text[:200]}")
        finally:
            self.daemon.config.write_text(self.toml())
        return repr(text[:20])

    def reload_twice(self) -> None:
        """While whatever the first one ended is still ending."""
        for _ in range(2):
            self.reload_changed()
            self.ask("reload")

    def restart_and_remove(self) -> str:
        """A job that is to come back is removed before it is down."""
        name = self.random.choice(list(PLUGINS))
        self.ask("restart", job=name)
        kept = self.jobs.pop(name, {})
        for keys in self.jobs.values():
            keys.pop("after", None)
        self.write_and_reload(self.toml())
        if self.random.random() < 0.5:
            self.jobs[name] = kept
            self.write_and_reload(self.toml())
        return name

    def pids(self) -> dict[str, int]:
        """Of the jobs that have a process."""
        return {entry["job"]: entry["pid"] for entry in self.daemon.status()["jobs"] if entry["pid"]}

    def signal_job(self, number: int) -> str:
        """To a random job's process."""
        pids = self.pids()
        if not pids:
            return "nobody"
        name = self.random.choice(sorted(pids))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[name], number)
            if number == signal.SIGSTOP:
                self.stopped.add(pids[name])
        return name

    def kill(self) -> str:
        """kill -9 of a job's process."""
        return self.signal_job(signal.SIGKILL)

    def stop_process(self) -> str:
        """SIGSTOP."""
        return self.signal_job(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT to all that were stopped."""
        ours = set(self.pids().values())
        for pid in self.stopped & ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stopped.clear()

    def kill_guardian(self) -> None:
        """A new one has to come."""
        for pid in self.guardians():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def signal_daemon(self) -> None:
        """Signals that mean something harmless, or nothing."""
        os.kill(self.daemon.pid, self.random.choice([signal.SIGUSR1, signal.SIGCHLD, signal.SIGQUIT, signal.SIGHUP]))

    def step_clock(self) -> str:
        """The test's clock: never so far that a lease which is being renewed would be over."""
        offset = self.random.choice([-15.0, -1.0, 0.0, 0.5, 15.0])
        self.clock[:8] = struct.pack("=d", offset)
        return f"{offset:+}"

    def fill_disk(self) -> None:
        """Log, holds and state store find no room."""
        with contextlib.suppress(OSError), (self.disk / "filler").open("ab", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass

    def free_disk(self) -> None:
        """Room again."""
        (self.disk / "filler").unlink(missing_ok=True)

    def lock_store(self) -> None:
        """Nobody can write to the state store."""
        if self.lock is None and (self.disk / "state.db").exists():
            connection = sqlite3.connect(self.disk / "state.db", timeout=0, isolation_level=None)
            try:
                connection.execute("BEGIN EXCLUSIVE")
                self.lock = connection
            except sqlite3.Error:
                connection.close()

    def unlock_store(self) -> None:
        """Everybody can again."""
        if self.lock:
            with contextlib.suppress(sqlite3.Error):
                self.lock.execute("ROLLBACK")
            self.lock.close()
            self.lock = None

    def run_once(self) -> str:
        """By hand, beside the daemon."""
        if self.once and self.once.poll() is None:
            return "goes on"
        name = self.random.choice(["quick", "limited", "slow"])
        command = [sys.executable, "-m", "stellerd.cli", "-c", str(self.daemon.config), "run-once", name]
        self.once = subprocess.Popen(
            command, env=self.daemon.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        return name

    def ask_nonsense(self) -> None:
        """Requests that nobody ought to send."""
        fields: list[dict[str, Any]] = [
            {"command": "logs", "job": "quick", "since": "x"}, {"command": "start", "job": ["quick"]},
            {"command": "start"}, {"command": "nothing"}, {"command": "logs", "job": "quick", "since": 10**400},
        ]  # fmt: skip
        request = self.random.choice(fields)
        self.ask(request.pop("command"), **request)

    def read(self) -> None:
        """What an operator looks at."""
        for name in PLUGINS:
            self.ask("logs", job=name)

    # --- what must hold

    def guardians(self) -> list[int]:
        """Of this daemon."""
        return [pid for pid in self.daemon.children() if b"guardian" in command_of(pid)]

    def step(self) -> None:
        """One operation, and what must hold after it."""
        operation = self.random.choices(self.operations, self.weights)[0]
        print(f"{operation.__name__}: {operation() or ''}")
        assert self.daemon.process is not None
        assert self.daemon.process.poll() is None, "the daemon has ended"
        until(lambda: not any(map(self.is_unknown, self.strangers())), 5, "a process of a job that is in no table")
        for pid in self.strangers():
            until(lambda pid=pid: not self.is_left(pid), 5, f"what a job left behind ends: {command_of(pid)!r}")  # type: ignore[misc]
        for entry in self.daemon.status()["jobs"]:
            has_process = entry["state"] in ("STARTING", "RUNNING", "STOPPING")
            assert has_process == (entry["pid"] is not None), entry
        self.heaviest = max(self.heaviest, resident(self.daemon.pid))

    @staticmethod
    def is_left(pid: int) -> bool:
        """Whether it lives and is no new guardian, which has the daemon's title for a moment."""
        return alive(pid) and b"guardian" not in command_of(pid)

    @staticmethod
    def is_unknown(pid: int) -> bool:
        """Whether it was to be found in a table, or cannot be told yet."""
        return pid == -1 or b"stellerd" in command_of(pid)

    def strangers(self) -> list[int]:
        """Descendants of the daemon that are neither a job's process, nor of its group, nor the guardian."""
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            below = psutil.Process(self.daemon.pid).children(recursive=True)
            status = self.daemon.status()
            known = {entry["pid"] for entry in [*status["jobs"], *status["run_once"]] if entry["pid"]}
            self.seen |= known
            strange = [
                child.pid for child in below
                if child.pid not in known and alive(child.pid) and os.getpgid(child.pid) not in known
            ]  # fmt: skip
            return [pid for pid in strange if pid not in self.guardians()]
        return [-1]  # one of them went meanwhile: look again

    def heal(self) -> None:
        """All faults are taken back, and every job is to run again."""
        for mend in (self.free_disk, self.unlock_store, self.go_on):
            mend()
        if self.once:
            self.once.wait(60)
        self.jobs = {name: {} for name in PLUGINS}
        self.daemon.write(self.toml())
        for name in PLUGINS:  # one that goes may not be started before it has gone
            until(lambda: self.is_back(name), 30, f"{name} is back")  # noqa: B023
        until(self.is_well, 30, "all jobs are up")

    def is_back(self, name: str) -> bool:
        """Whether the daemon took the job, its start and the end of its pause."""
        with contextlib.suppress(Refused):
            for command in ("reload", "start", "resume"):
                self.daemon.ask(command, **({} if command == "reload" else {"job": name}))
            return True
        return False

    def is_well(self) -> bool:
        """Whether each job is in the state it has to be in."""
        states = {entry["job"]: entry["state"] for entry in self.daemon.status()["jobs"]}
        return all(state == ("FATAL" if name == "broken" else "RUNNING") for name, state in states.items())

    def until_nothing_is_left(self) -> None:
        """The daemon ends in order, and all its processes with it; the next one closes what they left open."""
        assert self.daemon.end(30) == 0
        wrong = [line for line in self.lines() if line["event"].startswith("internal error")]
        assert wrong == [], wrong[0]
        until(lambda: not [pid for pid in self.seen if alive(pid)], 10, "no process outlives the daemon")
        with self.daemon:
            until(self.is_well, 30, "all jobs are up after a restart")
            until(lambda: set(self.running()) <= set(self.pids().values()), 10, "no record is left running")
            assert self.daemon.end(30) == 0

    def lines(self) -> list[dict[str, Any]]:
        """The daemon's log, as far as the disk took it."""
        found = []
        for line in (self.disk / "log").read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict) and "event" in line]

    def running(self) -> list[int]:
        """Pids of the runs that the store takes for going on."""
        with contextlib.closing(sqlite3.connect(self.disk / "state.db", timeout=10)) as connection:
            return [pid for (pid,) in connection.execute("SELECT pid FROM runs WHERE state = 'running'")]

    def check_notes(self) -> int:
        """By what the runs themselves wrote down: no slot twice, no two runs at once, no limit exceeded."""
        rows = [json.loads(line) for line in self.notes.read_text().splitlines()]
        with contextlib.closing(sqlite3.connect(self.disk / "state.db", timeout=10)) as connection:
            states = dict(connection.execute("SELECT id, state FROM runs"))
        done: dict[tuple[str, str], int] = defaultdict(int)
        spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
        begun: dict[tuple[str, int], float] = {}
        for row in rows:
            if row["what"] == "begin":
                begun[row["job"], row["run"]] = row["at"]
            elif row["what"] == "end":
                spans[row["job"]].append((begun[row["job"], row["run"]], row["at"]))
                if row["slot"] and states.get(row["run"]) not in (
                    "crashed",
                    "lost",
                    "timeout",
                ):  # killed at its very end
                    done[row["job"], row["slot"]] += 1
        twice = [slot for slot, times in done.items() if times > 1]
        again = [(row, states.get(row["run"])) for row in rows if (row["job"], row.get("slot")) in twice]
        assert twice == [], f"a slot was run twice: {again}"
        for job, times in spans.items():
            times.sort()
            assert [(one, two) for one, two in pairwise(times) if two[0] < one[1]] == [], f"two runs of {job} at once"
        # a grant was made between `since` and `at`: one that was waited for may begin before others and come after them
        grants = sorted((row["at"], row["since"]) for row in rows if row["what"] == "grant")
        groups = [grants[at : at + LIMIT + 1] for at in range(len(grants) - LIMIT)]
        close = [group for group in groups if group[-1][0] - min(since for _, since in group) < WINDOW_S]
        assert close == [], f"more than {LIMIT} grants in {WINDOW_S} s: {close}"
        return len(begun)


def fuzz(folder: Path, disk: Path, seed: int, operations: int) -> None:
    """So many operations by this seed; raises AssertionError at the first thing that does not hold."""
    print(f"replay with: STELLERD_FUZZ_SEED={seed} STELLERD_FUZZ_OPERATIONS={operations}")
    made = Fuzz(folder, disk, seed)
    began = time.monotonic()
    with made.daemon:
        until(made.is_well, 30)
        memory = resident(made.daemon.pid)
        for _ in range(operations):
            made.step()
        print(f"{operations} operations took {time.monotonic() - began:.1f} s")
        made.heal()
        grown = (made.heaviest - memory) / 2**20
        assert grown < 8, f"the daemon grew by {grown:.1f} MiB"
        assert descriptors(made.daemon.pid) < 30 + 4 * len(PLUGINS)
        made.until_nothing_is_left()
    runs = made.check_notes()
    print(f"{runs} runs, the daemon grew by {grown:.1f} MiB")
    assert runs > operations / 20, "hardly anything ran"
