"""What every bench shares: one table with its verdicts, and honest times, CPU seconds and peak memory of processes."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Cell = str | float | int | None
_TARGET = re.compile(r"(<=|>=)\s*([\d.]+)\s*(.*)")


@dataclass(frozen=True)
class Row:
    """One line of the table; `ok` is None where nothing was promised."""

    name: str
    values: tuple[Cell, ...]
    ratio: float | None
    target: str
    ok: bool | None


class Table:
    """Rows of one bench. `finish` prints them all at once, under the facts of the machine.

        table = Table("Orders, 20,000 messages", ["msg/s", "CPU s"])
        table.row("pika, confirm each", [1280, 9.1])
        table.row("stellerd", [11900, 0.7], ratio=11900 / 1280, target=">= 9x")

    A target of "x" is about `ratio`, one of any other unit about the first of `values`: "<= 150 ms". A bare number is
    the least that `ratio` may be. `ok` decides where no such comparison can.
    """

    def __init__(self, title: str, columns: Sequence[str]) -> None:
        self.title, self.columns = title, tuple(columns)
        self.rows: list[Row] = []

    def row(
        self,
        name: str,
        values: Sequence[Cell],
        target: str | float | None = None,
        ratio: float | None = None,
        ok: bool | None = None,
    ) -> None:
        """Add a row. Raises: ValueError when the target cannot be judged by what is given."""
        if len(values) != len(self.columns):
            raise ValueError(f"{name}: {len(values)} values for {len(self.columns)} columns")
        text = target if isinstance(target, str) else "" if target is None else f">= {target:g}x"
        if ok is None and text:
            ok = _judge(name, text, ratio, values)
        self.rows.append(Row(name, tuple(values), ratio, text, ok))

    def finish(self) -> None:
        """Print the table. Raises: SystemExit (code 1) that names the rows that fall short, when there are any."""
        print(self.text())
        short = [row.name for row in self.rows if row.ok is False]
        if short:
            sys.exit(f"fall short: {', '.join(short)}")

    def text(self) -> str:
        """The table as `finish` prints it: names to the left, numbers to the right."""
        head = ("", *self.columns, "ratio", "target", "")
        lines = [head, *(self._cells(row) for row in self.rows)]
        used = [n for n in range(len(head)) if any(line[n] for line in lines)]
        width = {n: max(len(line[n]) for line in lines) for n in used}
        aligned = ("  ".join(_pad(line[n], width[n], left=n == 0) for n in used).rstrip() for line in lines)
        head_line, *body = aligned
        return "\n".join([self.title, machine(), "", head_line, "-" * len(max(body, key=len, default="")), *body])

    def _cells(self, row: Row) -> tuple[str, ...]:
        verdict = {None: "", True: "pass", False: "FALL SHORT"}[row.ok]
        ratio = "" if row.ratio is None else f"{_shown(row.ratio)}x"
        return (row.name, *map(_shown, row.values), ratio, row.target, verdict)


def _judge(name: str, target: str, ratio: float | None, values: Sequence[Cell]) -> bool:
    match = _TARGET.fullmatch(target.strip())
    measured = ratio if match and match[3] == "x" else values[0]
    if not match or not isinstance(measured, int | float):
        raise ValueError(f'{name}: the target "{target}" has nothing to be compared with; write "<= 150 ms" or ">= 9x"')
    return measured <= float(match[2]) if match[1] == "<=" else measured >= float(match[2])


def _shown(value: Cell) -> str:
    """Three digits that count, whole numbers grouped."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _pad(text: str, width: int, *, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


def machine() -> str:
    """The facts without which no figure means anything."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores} cores, {memory:.0f} GiB, Python {platform.python_version()}, Linux {platform.release()}"


@dataclass(frozen=True)
class Usage:
    """What one process took from start to end; `peak_mib` is its own resident memory at the highest."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    code: int


def measure(command: Sequence[str], *, env: Mapping[str, str] | None = None, code: int = 0) -> Usage:
    """Run a command to its end, its output thrown away. A small process of its own starts it: a child started from
    here would inherit this process's peak (Linux counts the memory before exec).

    Raises: RuntimeError when it ends with another code than `code`.
    """
    launcher = [sys.executable, "-I", "-S", __file__, *command]
    said = subprocess.run(launcher, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True).stdout
    usage = Usage(**json.loads(said))
    if usage.code != code:
        raise RuntimeError(f"{' '.join(command)} ended with {usage.code}")
    return usage


def _launch(command: list[str]) -> dict[str, float]:
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    wall = time.perf_counter() - begin
    child.returncode = os.waitstatus_to_exitcode(status)  # wait4 took it: Popen must not look for it again
    cpu = used.ru_utime + used.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, "peak_mib": used.ru_maxrss / 1024, "code": child.returncode}


def median_s(function: Callable[[], Any], times: int = 5) -> float:
    """Median seconds of `times` calls."""

    def once() -> float:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    return statistics.median(once() for _ in range(times))


def medians(commands: Mapping[str, Sequence[str]], times: int = 20) -> dict[str, Usage]:
    """Median usage of each command; the commands take turns, so that a noisy moment hits them all alike."""
    seen: dict[str, list[Usage]] = {name: [] for name in commands}
    for _ in range(times):
        for name, command in commands.items():
            seen[name].append(measure(command))
    return {name: _middle(runs) for name, runs in seen.items()}


def _middle(runs: list[Usage]) -> Usage:
    def of(field: str) -> float:
        return statistics.median([float(getattr(run, field)) for run in runs])

    return Usage(of("wall_s"), of("cpu_s"), of("peak_mib"), runs[0].code)


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a running process so far, user and system, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int | str = "self") -> float:
    """Highest resident memory so far of a running process."""
    return _kib(pid, "status", "VmHWM") / 1024


def pss_mib(pid: int | str = "self") -> float:
    """Memory of a running process, shared pages divided by those who share them."""
    return _kib(pid, "smaps_rollup", "Pss") / 1024


def _kib(pid: int | str, file: str, field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    if not match:
        raise RuntimeError(f"/proc/{pid}/{file} has no {field}: the process is ending")
    return int(match[1])


if __name__ == "__main__":
    print(json.dumps(_launch(sys.argv[1:])))
