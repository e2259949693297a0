"""Clients of the control socket that ask too much, too fast, or never listen."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

import pytest
from daemon import QUIET, WAITS
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


def test_a_daemon_that_ends_leaves_the_socket_of_another_alone(tmp_path: Path) -> None:
    with FaultDaemon(tmp_path, {"it": WAITS}, "[jobs.it]\n") as first:
        first.socket.unlink()
        with FaultDaemon(tmp_path, {"it": WAITS}, "[jobs.it]\n") as second:
            assert first.end() == 0
            assert second.status()["pid"] == second.pid
