"""What systemd's sandbox hides from the daemon, and what becomes of jobs there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from daemon import QUIET
from faults.helpers import FaultDaemon, with_proc

from stellerd import hosts

BOOT_ID = "STELLERD_BOOT_ID"


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
