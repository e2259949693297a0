"""Reloads: exactly what changed changes, however often, and at the worst moments."""

from __future__ import annotations

import os
import signal
from datetime import datetime
from pathlib import Path

import pytest
from daemon import QUIET, SERVICE, WAITS, job, until
from faults.helpers import DEAF, FaultDaemon, jobs, seconds

TEN = [f"j{n}" for n in range(10)]


def next_slot(daemon: FaultDaemon, name: str) -> datetime:
    """Of the job's next run."""
    entry = daemon.until_job(name, lambda entry: entry["last_run"] and entry["next_run"])
    return datetime.fromisoformat(entry["next_run"]["slot"])


def test_an_interval_of_one_of_ten_jobs_moves_its_next_slot_and_restarts_nobody(tmp_path: Path) -> None:
    toml = jobs(TEN, "every = '1h'\n")
    with FaultDaemon(tmp_path, dict.fromkeys(TEN, QUIET), toml) as daemon:
        slots = {name: next_slot(daemon, name) for name in TEN}
        pids = {name: daemon.job(name)["pid"] for name in TEN}
        daemon.write(toml.replace("[jobs.j3]\nevery = '1h'", "[jobs.j3]\nevery = '10m'"))
        os.kill(daemon.pid, signal.SIGHUP)
        until(lambda: daemon.events("reloaded"))
        daemon.until_job("j3", lambda entry: entry["every"] == 600)
        until(lambda: next_slot(daemon, "j3") != slots["j3"])
        assert (slots["j3"] - next_slot(daemon, "j3")).total_seconds() == 3000
        assert {name: next_slot(daemon, name) for name in TEN if name != "j3"} == {
            name: slot for name, slot in slots.items() if name != "j3"
        }
        assert {name: daemon.job(name)["pid"] for name in TEN} == pids
        assert sum(daemon.job(name)["restarts"] for name in TEN) == 0
        [line] = daemon.events("reloaded")
        assert line["changes"] == [{"key": "jobs.j3.every", "old": "1h", "new": "10m", "effect": "live"}]


def test_a_reload_adds_removes_and_restarts_exactly_the_right_jobs(tmp_path: Path) -> None:
    plugins = dict.fromkeys(["kept", "removed", "disabled", "changed", "added"], WAITS)
    before = "[jobs.kept]\n[jobs.removed]\n[jobs.disabled]\n[jobs.changed]\n"
    after = "[jobs.kept]\n[jobs.disabled]\nenabled = false\n[jobs.changed]\nenv = { A = 'b' }\n[jobs.added]\n"
    with FaultDaemon(tmp_path, plugins, before) as daemon:
        pids = {name: daemon.until_state(name, "RUNNING")["pid"] for name in list(plugins)[:4]}
        daemon.write(after)
        daemon.ask("reload")
        daemon.until_state("added", "RUNNING")
        daemon.until_job("changed", lambda entry: entry["state"] == "RUNNING" and entry["pid"] != pids["changed"])
        until(lambda: [entry["job"] for entry in daemon.status()["jobs"]] == ["kept", "changed", "added"])
        assert daemon.job("kept")["pid"] == pids["kept"]
        assert {entry["restarts"] for entry in daemon.status()["jobs"]} == {0}
        daemon.write(before)
        daemon.ask("reload")
        daemon.until_state("removed", "RUNNING")
        until(lambda: len(daemon.status()["jobs"]) == 4)
        assert daemon.job("kept")["pid"] == pids["kept"]


def test_a_job_that_is_removed_while_it_waits_for_another_never_starts(tmp_path: Path) -> None:
    slow = job("while not os.path.exists(os.environ['GO']): time.sleep(0.01)\nctx.wait(60)", extra=SERVICE)
    went = tmp_path / "went"
    late = job("open(os.environ['WENT'], 'w').close()\nctx.wait(60)", extra=SERVICE)
    env = {"GO": str(tmp_path / "go"), "WENT": str(went)}
    toml = "[jobs.slow]\n[jobs.late]\nafter = ['slow']\n"
    with FaultDaemon(tmp_path, {"slow": slow, "late": late}, toml, env=env) as daemon:
        assert daemon.job("late")["reason"] == "waits for slow"
        daemon.write("[jobs.slow]\n")
        daemon.ask("reload")
        (tmp_path / "go").touch()
        daemon.until_state("slow", "RUNNING")
        assert [entry["job"] for entry in daemon.status()["jobs"]] == ["slow"]
        assert len(daemon.children()) == 2
        daemon.kill_job("slow")  # a whole restart later it has still not come up
        daemon.until_job("slow", lambda entry: entry["restarts"] == 1 and entry["state"] == "RUNNING")
        assert not went.exists()


