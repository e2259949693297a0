"""What the journal gets: on its socket each line starts with its priority, and nobody else can say one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import SERVICE, job, until
from faults.helpers import FaultDaemon

LINE = re.compile("<([0-9])>(.*)")


class Journal:
    """journald's end of a service's standard error, and how the service is told which descriptor that is."""

    def __init__(self) -> None:
        self.socket, self.service = socket.socketpair()
        found = os.fstat(self.service.fileno())
        self.env = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        self._text = b""

    def entries(self) -> list[tuple[int, str]]:
        """Priority and text of each line so far; one without a priority has -1."""
        try:
            while data := self.socket.recv(1 << 20, socket.MSG_DONTWAIT):
                self._text += data
        except BlockingIOError:
            pass
        found = [(LINE.fullmatch(line), line) for line in self._text.decode().split("\n")[:-1]]
        return [(int(match[1]), match[2]) if match else (-1, line) for match, line in found]

    def until(self, text: str) -> int:
        """The priority of the first entry with this text."""
        return until(lambda: next(((level,) for level, said in self.entries() if text in said), ()), what=text)[0]


@pytest.fixture
def journal() -> Iterator[Journal]:
    made = Journal()
    yield made
    made.socket.close()
    made.service.close()


TALKS = job(
    "ctx.log.debug('of debug')\nctx.log.info('of info')\nctx.log.warning('of warning')\nctx.log.error('of error')\n"
    "print('<0>printed', flush=True)\nprint('<0>printed to stderr', file=sys.stderr, flush=True)\n"
    "print('\\x1e<0>marked', flush=True)\nprint('\\x1e<1><0>twice', flush=True)\nprint('ä<0>not plain', flush=True)\n"
    "print('x' * 49149 + '<0>behind the cut', flush=True)\nprint('\\x1e<3>' + 'y' * 49149 + '<0>z', flush=True)\n"
    "raise ValueError('first\\n<0>second')"
)


@pytest.mark.parametrize("log_format", ["auto", "text", "color"])
def test_each_entry_has_its_priority_and_no_job_can_forge_one(
    tmp_path: Path, journal: Journal, log_format: str
) -> None:
    toml = f"""
    [supervisor]
    holds = "holds.json"
    socket = "control.sock"
    log_level = "debug"
    log_format = "{log_format}"
    [jobs.a]
    """
    daemon = FaultDaemon(tmp_path, {"a": TALKS}, toml, env=journal.env)
    daemon.stderr = journal.service.fileno()
    with daemon:
        daemon.until_job("a", lambda entry: entry["last_run"])
        levels = {text: journal.until(text) for text in ("of debug", "of info", "of warning", "of error")}
        assert levels == {"of debug": 7, "of info": 6, "of warning": 4, "of error": 3}
        for text in ("<0>printed", "<0>printed to stderr", "<0>marked", "<0>twice", "<0>not plain"):
            assert journal.until(text) == 6
        assert journal.until("Traceback") == 3
        daemon.config.write_text("[")
        os.kill(daemon.pid, signal.SIGHUP)
        assert journal.until("reload refused") == 3
        assert daemon.end() == 0
    entries = journal.entries()
    assert {level for level, _ in entries} == {3, 4, 6, 7}
    assert max(len(text) for _, text in entries) < 48 * 1024, "journald would cut it and look for a priority again"
    (traceback,) = [text for _, text in entries if "ValueError: first" in text and "Traceback" in text]
    assert "second" in traceback
    assert not [text for _, text in entries if text.startswith("  ")]


def test_the_tail_of_the_log_has_no_priorities(tmp_path: Path, journal: Journal) -> None:
    daemon = FaultDaemon(tmp_path, {"a": TALKS}, "[jobs.a]\n", env=journal.env)
    daemon.stderr = journal.service.fileno()
    with daemon:
        until(lambda: "not plain" in daemon.cli("logs", "a").stdout)
        lines = daemon.cli("logs", "a").stdout.splitlines()
        assert [json.loads(line)["event"] for line in lines if "of error" in line] == ["of error"]
        assert not [line for line in lines if re.match("<[2-7]>", line)]


def test_no_other_output_gets_priorities(tmp_path: Path, journal: Journal) -> None:
    """$JOURNAL_STREAM is inherited; what counts is where this process's own lines go."""
    file = f'[supervisor]\nholds = "holds.json"\nsocket = "control.sock"\nlog_file = "{tmp_path}/daemon.log"\n'
    daemon = FaultDaemon(tmp_path, {"a": job("print('hello')")}, f"{file}[jobs.a]\n", env=journal.env)
    daemon.stderr = journal.service.fileno()
    with daemon:
        until(lambda: [line for line in daemon.logs() if line["event"] == "hello"])
        assert daemon.end() == 0
    assert journal.entries() == []
    assert all(line.startswith("{") for line in daemon.log_file.read_text().splitlines())


def test_a_job_that_inherits_the_journal_names_its_priorities(tmp_path: Path, journal: Journal) -> None:
    speaks = job("ctx.log.warning('of warning')\nctx.wait(60)", extra=SERVICE)
    daemon = FaultDaemon(tmp_path, {"a": speaks}, "[jobs.a]\nlog = 'inherit'\n", env=journal.env)
    daemon.stderr = journal.service.fileno()
    with daemon:
        assert journal.until("of warning") == 4


@pytest.mark.parametrize("command", [["run"], ["run-once", "a"]])
def test_what_ends_a_command_is_an_error_in_the_journal(tmp_path: Path, journal: Journal, command: list[str]) -> None:
    daemon = FaultDaemon(tmp_path, {"a": "raise ValueError('x\\ny')"}, "[jobs.a]\n", env=journal.env)
    if command == ["run"]:
        daemon.config.write_text("[jobs.a]\nevry = 1\n[jobs.b]\nevry = 1\n")
    called = [sys.executable, "-m", "stellerd.cli", "-c", str(daemon.config), *command]
    done = subprocess.run(called, env=daemon.env, stderr=journal.service.fileno(), check=False, timeout=30)
    assert done.returncode == 78
    entries = journal.entries()
    assert entries
    assert {level for level, _ in entries} == {3}
    assert len([text for _, text in entries if "Traceback" in text]) == (command != ["run"])


def test_a_daemon_that_fails_says_so_in_one_entry(tmp_path: Path, journal: Journal) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import stellerd.supervisor\n"
        "def fails(*args): raise RuntimeError('first\\nsecond')\n"
        "stellerd.supervisor.Supervisor._start_all = fails\n"
    )
    daemon = FaultDaemon(tmp_path, {"a": job("pass")}, "[jobs.a]\n", env=journal.env)
    daemon.env["PYTHONPATH"] = f"{tmp_path}:{daemon.env['PYTHONPATH']}"
    daemon.stderr = journal.service.fileno()
    process = daemon.start().process
    assert process is not None
    assert process.wait(20) == 1
    assert journal.until("the daemon failed") == 2
    assert {level for level, said in journal.entries() if '"insecure"' not in said} <= {2, 6}
