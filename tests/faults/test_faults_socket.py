"""Clients of the control socket that ask too much, too fast, or never listen."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import QUIET, WAITS, until
from faults.helpers import FaultDaemon, jobs, resident, seconds, write_raw

from stellerd.control import Control
from stellerd.loop import Loop

ASKED_AT_ONCE = [b"\n", b'{"command": "status"}\n', b"[" * 60_000 + b"\n", b'{"command": "logs", "job": "j0"}\n']


@pytest.mark.parametrize("line", ASKED_AT_ONCE, ids=["nothing", "status", "nested", "logs"])
def test_a_client_that_asks_everything_at_once_does_not_keep_the_others_waiting(tmp_path: Path, line: bytes) -> None:
    names = [f"j{n}" for n in range(10)]
    with FaultDaemon(tmp_path, dict.fromkeys(names, QUIET), jobs(names, "enabled = true\n")) as daemon:
        for name in names:
            daemon.until_job(name, lambda entry: entry["last_run"])
        before = resident(daemon.pid)
        for _ in range(5):
            with write_raw(daemon.socket) as greedy:
                greedy.setblocking(False)
                with contextlib.suppress(OSError):
                    greedy.sendall(line * (65_536 // len(line)))
                assert seconds(daemon.status) < 0.15
        assert resident(daemon.pid) - before < 24 * 1024 * 1024


def test_many_questions_at_once_are_all_answered_in_order(tmp_path: Path) -> None:
    with FaultDaemon(tmp_path, {"it": WAITS}, "[jobs.it]\n") as daemon, write_raw(daemon.socket) as client:
        daemon.until_state("it", "RUNNING")
        asked = [{"command": "logs", "job": f"no-{n}"} for n in range(200)]
        client.sendall(b"".join(json.dumps(question).encode() + b"\n" for question in asked))
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as replies:
            answers = [json.loads(reply) for reply in replies]
        assert [f"'no-{n}'" in answer["error"] for n, answer in enumerate(answers)] == [True] * 200


def test_half_a_question_is_no_question(tmp_path: Path) -> None:
    with FaultDaemon(tmp_path, {"it": WAITS}, "[jobs.it]\n") as daemon:
        with write_raw(daemon.socket) as client:
            client.sendall(b'{"command": "shutdown"')
        daemon.until_state("it", "RUNNING")
        assert not daemon.status()["stopping"]


def test_a_client_is_dropped_for_silence_and_not_for_its_age(tmp_path: Path) -> None:
    loop, now = Loop(), [0.0]
    loop.clock = lambda: now[0]
    control = Control(loop, tmp_path / "control.sock", {"ping": (False, lambda request: {})})
    with write_raw(control.path) as client:
        loop.turn()
        for _ in range(5):
            now[0] += 20
            client.sendall(b'{"command": "ping"}\n')
            loop.turn()
            assert client.recv(100) == b'{"ok": true}\n'
        now[0] += 31
        loop.turn()
        assert client.recv(100) == b""
    control.close()
    loop.close()


# --- a place that somebody keeps


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file or a folder."""
    fd = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def test_a_lock_on_the_folder_of_the_socket_keeps_nobody_from_starting(tmp_path: Path) -> None:
    """Whoever may read the folder can take one: a member of the group."""
    with locked(tmp_path), FaultDaemon(tmp_path, {"it": QUIET}, "[jobs.it]\n") as daemon:
        daemon.until_job("it", lambda entry: entry["last_run"])
        assert daemon.end() == 0
    assert not list(tmp_path.glob("*.lock"))


def test_a_start_that_waits_for_another_one_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    daemon = FaultDaemon(tmp_path, {"it": QUIET}, "[jobs.it]\n")
    with locked(tmp_path / "control.sock.lock"):
        daemon.start()
        until(daemon.children, what="its guardian")
        assert seconds(daemon.end) < 2
    assert not daemon.socket.exists()
    assert not daemon.events("started")


def test_a_start_that_waits_for_another_one_goes_on_after_it(tmp_path: Path) -> None:
    daemon = FaultDaemon(tmp_path, {"it": QUIET}, "[jobs.it]\n")
    with locked(tmp_path / "control.sock.lock"):
        daemon.start()
        until(daemon.children, what="its guardian")
        assert not daemon.socket.exists()
    until(daemon._answers)
    assert daemon.end() == 0
