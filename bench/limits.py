"""What a slot of a rate limit costs, alone and among 16 processes, and whether the limit holds; against pyrate-limiter.

    make bench BENCH=limits ARGS="--quick"

The same work for all, each on SQLite and on PostgreSQL with fsync: acquire a slot of a bucket that has room, 1, 4 and
16 processes sharing the work; then 16 processes that take what they get of 50 slots per window. stellerd's slots are on
disk before they are granted (bare SQL: synchronous = FULL; the peer sets NORMAL). "Nothing synced" is without that for
all, on SQLite and on a PostgreSQL without fsync: there the disk is out of it, so that these times can be held against
those of PERFORMANCE's own SQL. "bare SQL" is that floor: the same statements on the bare driver.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _table import Cell, Table

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from servers import PostgresServer

WORKER = str(Path(__file__).with_name("_limits_worker.py"))
PLENTY = (10_000_000, 3600.0)
WINDOW = (50, 5.0)
SUBJECTS = ("stellerd", "pyrate", "bare SQL")
PEERS = ("stellerd", "pyrate")
SLOWER = 1.5
"""At most so many times the bare statements."""


class Bench:
    """One kind of database at a time."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.table = Table("Rate limits", SUBJECTS)

    def row(self, name: str, cells: dict[str, Cell], target: str = "", ok: bool | None = None) -> None:
        """stellerd's cell is the one that is judged; the ratio is the peer's over it."""
        ours, theirs = cells.get("stellerd"), cells.get("pyrate")
        ratio = theirs / ours if isinstance(ours, float) and isinstance(theirs, float) and ours else None
        values = [cells.get(subject) for subject in SUBJECTS]
        self.table.row(name, values, target=target or None, ratio=ratio, ok=ok)

    def cost(self, kind: str, urls: Iterator[str]) -> None:
        """Time of the same number of slots, taken by 1, 4 and 16 processes."""
        count = self.given.count
        took: dict[int, dict[str, float]] = {}
        for processes in (1, 4, 16):
            for subject in SUBJECTS:
                said = self.run(subject, next(urls), PLENTY, processes, "count", count // processes)
                seconds = max(one["end"] for one in said) - min(one["begin"] for one in said)
                took.setdefault(processes, {})[subject] = seconds * 1000 / (count // processes * processes)
        self.beside_the_floor(f"{kind}: ms a slot, 1 process", took[1])
        self.row("  4 processes, ms of all together", dict(took[4]))
        more = took[16]["stellerd"] / took[4]["stellerd"]
        self.row("  16 processes", dict(took[16]), "no slower than 4", ok=more <= 1.1)  # a tenth is this bench's noise

    def unsynced(self, kind: str, urls: Iterator[str]) -> None:
        """Time of a slot where no disk is waited for."""
        took: dict[str, float] = {}
        for subject in SUBJECTS:
            [said] = self.run(subject, next(urls), PLENTY, 1, "count", self.given.count, "relaxed")
            took[subject] = (said["end"] - said["begin"]) * 1000 / self.given.count
        self.beside_the_floor(f"{kind}, nothing synced: ms a slot, 1 process", took)

    def beside_the_floor(self, name: str, took: dict[str, float]) -> None:
        """A row whose target is a multiple of what the bare statements took in the same run."""
        ok = took["stellerd"] <= SLOWER * took["bare SQL"]
        self.row(name, dict(took), f"<= {SLOWER} of bare SQL", ok=ok)

    def exact(self, kind: str, urls: Iterator[str]) -> None:
        """The most grants that any window saw, and how many of those that were possible were given."""
        most: dict[str, Cell] = {}
        used: dict[str, Cell] = {}
        limit, period = WINDOW
        for subject in PEERS:
            said = self.run(subject, next(urls), WINDOW, 16, "seconds", self.given.seconds)
            grants = [tuple(grant) for one in said for grant in one["grants"]]
            most[subject] = certain_most(grants, period)
            span = max(one["end"] for one in said) - min(one["begin"] for one in said)
            used[subject] = len(grants) / (limit * (int(span // period) + 1)) * 100
        self.row(f"{kind}: most of {limit} in any {period:g} s, 16 processes", most, f"<= {limit}")
        self.row("  % of the possible slots given", used)

    def run(
        self,
        subject: str,
        url: str,
        rate: tuple[int, float],
        processes: int,
        mode: str,
        amount: float,
        terms: str = "synced",
    ) -> list[dict[str, Any]]:
        """What each process said; all begin at the same moment."""
        command = [sys.executable, WORKER, subject, url, str(rate[0]), str(rate[1]), mode, str(amount), terms]
        with contextlib.ExitStack() as stack:
            workers = [
                stack.enter_context(subprocess.Popen(command, stdin=-1, stdout=-1, text=True)) for _ in range(processes)
            ]
            stack.callback(lambda: [worker.kill() for worker in workers])
            for worker in workers:
                if worker.stdout is None or worker.stdout.readline() != "up\n":
                    raise RuntimeError(f"{subject}: a process did not come up")
            for worker in workers:
                assert worker.stdin
                worker.stdin.write("go\n")
                worker.stdin.flush()
            return [json.loads(worker.stdout.readline()) for worker in workers if worker.stdout]


def certain_most(grants: list[tuple[float, float]], period: float) -> int:
    """The most grants that lie in one window for certain: asked for after its begin, granted before its end."""
    asked = sorted(grants)
    most = 0
    for first, (begin, _) in enumerate(asked):
        last = bisect_left(asked, (begin + period, 0.0))
        most = max(most, sum(granted < begin + period for _, granted in asked[first:last]))
    return most


def sqlite_urls(folder: Path) -> Iterator[str]:
    """A new file each time."""
    for number in range(1000):
        yield f"sqlite:///{folder}/{number}.db"


def postgres_urls(server: PostgresServer) -> Iterator[str]:
    """A new database each time."""
    while True:
        yield server.create_database()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, about half a minute")
    parser.add_argument("--count", type=int, help="slots behind each time (default: 4000; quick: 800)")
    parser.add_argument("--seconds", type=float, help="of hammering (default: 21; quick: 6)")
    given = parser.parse_args()
    given.count = given.count or (800 if given.quick else 4000)
    given.seconds = given.seconds or (6.0 if given.quick else 21.0)
    bench = Bench(given)
    with tempfile.TemporaryDirectory(prefix="stellerd-bench-") as name, PostgresServer(durable=True) as server:
        files = sqlite_urls(Path(name))
        for kind, urls in (("SQLite", files), ("PostgreSQL", postgres_urls(server))):
            bench.cost(kind, urls)
            bench.exact(kind, urls)
        bench.unsynced("SQLite", files)
    with PostgresServer(durable=False) as server:
        bench.unsynced("PostgreSQL", postgres_urls(server))
    bench.table.finish()


if __name__ == "__main__":
    main()
