"""Jobs that tamper with what binds them to the daemon, and a kernel that has nothing more to give."""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest
from daemon import SERVICE, WAITS, alive, job, until
from faults.helpers import (
    EVERY_SECOND,
    FaultDaemon,
    NotifySocket,
    busy_seconds,
    descriptors,
    jobs,
    seconds,
    write_raw,
    zombies,
)

FIND = """
import stat
SOCKETS = []
for fd in range(3, 100):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode): SOCKETS.append(fd)
    except OSError: pass
"""
"""At import there is one socket: the line to the daemon. (Its other descriptors may be the state store's.)"""


def tampering(body: str, extra: str = "") -> str:
    """A plugin that has found its line to the daemon."""
    head, _, rest = job(body, extra=extra).partition("class TheJob")
    return f"{head}{FIND}class TheJob{rest}"


QUICK = "backoff = '50ms'\nbackoff_cap = '100ms'\nsettle = '50ms'\n"
UNPRIVILEGED = [
    "setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "--inh-caps=-all,+dac_override",
    "--ambient-caps=-all,+dac_override", "--bounding-set=-all,+dac_override",
]  # fmt: skip
"""RLIMIT_NPROC does not bind root; this user has no other process that counts, and may read the interpreter."""


def limit_processes(daemon: FaultDaemon, soft: str) -> None:
    """By somebody with the daemon's own user: even root may lack the right to limit others."""
    command = [*daemon.prefix[:4], "prlimit", f"--pid={daemon.pid}", f"--nproc={soft}:"]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("which", ["range(3, 100)", "range(1, 100)"], ids=["channel", "channel and output"])
