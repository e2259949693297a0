"""Where log lines cannot go: full pipes, full disks, files that were moved away; and jobs that write far too many."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import SERVICE, WAITS, job, until
from faults.helpers import EVERY_SECOND, HEAD, FaultDaemon, jobs, resident, seconds


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "stellerd-test", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def lines_of(file: Path) -> list[dict[str, object]]:
    """The log file's lines; each must be whole."""
    return [json.loads(line) for line in file.read_text().splitlines()]


@contextlib.contextmanager
def full_log_file(folder: Path) -> Iterator[tuple[Path, Path | None]]:
    """A place for a log file that is full at 64 KiB; root gets a disk, everybody else a limit on the size of files."""
    if os.geteuid() == 0:
        with small_disk(folder / "disk") as disk:
            (disk / "filler").write_bytes(bytes(30_000))
            yield disk / "log", disk / "filler"
    else:
        yield folder / "log", None


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    with full_log_file(tmp_path) as (log, filler):
        toml = f'{HEAD}log_file = "{log}"\n[jobs.chatty]\n[jobs.good]\n'
        chatty = job("for n in range(3000): print('x' * 100)\nctx.wait(0.05)", every="1s")
        daemon = FaultDaemon(tmp_path, {"chatty": chatty, "good": EVERY_SECOND}, toml)
        if filler is None:
            daemon.prefix = ["prlimit", "--fsize=65536:", "--"]
        with daemon:
            pids = {name: daemon.until_state(name, "RUNNING")["pid"] for name in ("chatty", "good")}
            until(lambda: daemon.status()["log_lines_dropped"] > 1000)
            for name in pids:
                seen = daemon.until_job(name, lambda entry: entry["last_run"])["last_run"]["id"]
                daemon.until_job(name, lambda entry: entry["last_run"]["id"] > seen)  # noqa: B023
            assert {name: daemon.job(name)["pid"] for name in pids} == pids
            daemon.ask("stop", job="chatty")
            daemon.until_state("chatty", "STOPPED")
            if filler is None:
                subprocess.run(["prlimit", f"--pid={daemon.pid}", "--fsize=unlimited:"], check=True)
            else:
                filler.unlink()
            until(lambda: daemon.status()["log_lines_dropped"] == 0, what="lines are taken again")
            daemon.ask("stop", job="good")
            daemon.until_state("good", "STOPPED")
            text = log.read_text()
        assert "log lines dropped" in text
        whole = [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
        told = [line for line in text.splitlines() if "log lines dropped" in line]
        torn = len(text.splitlines()) - len(whole) - len(told)
        assert torn <= len(told), "a line was glued to another one"
        for line in whole:
            json.loads(line)
        for line in told:
            assert line.startswith("stellerd: "), line


def test_sigusr1_opens_the_log_file_anew_after_somebody_moved_it(tmp_path: Path) -> None:
    log, old = tmp_path / "the.log", tmp_path / "the.log.1"
    ticks = job("ctx.log.info(f'tick {ctx.run_id}')", every="1s")
    with FaultDaemon(tmp_path, {"it": ticks}, f'{HEAD}log_file = "the.log"\n[jobs.it]\n') as daemon:
        until(lambda: "tick 1" in log.read_text())
        log.rename(old)
        os.kill(daemon.pid, signal.SIGUSR1)
        until(lambda: log.exists() and "tick" in log.read_text())
        events = [line["event"] for file in (old, log) for line in lines_of(file)]
        ticks_seen = [str(event) for event in events if str(event).startswith("tick")]
        assert ticks_seen == [f"tick {n}" for n in range(1, len(ticks_seen) + 1)], "a line was lost or came twice"
        log.unlink()
        log.mkdir()  # it cannot be opened any more: the daemon goes on with what it has
        os.kill(daemon.pid, signal.SIGUSR1)
        seen = daemon.job("it")["last_run"]["id"]
        daemon.until_job("it", lambda entry: entry["last_run"]["id"] > seen)


@pytest.mark.parametrize("wakes", [signal.SIGQUIT, signal.SIGUSR1, signal.SIGHUP])
def test_no_signal_makes_the_daemon_wait_for_a_pipe_that_nobody_reads(tmp_path: Path, wakes: int) -> None:
    read, write = os.pipe()
    chatty = job("for n in range(5000): print('x' * 50)\nwhile not ctx.wait(60): pass", extra=SERVICE)
    daemon = FaultDaemon(tmp_path, {"chatty": chatty}, "[jobs.chatty]\n")
    daemon.stderr = write
    with daemon:
        os.close(write)
        daemon.until_state("chatty", "RUNNING")
        until(lambda: daemon.status()["log_lines_dropped"] > 1000)
        for _ in range(3):
            os.kill(daemon.pid, wakes)
        assert daemon.status()["log_lines_dropped"] > 1000
        assert seconds(daemon.status) < 0.5
        until(lambda: len(daemon.ask("logs", job="chatty")["lines"]) == 1000, what="the tail is kept all the same")
        assert daemon.end() == 0
    os.close(read)


@pytest.mark.parametrize("unit", ["\\n", "", "\\x1b[2J\\x00\\xff\\n"], ids=["empty lines", "no end", "control"])
def test_a_flood_of_any_kind_of_lines_disturbs_nobody(tmp_path: Path, unit: str) -> None:
    """Empty lines are the worst: the most work for a byte."""
    body = f"""
        block = b"{unit or "x"}" * 50_000
        end = time.monotonic() + 1.5
        while time.monotonic() < end: os.write(1, block)
        print("\\nthe last word", flush=True)
        ctx.wait(60)
        """
    with FaultDaemon(
        tmp_path, {"flood": job(body, extra=SERVICE), "good": EVERY_SECOND}, jobs(["flood", "good"])
    ) as daemon:
        daemon.until_job("flood", lambda entry: entry["run"])
        before, lags = resident(daemon.pid), []
        while not any("the last word" in text for _, text in daemon.ask("logs", job="flood")["lines"][-2:]):
            lags.append(seconds(daemon.status))
        assert max(lags) < 0.25, "each answer takes the loop three turns"
        assert resident(daemon.pid) - before < 40 * 1024 * 1024
        assert daemon.job("flood")["restarts"] == 0


def test_many_small_writes_are_moved_in_few_large_pieces(tmp_path: Path) -> None:
    """A job that writes line by line must not wake the daemon for each few of them; no line waits for another."""
    body = """
        ctx.wait(0)
        for _ in range(100_000): os.write(1, b"x" * 75 + b"\\n")
        os.write(1, b"the last word\\n")
        ctx.wait(60)
        """
    with FaultDaemon(tmp_path, {"small": job(body, extra=SERVICE)}, jobs(["small"])) as daemon:
        daemon.until_job("small", lambda entry: entry["run"])
        until(lambda: "the last word" in daemon.ask("logs", job="small")["lines"][-1][1])
        io = dict(line.split(": ") for line in Path(f"/proc/{daemon.pid}/io").read_text().splitlines())
        assert int(io["syscw"]) < 400, "7.6 MB by pieces of up to 64 KiB, and the daemon's own lines"
        lines = daemon.ask("logs", job="small")["lines"]
        assert lines[-1][0] >= 100_001
        assert '"the last word"' in lines[-1][1]


def test_a_job_that_closes_its_output_in_the_middle_of_a_flood_ends_nobody(tmp_path: Path) -> None:
    """The pipe hangs up while it is left to fill; its last lines are there all the same."""
    body = """
        ctx.wait(0.1)
        for _ in range(3000): os.write(1, b"x" * 75 + b"\\n")
        os.write(1, b"the last word")
        null = os.open("/dev/null", os.O_WRONLY)
        os.dup2(null, 1); os.dup2(null, 2)
        while not ctx.wait(60): pass
        """
    with FaultDaemon(
        tmp_path, {"shuts": job(body, extra=SERVICE)}, jobs(["shuts", "too"], "plugin = 'shuts'\n")
    ) as daemon:
        for name in ("shuts", "too"):
            daemon.until_state(name, "RUNNING")
            until(lambda: any("the last word" in text for _, text in daemon.ask("logs", job=name)["lines"]))  # noqa: B023
            assert daemon.ask("logs", job=name)["lines"][-1][0] > 3000
        assert daemon.end() == 0


def test_a_job_that_inherits_the_output_writes_to_it_directly(tmp_path: Path) -> None:
    with FaultDaemon(
        tmp_path, {"it": job("print('straight', flush=True)"), "other": WAITS}, "[jobs.it]\nlog = 'inherit'\n"
    ) as daemon:
        daemon.until_job("it", lambda entry: entry["last_run"])
        until(lambda: "straight" in daemon.log_file.read_text().splitlines())
        assert daemon.ask("logs", job="it")["lines"] == []


def test_what_a_plugin_prints_shows_no_secret_and_arrives_line_by_line(tmp_path: Path) -> None:
    prints = job(
        """
        import traceback
        print("the broker is", ctx.broker_url(), "today")
        print("on standard error:", ctx.broker_url(), file=sys.stderr)
        try: raise ValueError(ctx.broker_url())
        except ValueError: traceback.print_exc()
        os._exit(9)
        """,
        extra="import sys\n" + SERVICE,
    )
    toml = f"{HEAD}[broker]\nurl = {{ env = 'AMQP' }}\n[jobs.it]\nbackoff = '30s'\n"
    env = {"AMQP": "amqp://alice:Tr0ub4dor@broker.example/v"}
    with FaultDaemon(tmp_path, {"it": prints}, toml, env=env) as daemon:
        daemon.until_state("it", "BACKOFF")
        printed = [str(line["event"]) for line in daemon.logs() if line.get("printed")]
    assert "the broker is *** today" in printed
    assert sum("***" in line for line in printed) == 3
    assert "Tr0ub4dor" not in daemon.log_file.read_text()


@pytest.mark.parametrize("closed", [(2,), (1, 2), (0, 1, 2)], ids=str)
def test_a_daemon_whose_standard_streams_are_closed_works(tmp_path: Path, closed: tuple[int, ...]) -> None:
    """As `stellerd run 2>&-` starts it: the next file that is opened would get the number of the error output."""
    toml = HEAD + f"log_file = '{tmp_path}/log'\n[jobs.it]\nevery = '1s'\n"
    with FaultDaemon(tmp_path, {"it": job("print('printed')")}, toml) as daemon:
        daemon.end()
        shell = " ".join(f"{fd}{'<' if fd == 0 else '>'}&-" for fd in closed)
        command = f"exec {shlex.quote(sys.executable)} -m stellerd.cli -c {shlex.quote(str(daemon.config))} {shell}"
        daemon.process = subprocess.Popen(["sh", "-c", command], env=daemon.env, start_new_session=True)
        until(daemon._answers)
        last = daemon.until_job("it", lambda entry: entry["last_run"])["last_run"]["id"]
        daemon.kill_job("it")
        daemon.until_job("it", lambda entry: entry["last_run"] and entry["last_run"]["id"] > last)
        assert {os.readlink(f"/proc/{daemon.pid}/fd/{fd}") for fd in closed} == {os.devnull}
        assert daemon.end() == 0
        assert "printed" in (tmp_path / "log").read_text()


def test_a_job_whose_kept_lines_are_larger_than_any_answer_still_shows_its_last(tmp_path: Path) -> None:
    body = (
        "for n in range(20): print(chr(34) * 60_000)\nprint('the last of', os.getpid())\nwhile not ctx.wait(60): pass"
    )
    toml = "[jobs.it]\nbackoff = '10ms'\nbackoff_cap = '10ms'\n"
    with FaultDaemon(tmp_path, {"it": job(body, extra=SERVICE)}, toml) as daemon:
        for _ in range(6):
            before = daemon.kill_job("it")
            pid = daemon.until_replaced(before)["pid"]
            until(lambda: daemon.ask("logs", job="it")["lines"][-1][1].count(f"the last of {pid}"))  # noqa: B023
        assert daemon.cli("logs", "it", "-n", "1000").returncode == 0
