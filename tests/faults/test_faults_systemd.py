"""What a service manager hears, on sockets of both kinds, and from whom."""

from __future__ import annotations

import os
import re
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import QUIET, SERVICE, WAITS, job, until
from faults.helpers import DEAF, HEAD, FaultDaemon, NotifySocket


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NotifySocket]:
    """The receiving end."""
    made = NotifySocket(str(tmp_path / "notify") if request.param == "path" else f"@stellerd-{uuid.uuid4()}")
    yield made
    made.close()


def test_the_whole_life_is_told_in_order_and_by_the_daemon_alone(tmp_path: Path, manager: NotifySocket) -> None:
    tells = job("assert not [n for n in os.environ if n in ('NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID')]")
    env = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
    toml = f'{HEAD}stop_timeout = "7s"\n[jobs.a]\n[jobs.b]\n[jobs.broken]\n'
    with FaultDaemon(tmp_path, {"a": tells, "b": WAITS, "broken": "raise ValueError"}, toml, env=env) as daemon:
        manager.until("READY=1")
        assert daemon.until_job("a", lambda entry: entry["last_run"])["last_run"]["state"] == "ok"
        manager.until("STATUS=2 of 3 jobs up")
        manager.until("WATCHDOG=1", count=4)
        before = time.monotonic_ns() // 1000
        os.kill(daemon.pid, signal.SIGHUP)
        manager.until("READY=1", count=2)
        said = manager.lines()
        reloading = said.index("RELOADING=1")
        assert before < int(said[reloading + 1].removeprefix("MONOTONIC_USEC=")) < time.monotonic_ns() // 1000
        assert "READY=1" in said[reloading + 2 :]
        assert daemon.end() == 0
        assert manager.until("EXTEND_TIMEOUT_USEC=") == "EXTEND_TIMEOUT_USEC=12000000"
        order = [line for line in manager.lines() if line in ("READY=1", "RELOADING=1", "STOPPING=1")]
        assert order == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]
        assert {pid for pid, _ in manager.received} == {daemon.pid}


def test_ready_waits_for_the_first_word_of_each_job(tmp_path: Path, manager: NotifySocket) -> None:
    slow = job("while not os.path.exists(os.environ['GO']): time.sleep(0.01)\nctx.wait(60)", extra=SERVICE)
    env = {"NOTIFY_SOCKET": manager.address, "GO": str(tmp_path / "go")}
    with FaultDaemon(tmp_path, {"slow": slow, "quick": QUIET}, "[jobs.slow]\n[jobs.quick]\n", env=env) as daemon:
        daemon.until_job("quick", lambda entry: entry["last_run"])
        daemon.ask("reload")
        assert "READY=1" not in manager.lines()
        (tmp_path / "go").touch()
        manager.until("READY=1")


def test_a_job_that_never_has_a_first_word_does_not_keep_the_service_from_being_ready(
    tmp_path: Path, manager: NotifySocket
) -> None:
    """A start that systemd gives up (TimeoutStartSec) would end every job for the sake of one."""
    hangs = "import time\nwhile True: time.sleep(1)"
    env = {"NOTIFY_SOCKET": manager.address}
    with FaultDaemon(tmp_path, {"hangs": hangs, "good": QUIET}, "[jobs.hangs]\n[jobs.good]\n", env=env) as daemon:
        manager.until("READY=1", timeout=10)
        assert daemon.job("hangs")["state"] == "STARTING"
        assert daemon.events("ready", up=1)


