"""Signals that nobody wants: to jobs, to the daemon, to its guardian."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from daemon import QUIET, SERVICE, WAITS, alive, job, until
from faults.helpers import DEAF, EVERY_SECOND, FaultDaemon, descriptors, drift, jobs, seconds, zombies

from stellerd.signals import asked_again


def is_up_again(old: int | None) -> Callable[[dict[str, Any]], bool]:
    """Whether another process than `old` runs."""
    return lambda entry: bool(entry["state"] == "RUNNING" and entry["pid"] != old)


def kill_at_random(daemon: FaultDaemon, names: list[str], times: int) -> None:
    """SIGKILL to jobs picked at random, to each one only when it runs again."""
    dice = random.Random(7)
    killed: dict[str, int] = {}
    for _ in range(times):
        name = dice.choice(names)
        entry = daemon.until_job(name, is_up_again(killed.get(name)))
        killed[name] = entry["pid"]
        os.kill(entry["pid"], signal.SIGKILL)
    for name in names:
        daemon.until_job(name, is_up_again(killed.get(name)))


def test_500_random_kills_are_500_restarts_without_a_zombie_or_a_lost_descriptor(tmp_path: Path) -> None:
    names = [f"j{n}" for n in range(8)]
    toml = jobs(names, "settle = '1ms'\nbackoff = '1ms'\nbackoff_cap = '1ms'\n") + "[jobs.other]\n"
    with FaultDaemon(tmp_path, dict.fromkeys(names, WAITS) | {"other": EVERY_SECOND}, toml) as daemon:
        other = daemon.until_job("other", lambda entry: entry["last_run"])
        kill_at_random(daemon, names, 20)  # whatever is opened once is open now
        before = descriptors(daemon.pid)
        kill_at_random(daemon, names, 480)
        assert sum(daemon.job(name)["restarts"] for name in names) == 500
        assert len(daemon.events("died")) == 500
        assert zombies(daemon.pid) == []
        assert len(daemon.children()) == len(names) + 2
        assert descriptors(daemon.pid) == before
        assert daemon.job("other")["pid"] == other["pid"]
        assert drift(daemon, "other") < 1


def test_nothing_of_20_deaf_jobs_with_grandchildren_is_left_1_s_after_the_daemon_was_killed(tmp_path: Path) -> None:
    body = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sh", "-c", "trap '' TERM; while :; do sleep 600; done"])
        open(os.environ["PIDS"], "a").write(f"{child.pid}\\n")
        ctx.wait(0)
        while True: time.sleep(1)
        """
    pids, names = tmp_path / "pids", [f"j{n}" for n in range(20)]
    with FaultDaemon(
        tmp_path, dict.fromkeys(names, job(body, extra=SERVICE)), jobs(names), env={"PIDS": str(pids)}
    ) as daemon:
        until(lambda: pids.exists() and len(pids.read_text().split()) == 20, what="20 grandchildren")
        everybody = {process.pid for process in psutil.Process(daemon.pid).children(recursive=True)}
        assert everybody > {int(pid) for pid in pids.read_text().split()}
        assert len(everybody) >= 41
        os.kill(daemon.pid, signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in everybody), timeout=1.0, what="all gone")


def test_a_job_stopped_between_two_runs_is_replaced_within_its_heartbeat_timeout_and_2_s(tmp_path: Path) -> None:
    toml = "[jobs.it]\nheartbeat_timeout = '500ms'\nbackoff = '50ms'\n"
    with FaultDaemon(tmp_path, {"it": QUIET}, toml) as daemon:
        daemon.until_job("it", lambda entry: entry["last_run"] and not entry["run"])
        before = daemon.kill_job("it", signal.SIGSTOP)
        took = seconds(lambda: daemon.until_replaced(before))
        assert 0.5 <= took < 2.5
        assert [line["cause"] for line in daemon.events("died")] == ["heartbeat: stopped by a signal for 500ms"]


def test_a_job_stopped_in_a_run_is_replaced_and_the_run_is_a_timeout(tmp_path: Path) -> None:
    toml = "[jobs.it]\nheartbeat_timeout = '600ms'\nbackoff = '50ms'\n"
    body = "if not os.path.exists('once'):\n    open('once', 'w').close()\n    ctx.wait(60)"
    with FaultDaemon(tmp_path, {"it": job(body)}, toml + f"cwd = '{tmp_path}'\n") as daemon:
        daemon.until_job("it", lambda entry: entry["run"])
        before = daemon.kill_job("it", signal.SIGSTOP)
        took = seconds(lambda: daemon.until_replaced(before))
        assert took < 2.6
        ended = daemon.until_job("it", lambda entry: entry["last_run"])["last_run"]
        assert (ended["state"], ended["pid"]) == ("timeout", before["pid"])
        assert "heartbeat" in ended["reason"]


def test_a_job_that_is_stopped_and_continued_in_time_is_left_alone(tmp_path: Path) -> None:
    with FaultDaemon(tmp_path, {"it": QUIET}, "[jobs.it]\nheartbeat_timeout = '700ms'\n") as daemon:
        daemon.until_job("it", lambda entry: entry["last_run"])
        before = daemon.kill_job("it", signal.SIGSTOP)
        until(lambda: daemon.events("a process was stopped by a signal"))
        os.kill(before["pid"], signal.SIGCONT)
        asked = time.monotonic()
        until(lambda: time.monotonic() - asked > 1.0)  # the look at it is over by then
        assert daemon.job("it")["pid"] == before["pid"]
        assert not daemon.events("died")


