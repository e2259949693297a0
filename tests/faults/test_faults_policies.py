"""What brings a process back and what does not, and what a process is given of its own."""

from __future__ import annotations

import json
import os
import pwd
import signal
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from daemon import QUIET, SERVICE, WAITS, Daemon, alive, job, until
from faults.helpers import DEAF, HEAD, FaultDaemon, jobs

QUICK = "backoff = '20ms'\nbackoff_cap = '20ms'\nsettle = '20ms'\n"


def test_restarts_that_an_operator_asked_for_use_up_no_allowance(tmp_path: Path) -> None:
    toml = jobs(["it"], QUICK + "max_restarts = 2\n")
    with FaultDaemon(tmp_path, {"it": WAITS}, toml) as daemon:
        for _ in range(5):
            before = daemon.until_state("it", "RUNNING")
            daemon.ask("restart", job="it")
            daemon.until_replaced(before)
        for _ in range(2):
            daemon.until_replaced(daemon.kill_job("it"))
        assert daemon.job("it")["restarts"] == 2
        daemon.kill_job("it")
        assert "SIGKILL" in daemon.until_state("it", "FATAL")["reason"]
        daemon.write(toml + "every = '2h'\n")  # a reload that concerns it is another chance
        daemon.ask("reload")
        daemon.until_state("it", "RUNNING")


def test_restarts_that_are_older_than_the_window_are_forgotten(tmp_path: Path) -> None:
    with FaultDaemon(tmp_path, {"it": WAITS}, jobs(["it"], QUICK + "max_restarts = 1\nwindow = '300ms'\n")) as daemon:
        for _ in range(3):
            daemon.until_job("it", lambda entry: entry["state"] == "RUNNING" and entry["uptime"] > 0.4)
            daemon.until_replaced(daemon.kill_job("it"))
        assert daemon.job("it")["restarts"] == 3


@pytest.mark.parametrize("setting", ["max_runs = 2", "max_rss = '1MiB'"])
def test_a_replaced_process_loses_no_slot(tmp_path: Path, setting: str) -> None:
    with FaultDaemon(tmp_path, {"it": job("return Done()", every="1s")}, f"[jobs.it]\n{setting}\n") as daemon:
        daemon.until_job("it", lambda entry: entry["last_run"] and entry["last_run"]["id"] >= 5)
        listed = json.loads(daemon.cli("history", "it", "--json").stdout)["runs"][::-1]
        slots = [datetime.fromisoformat(run["slot"]) for run in listed]
        assert {after - before for before, after in pairwise(slots)} == {timedelta(seconds=1)}
        assert {run["state"] for run in listed} == {"ok"}
        assert len({run["pid"] for run in listed}) >= 3
        assert not daemon.events("died")
        assert not daemon.job("it")["degraded"]


def test_the_wish_to_stop_wins_over_every_way_to_come_back(tmp_path: Path) -> None:
    names = ["running", "failing", "deaf"]
    plugins = {"running": WAITS, "failing": "import os; os._exit(1)", "deaf": DEAF}
    toml = jobs(names, "stop_grace = '100ms'\nbackoff = '300ms'\nbackoff_cap = '300ms'\n")
    with FaultDaemon(tmp_path, plugins, toml) as daemon:
        daemon.until_state("failing", "BACKOFF")
        daemon.until_state("deaf", "RUNNING")
        for name in names:
            daemon.ask("restart", job=name)
            daemon.ask("stop", job=name)
        for name in names:
            daemon.until_state(name, "STOPPED")
        forked = len(daemon.events("ready"))
        daemon.ask("start", job="running")  # by the time that this one is up the others would be, too
        daemon.until_state("running", "RUNNING")
        assert [daemon.job(name)["state"] for name in names] == ["RUNNING", "STOPPED", "STOPPED"]
        assert len(daemon.events("ready")) == forked + 1


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"5", b'{"stopped": 5, "paused": 1}', b"\xff\xfe", b'{"stopped": [["it"]], "paused": []}', None],
)
def test_a_holds_file_that_cannot_be_used_is_only_told(tmp_path: Path, content: bytes | None) -> None:
    holds = tmp_path / "holds.json"
    holds.mkdir() if content is None else holds.write_bytes(content)
    daemon = Daemon(tmp_path, {"it": QUIET}, "[jobs.it]\n")
    with daemon:
        daemon.until_state("it", "RUNNING")
        [line] = [line for line in daemon.logs() if line["event"].startswith("cannot read who was stopped")]
        assert line["file"] == str(holds)
        note = daemon.ask("stop", job="it")["note"]
        assert ("not remembered" in note) == (content is None)
    if content is not None:
        with daemon:
            assert daemon.job("it")["state"] == "STOPPED"


