"""The fork contract, looked at from inside a real fork."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stellerd import child, config
from stellerd.channel import Assignment, Channel


def in_a_child(look: Callable[[Channel], Any], before: Callable[[], Any] = lambda: None) -> Any:
    """What `look` sees in a process that went through the contract."""
    parent, theirs = Channel.pair()
    assignment = Assignment(job="a", config=config.parse("[jobs.a]", Path("/x.toml")), parent_pid=os.getpid())
    pid = os.fork()
    if pid == 0:
        try:
            before()
            child._after_fork(assignment, theirs, None)
            theirs.send("seen", value=look(theirs))
        finally:
            os._exit(0)
    theirs.close()
    os.waitpid(pid, 0)
    messages = parent.receive()
    parent.close()
    assert messages, "it died before it could say what it saw"
    return messages[0]["value"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR2])
def test_no_handler_of_the_parent_is_left(number: signal.Signals) -> None:
    def inherit() -> None:
        signal.signal(number, lambda *args: None)

    assert in_a_child(lambda channel: signal.getsignal(number) == signal.SIG_DFL, inherit) is True


def test_a_connection_that_was_closed_is_an_error_and_not_the_end_of_the_process() -> None:
    def write_to_nobody(channel: Channel) -> str:
        ours, theirs = socket.socketpair()
        theirs.close()
        try:
            ours.sendall(b"x")
        except BrokenPipeError:
            return "an error"
        return "nothing"

    assert in_a_child(write_to_nobody) == "an error"


def test_it_leads_a_group_of_its_own() -> None:
    assert in_a_child(lambda channel: os.getpgid(0) == os.getpid()) is True


def test_no_descriptor_of_others_is_left() -> None:
    extra = os.open("/dev/null", os.O_RDONLY)
    try:
        seen = in_a_child(lambda channel: [sorted(open_descriptors()), channel.fileno()])
    finally:
        os.close(extra)
    descriptors, own = seen
    assert set(descriptors) - {0, 1, 2} <= {own}


def open_descriptors() -> list[int]:
    found = []
    for fd in range(1024):
        try:
            os.fstat(fd)
        except OSError:
            continue
        found.append(fd)
    return found


def test_it_cannot_read_what_is_meant_for_the_daemon() -> None:
    assert in_a_child(lambda channel: os.readlink("/proc/self/fd/0")) == "/dev/null"


def test_its_random_numbers_are_its_own() -> None:
    state, drawn = random.getstate(), []
    for _ in range(2):
        random.seed(5)
        drawn.append(in_a_child(lambda channel: random.random()))
    random.setstate(state)
    first, second = drawn
    assert first != second


@pytest.mark.parametrize("name", ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"])
def test_it_cannot_speak_for_the_daemon(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert json.dumps(in_a_child(lambda channel: os.environ.get(name))) == "null"


def test_a_child_whose_parent_is_gone_already_ends() -> None:
    parent, theirs = Channel.pair()
    assignment = Assignment(job="a", config=config.parse("[jobs.a]", Path("/x.toml")), parent_pid=1)
    pid = os.fork()
    if pid == 0:
        child._after_fork(assignment, theirs, None)
        os._exit(0)
    _, how = os.waitpid(pid, 0)
    parent.close()
    theirs.close()
    assert os.waitstatus_to_exitcode(how) == 70