def test_a_job_that_ignores_sigterm_is_stopped_within_its_grace_and_1_s(tmp_path: Path) -> None:
    with FaultDaemon(tmp_path, {"deaf": DEAF}, "[jobs.deaf]\nstop_grace = '500ms'\n") as daemon:
        daemon.until_state("deaf", "RUNNING")

        def stop() -> None:
            daemon.ask("stop", job="deaf")
            daemon.until_state("deaf", "STOPPED")

        assert 0.5 <= seconds(stop) < 1.5


def test_a_stopped_job_hears_sigterm(tmp_path: Path) -> None:
    with FaultDaemon(tmp_path, {"it": WAITS}, "[jobs.it]\nstop_grace = '20s'\n") as daemon:
        daemon.kill_job("it", signal.SIGSTOP)
        assert seconds(daemon.end) < 5
        assert not daemon.events("killed: did not end within its grace")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_guardian_that_is_killed_or_stopped_is_replaced_and_no_job_notices(tmp_path: Path, number: int) -> None:
    with FaultDaemon(tmp_path, {"a": WAITS, "b": WAITS}, "[jobs.a]\n[jobs.b]\n") as daemon:
        pids = {daemon.until_state(name, "RUNNING")["pid"] for name in "ab"}
        before = descriptors(daemon.pid)
        for count in range(1, 21):
            [guardian] = set(daemon.children()) - pids
            os.kill(guardian, number)
            until(lambda: len(daemon.events("the guardian was killed; a new one is started")) == count)  # noqa: B023
            until(lambda: len(daemon.children()) == 3)
        assert {daemon.job(name)["pid"] for name in "ab"} == pids
        until(lambda: descriptors(daemon.pid) <= before)  # the client of the count may have been one
        assert zombies(daemon.pid) == []
        os.kill(daemon.pid, signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in pids), timeout=1.0)


def test_a_second_sigterm_kills_what_is_left_and_still_exits_0(tmp_path: Path) -> None:
    with FaultDaemon(tmp_path, {"a": DEAF, "b": DEAF, "c": WAITS}, jobs("abc", "stop_grace = '60s'\n")) as daemon:
        pids = {daemon.until_state(name, "RUNNING")["pid"] for name in "abc"}
        os.kill(daemon.pid, signal.SIGTERM)
        asked = time.monotonic()
        until(lambda: daemon.status()["stopping"] and asked_again(time.monotonic() - asked - 0.1))
        assert {daemon.job(name)["pid"] for name in "ab"} < pids
        assert seconds(lambda: daemon.end()) < 2
        assert daemon.process is not None
        assert daemon.process.returncode == 0
        assert not any(alive(pid) for pid in pids)


def test_the_deadline_for_all_is_stop_timeout_whatever_the_graces_are(tmp_path: Path) -> None:
    toml = HEAD_WITH_TIMEOUT + jobs("ab", "stop_grace = '60s'\n")
    with FaultDaemon(tmp_path, {"a": DEAF, "b": DEAF}, toml) as daemon:
        for name in "ab":
            daemon.until_state(name, "RUNNING")
        assert 0.5 <= seconds(daemon.end) < 2.5


HEAD_WITH_TIMEOUT = '[supervisor]\nholds = "holds.json"\nsocket = "control.sock"\nstop_timeout = "500ms"\n'


def test_stop_signal_is_what_the_job_gets(tmp_path: Path) -> None:
    body = """
        heard = []
        signal.signal(signal.SIGTERM, lambda *args: heard.append("TERM"))
        signal.signal(signal.SIGUSR2, lambda *args: heard.append("USR2"))
        ctx.wait(0)
        while not heard: time.sleep(0.01)
        open(os.environ["HEARD"], "w").write(",".join(heard))
        """
    heard = tmp_path / "heard"
    with FaultDaemon(
        tmp_path, {"it": job(body, extra=SERVICE)}, "[jobs.it]\nstop_signal = 'USR2'\n", env={"HEARD": str(heard)}
    ) as daemon:
        daemon.until_state("it", "RUNNING")
        daemon.ask("stop", job="it")
        daemon.until_state("it", "STOPPED")
        assert heard.read_text() == "USR2"


@pytest.mark.parametrize("stop_signal", ["TERM", "USR2"])
def test_sigquit_puts_the_stacks_of_daemon_and_jobs_into_the_log_and_ends_nobody(
    tmp_path: Path, stop_signal: str
) -> None:
    asleep = job("ctx.wait(0)\nwhile not ctx.wait(60): pass", extra=SERVICE)
    toml = jobs("ab", f"stop_signal = '{stop_signal}'\n")
    with FaultDaemon(tmp_path, {"a": asleep, "b": asleep}, toml) as daemon:
        pids = {name: daemon.until_state(name, "RUNNING")["pid"] for name in "ab"}
        os.kill(daemon.pid, signal.SIGQUIT)
        for name in "ab":
            until(lambda: any(f"plugin_{name}.py" in str(line["event"]) for line in daemon.logs()))  # noqa: B023
        until(lambda: "loop.py" in daemon.log_file.read_text())
        assert {name: daemon.job(name)["pid"] for name in "ab"} == pids
        assert daemon.end() == 0
        assert not daemon.events("died")