def test_a_service_that_closes_its_descriptors_costs_nothing_and_can_be_stopped(tmp_path: Path, which: str) -> None:
    body = f"""
        ctx.wait(0)
        for fd in {which}:
            try: os.close(fd)
            except OSError: pass
        while True: time.sleep(1)
        """
    toml = jobs(["bad"], "stop_grace = '300ms'\n") + "[jobs.good]\n"
    with FaultDaemon(tmp_path, {"bad": job(body, extra=SERVICE), "good": EVERY_SECOND}, toml) as daemon:
        pid = daemon.until_state("bad", "RUNNING")["pid"]
        until(lambda: not any("socket" in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")))
        used, since = busy_seconds(daemon.pid), time.monotonic()
        seen = daemon.until_job("good", lambda entry: entry["last_run"])["last_run"]["id"]
        daemon.until_job("good", lambda entry: entry["last_run"]["id"] > seen)
        assert busy_seconds(daemon.pid) - used < 0.3 * (time.monotonic() - since) + 0.1, "the loop spins on a dead end"
        daemon.write(toml + "every = '5s'\n")
        daemon.ask("reload")
        daemon.ask("stop", job="bad")
        daemon.until_state("bad", "STOPPED")


def test_a_periodic_job_that_closes_its_descriptors_is_replaced(tmp_path: Path) -> None:
    body = """
        if os.path.exists(os.environ["ONCE"]): return
        open(os.environ["ONCE"], "w").close()
        for fd in SOCKETS: os.close(fd)
        """
    env = {"ONCE": str(tmp_path / "once")}
    with FaultDaemon(tmp_path, {"it": tampering(body)}, jobs(["it"], QUICK), env=env) as daemon:
        daemon.until_job("it", lambda entry: entry["restarts"] and entry["state"] == "RUNNING" and entry["last_run"])
        assert zombies(daemon.pid) == []


FRAMES = {
    "not JSON": b"\xff" * 40,
    "too large": struct.pack("!I", 0xFFFFFFFF) + b"x" * 100,
    "not an object": struct.pack("!I", 2) + b"[]",
    "too deep": struct.pack("!I", 100_000) + b"[" * 100_000,
} | {
    json.dumps(message): struct.pack("!I", len(json.dumps(message))) + json.dumps(message).encode()
    for message in (
        {"kind": "ready"},
        {"kind": "ready", "job_kind": [], "every": "x", "last_run": 5},
        {"kind": "run_started"},
        {"kind": "run_started", "id": None, "kind_of_job": 7},
        {"kind": "run_finished"},
        {"kind": "next_run", "at": 3},
        {"kind": "progress"},
        {"kind": "failed"},
        {"kind": "trouble"},
        {"kind": "configured"},
        {"kind": "recycle"},
        {"kind": "what is this"},
        {"kind": "trouble", "reason": {"a": [1, 2, 3]}},
    )
}


def test_whatever_a_job_writes_to_its_channel_the_daemon_and_the_others_live(tmp_path: Path) -> None:
    body = f"""
        frames = {list(FRAMES.values())!r}
        done = os.environ["DONE"]
        count = os.path.getsize(done) if os.path.exists(done) else 0
        open(done, "a").write("x")
        ctx.wait(0)
        for fd in SOCKETS if count < len(frames) else ():
            try: os.write(fd, frames[count])
            except OSError: pass
        while count >= len(frames): ctx.wait(60)
        time.sleep(0.2)
        os._exit(3)
        """
    done = tmp_path / "done"
    toml = jobs(["bad"], QUICK) + "[jobs.good]\n"
    with FaultDaemon(
        tmp_path, {"bad": tampering(body, SERVICE), "good": WAITS}, toml, env={"DONE": str(done)}
    ) as daemon:
        good = daemon.until_state("good", "RUNNING")["pid"]
        until(lambda: done.exists() and len(done.read_text()) > len(FRAMES), timeout=40, what="all frames")
        daemon.until_state("bad", "RUNNING")
        assert daemon.job("good")["pid"] == good
        shown = daemon.cli("status")
        assert (shown.returncode, shown.stderr) == (0, "")


def test_a_job_cannot_fill_the_daemon_with_an_endless_message(tmp_path: Path) -> None:
    body = """
        ctx.wait(0)
        for fd in SOCKETS:
            try: os.write(fd, b"\\x00\\x3f\\xff\\xff")
            except OSError: continue
            try:
                while True: os.write(fd, b"x" * 65536)
            except OSError: pass
        time.sleep(60)
        """
    with FaultDaemon(tmp_path, {"bad": tampering(body, SERVICE)}, jobs(["bad"], QUICK)) as daemon:
        before = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
        daemon.until_job("bad", lambda entry: entry["restarts"] >= 2)
        after = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
        assert (after - before) * 4096 < 24 * 1024 * 1024


def test_a_flood_from_an_escaped_grandchild_holds_no_restart_up(tmp_path: Path) -> None:
    """It left the group and keeps the dead job's output full for ever: last words have an end all the same."""
    body = """
        if not os.path.exists(os.environ["ONCE"]):
            open(os.environ["ONCE"], "w").close()
            subprocess.Popen(["setsid", "yes"], stderr=subprocess.DEVNULL)
            time.sleep(0.5)
            os._exit(3)
        """
    toml = jobs(["it", "other"], "backoff = '10ms'\n")
    with FaultDaemon(tmp_path, {"it": job(body), "other": WAITS}, toml, env={"ONCE": str(tmp_path / "once")}) as daemon:
        lags = []

        def over() -> bool:
            lags.append(seconds(daemon.status))
            entry = daemon.job("it")
            return bool(entry["restarts"] == 1 and entry["last_run"] and entry["state"] == "RUNNING")

        until(over)
        assert max(lags) < 0.5


def test_the_input_of_a_job_is_empty_whatever_the_daemons_is(tmp_path: Path) -> None:
    read, write = os.pipe()
    out = tmp_path / "out"
    body = """
        seen = [sys.stdin.read(), subprocess.run(["cat"], capture_output=True, text=True, timeout=2).stdout]
        open(os.environ["OUT"], "w").write(repr(seen))
        """
    daemon = FaultDaemon(tmp_path, {"it": job(body)}, "[jobs.it]\n", env={"OUT": str(out)})
    usual = os.dup(0)
    os.dup2(read, 0)
    try:
        daemon.start()
    finally:
        os.dup2(usual, 0)
        os.close(usual)
        os.close(read)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daemon, "start", lambda: daemon)
        with daemon:
            run = daemon.until_job("it", lambda entry: entry["last_run"])["last_run"]
            assert (run["state"], out.exists() and out.read_text()) == ("ok", "['', '']")
    os.close(write)


def test_without_a_descriptor_left_the_daemon_waits_without_spinning_and_leaks_nothing(tmp_path: Path) -> None:
    manager = NotifySocket(str(tmp_path / "notify"))
    toml = jobs(["it"], QUICK) + "[jobs.other]\n"
    with FaultDaemon(tmp_path, {"it": WAITS, "other": WAITS}, toml, env={"NOTIFY_SOCKET": manager.address}) as daemon:
        before = daemon.until_job("it", lambda entry: (entry["uptime"] or 0) > 0.1)
        other = daemon.until_state("other", "RUNNING")["pid"]
        [guardian] = set(daemon.children()) - {before["pid"], other}
        opened = descriptors(daemon.pid)
        usual = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        for left in range(7):  # 0: not even a socket; 4 to 6: enough to fork, not enough to watch over the child
            pid = daemon.until_state("it", "RUNNING")["pid"]
            said = len(daemon.events("cannot fork"))
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (descriptors(daemon.pid) - 5 + left, usual[1]))
            os.kill(pid, signal.SIGKILL)
            until(lambda: len(daemon.events("cannot fork")) >= said + 3, what=f"{left} to spare")  # noqa: B023
            used, since = busy_seconds(daemon.pid), time.monotonic()
            os.kill(daemon.pid, signal.SIGHUP)  # a reload wants a descriptor too
            clients = [write_raw(daemon.socket) for _ in range(10)]  # and more of them wait than may be let in
            until(lambda: time.monotonic() - since > 0.3)  # noqa: B023
            assert busy_seconds(daemon.pid) - used < 0.25
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, usual)
            for client in clients:
                client.close()
            daemon.until_job("it", lambda entry: entry["state"] == "RUNNING" and (entry["uptime"] or 0) > 0.1)
            assert set(daemon.children()) == {guardian, other, daemon.job("it")["pid"]}, "a child that nobody knows of"
        assert daemon.job("other")["pid"] == other
        assert descriptors(daemon.pid) == opened
    manager.close()


