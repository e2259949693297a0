"""Observers hear of the runs of every job of the daemon, each in its own process, and harm nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from daemon import QUIET, WAITS, Daemon, job, until

HOOKS = """
import json
from pathlib import Path
from stellerd import hookimpl
FILE = Path(__file__).with_suffix(".heard")
def note(hook, job, run):
    with FILE.open("a") as stream:
        stream.write(json.dumps([hook, job, run["id"], run.get("state")]) + "\\n")
@hookimpl
def stellerd_run_started(job, run):
    note("started", job, run)
@hookimpl
def stellerd_run_finished(job, run):
    note("finished", job, run)
"""


def heard(daemon: Daemon, name: str) -> list[list[Any]]:
    """[hook, job, run id, state] of each call, as they came."""
    lines = [line for file in daemon.folder.rglob(f"*{name}*.heard") for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "plugin", [HOOKS, QUIET + HOOKS, WAITS + HOOKS], ids=["observers only", "periodic job", "service"]
)
def test_an_observer_hears_of_the_runs_of_other_jobs(tmp_path: Path, plugin: str) -> None:
    toml = "[jobs.sees]\n[jobs.works]\nafter = ['sees']\n"
    with Daemon(tmp_path, {"sees": plugin, "works": QUIET}, toml) as daemon:
        run = daemon.until_job("works", lambda entry: entry["last_run"])["last_run"]
        wanted = [["started", "works", run["id"], None], ["finished", "works", run["id"], "ok"]]
        until(lambda: [call for call in heard(daemon, "sees") if call[1] == "works"] == wanted)
        assert daemon.job("sees")["state"] == "RUNNING"


def test_an_observer_hears_of_its_own_runs_once(tmp_path: Path) -> None:
    with Daemon(tmp_path, {"it": QUIET + HOOKS}, "[jobs.it]\n") as daemon:
        run = daemon.until_job("it", lambda entry: entry["last_run"])["last_run"]
        assert heard(daemon, "it") == [["started", "it", run["id"], None], ["finished", "it", run["id"], "ok"]]


def test_an_observer_hears_of_a_run_that_died(tmp_path: Path) -> None:
    dies = job("os._exit(3) if not os.path.exists('once') and not open('once', 'w').close() else None")
    toml = f"[jobs.sees]\n[jobs.dies]\nafter = ['sees']\ncwd = '{tmp_path}'\n"
    with Daemon(tmp_path, {"sees": HOOKS, "dies": dies}, toml) as daemon:
        until(lambda: any(call[0] == "finished" and call[3] == "crashed" for call in heard(daemon, "sees")))


def test_an_observer_that_raises_or_dies_harms_nobody(tmp_path: Path) -> None:
    bad = HOOKS.replace('note("started", job, run)', "1 / 0").replace(
        'note("finished", job, run)', "import os; os._exit(1)"
    )
    toml = "[jobs.sees]\n[jobs.works]\nafter = ['sees']\n"
    with Daemon(tmp_path, {"sees": bad, "works": QUIET}, toml) as daemon:
        daemon.until_job("sees", lambda entry: entry["restarts"])
        assert daemon.job("works")["last_run"]["state"] == "ok"
        assert daemon.job("works")["restarts"] == 0
        assert any(line.get("hook") == "stellerd_run_started" for line in daemon.logs())


def test_an_observer_that_does_not_read_misses_what_it_has_no_room_for(tmp_path: Path) -> None:
    """Its neighbours and the daemon do not wait for it."""
    slow = HOOKS.replace('note("started", job, run)', "import time; time.sleep(60)")
    toml = "[jobs.sees]\n[jobs.works]\nafter = ['sees']\nevery = '20ms'\n"
    noisy = job("ctx.count(**{f'counter_{n}' * 20: n for n in range(200)})")
    with Daemon(tmp_path, {"sees": slow, "works": noisy}, toml) as daemon:
        daemon.until_job("works", lambda entry: entry["last_run"] and entry["last_run"]["id"] > 40)
        assert daemon.job("sees")["state"] == "RUNNING"


def test_an_observer_hears_of_a_run_that_the_daemon_was_asked_for(tmp_path: Path) -> None:
    toml = "[jobs.sees]\n[jobs.works]\nenabled = false\n"
    with Daemon(tmp_path, {"sees": HOOKS, "works": QUIET}, toml) as daemon:
        daemon.until_state("sees", "RUNNING")
        run = json.loads(daemon.cli("run-once", "works", "--json").stdout)["run"]
        wanted = [["started", "works", run["id"], None], ["finished", "works", run["id"], "ok"]]
        until(lambda: heard(daemon, "sees") == wanted)


def test_an_observer_without_a_job_has_nothing_to_run_once(tmp_path: Path) -> None:
    result = Daemon(tmp_path, {"sees": HOOKS}, "[jobs.sees]\n").cli("run-once", "sees")
    assert result.returncode == 2
    assert "sees has no run: its plugin only observes" in result.stderr


def test_check_takes_an_observer_without_a_job(tmp_path: Path) -> None:
    result = Daemon(tmp_path, {"sees": HOOKS}, "[jobs.sees]\n").cli("check")
    assert (result.returncode, "sees: ok" in result.stdout) == (0, True), result.stderr
