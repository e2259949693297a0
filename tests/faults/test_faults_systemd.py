"""What a service manager hears, on sockets of both kinds, and from whom."""

from __future__ import annotations

import os
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
