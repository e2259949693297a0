"""The unit file, judged by systemd itself: it parses without a word, and its exposure stays where it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "etc" / "systemd"
UNIT = FOLDER / "stellerd.service"
BINARY = "/opt/stellerd/bin/stellerd"


def tool(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is not installed: sudo apt-get install systemd (`make test` as root does that by itself)"
    return found


def verify(text: str, folder: Path) -> str:
    """What systemd has to say about a unit of this text; an executable of its own stands in for the installed one."""
    stand_in = folder / "stellerd"
    stand_in.write_text("#!/bin/sh\n")
    stand_in.chmod(0o755)
    unit = folder / "stellerd.service"
    unit.write_text(text.replace(BINARY, str(stand_in)))
    command = [tool("systemd-analyze"), "--man=no", "verify", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # Some mistakes are warnings to systemd (a key that it does not know is ignored); here they are mistakes
    return f"{done.stdout}{done.stderr}" or (f"exit {done.returncode}" if done.returncode else "")


def exposure_is_fine(unit: Path) -> bool:
    command = [tool("systemd-analyze"), "security", "--offline=true", "--threshold=11", str(unit)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def directives(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if "=" in line and not line.startswith("#")}


def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    assert verify(UNIT.read_text(), tmp_path) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("NotifyAccess=main", "NotifyAcces=main", "NotifyAcces"),
        ("Type=notify\n", "Type=notfy\n", "Failed to parse service type"),
        (f"ExecStart={BINARY}", "ExecStart=/nonexistent/stellerd", "not executable"),
        ("SystemCallFilter=@system-service", "SystemCallFilter=@sistem-service", "sistem-service"),
    ],
)
def test_a_mistake_in_the_unit_is_found(right: str, wrong: str, complaint: str, tmp_path: Path) -> None:
    text = UNIT.read_text()
    assert right in text
    said = verify(text.replace(right, wrong), tmp_path)
    assert complaint in said


def test_the_exposure_passes_the_gate() -> None:
    assert exposure_is_fine(UNIT)


@pytest.mark.parametrize("line", ["PrivateUsers=yes", "SystemCallFilter=~@privileged @resources @obsolete"])
def test_the_gate_notices_a_lost_line(line: str, tmp_path: Path) -> None:
    weaker = tmp_path / "stellerd.service"
    text = UNIT.read_text()
    weaker.write_text(text.replace(f"{line}\n", ""))
    assert weaker.read_text() != text
    assert not exposure_is_fine(weaker)


def test_the_unit_restarts_for_ever_except_for_a_wrong_configuration() -> None:
    wanted = {"Type=notify", "NotifyAccess=main", "Restart=on-failure", "StartLimitIntervalSec=0",
              "RestartPreventExitStatus=78", "KillMode=mixed", "WatchdogSec=30s", "OOMPolicy=continue",
              f"ExecReload={BINARY} -c /etc/stellerd/stellerd.toml reload", "User=stellerd"}  # fmt: skip
    assert wanted - directives(UNIT.read_text()) == set()


def test_nothing_that_the_service_may_write_to_can_be_executed() -> None:
    """What is mounted for a service alone is not covered by "/"."""
    (line,) = [line for line in directives(UNIT.read_text()) if line.startswith("NoExecPaths=")]
    denied = {path.removeprefix("-") for path in line.partition("=")[2].split()}
    assert {"/", "/var/lib/stellerd", "/run/stellerd", "/tmp", "/var/tmp", "/dev/shm"} <= denied


def test_the_user_of_the_unit_can_be_made(tmp_path: Path) -> None:
    command = [
        tool("systemd-sysusers"),
        "--dry-run",
        f"--root={tmp_path}",
        str(FOLDER / "sysusers.d" / "stellerd.conf"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "user 'stellerd'" in done.stdout + done.stderr
