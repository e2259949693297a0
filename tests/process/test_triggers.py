"""An accepted trigger is never lost: not with its process, not to a limit, not to whoever has the job just now."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon, job, until

GATED = "while not os.path.exists(os.environ['GO']) and not ctx.wait(0.01): pass\n"
JOINS = "a run is already waiting; this trigger joins it"


def runs(daemon: Daemon, name: str = "it") -> list[dict[str, Any]]:
    """All runs of the job, oldest first."""
    listed = json.loads(daemon.cli("history", name, "--json", "-n", "100").stdout)["runs"]
    return list(reversed(listed))


def triggered(daemon: Daemon, after: int = 0) -> dict[str, Any]:
    """The last run once it is one that an operator asked for."""
    entry = daemon.until_job(
        "it", lambda it: it["last_run"] and it["last_run"]["id"] > after and it["last_run"]["trigger"] == "operator"
    )
    last: dict[str, Any] = entry["last_run"]
    return last


@pytest.fixture
def go(tmp_path: Path) -> Path:
    return tmp_path / "go"


def test_a_trigger_during_the_last_run_of_a_process_is_the_next_ones(tmp_path: Path, go: Path) -> None:
    plugins, env = {"it": job(GATED)}, {"GO": str(go)}
    with Daemon(tmp_path, plugins, "[jobs.it]\nmax_runs = 1\n", env=env) as daemon:
        daemon.until_job("it", lambda it: it["run"])
        assert daemon.ask("trigger", job="it")["note"] == ""
        assert {daemon.ask("trigger", job="it")["note"] for _ in range(3)} == {JOINS}
        go.touch()
        triggered(daemon)
        daemon.until_job("it", lambda it: it["restarts"] == 2 and it["next_run"])
        assert [run["trigger"] for run in runs(daemon)] == ["schedule", "operator"]


def test_a_trigger_whose_process_is_killed_before_it_knew_is_the_next_ones(tmp_path: Path, go: Path) -> None:
    plugins, env = {"it": job(GATED)}, {"GO": str(go)}
    with Daemon(tmp_path, plugins, "[jobs.it]\n", env=env) as daemon:
        pid = daemon.until_job("it", lambda it: it["run"])["pid"]
        daemon.ask("trigger", job="it")
        os.kill(pid, signal.SIGKILL)
        go.touch()  # the lost slot is tried again too, before it or right behind it
        until(lambda: [run for run in runs(daemon) if (run["trigger"], run["state"]) == ("operator", "ok")])


def test_a_trigger_outlives_the_daemon_once_its_process_was_asked_to_end(tmp_path: Path, go: Path) -> None:
    plugins, env = {"it": job(GATED)}, {"GO": str(go)}
    with Daemon(tmp_path, plugins, "[jobs.it]\n", env=env) as daemon:
        daemon.until_job("it", lambda it: it["run"])
        daemon.ask("trigger", job="it")
        os.kill(daemon.pid, signal.SIGTERM)
        assert daemon.process
        assert daemon.process.wait(10) == 0
    go.touch()
    with Daemon(tmp_path, plugins, "[jobs.it]\n", env=env) as daemon:
        assert triggered(daemon)["state"] == "ok"


def test_a_trigger_while_run_once_has_the_job_waits_for_it(tmp_path: Path, go: Path) -> None:
    source = job(f"if ctx.trigger == 'manual':\n    {GATED.strip()}")
    with Daemon(tmp_path, {"it": source}, "[jobs.it]\n", env={"GO": str(go)}) as daemon:
        daemon.until_job("it", lambda it: it["last_run"] and it["next_run"])
        command = [sys.executable, "-m", "stellerd.cli", "-c", str(daemon.config), "run-once", "it"]
        with subprocess.Popen(command, env=daemon.env, stderr=subprocess.DEVNULL) as manual:
            until(lambda: runs(daemon)[-1]["trigger"] == "manual")
            daemon.ask("trigger", job="it")
            daemon.until_job("it", lambda it: "held by" in it["reason"])
            assert daemon.ask("trigger", job="it")["note"] == JOINS
            go.touch()
            assert manual.wait(20) == 0
        triggered(daemon)
        assert [run["trigger"] for run in runs(daemon)] == ["schedule", "manual", "operator"]


@pytest.mark.parametrize("how", ["Deferred", "RateLimited"])
def test_a_triggered_run_that_is_deferred_comes_back_by_itself(tmp_path: Path, how: str) -> None:
    later = "datetime.now(UTC) + timedelta(seconds=0.5)"
    ends = {
        "Deferred": f"return Deferred({later}, 'not yet')",
        "RateLimited": f"raise errors.RateLimited('b', {later})",
    }
    body = f"""
        from datetime import UTC, datetime, timedelta
        if ctx.trigger == "operator" and not os.path.exists(os.environ["GO"]):
            open(os.environ["GO"], "w").close()
            {ends[how]}
    """
    with Daemon(tmp_path, {"it": job(body)}, "[jobs.it]\n", env={"GO": str(tmp_path / "go")}) as daemon:
        daemon.until_job("it", lambda it: it["last_run"] and it["next_run"])
        daemon.ask("pause", job="it")
        daemon.ask("trigger", job="it")
        daemon.until_job("it", lambda it: it["last_run"]["state"] == "deferred" and it["next_run"])
        waits = daemon.job("it")["next_run"]
        assert (waits["trigger"], waits["slot"]) == ("operator", None)
        assert daemon.cli("next").returncode == 0
        daemon.until_job("it", lambda it: it["last_run"]["state"] == "ok")
        assert [(run["trigger"], run["state"]) for run in runs(daemon)] == [
            ("schedule", "ok"), ("operator", "deferred"), ("operator", "ok"),
        ]  # fmt: skip
        daemon.until_job("it", lambda it: it["next_run"] and it["next_run"]["trigger"] == "schedule")


def test_a_triggered_run_that_is_stopped_is_gone_on_with(tmp_path: Path, go: Path) -> None:
    body = "if ctx.trigger == 'operator' and ctx.wait(0 if os.path.exists(os.environ['GO']) else 60):\n"
    body += "    raise errors.JobFailed('cut short')"
    plugins, env = {"it": job(body)}, {"GO": str(go)}
    with Daemon(tmp_path, plugins, "[jobs.it]\n", env=env) as daemon:
        daemon.until_job("it", lambda it: it["last_run"] and it["next_run"])
        daemon.ask("trigger", job="it")
        daemon.until_job("it", lambda it: it["run"])
        os.kill(daemon.pid, signal.SIGTERM)
        assert daemon.process
        assert daemon.process.wait(10) == 0
        last = runs(daemon)[-1]
        assert (last["state"], "cut short" in last["reason"]) == ("deferred", True)
    go.touch()
    with Daemon(tmp_path, plugins, "[jobs.it]\n", env=env) as daemon:
        assert triggered(daemon, last["id"])["state"] == "ok"
