"""No command, no file and no error that nobody foresaw ends the daemon: the guard at the edge of the loop."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon import QUIET, WAITS, until
from faults.helpers import DEAF, HEAD, FaultDaemon

from stellerd.client import Refused

BROKEN = {
    "brackets": f"x = {'[' * 3000}{']' * 3000}\n",
    "digits": f"x = {'9' * 5000}\n",
    "arrays": f"[jobs.it.settings]\nx = {'[' * 300}{']' * 300}\n",
    "keys": f"[jobs.it.settings]\n{'x.' * 400}y = 1\n",
    "bytes": "\udcff\n",
}
SABOTEUR = """
import os, stellerd.fleet, stellerd.holds, stellerd.managed, stellerd.process, stellerd.supervisor
owner, daemon, calls = stellerd.{place}, os.getpid(), []
whole = owner.{name}
def broken(*args, **kwargs):
    if os.getpid() == daemon and {when} and not calls:
        calls.append(1)
        raise RuntimeError("nobody foresaw this")
    return whole(*args, **kwargs)
owner.{name} = broken
"""


def sabotaged(folder: Path, place: str, name: str, when: str = "True") -> str:
    """[supervisor] that preloads a module which makes the daemon's own `name` raise once."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "saboteur.py").write_text(SABOTEUR.format(place=place, name=name, when=when))
    return HEAD + "preload = ['saboteur']\n"


def test_reloads_go_on_while_a_removed_job_is_still_ending(tmp_path: Path) -> None:
    both = "[jobs.stays]\n[jobs.goes]\nstop_grace = '700ms'\n"
    with FaultDaemon(tmp_path, {"stays": WAITS, "goes": DEAF}, both) as daemon:
        pid = daemon.until_state("stays", "RUNNING")["pid"]
        daemon.until_state("goes", "RUNNING")
        daemon.write("[jobs.stays]\n")
        for _ in range(3):
            daemon.ask("reload")
        assert daemon.job("goes")["state"] == "STOPPING", "it was to be ending all the time"
        with pytest.raises(Refused, match="no longer configured"):
            daemon.ask("start", job="goes")
        until(lambda: [entry["job"] for entry in daemon.status()["jobs"]] == ["stays"])
        assert daemon.job("stays")["pid"] == pid


def test_a_job_that_is_to_restart_when_it_is_removed_never_comes_back(tmp_path: Path) -> None:
    both = "[jobs.stays]\n[jobs.goes]\nstop_grace = '300ms'\nbackoff = '20ms'\n"
    with FaultDaemon(tmp_path, {"stays": WAITS, "goes": DEAF}, both) as daemon:
        daemon.until_state("stays", "RUNNING")
        daemon.until_state("goes", "RUNNING")
        daemon.ask("restart", job="goes")
        daemon.write("[jobs.stays]\n")
        daemon.ask("reload")
        until(lambda: [entry["job"] for entry in daemon.status()["jobs"]] == ["stays"])
        daemon.until_replaced(daemon.kill_job("stays"))  # a whole restart later
        assert not daemon.events("died", job="goes")
        assert len(daemon.children()) == 2


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_read_as_configuration_is_refused(tmp_path: Path, kind: str) -> None:
    with FaultDaemon(tmp_path, {"it": WAITS}, "[jobs.it]\n") as daemon:
        pid = daemon.until_state("it", "RUNNING")["pid"]
        daemon.config.write_bytes((daemon.config.read_text() + BROKEN[kind]).encode("utf-8", "surrogateescape"))
        with pytest.raises(Refused) as refused:
            daemon.ask("reload")
        assert refused.value.exit_code == 78
        os.kill(daemon.pid, signal.SIGHUP)
        until(lambda: len(daemon.events("reload refused; the old configuration stays in force")) == 2)
        checked = daemon.cli("check")
        assert (checked.returncode, "Traceback" in checked.stderr) == (78, False)
        assert daemon.job("it")["pid"] == pid