def test_without_a_process_left_the_daemon_waits_and_leaks_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    daemon = FaultDaemon(tmp_path, {"it": WAITS, "other": WAITS}, jobs(["it"], QUICK) + "[jobs.other]\n")
    daemon.env["PYTHONDONTWRITEBYTECODE"] = "1"
    daemon.prefix = UNPRIVILEGED if os.geteuid() == 0 else ()
    with daemon:
        before = daemon.until_job("it", lambda entry: (entry["uptime"] or 0) > 0.1)
        other = daemon.until_state("other", "RUNNING")["pid"]
        opened = descriptors(daemon.pid)
        limit_processes(daemon, "1")
        os.kill(before["pid"], signal.SIGKILL)
        until(lambda: len(daemon.events("cannot fork")) >= 5)
        assert "Resource temporarily unavailable" in daemon.job("it")["reason"]
        assert daemon.job("other")["pid"] == other
        assert descriptors(daemon.pid) < opened
        limit_processes(daemon, str(resource.getrlimit(resource.RLIMIT_NPROC)[0]))
        daemon.until_replaced(before)
        assert descriptors(daemon.pid) == opened
        assert zombies(daemon.pid) == []


def test_a_guardian_that_dies_while_no_process_can_be_had_is_replaced_later(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    daemon = FaultDaemon(tmp_path, {"it": WAITS}, jobs(["it"], QUICK))
    daemon.env["PYTHONDONTWRITEBYTECODE"] = "1"
    daemon.prefix = UNPRIVILEGED if os.geteuid() == 0 else ()
    with daemon:
        pid = daemon.until_state("it", "RUNNING")["pid"]
        [guardian] = set(daemon.children()) - {pid}
        limit_processes(daemon, "1")
        os.kill(guardian, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{guardian}").exists())
        assert daemon.job("it")["pid"] == pid
        limit_processes(daemon, str(resource.getrlimit(resource.RLIMIT_NPROC)[0]))
        until(lambda: len(daemon.children()) == 2, what="another guardian")
        assert daemon.job("it")["pid"] == pid
        os.kill(daemon.pid, signal.SIGKILL)
        until(lambda: not alive(pid), timeout=1.0)