def test_a_reload_during_the_shutdown_starts_nothing(tmp_path: Path) -> None:
    toml = "[jobs.deaf]\nstop_grace = '1s'\n"
    with FaultDaemon(tmp_path, {"deaf": DEAF, "new": DEAF}, toml) as daemon:
        daemon.until_state("deaf", "RUNNING")
        os.kill(daemon.pid, signal.SIGTERM)
        until(lambda: daemon.status()["stopping"])
        daemon.write(toml + "[jobs.new]\nstop_grace = '60s'\n")
        os.kill(daemon.pid, signal.SIGHUP)
        assert daemon.process is not None
        assert seconds(lambda: daemon.process and daemon.process.wait(10)) < 2.5
        assert daemon.process.returncode == 0
        assert not daemon.events("ready", job="new")


@pytest.mark.parametrize("size", [200, 50_000], ids=["small file", "large file"])
def test_a_job_that_is_busy_through_many_reloads_obeys_the_last_one(tmp_path: Path, size: int) -> None:
    """Its end of the line is full long before it reads again."""
    body = "while not os.path.exists(os.environ['GO']): time.sleep(0.01)"
    comment = "# " + "x" * size + "\n"
    with FaultDaemon(tmp_path, {"it": job(body)}, "[jobs.it]\n", env={"GO": str(tmp_path / "go")}) as daemon:
        before = daemon.until_job("it", lambda entry: entry["run"])
        for n in range(3, 603 if size < 1000 else 23):
            daemon.write(f"{comment}[jobs.it]\nevery = '{n}h'\n")
            daemon.ask("reload")
        assert daemon.job("it")["run"], "it was to be busy all the time"
        (tmp_path / "go").touch()
        daemon.until_job("it", lambda entry: entry["last_run"])
        daemon.until_job("it", lambda entry: entry["every"] == n * 3600)
        assert daemon.job("it")["pid"] == before["pid"]


def test_a_reload_of_a_plugins_wrong_settings_is_refused_by_that_job_alone(tmp_path: Path) -> None:
    with FaultDaemon(tmp_path, {"a": QUIET, "b": QUIET}, "[jobs.a]\n[jobs.b]\n") as daemon:
        pids = {name: daemon.until_job(name, lambda entry: entry["last_run"])["pid"] for name in "ab"}
        daemon.write("[jobs.a]\nsettings = { nonsense = 1 }\n[jobs.b]\nevery = '2h'\n")
        daemon.ask("reload")
        until(lambda: daemon.events("reload refused; the old settings stay in force", job="a"))
        daemon.until_job("b", lambda entry: entry["every"] == 7200)
        assert {name: daemon.job(name)["pid"] for name in "ab"} == pids


def test_the_values_of_env_are_in_no_report_of_a_reload(tmp_path: Path) -> None:
    with FaultDaemon(tmp_path, {"it": WAITS}, "[jobs.it]\nenv = { KEY = 'old-canary' }\n") as daemon:
        before = daemon.until_state("it", "RUNNING")
        daemon.write("[jobs.it]\nenv = { KEY = 'new-canary' }\n")
        reply = daemon.ask("reload")
        daemon.until_replaced(before)
        assert [change["key"] for change in reply["changes"]] == ["jobs.it.env"]
        assert "canary" not in str(reply) + daemon.log_file.read_text() + daemon.cli("status", "--json").stdout


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x = " + "[" * 3000, "Nested more than 32 deep"),
        (f"[jobs.it]\nmax_runs = {'9' * 5000}\n", "A number of 5,000 characters"),
        (f"[jobs.it.settings]\nx = {'[' * 300}{']' * 300}\n", "Nested more than 32 deep"),
        ("[jobs.it]\nmax_runs = 0x" + "f" * 90, "A whole number of more than 64 bits"),
        ("", "no [jobs.NAME] table: there is nothing to run"),
    ],
    ids=["brackets", "digits", "arrays", "hexadecimal", "empty"],
)
def test_no_file_ends_the_daemon_or_a_command(tmp_path: Path, text: str, why: str) -> None:
    with FaultDaemon(tmp_path, {"it": WAITS}, "[jobs.it]\n") as daemon:
        pid = daemon.until_state("it", "RUNNING")["pid"]
        base = daemon.config.read_text().removesuffix("[jobs.it]\n")
        daemon.config.write_text(base + text)
        os.kill(daemon.pid, signal.SIGHUP)
        until(lambda: daemon.events("reload refused; the old configuration stays in force"))
        for command in ("reload", "check"):
            done = daemon.cli(command)
            assert (done.returncode, "Traceback" in done.stderr) == (78, False), done.stderr
            assert why in done.stderr
        assert daemon.job("it")["pid"] == pid