@pytest.mark.parametrize(
    ("place", "name", "act", "answered"),
    [
        ("holds.Holds", "_write", lambda daemon: daemon.ask("pause", job="it"), True),
        ("supervisor.Supervisor", "reload", lambda daemon: daemon.ask("reload"), True),
        ("supervisor.Supervisor", "reload", lambda daemon: os.kill(daemon.pid, signal.SIGHUP), False),
        ("managed.Managed", "lines", lambda daemon: daemon.ask("logs", job="it"), True),
    ],
    ids=["pause", "reload", "SIGHUP", "logs"],
)
def test_an_error_in_a_command_is_answered_and_logged(
    tmp_path: Path, place: str, name: str, act: Callable[[FaultDaemon], object], answered: bool
) -> None:
    with FaultDaemon(tmp_path, {"it": WAITS}, sabotaged(tmp_path, place, name) + "[jobs.it]\n") as daemon:
        pid = daemon.until_state("it", "RUNNING")["pid"]
        told = pytest.raises(Refused, match=r"internal error: .*nobody foresaw this")
        with told if answered else contextlib.nullcontext():
            act(daemon)
        [line] = until(lambda: [line for line in daemon.logs() if line["event"].startswith("internal error in")])
        assert "Traceback" in line["traceback"]
        assert daemon.job("it")["pid"] == pid
        assert daemon.end() == 0


@pytest.mark.parametrize(
    ("place", "name", "when"),
    [
        ("fleet", "Process", "args[1].job == 'it'"),  # STARTING would last for ever
        ("process.LogPump", "drain", "True"),  # while it is buried
        ("process.LogPump", "pump", "args[0].job == 'it'"),  # its descriptor is ready again at once
        ("process.Process", "_on_channel", "True"),
        ("fleet.Fleet", "_heed", "args[1].name == 'it'"),
        ("fleet.Fleet", "_on_death", "args[1].name == 'it'"),
        ("fleet.Fleet", "_retry", "args[1].name == 'it'"),
        ("fleet.Managed", "forgive", "args[0].name == 'it'"),  # a timer
    ],
)
def test_an_error_in_what_concerns_a_job_ends_its_process_alone(
    tmp_path: Path, place: str, name: str, when: str
) -> None:
    toml = sabotaged(tmp_path, place, name, when)
    toml += "[jobs.it]\nbackoff = '50ms'\nbackoff_cap = '50ms'\nsettle = '50ms'\n[jobs.other]\nafter = ['it']\n"
    speaks = WAITS.replace("while not", "print('a line', flush=True)\n        while not")
    failed = "internal error; the job's process is killed"
    with FaultDaemon(tmp_path, {"it": speaks, "other": WAITS}, toml) as daemon:
        other = daemon.until_state("other", "RUNNING")["pid"]
        daemon.until_state("it", "RUNNING")
        for _ in range(2):
            if not daemon.events(failed) and name != "forgive":  # it fails at the first or the second death
                daemon.until_replaced(daemon.kill_job("it"))
        until(lambda: daemon.events(failed, job="it"))
        daemon.until_state("it", "RUNNING")
        until(lambda: len(daemon.children()) == 3)
        assert daemon.job("other")["pid"] == other
        assert daemon.end() == 0


def test_an_error_while_a_job_is_stopped_kills_it_and_it_counts_as_stopped(tmp_path: Path) -> None:
    toml = sabotaged(tmp_path, "process.Process", "terminate") + "[jobs.it]\n"
    with FaultDaemon(tmp_path, {"it": QUIET}, toml) as daemon:
        daemon.until_state("it", "RUNNING")
        daemon.ask("stop", job="it")
        daemon.until_state("it", "STOPPED", timeout=5)
        daemon.ask("start", job="it")
        daemon.until_state("it", "RUNNING")


def test_a_file_of_holds_with_numbers_holds_nobody_and_stops_no_command(tmp_path: Path) -> None:
    (tmp_path / "holds.json").write_text('{"stopped": [5, "it"], "paused": [1]}')
    with FaultDaemon(tmp_path, {"it": WAITS}, "[jobs.it]\n") as daemon:
        daemon.until_state("it", "RUNNING")
        assert daemon.ask("pause", job="it")["note"] == ""
        assert daemon.ask("stop", job="it")["note"] == ""
        daemon.until_state("it", "STOPPED")
