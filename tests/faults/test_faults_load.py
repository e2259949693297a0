"""Too much of everything: output, clients, crashes, reloads, restarts, and too few processes and descriptors."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from daemon import QUIET, WAITS, Daemon, alive, install, job, until
from faults.helpers import EVERY_SECOND, FaultDaemon, drift, jobs, resident, seconds, write_raw


def test_a_child_that_exits_at_once_is_tried_for_ever_ever_more_slowly(tmp_path: Path) -> None:
    toml = "[jobs.bad]\nbackoff = '50ms'\nbackoff_cap = '1s'\n[jobs.good]\n"
    with FaultDaemon(tmp_path, {"bad": "import os; os._exit(1)", "good": EVERY_SECOND}, toml) as daemon:
        # 0, .05, .15, .35, .75, 1.55, then one a second: the arithmetic of 0.5 s and 60 s, ten times as fast
        daemon.until_job("bad", lambda entry: entry["restarts"] >= 8)
        waits = [line["wait_s"] for line in daemon.events("restarts later")]
        assert waits[:7] == [pytest.approx(min(1.0, 0.05 * 2**n), rel=0.11) for n in range(7)]
        assert len(set(waits[5:8])) > 1, "no jitter"
        assert daemon.job("bad")["degraded"]
        assert drift(daemon, "good") < 1


@pytest.mark.soak
@pytest.mark.timeout(120)
def test_a_child_that_exits_at_once_has_7_to_9_tries_in_60_s(tmp_path: Path) -> None:
    with FaultDaemon(
        tmp_path, {"bad": "import os; os._exit(1)", "good": EVERY_SECOND}, jobs(["bad", "good"])
    ) as daemon:
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 60, timeout=70)
        assert 7 <= len(daemon.events("died")) <= 9
        assert daemon.job("bad")["degraded"]
        assert drift(daemon, "good") < 1


@pytest.mark.parametrize(
    ("source", "state", "cause"),
    [
        (job("raise SystemExit(3)"), "failed", "SystemExit: 3"),
        (job("raise MemoryError('no more')"), "failed", "MemoryError: no more"),
        (job("import ctypes; ctypes.string_at(0)"), "crashed", "signal 11 (SIGSEGV)"),
        (job("os.kill(os.getpid(), signal.SIGTERM)\nos.kill(os.getpid(), 9)"), "crashed", "not sent by stellerd"),
        (job("os._exit(5)"), "crashed", "exit code 5"),
    ],
    ids=["exit", "MemoryError", "segfault", "SIGKILL", "os._exit"],
)
def test_the_cause_of_an_end_is_recorded_and_others_go_on(tmp_path: Path, source: str, state: str, cause: str) -> None:
    toml = "[jobs.bad]\nbackoff = '100ms'\n[jobs.good]\n"
    with FaultDaemon(tmp_path, {"bad": source, "good": EVERY_SECOND}, toml) as daemon:
        run = daemon.until_job("bad", lambda entry: entry["last_run"])["last_run"]
        assert run["state"] == state
        assert cause in run["reason"]
        seen = daemon.until_job("good", lambda entry: entry["last_run"])["last_run"]["id"]
        daemon.until_job("good", lambda entry: entry["last_run"]["id"] > seen)


def test_a_missing_entry_point_is_fatal_until_a_reload_finds_it(tmp_path: Path) -> None:
    with FaultDaemon(tmp_path, {"there": QUIET}, jobs(["there", "gone"])) as daemon:
        assert 'no plugin "gone" is installed' in daemon.until_state("gone", "FATAL")["reason"]
        install(tmp_path, {"there": QUIET, "gone": QUIET})
        daemon.ask("reload")
        daemon.until_state("gone", "RUNNING")


def test_1000_wrong_reloads_change_nothing_and_are_all_reported(tmp_path: Path) -> None:
    with FaultDaemon(tmp_path, {"it": WAITS}, "[jobs.it]\n") as daemon:
        pid = daemon.until_state("it", "RUNNING")["pid"]
        daemon.write("[jobs.it\n")
        for count in range(1, 101):  # signals of one kind merge, so each waits for the report of the one before
            os.kill(daemon.pid, signal.SIGHUP)
            until(lambda n=count: daemon.log_file.read_text().count("reload refused") == n)  # type: ignore[misc]
        for _ in range(900):
            with pytest.raises(Exception, match="Expected"):
                daemon.ask("reload")
        assert daemon.log_file.read_text().count("reload refused") == 1000
        assert (daemon.job("it")["pid"], daemon.job("it")["restarts"]) == (pid, 0)


def test_garbage_and_silent_clients_on_the_control_socket_slow_nobody_down(tmp_path: Path) -> None:
    with FaultDaemon(tmp_path, {"it": WAITS}, "[jobs.it]\n") as daemon, contextlib.ExitStack() as stack:
        daemon.until_state("it", "RUNNING")
        for _ in range(200):
            stack.enter_context(write_raw(daemon.socket))
        before, lags = resident(daemon.pid), []
        for n in range(10_000):
            if n % 100 == 0:
                lags.append(seconds(daemon.status))
                garbage = stack.enter_context(write_raw(daemon.socket))
            with contextlib.suppress(OSError):
                garbage.sendall(os.urandom(20) + b"\n")
                garbage.recv(65536, socket.MSG_DONTWAIT)
        assert max(lags) < 0.1
        assert resident(daemon.pid) - before < 8 * 1024 * 1024
        assert daemon.job("it")["restarts"] == 0


def test_a_job_that_floods_its_output_disturbs_nobody(tmp_path: Path) -> None:
    flood = job(
        """
        block = (b"x" * 99 + b"\\n") * 10_000
        end = time.monotonic() + 4
        while time.monotonic() < end: os.write(1, block)
        print("the last word")
        """
    )
    with FaultDaemon(tmp_path, {"flood": flood, "good": EVERY_SECOND}, jobs(["flood", "good"])) as daemon:
        daemon.until_job("flood", lambda entry: entry["run"])
        before, lags = resident(daemon.pid), []
        while daemon.job("flood")["run"]:
            lags.append(seconds(daemon.status))
        assert max(lags) < 0.5
        assert resident(daemon.pid) - before < 32 * 1024 * 1024
        until(lambda: "the last word" in daemon.cli("logs", "flood").stdout)
        assert drift(daemon, "good") < 1


def restarts(tmp_path: Path, times: int) -> None:
    """Restart a daemon over and over; its job may call its vendor twice an hour."""
    calls = tmp_path / "calls"
    body = "ctx.limiter.acquire('b', ctx.wait)\nopen(os.environ['CALLS'], 'a').write('x')"
    toml = "[limits.b]\nrate = '2/1h'\n[jobs.it]\nevery = '1s'\n"
    for n in range(times):
        with Daemon(tmp_path, {"it": job(body)}, toml, env={"CALLS": str(calls)}) as daemon:
            daemon.until_state("it", "RUNNING")
            if n == 0:
                daemon.until_job("it", lambda entry: entry["last_run"] and entry["last_run"]["state"] == "deferred")
            os.kill(daemon.pid, signal.SIGKILL if n % 2 else signal.SIGTERM)
            assert daemon.process is not None
            daemon.process.wait(10)
    listed = json.loads(daemon.cli("history", "it", "--json", "-n", "1000").stdout)["runs"]
    assert [run["state"] for run in listed].count("ok") == 2
    assert calls.read_text() == "xx"


@pytest.mark.timeout(120)
def test_restarts_in_a_row_cost_no_extra_call(tmp_path: Path) -> None:
    restarts(tmp_path, 10)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_200_restarts_in_a_row_cost_no_extra_call(tmp_path: Path) -> None:
    restarts(tmp_path, 200)


def test_a_full_pipe_that_nobody_reads_does_not_stop_the_daemon(tmp_path: Path) -> None:
    read, write = os.pipe()
    chatty = job("for n in range(20000): print('x' * 50)", every="1s")
    daemon = FaultDaemon(tmp_path, {"chatty": chatty}, "[jobs.chatty]\n")
    daemon.stderr = write
    try:
        with daemon:
            daemon.until_job("chatty", lambda entry: entry["last_run"] and entry["last_run"]["id"] >= 2)
            assert daemon.status()["log_lines_dropped"] > 0
    finally:
        os.close(read)
        os.close(write)


def test_a_job_that_talks_nonsense_to_the_daemon_is_replaced_and_nobody_else(tmp_path: Path) -> None:
    nonsense = job(
        """
        if os.path.exists(os.environ["ONCE"]): return
        open(os.environ["ONCE"], "w").close()
        import stat
        for fd in map(int, os.listdir("/proc/self/fd")):
            try:
                if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, b"\\xff" * 5000)
            except OSError: pass
        while True: time.sleep(1)
        """
    )
    env = {"ONCE": str(tmp_path / "once")}
    with FaultDaemon(tmp_path, {"bad": nonsense, "good": WAITS}, jobs(["bad", "good"]), env=env) as daemon:
        good = daemon.until_state("good", "RUNNING")
        daemon.until_job("bad", lambda entry: entry["restarts"] >= 1 and entry["state"] == "RUNNING")
        assert daemon.job("good")["pid"] == good["pid"]


def test_an_orphan_of_an_orphan_is_reaped(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                open(os.environ["PIDS"], "w").write(str(os.getpid()))
                time.sleep(0.3)
            os._exit(0)
        os.wait()
        """
    with FaultDaemon(tmp_path, {"it": job(body)}, "[jobs.it]\n", env={"PIDS": str(pids)}) as daemon:
        orphan = int(until(lambda: pids.exists() and pids.read_text()))
        until(lambda: not alive(orphan))
        until(lambda: not Path(f"/proc/{orphan}").exists(), timeout=2, what="the zombie is reaped")
        assert daemon.job("it")["restarts"] == 0