def test_a_reload_while_the_file_is_away_or_unreadable_changes_nothing(tmp_path: Path) -> None:
    with FaultDaemon(tmp_path, {"it": WAITS}, "[jobs.it]\n") as daemon:
        pid = daemon.until_state("it", "RUNNING")["pid"]
        for spoil in (lambda: None, lambda: daemon.config.write_bytes(b"\xff\xfe"), daemon.config.mkdir):
            daemon.config.unlink(missing_ok=True)
            spoil()
            said = len(daemon.events("reload refused; the old configuration stays in force"))
            os.kill(daemon.pid, signal.SIGHUP)
            until(lambda: len(daemon.events("reload refused; the old configuration stays in force")) > said)  # noqa: B023
        assert daemon.job("it")["pid"] == pid


def test_what_needs_a_restart_of_the_daemon_stays_for_all_that_it_forks(tmp_path: Path) -> None:
    """Neither a process that is restarted nor one that hears of the new file goes to another state store."""
    head = '[supervisor]\nholds = "holds.json"\nsocket = "control.sock"\n'
    state = '[state]\nurl = "sqlite:///{}.db"\nhost = "{}"\n'
    body = "return Skipped(ctx.host)"
    with FaultDaemon(tmp_path, {"it": job(body)}, head + state.format("old", "north") + "[jobs.it]\n") as daemon:
        daemon.until_job("it", lambda entry: entry["last_run"] and entry["next_run"])
        daemon.write(head + state.format("new", "south") + "[jobs.it]\nevery = '2h'\n")
        for _ in range(2):  # it is said as long as it is so
            changed = {change["key"]: change["effect"] for change in daemon.ask("reload")["changes"]}
            assert changed.items() >= {"state.url": "daemon", "state.host": "daemon"}.items()
        daemon.until_job("it", lambda entry: entry["every"] == 7200)
        for number in (2, 3):
            daemon.ask("trigger", job="it")
            entry = daemon.until_job("it", lambda it, number=number: it["last_run"] and it["last_run"]["id"] == number)  # type: ignore[misc]
            last = entry["last_run"]
            assert (last["host"], last["reason"]) == ("north", "north")
            daemon.until_replaced(daemon.kill_job("it"))
        assert not (tmp_path / "new.db").exists()


def test_a_process_is_stopped_by_the_signal_that_it_knows(tmp_path: Path) -> None:
    """A run goes on through a reload of stop_signal, and its process cannot have heard of the new one yet."""
    body = "open('begun', 'w').close()\nctx.wait(60)\nopen('ended', 'w').close()"
    toml = f"[jobs.it]\ncwd = '{tmp_path}'\n"
    with FaultDaemon(tmp_path, {"it": job(body)}, toml) as daemon:
        daemon.until_job("it", lambda entry: entry["run"] and (tmp_path / "begun").exists())
        daemon.write(f"{toml}stop_signal = 'USR1'\n")
        daemon.ask("reload")
        daemon.ask("stop", job="it")
        daemon.until_state("it", "STOPPED")
        assert (tmp_path / "ended").exists()


def test_a_process_that_heard_of_a_new_stop_signal_obeys_it(tmp_path: Path) -> None:
    body = "if ctx.trigger == 'operator':\n    open('begun', 'w').close()\n    ctx.wait(60)\n    os.mkdir('ended')"
    toml = f"[jobs.it]\ncwd = '{tmp_path}'\n"
    with FaultDaemon(tmp_path, {"it": job(body)}, toml) as daemon:
        daemon.until_job("it", lambda entry: entry["last_run"] and entry["next_run"])
        daemon.write(f"{toml}stop_signal = 'USR1'\nevery = '2h'\n")
        daemon.ask("reload")
        pid = daemon.until_job("it", lambda entry: entry["every"] == 7200)["pid"]
        daemon.ask("trigger", job="it")
        until((tmp_path / "begun").exists)
        os.kill(pid, signal.SIGUSR1)
        until((tmp_path / "ended").exists)
        daemon.until_replaced({"job": "it", "pid": pid})


def test_a_run_that_was_waiting_when_a_heartbeat_came_is_not_missed_at_it(tmp_path: Path) -> None:
    body = "while not os.path.exists('go'): time.sleep(0.01)\nif ctx.trigger == 'operator': time.sleep(1)"
    toml = f"[jobs.it]\ncwd = '{tmp_path}'\n"
    with FaultDaemon(tmp_path, {"it": job(body)}, toml) as daemon:
        pid = daemon.until_job("it", lambda entry: entry["run"])["pid"]
        daemon.ask("trigger", job="it")
        daemon.write(f"{toml}heartbeat_timeout = '300ms'\n")
        daemon.ask("reload")
        (tmp_path / "go").touch()
        last = daemon.until_job("it", lambda entry: entry["last_run"] and entry["last_run"]["trigger"] == "operator")
        assert (last["last_run"]["state"], last["pid"]) == ("ok", pid)
