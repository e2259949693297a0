"""What an operator does to a running daemon: reload, pause, stop, logs, next; and what survives its restart."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest
from daemon import QUIET, WAITS, Daemon, job, until

TWO = {"one": QUIET, "two": QUIET}


def both_up(daemon: Daemon) -> dict[str, int]:
    """Pids of both jobs once their first run is over."""
    return {name: daemon.until_job(name, lambda entry: entry["last_run"] and entry["next_run"])["pid"] for name in TWO}


def test_a_changed_interval_moves_the_slot_and_restarts_nobody(tmp_path: Path) -> None:
    with Daemon(tmp_path, TWO, "[jobs.one]\nevery = '1h'\n[jobs.two]\n") as daemon:
        before, slot = both_up(daemon), daemon.job("one")["next_run"]["slot"]
        daemon.write("[jobs.one]\nevery = '2h'\n[jobs.two]\n")
        reply = json.loads(daemon.cli("reload", "--json").stdout)
        assert reply["changes"] == [{"key": "jobs.one.every", "old": "1h", "new": "2h", "effect": "live"}]
        moved = daemon.until_job("one", lambda entry: entry["next_run"] and entry["next_run"]["slot"] != slot)
        assert (moved["every"], moved["restarts"]) == (7200, 0)
        assert both_up(daemon) == before


def test_a_reload_starts_what_came_stops_what_went_and_restarts_what_must(tmp_path: Path) -> None:
    plugins = TWO | {"three": QUIET}
    with Daemon(tmp_path, plugins, "[jobs.one]\n[jobs.two]\n") as daemon:
        before = both_up(daemon)
        daemon.write("[jobs.one]\nenv = { A = 'b' }\n[jobs.three]\n")
        daemon.ask("reload")
        daemon.until_job("one", lambda entry: entry["state"] == "RUNNING" and entry["pid"] != before["one"])
        daemon.until_state("three", "RUNNING")
        until(lambda: [entry["job"] for entry in daemon.status()["jobs"]] == ["one", "three"])


def test_a_reload_with_mistakes_changes_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path, TWO, "[jobs.one]\n[jobs.two]\n") as daemon:
        before = both_up(daemon)
        daemon.write("[jobs.one]\nevry = '2h'\n")
        refused = daemon.cli("reload")
        assert (refused.returncode, 'did you mean "every"?' in refused.stderr) == (78, True)
        os.kill(daemon.pid, signal.SIGHUP)
        until(lambda: sum("reload refused" in line["event"] for line in daemon.logs()) == 2)
        assert both_up(daemon) == before


def test_new_plugin_settings_hold_from_the_next_run_on(tmp_path: Path) -> None:
    source = job("return Skipped(ctx.settings.say)").replace(
        "class TheJob(Job):",
        "from stellerd import Settings\nclass S(Settings):\n    say: str = 'x'\nclass TheJob(Job):\n    Settings = S",
    )
    toml = "[jobs.one]\n[jobs.one.settings]\nsay = '{}'\n"
    with Daemon(tmp_path, {"one": source}, toml.format("first")) as daemon:
        pid = daemon.until_job("one", lambda entry: entry["last_run"] and entry["last_run"]["reason"] == "first")["pid"]
        daemon.write(toml.format("second"))
        daemon.ask("reload")
        daemon.ask("trigger", job="one")
        after = daemon.until_job("one", lambda entry: entry["last_run"]["reason"] == "second")
        assert after["pid"] == pid


def test_stop_and_pause_survive_a_restart_of_the_daemon(tmp_path: Path) -> None:
    toml = "[jobs.one]\nevery = '1s'\n[jobs.two]\n"
    with Daemon(tmp_path, TWO, toml) as daemon:
        both_up(daemon)
        assert daemon.cli("pause", "one").returncode == 0
        assert daemon.cli("stop", "two").returncode == 0
        os.kill(daemon.pid, signal.SIGKILL)
    with Daemon(tmp_path, TWO, toml) as daemon:
        paused = daemon.until_state("one", "RUNNING")
        assert paused["paused"]
        assert daemon.job("two")["state"] == "STOPPED"
        assert daemon.cli("resume", "one").returncode == 0
        newer = paused["last_run"]["id"] if paused["last_run"] else 0
        daemon.until_job("one", lambda entry: entry["last_run"] and entry["last_run"]["id"] > newer)
        assert daemon.cli("start", "two").returncode == 0
        daemon.until_state("two", "RUNNING")


def test_a_paused_job_runs_when_triggered_and_only_then(tmp_path: Path) -> None:
    with Daemon(tmp_path, {"one": QUIET}, "[jobs.one]\nevery = '1s'\n") as daemon:
        daemon.until_job("one", lambda entry: entry["last_run"])
        daemon.ask("pause", job="one")
        last = daemon.job("one")["last_run"]["id"]
        daemon.ask("trigger", job="one")
        after = daemon.until_job("one", lambda entry: entry["last_run"]["id"] > last)
        assert after["last_run"]["trigger"] == "operator"


def test_commands_answer_while_a_job_is_busy(tmp_path: Path) -> None:
    busy = job("import time\nwhile not ctx.stopping: time.sleep(0.05)")
    with Daemon(tmp_path, {"one": busy}, "[jobs.one]\n") as daemon:
        daemon.until_job("one", lambda entry: entry["run"])
        for command in ("pause", "resume", "trigger", "stop"):
            daemon.ask(command, job="one")
        daemon.until_state("one", "STOPPED")


def test_logs_and_next(tmp_path: Path) -> None:
    with Daemon(tmp_path, {"one": job("print('hello', ctx.trigger)")}, "[jobs.one]\n") as daemon:
        daemon.until_job("one", lambda entry: entry["next_run"])
        until(lambda: "hello schedule" in daemon.cli("logs", "one").stdout)
        first = daemon.job("one")
        os.kill(first["pid"], signal.SIGKILL)
        daemon.until_job("one", lambda entry: entry["next_run"] and entry["pid"] != first["pid"])
        assert "hello schedule" in daemon.cli("logs", "one").stdout
        [row] = json.loads(daemon.cli("next", "--json").stdout)["next"]
        assert (row["job"], row["slot"]) == ("one", first["next_run"]["slot"])


def test_sigstop_of_an_idle_job_ends_it_within_its_heartbeat_timeout(tmp_path: Path) -> None:
    with Daemon(tmp_path, {"one": QUIET}, "[jobs.one]\nheartbeat_timeout = '300ms'\nbackoff = '50ms'\n") as daemon:
        pid = daemon.until_job("one", lambda entry: entry["last_run"] and entry["next_run"])["pid"]
        os.kill(pid, signal.SIGSTOP)
        daemon.until_job("one", lambda entry: entry["state"] == "RUNNING" and entry["pid"] != pid, timeout=2.3)
        assert any(line.get("reason") == "heartbeat: stopped by a signal for 300ms" for line in daemon.logs())


def test_a_worn_out_process_is_replaced_between_runs(tmp_path: Path) -> None:
    with Daemon(tmp_path, {"one": QUIET}, "[jobs.one]\nevery = '1s'\nmax_runs = 1\n") as daemon:
        first = daemon.until_job("one", lambda entry: entry["pid"])["pid"]
        entry = daemon.until_job("one", lambda entry: entry["restarts"] >= 2 and entry["pid"])
        assert entry["pid"] != first
        assert not entry["degraded"]
        assert not any(line["event"] == "died" for line in daemon.logs())


@pytest.mark.parametrize(("policy", "code", "state"), [("never", 3, "EXITED"), ("on-failure", 0, "EXITED")])
def test_restart_policies_that_let_a_process_rest(tmp_path: Path, policy: str, code: int, state: str) -> None:
    with Daemon(tmp_path, {"one": f"import os; os._exit({code})"}, f"[jobs.one]\nrestart = '{policy}'\n") as daemon:
        daemon.until_state("one", state)
        assert daemon.job("one")["restarts"] == 0


def test_more_restarts_than_allowed_end_as_fatal(tmp_path: Path) -> None:
    toml = "[jobs.one]\nmax_restarts = 2\nbackoff = '20ms'\n"
    with Daemon(tmp_path, {"one": "import os; os._exit(3)"}, toml) as daemon:
        assert daemon.until_state("one", "FATAL")["restarts"] == 2


def test_a_job_gets_its_own_surroundings(tmp_path: Path) -> None:
    shows = job(
        """
        import resource
        return Skipped(json.dumps([os.environ['A'], os.getcwd(), os.umask(0), os.nice(0),
                                   resource.getrlimit(resource.RLIMIT_NOFILE)[0]]))
        """
    ).replace("import os,", "import json, os,")
    toml = (
        f"[jobs.one]\nenv = {{ A = 'b' }}\ncwd = '{tmp_path}'\numask = '027'\nnice = 3\nrlimits = {{ NOFILE = 77 }}\n"
    )
    with Daemon(tmp_path, {"one": shows}, toml) as daemon:
        run = daemon.until_job("one", lambda entry: entry["last_run"])["last_run"]
        assert json.loads(run["reason"]) == ["b", str(tmp_path), 0o27, os.nice(0) + 3, 77]


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_ready_reloading_and_stopping(tmp_path: Path, abstract: bool) -> None:
    address = f"@stellerd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1))
        manager.settimeout(10)
        said: list[str] = []

        def hear(line: str) -> bool:
            while not any(line in message for message in said):
                said.append(manager.recv(4096).decode())
            return True

        env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}
        with Daemon(tmp_path, {"one": WAITS}, "[jobs.one]\n", env=env) as daemon:
            hear("READY=1")
            hear("STATUS=1 of 1 jobs up")
            hear("WATCHDOG=1")
            said.clear()
            os.kill(daemon.pid, signal.SIGHUP)
            hear("RELOADING=1\nMONOTONIC_USEC=")
            hear("READY=1")
            os.kill(daemon.pid, signal.SIGTERM)
            hear("STOPPING=1\nEXTEND_TIMEOUT_USEC=35000000")
