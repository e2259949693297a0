"""What supervising costs and how fast it is: stellerd, supervisord, circus and the bare floor, in one run.

    make bench BENCH=supervisor ARGS="--quick"
    python bench/supervisor.py [--only stellerd,floor] [--rows restart,memory] [--circus FOLDER]

The same trivial job everywhere (a Python program that says one line and sleeps); "3 libs" holds sqlalchemy, requests
and pika. stellerd runs a service plugin that does the same; its restarts include a state store, a lease and a record.
Milliseconds, medians; memory from smaps_rollup, CPU from schedstat, wakeups from voluntary context switches.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from _supervisor_jobs import LINE, LINES
from _supervisor_proc import children, family, load, page, time_gone, uss_mib
from _supervisor_subjects import Circus, Floor, PreloadedFloor, Stellerd, Subject, Supervisord, install_circus
from _table import Cell, Table, pss_mib

SUBJECTS: tuple[type[Subject], ...] = (Stellerd, Floor, PreloadedFloor, Supervisord, Circus)
POLL_S = 0.0001
ORPHANS_S = 3.0
RELOAD_S = 4.0
IDLE_AFTER_S = 6.0
"""From the last job's line to the moment from which nothing is left to settle."""

Cells = dict[str, Cell]


class Bench:
    """The measurements; each fills rows of the table."""

    def __init__(self, given: argparse.Namespace, subjects: list[type[Subject]]) -> None:
        self.given, self.subjects = given, subjects
        self.missing: dict[str, str] = {}
        self.table = Table("Supervisor", [kind.name for kind in subjects])

    def row(self, name: str, cells: Cells, target: str = "", *, most: float | None = None, least_x: float = 0) -> None:
        """One row; stellerd's cell is held against `most`, supervisord's in relation to it against `least_x`."""
        ours, theirs = cells.get("stellerd"), cells.get("supervisord")
        ratio = theirs / ours if isinstance(ours, int | float) and isinstance(theirs, int | float) and ours else None
        ok = None
        if ours is not None and most is not None:
            ok = isinstance(ours, int | float) and ours <= most and (ratio is None or ratio >= least_x)
        values = [cells.get(kind.name, self.missing.get(kind.name, "")) for kind in self.subjects]
        self.table.row(name, values, target=target or None, ratio=ratio, ok=ok if target else None)

    def each(self, measure: Callable[[type[Subject]], Cell], leave_out: Iterable[type[Subject]] = ()) -> Cells:
        """What `measure` finds for each supervisor; one that cannot do it says why on standard error."""
        cells: Cells = {}
        for kind in self.subjects:
            if kind in leave_out or kind.name in self.missing:
                continue
            try:
                cells[kind.name] = measure(kind)
            except (OSError, RuntimeError, TimeoutError) as error:
                print(f"{kind.name}: {error}", file=sys.stderr)
                cells[kind.name] = "failed"
        return cells

    # --- restarts

    def restart(self) -> None:
        """kill -9 of a job."""
        few = {kind.name: self._restarts(kind, 1) for kind in self._able()}
        many = {kind.name: self._restarts(kind, self.given.children) for kind in self._able()}
        forked = {name: pair[0] for name, pair in few.items()}
        said = {name: pair[1] for name, pair in few.items()}
        all_said = {name: pair[1] for name, pair in many.items()}
        self.row("kill -9 -> new pid, ms", forked, "<= 10 ms, >= 60x", most=10, least_x=60)
        self.row("kill -9 -> its first line, ms", said, "<= 15 ms", most=15)
        self.row(f"the same with {self.given.children} children, ms", all_said, "<= 15 ms", most=15)

    def _able(self) -> list[type[Subject]]:
        return [kind for kind in self.subjects if kind.name not in self.missing]

    def _restarts(self, kind: type[Subject], count: int) -> tuple[float, float]:
        pairs = []
        with kind(count, "trivial") as subject:
            subject.until_up()
            for _ in range(self.given.trials if not kind.tick_s else max(3, self.given.trials // 2)):
                time.sleep(kind.settles_s + random.uniform(0, kind.tick_s))
                pairs.append(_restart(subject, random.choice(subject.jobs)))
        return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)

    # --- start and stop

    def start(self) -> None:
        """All up, all down."""
        count = self.given.children
        up: dict[str, list[float]] = {}
        down: dict[str, list[float]] = {}

        def once(kind: type[Subject]) -> Cell:
            times = 1 if kind.tick_s else max(1, self.given.trials // 3)
            for _ in range(times):
                with kind(count, "trivial") as subject:
                    up.setdefault(kind.name, []).append(subject.until_up())
                    time.sleep(kind.settles_s)
                    down.setdefault(kind.name, []).append(subject.stop())
            return None

        self.each(once)
        started: Cells = {name: statistics.median(times) for name, times in up.items()}
        stopped: Cells = {name: statistics.median(times) for name, times in down.items()}
        self.row(f"start {count}, all ready, ms", started, "<= 700 ms", most=700)
        self.row(f"stop {count}, supervisor exited, ms", stopped, "<= 150 ms", most=150)

    # --- idle

    def idle(self) -> None:
        """CPU and wakeups of a supervisor whose jobs do nothing; all supervisors at the same time."""
        seconds, count = self.given.idle, self.given.children
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(kind(count, "trivial")) for kind in self._able()]
            for subject in running:
                subject.until_up()
            time.sleep(IDLE_AFTER_S)
            before = {subject.name: (load([subject.pid]), load(family(subject.pid))) for subject in running}
            time.sleep(seconds)
            used = {s.name: (load([s.pid]), load(family(s.pid))) for s in running}
        own = {name: used[name][0] - before[name][0] for name in used}
        whole = {name: used[name][1] - before[name][1] for name in used}
        cpu: Cells = {name: load.cpu_ms * 30 / seconds for name, load in own.items()}
        wakeups: Cells = {name: load.wakeups / seconds for name, load in own.items()}
        jobs: Cells = {name: (whole[name].wakeups - own[name].wakeups) / seconds / count for name in own}
        self.row(f"idle with {count}: supervisor CPU, ms in 30 s", cpu, "<= 1 ms", most=1)
        self.row("  its wakeups per s", wakeups, "<= 0.05", most=0.05)
        self.row("  wakeups per s of one job", jobs)

    # --- memory

    def memory(self) -> None:
        """Ten children with the libraries."""
        parent: Cells = {}
        total: Cells = {}
        up: Cells = {}

        def idle(kind: type[Subject]) -> Cell:
            with kind(10, "libs") as subject:
                up[kind.name] = subject.until_up()
                time.sleep(0.5)
                parent[kind.name] = pss_mib(subject.pid)
                total[kind.name] = sum(pss_mib(pid) for pid in family(subject.pid))
                return _own_memory(subject)

        def worked(kind: type[Subject]) -> Cell:
            with kind(10, "work") as subject:
                subject.until_up()
                time.sleep(0.5)
                return _own_memory(subject)

        without = [kind for kind in self.subjects if kind is Floor]  # its children would import for themselves
        idle_cells, work_cells = self.each(idle, without), self.each(worked, without)
        self.row("start 10 with 3 libs, all ready, ms", up)
        self.row("supervisor PSS, 10 children with 3 libs, MiB", parent, "<= 25 MiB", most=25)
        self.row("a child's own memory, 3 libs, idle, MiB USS", idle_cells, "<= 4 MiB", most=4)
        self.row("  after real work", work_cells, "<= 18 MiB", most=18)
        self.row("total PSS, 10 children with 3 libs, MiB", total, "<= 85 MiB", most=85)

    # --- the end of the supervisor

    def orphans(self) -> None:
        """kill -9 of the supervisor of ten jobs that have a child each."""

        def gone(kind: type[Subject]) -> Cell:
            found = [_orphans(kind) for _ in range(1 if kind.tick_s else max(3, self.given.trials // 3))]
            left = max(number for _, number in found)
            return f"never: {left} left" if left else statistics.median(took for took, _ in found)

        cells = self.each(gone)
        self.row("kill -9 of the supervisor: all gone, ms", cells, "<= 50 ms, grandchildren too", most=50)

    # --- crash loop

    def crashes(self) -> None:
        """A job that exits at once: how often it is tried; all supervisors at the same time."""
        seconds = self.given.crash_seconds
        least, most = (7, 9) if seconds >= 60 else (_tries(seconds, 1.1), _tries(seconds, 0.9))
        cells: Cells = {}
        with contextlib.ExitStack() as stack:
            kinds = [kind for kind in self._able() if not issubclass(kind, Floor)]  # a floor has no backoff
            running = [stack.enter_context(kind(1, "exits", defaults=True)) for kind in kinds]
            for subject in running:
                subject.ear.until(lambda ear=subject.ear: ear.count > 0, 30, f"{subject.name}: first try")  # type: ignore[misc]
            time.sleep(seconds)
            for subject in running:
                subject.ear.for_seconds(0.01)
                cells[subject.name] = subject.ear.count
        ours = cells.get("stellerd")
        ok = least <= ours <= most if isinstance(ours, int) else None
        values = [cells.get(kind.name, "") for kind in self.subjects]
        self.table.row(
            f"exits at once: tries in {seconds:g} s",
            values,
            f"{least}-{most} tries" if least < most else f"{least} tries",
            ok=ok,
        )

    # --- reload

    def reload(self) -> None:
        """One key that the supervisor owns, of one of ten jobs."""

        def restarts(kind: type[Subject]) -> Cell:
            with kind(10, "trivial") as subject:
                subject.until_up()
                time.sleep(kind.settles_s)
                subject.change_one_key()
                return subject.ear.for_seconds(RELOAD_S)

        cells = self.each(restarts, (Floor, PreloadedFloor))
        self.row("one changed key at reload: restarts of 10", cells, "0", most=0)

    # --- log lines

    def logs(self) -> None:
        """A job prints 38 MB of lines."""
        size = len(LINE) * LINES / 1e6
        others = [kind for kind in self.subjects if kind not in (Stellerd, Floor)]
        json = self.each(lambda kind: self._log_cpu(kind, "pump"), (PreloadedFloor,))
        self.row(f"{size:.0f} MB of printed lines: supervisor CPU, s", json, "<= 0.25 s", most=0.25)
        text = self.each(
            lambda kind: self._log_cpu(kind, "text"), [kind for kind in self.subjects if kind is not Stellerd]
        )
        self.row('  with log_format = "text"', text, "<= 0.25 s", most=0.25)
        inherited = self.each(lambda kind: self._log_cpu(kind, "inherit"), others)
        self.row('  with log = "inherit"', inherited, "<= 0.04 s", most=0.04)

    def _log_cpu(self, kind: type[Subject], log: str) -> Cell:
        found = []
        for _ in range(1 if kind.tick_s else max(1, self.given.trials // 4)):
            with kind(1, "talks", log=log) as subject:
                subject.until_up()
                time.sleep(0.3)
                found.append(_pumped(subject))
        return statistics.median(found)


def _tries(seconds: float, spread: float) -> int:
    """Tries in this time when the waits are 0.5, 1, 2 … s, each times `spread`."""
    tries, at, wait = 1, 0.0, 0.5
    while (at := at + wait * spread) < seconds:
        tries, wait = tries + 1, min(wait * 2, 60)
    return tries


def _restart(subject: Subject, job: str) -> tuple[float, float]:
    """Kill a job's process; milliseconds to a new child of the supervisor, and to its line."""
    old = subject.ear.said[job][0]
    known = children(subject.pid)
    begin = time.monotonic_ns()
    os.kill(old, signal.SIGKILL)
    while children(subject.pid) <= known:
        time.sleep(POLL_S)
        if time.monotonic_ns() - begin > 30e9:
            raise TimeoutError(f"{subject.name}: no new process within 30 s")
    forked = time.monotonic_ns()
    subject.ear.until(lambda: subject.ear.said[job][0] != old, 30, f"{subject.name}: the first line of a restarted job")
    return (forked - begin) / 1e6, (subject.ear.said[job][1] - begin) / 1e6


def _own_memory(subject: Subject) -> float:
    return statistics.median(uss_mib(pid) for pid, _ in subject.ear.said.values())


def _orphans(kind: type[Subject]) -> tuple[float, int]:
    with kind(10, "family") as subject:
        subject.until_up()
        time.sleep(kind.settles_s)
        pids = [pid for pid, _ in subject.ear.said.values()]
        return time_gone(pids, subject.process.kill, ORPHANS_S)


def _pumped(subject: Subject) -> float:
    """Let the job print; CPU seconds that the supervisor spent on it. Raises: RuntimeError when lines got lost."""
    before = load([subject.pid])
    with subject.go.open("wb"):
        pass
    subject.ear.until(lambda: "j0-done" in subject.ear.said, 120, f"{subject.name}: the end of its job's lines")
    deadline = time.monotonic() + 10
    while (lines := _count_lines(subject)) < LINES and time.monotonic() < deadline:
        time.sleep(0.1)
    used = (load([subject.pid]) - before).cpu_ms / 1000
    if lines != LINES:
        raise RuntimeError(f"{lines} of {LINES} lines arrived")
    return used


def _count_lines(subject: Subject) -> int:
    mark = LINE.split(b": ")[1].rstrip(b"\n")
    return sum(file.read_bytes().count(mark) for file in subject.log_files())


ROWS: dict[str, Callable[[Bench], None]] = {
    "restart": Bench.restart,
    "start": Bench.start,
    "idle": Bench.idle,
    "memory": Bench.memory,
    "orphans": Bench.orphans,
    "crashes": Bench.crashes,
    "reload": Bench.reload,
    "logs": Bench.logs,
}


def arguments() -> argparse.Namespace:
    """Sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, about a minute and a half")
    parser.add_argument("--children", type=int, help="jobs where it says 50 (default: 50; quick: 20)")
    parser.add_argument("--trials", type=int, help="repetitions behind a median (default: 12; quick: 6)")
    parser.add_argument("--idle", type=float, help="seconds of idling (default: 30; quick: 10)")
    parser.add_argument("--crash-seconds", type=float, help="seconds of a crash loop (default: 60; quick: 10)")
    parser.add_argument("--only", default="", help=f"of {','.join(kind.name for kind in SUBJECTS)}")
    parser.add_argument("--rows", default="", help=f"of {','.join(ROWS)}")
    parser.add_argument("--circus", type=Path, help="virtual environment for circus, made and kept there")
    given = parser.parse_args()
    sizes = (20, 6, 10.0, 10.0) if given.quick else (50, 12, 30.0, 60.0)
    for name, size in zip(("children", "trials", "idle", "crash_seconds"), sizes, strict=True):
        setattr(given, name, getattr(given, name) or size)
    return given


def main() -> None:
    """Measure and print."""
    given = arguments()
    wanted = given.only.split(",") if given.only else [kind.name for kind in SUBJECTS]
    subjects = [kind for kind in SUBJECTS if kind.name in wanted]
    with tempfile.TemporaryDirectory(prefix="stellerd-bench-") as folder, page() as url:
        os.environ["BENCH_URL"] = url
        bench = Bench(given, subjects)
        if Circus in subjects and (why := install_circus(given.circus or Path(folder) / "circus")):
            print(why, file=sys.stderr)
            bench.missing["circus"] = "not installable"
        for name in given.rows.split(",") if given.rows else ROWS:
            print(f"measuring: {name}", file=sys.stderr)
            ROWS[name](bench)
    bench.table.finish()


if __name__ == "__main__":
    main()