def test_a_grandchild_that_keeps_the_pipes_open_holds_nothing_up(tmp_path: Path) -> None:
    body: Any = """
        if not os.path.exists(os.environ["ONCE"]):
            open(os.environ["ONCE"], "w").close()
            if os.fork() == 0:
                os.setsid()
                time.sleep(3)
                os._exit(0)
            os._exit(3)
        """
    env = {"ONCE": str(tmp_path / "once")}
    with FaultDaemon(tmp_path, {"it": job(body)}, "[jobs.it]\nbackoff = '50ms'\n", env=env) as daemon:
        until(lambda: (tmp_path / "once").exists())
        took = seconds(lambda: daemon.until_job("it", lambda entry: entry["restarts"] == 1 and entry["last_run"]))
        assert took < 2


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_20_000_runs_of_one_job_leave_the_daemons_memory_flat(tmp_path: Path) -> None:
    toml = "[jobs.it]\nevery = '2ms'\ntimeout = '30d'\nheartbeat_timeout = '1h'\n"
    with FaultDaemon(tmp_path, {"it": QUIET}, toml) as daemon:
        sizes = []
        for runs in (2000, 20_000):
            daemon.until_job("it", lambda it, runs=runs: it["last_run"] and it["last_run"]["id"] >= runs, 3000)  # type: ignore[misc]
            sizes.append(resident(daemon.pid))
        print(f"{sizes[0]:,} bytes after 2,000 runs, {sizes[1]:,} after 20,000")
        assert sizes[1] - sizes[0] < 512 * 1024