def test_what_one_job_is_given_another_does_not_see(tmp_path: Path) -> None:
    tells = job("""
        import json
        seen = dict(os.environ)
        child = subprocess.run(["env"], capture_output=True, text=True).stdout
        with open(f"{os.environ['OUT']}/{ctx.job}", "w") as out: json.dump([seen, child, os.getcwd(), os.umask(0)], out)
        """)
    toml = (
        "[jobs.a]\nenv = { ONLY_A = 'canary-of-a' }\numask = '027'\nnice = 3\n"
        f"cwd = '{tmp_path}'\nrlimits = {{ NOFILE = '222B', CORE = '0B' }}\n"
        "[jobs.b]\nenv = { ONLY_B = 'canary-of-b' }\n"
    )
    with FaultDaemon(tmp_path, {"a": tells, "b": tells}, toml, env={"OUT": str(tmp_path)}) as daemon:
        for name in "ab":
            run = daemon.until_job(name, lambda entry: entry["last_run"])["last_run"]
            assert run["state"] == "ok", run
        told = {name: (tmp_path / name).read_text() for name in "ab"}
        assert "canary-of-a" in told["a"]
        assert "canary-of-b" not in told["a"]
        assert "canary-of-b" in told["b"]
        assert "canary-of-a" not in told["b"]
        (_, _, folder, mask), (_, _, _, other_mask) = (json.loads(told[name]) for name in "ab")
        assert (folder, mask) == (str(tmp_path), 0o027)
        assert other_mask != 0o027 or os.umask(os.umask(0o022)) == 0o027
        pids = {name: daemon.job(name)["pid"] for name in "ab"}
        limits = Path(f"/proc/{pids['a']}/limits").read_text()
        assert next(line.split()[3] for line in limits.splitlines() if line.startswith("Max open files")) == "222"
        assert os.getpriority(os.PRIO_PROCESS, pids["a"]) == os.getpriority(os.PRIO_PROCESS, daemon.pid) + 3
        assert os.getpriority(os.PRIO_PROCESS, pids["b"]) == os.getpriority(os.PRIO_PROCESS, daemon.pid)
        shown = daemon.cli("status", "--json").stdout + daemon.log_file.read_text()
        assert "canary" not in shown


def test_a_job_of_another_user_is_that_user_and_still_dies_with_the_daemon(tmp_path: Path) -> None:
    tells = job(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open("open/told", "w").write(f"{os.getuid()} {os.getgid()} {len(os.getgroups())}")
        ctx.wait(0)
        while True: time.sleep(1)
        """,
        extra=SERVICE,
    )
    loaded = ["encodings.ascii"]  # that user may not be able to read a root's own interpreter
    toml = f"{HEAD}preload = {loaded}\n[state]\nurl = 'sqlite:///open/state.db'\n[jobs.it]\nuser = 'nobody'\n"
    toml += f"cwd = '{tmp_path}'\n"
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o711)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with FaultDaemon(tmp_path, {"it": tells}, toml) as daemon:
        if os.geteuid() != 0:
            assert "only root can start a job as another user" in daemon.until_state("it", "FATAL")["reason"]
            return
        pid = daemon.until_state("it", "RUNNING")["pid"]
        nobody = pwd.getpwnam("nobody")
        uid, gid, groups = map(int, (tmp_path / "open/told").read_text().split())
        assert (uid, gid) == (nobody.pw_uid, nobody.pw_gid)
        assert groups <= 1
        [guardian] = set(daemon.children()) - {pid}
        os.kill(daemon.pid, signal.SIGSTOP)  # so that nobody can replace the guardian: the process dies by itself
        os.kill(guardian, signal.SIGKILL)
        os.kill(daemon.pid, signal.SIGKILL)
        until(lambda: not alive(pid), timeout=1)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("user = 'no-such-user'", "there is no user"),
        ("cwd = '/no/such/folder'", "No such file"),
        ("rlimits = { NOFILE = '9999999999B' }", ""),
    ],
)
def test_what_cannot_be_given_is_fatal_with_the_place_in_the_file(tmp_path: Path, setting: str, said: str) -> None:
    with FaultDaemon(tmp_path, {"it": QUIET}, f"[jobs.it]\n{setting}\n") as daemon:
        reason = daemon.until_state("it", "FATAL")["reason"]
        assert f"{daemon.config}:6:1: jobs.it: " in reason
        assert said in reason