def test_a_stuck_loop_starves_the_watchdog(tmp_path: Path, manager: NotifySocket) -> None:
    env = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000"}
    with FaultDaemon(tmp_path, {"a": DEAF}, "[jobs.a]\n", env=env) as daemon:
        manager.until("WATCHDOG=1", count=5)
        os.kill(daemon.pid, signal.SIGSTOP)
        until(lambda: Path(f"/proc/{daemon.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T")
        heard = len(manager.lines())
        stopped = time.monotonic()
        until(lambda: time.monotonic() - stopped > 0.3)
        assert len(manager.lines()) == heard
        os.kill(daemon.pid, signal.SIGCONT)
        until(lambda: len(manager.lines()) > heard)


def test_a_manager_that_does_not_read_holds_nothing_up(tmp_path: Path, manager: NotifySocket) -> None:
    env = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "2000"}  # its queue is full in a moment
    with FaultDaemon(tmp_path, {"a": QUIET}, "[jobs.a]\n", env=env) as daemon:
        daemon.until_job("a", lambda entry: entry["last_run"])
        assert daemon.end() == 0


def test_the_status_names_failing_jobs_in_one_short_line(tmp_path: Path, manager: NotifySocket) -> None:
    forged = "import os\nraise ValueError('no\\x1b[31m door' + 'x' * 5000 + '\\nREADY=1\\nSTATUS=forged')"
    toml = "[jobs.good]\n" + "".join(f"[jobs.bad{n}]\nplugin = 'bad'\n" for n in range(5))
    env = {"NOTIFY_SOCKET": manager.address}
    with FaultDaemon(tmp_path, {"good": QUIET, "bad": forged}, toml, env=env) as daemon:
        manager.until("READY=1")
        final = re.compile("STATUS=1 of 6 jobs up; bad0 FATAL: .*…; 2 more fail")
        said = until(lambda: next(filter(final.fullmatch, manager.lines()), ""))
        assert "no\\x1b[31m door" in said
        assert said.isprintable()
        assert len(said) < 600
        assert not [line for line in manager.lines() if line == "STATUS=forged"]
        assert daemon.events("ready", failing=[f"bad{n}" for n in range(5)])


def test_a_refused_reload_is_told_until_a_good_one(tmp_path: Path, manager: NotifySocket) -> None:
    env = {"NOTIFY_SOCKET": manager.address}
    with FaultDaemon(tmp_path, {"a": QUIET}, "[jobs.a]\n", env=env) as daemon:
        manager.until("STATUS=1 of 1 jobs up")
        good = daemon.config.read_text()
        daemon.config.write_text(good + "evry = '1m'\n")
        done = daemon.cli("reload")
        assert done.returncode == 78
        assert 'jobs.a.evry: unknown key, did you mean "every"?' in done.stderr
        assert manager.until("STATUS=1 of 1 jobs up; reload refused: ").endswith('did you mean "every"?')
        assert "evry" in daemon.status()["reload_refused"]["reason"]
        shown = daemon.cli("status").stdout
        assert "reload refused at " in shown
        assert "evry" in shown
        daemon.config.write_text("[supervisor\n" + good)
        os.kill(daemon.pid, signal.SIGHUP)  # by a signal it is told just so
        until(lambda: "evry" not in daemon.status()["reload_refused"]["reason"])
        daemon.config.write_text(good)
        assert daemon.cli("reload").returncode == 0
        assert daemon.status()["reload_refused"] is None
        assert "reload refused" not in daemon.cli("status").stdout
        until(lambda: [line for line in manager.lines() if line.startswith("STATUS=")][-1] == "STATUS=1 of 1 jobs up")
        assert daemon.end() == 0


def test_a_job_that_crashes_is_named_with_the_reason_until_it_is_up_again(
    tmp_path: Path, manager: NotifySocket
) -> None:
    crashes = job("if not os.path.exists(os.environ['GO']): os._exit(3)\nctx.wait(60)", extra=SERVICE)
    env = {"NOTIFY_SOCKET": manager.address, "GO": str(tmp_path / "go")}
    with FaultDaemon(tmp_path, {"a": crashes, "b": QUIET}, "[jobs.a]\n[jobs.b]\n", env=env) as daemon:
        manager.until("STATUS=1 of 2 jobs up; a in backoff: exit code 3")
        (tmp_path / "go").touch()
        daemon.until_state("a", "RUNNING")
        until(lambda: [line for line in manager.lines() if line.startswith("STATUS=")][-1] == "STATUS=2 of 2 jobs up")
