"""What systemd's sandbox hides from the daemon, and what becomes of jobs there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from daemon import QUIET, job, until
from faults.helpers import FaultDaemon, with_proc

from stellerd import hosts

BOOT_ID = "STELLERD_BOOT_ID"


def blind() -> list[str]:
    """A command in front that is shown no process outside its own: as ProtectProc=invisible with PrivateUsers=yes."""
    return [*with_proc("hidepid=invisible,gid=65533"), "setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def test_jobs_run_where_proc_sys_is_hidden(tmp_path: Path) -> None:
    """`ProcSubset=pid` with the boot id handed in, as the unit has it."""
    with_dashes = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    daemon = FaultDaemon(tmp_path, {"a": QUIET}, "[jobs.a]\n", env={BOOT_ID: with_dashes.replace("-", "")})
    daemon.prefix = with_proc("subset=pid")
    with daemon:
        assert daemon.until_job("a", lambda entry: entry["last_run"])["last_run"]["state"] == "ok"
        assert not [line for line in daemon.logs() if line["level"] != "info"]
        assert daemon.end() == 0


def test_jobs_run_where_nothing_tells_the_boot_id_and_the_log_says_what_that_costs(tmp_path: Path) -> None:
    daemon = FaultDaemon(tmp_path, {"a": QUIET}, "[jobs.a]\n")
    daemon.env.pop(BOOT_ID, None)
    daemon.prefix = with_proc("subset=pid")
    with daemon:
        assert daemon.until_job("a", lambda entry: entry["last_run"])["last_run"]["state"] == "ok"
        (warning,) = [line for line in daemon.logs() if line["level"] == "warning"]
        assert BOOT_ID in warning["hint"]
        assert daemon.end() == 0


def test_the_unit_and_a_shell_beside_it_are_one_machine() -> None:
    told = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "").upper()
    code = "from stellerd import hosts; print(hosts.machine())"
    command = [*with_proc("subset=pid"), "env", f"{BOOT_ID}={told}", sys.executable, "-c", code]
    inside = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert inside == hosts.machine()


@pytest.mark.parametrize("told", ["", "%b", "0" * 31, "no such id"])
def test_without_a_boot_id_no_other_process_is_of_this_machine(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "_KERNEL_BOOT_ID", tmp_path / "hidden")
    monkeypatch.setenv(BOOT_ID, told)
    first, second = hosts.boot.__wrapped__(), hosts.boot.__wrapped__()
    assert first != second
    monkeypatch.setattr(hosts, "boot", lambda: first)
    assert not hosts.knows_boot()


# --- whose lease is alive


def test_a_process_that_proc_hides_is_not_gone_a_dead_one_is() -> None:
    code = (
        "import os, sys; from stellerd import hosts\n"
        "pid, start = int(sys.argv[1]), float(sys.argv[2])\n"
        "for line in sys.stdin:\n"
        "    print(hosts.is_gone(hosts.machine(), pid, start), os.path.exists(f'/proc/{pid}'), flush=True)"
    )
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        start = hosts.started(sleeper.pid)
        command = [*blind(), sys.executable, "-c", code, str(sleeper.pid), str(start)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as asked:
            assert asked.stdin
            assert asked.stdout

            def answer() -> str:
                assert asked.stdin
                assert asked.stdout
                asked.stdin.write("?\n")
                return asked.stdout.readline().strip()

            assert answer() == "False False"
            sleeper.kill()
            os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
            assert answer() == "True False", "a zombie"
            sleeper.wait()
            assert answer() == "True False"
            asked.stdin.close()


def test_a_daemon_that_sees_nobody_leaves_a_live_run_once_alone(tmp_path: Path) -> None:
    body = (
        "with open(os.environ['RUNS'], 'a') as runs: print(os.getpid(), file=runs)\n"
        "while not os.path.exists(os.environ['GO']): time.sleep(0.01)"
    )
    env = {"RUNS": str(tmp_path / "runs"), "GO": str(tmp_path / "go")}
    daemon = FaultDaemon(tmp_path, {"a": job(body)}, "[jobs.a]\n", env=env)
    daemon.prefix = blind()
    command = [sys.executable, "-m", "stellerd.cli", "-c", str(daemon.config), "run-once", "a", "--json"]
    with subprocess.Popen(command, env=daemon.env, stdout=subprocess.PIPE, text=True) as once:
        try:
            until((tmp_path / "runs").exists)
            with daemon:
                daemon.until_job("a", lambda entry: entry["reason"] or entry["run"])
                assert "held by pid" in daemon.job("a")["reason"]
                (tmp_path / "go").touch()
                assert once.wait(20) == 0
                assert once.stdout
                assert json.loads(once.stdout.read())["run"]["state"] == "ok"
        finally:
            (tmp_path / "go").touch()


# --- core files


def test_no_job_leaves_a_core_file_with_its_secrets_unless_it_is_configured(tmp_path: Path) -> None:
    shows = job("import resource\nreturn Skipped(str(resource.getrlimit(resource.RLIMIT_CORE)[0]))")
    crashes = job("os.abort()")
    toml = f"[jobs.a]\n[jobs.b]\nplugin = 'a'\nrlimits = {{ CORE = '8KiB' }}\n[jobs.c]\ncwd = '{tmp_path / 'cores'}'\n"
    (tmp_path / "cores").mkdir()
    daemon = FaultDaemon(tmp_path, {"a": shows, "c": crashes}, toml)
    daemon.prefix = ["prlimit", "--core=unlimited", "--"]
    with daemon:
        for name, limit in {"a": "0", "b": "8192"}.items():
            assert daemon.until_job(name, lambda entry: entry["last_run"])["last_run"]["reason"] == limit
            command = [*daemon.prefix, sys.executable, "-m", "stellerd.cli", "-c", str(daemon.config), "run-once", name]
            assert limit in subprocess.run(command, env=daemon.env, capture_output=True, text=True, check=True).stdout
        daemon.until_job("c", lambda entry: entry["restarts"])
    assert list((tmp_path / "cores").iterdir()) == []
