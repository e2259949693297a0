"""What systemd's sandbox hides from the daemon, and what becomes of jobs there."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from daemon import QUIET, SERVICE, job, until
from faults.helpers import FaultDaemon, refusing, with_proc

from stellerd import hosts

BOOT_ID = "STELLERD_BOOT_ID"


def blind() -> list[str]:
    """A command in front that is shown no process outside its own: as ProtectProc=invisible with PrivateUsers=yes."""
    return [*with_proc("hidepid=invisible,gid=65533"), "setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def unexpected(daemon: FaultDaemon) -> list[dict[str, Any]]:
    """Its lines, less that it runs as root here."""
    return [line for line in daemon.logs() if line["event"] != "insecure"]


def test_jobs_run_where_proc_sys_is_hidden(tmp_path: Path) -> None:
    """`ProcSubset=pid` with the boot id handed in, as the unit has it."""
    with_dashes = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    daemon = FaultDaemon(tmp_path, {"a": QUIET}, "[jobs.a]\n", env={BOOT_ID: with_dashes.replace("-", "")})
    daemon.prefix = with_proc("subset=pid")
    with daemon:
        assert daemon.until_job("a", lambda entry: entry["last_run"])["last_run"]["state"] == "ok"
        assert not [line for line in unexpected(daemon) if line["level"] != "info"]
        assert daemon.end() == 0


def test_jobs_run_where_nothing_tells_the_boot_id_and_the_log_says_what_that_costs(tmp_path: Path) -> None:
    daemon = FaultDaemon(tmp_path, {"a": QUIET}, "[jobs.a]\n")
    daemon.env.pop(BOOT_ID, None)
    daemon.prefix = with_proc("subset=pid")
    with daemon:
        assert daemon.until_job("a", lambda entry: entry["last_run"])["last_run"]["state"] == "ok"
        (warning,) = [line for line in unexpected(daemon) if line["level"] == "warning"]
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


# --- the first and the last moments

HALTS = """
import sys, time
class Halt:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            sys.meta_path.remove(self)
            open("{marker}", "w").close()
            time.sleep({seconds})
sys.meta_path.insert(0, Halt())
"""
"""A `sitecustomize` under which the import of a module takes long, and a file says when it began."""


def starting_slowly(daemon: FaultDaemon, module: str, seconds: float) -> Path:
    """Let the daemon's import of a module take so long; the file that is there once it began."""
    marker = daemon.folder / "importing"
    (daemon.folder / "sitecustomize.py").write_text(HALTS.format(module=module, marker=marker, seconds=seconds))
    daemon.env["PYTHONPATH"] = f"{daemon.folder}:{daemon.env['PYTHONPATH']}"
    return marker


@pytest.mark.parametrize("module", ["click", "stellerd.supervisor"])
def test_pid_1_heeds_a_request_to_end_from_the_first_moment_on(tmp_path: Path, module: str) -> None:
    daemon = FaultDaemon(tmp_path, {"a": QUIET}, "[jobs.a]\n")
    daemon.prefix = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*daemon.prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a process namespace is needed, which only root can make")
    marker = starting_slowly(daemon, module, 5)
    process = daemon.start().process
    assert process is not None
    try:
        until(marker.exists)
        (inside,) = daemon.children()
        os.kill(inside, signal.SIGTERM)
        assert process.wait(4) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_for_the_daemon_that_is_not_up_yet_waits_for_it(tmp_path: Path, number: signal.Signals) -> None:
    daemon = FaultDaemon(tmp_path, {"a": QUIET}, "[jobs.a]\n")
    marker = starting_slowly(daemon, "stellerd.supervisor", 0.5)
    daemon.start()
    until(marker.exists)
    os.kill(daemon.pid, number)
    until(daemon._answers)
    if number == signal.SIGHUP:
        until(lambda: daemon.events("reloaded"))
    assert daemon.end() == 0


SLOW_END = job(
    "while not ctx.wait(60): pass\nctx.log.info('was asked')\ntime.sleep(0.3)\nctx.log.info('ended well')",
    extra=SERVICE,
)


@pytest.mark.parametrize("how", ["daemon", "run-once"])
def test_one_request_to_end_that_arrives_twice_is_one(tmp_path: Path, how: str) -> None:
    """timeout(1) signals its child and then the group; make and shells pass on what they get."""
    daemon = FaultDaemon(tmp_path, {"a": SLOW_END}, "[jobs.a]\n")
    if how == "daemon":
        with daemon:
            daemon.until_state("a", "RUNNING")
            os.kill(daemon.pid, signal.SIGTERM)
            until(lambda: daemon.events("stopping"))
            os.kill(daemon.pid, signal.SIGTERM)
            assert daemon.process is not None
            assert daemon.process.wait(10) == 0
        assert not daemon.events("asked again: killing what is left")
        assert daemon.events("ended well")
        return
    command = [sys.executable, "-m", "stellerd.cli", "-c", str(daemon.config), "run-once", "a"]
    with subprocess.Popen(command, env=daemon.env, stderr=subprocess.PIPE, text=True) as once:
        assert once.stderr
        pids = Path(f"/proc/{once.pid}/task/{once.pid}/children")
        until(
            lambda: any("stellerd: a" in Path(f"/proc/{pid}/cmdline").read_text() for pid in pids.read_text().split())
        )
        os.kill(once.pid, signal.SIGTERM)
        heard = next(line for line in once.stderr if "was asked" in line)
        os.kill(once.pid, signal.SIGTERM)
        said = once.stderr.read()
    assert heard
    assert "ended well" in said


# --- system calls that a filter refuses


@pytest.mark.parametrize(
    ("call", "number", "command"),
    [
        ("pidfd_open", errno.EPERM, ["run"]),
        ("pidfd_open", errno.ENOSYS, ["run-once", "a"]),
        ("pidfd_send_signal", errno.EPERM, ["run"]),
        ("timerfd_create", errno.ENOSYS, ["run"]),
        ("timerfd_create", errno.EPERM, ["run-once", "a"]),
    ],
)
def test_a_refused_system_call_is_named_with_the_cure(
    tmp_path: Path, call: str, number: int, command: list[str]
) -> None:
    daemon = FaultDaemon(tmp_path, {"a": QUIET}, "[jobs.a]\n")
    called = [*refusing(call, number), sys.executable, "-m", "stellerd.cli", "-c", str(daemon.config), *command]
    done = subprocess.run(called, env=daemon.env, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 78
    assert f"stellerd: the system call {call} is refused ({os.strerror(number)})" in done.stderr
    assert "seccomp profile" in done.stderr
    assert "Traceback" not in done.stderr
