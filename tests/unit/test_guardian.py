"""The guardian with real forks: whoever outlives the supervisor does not do so for long."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from stellerd.guardian import Guardian


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in "ZX"


def until(condition: Callable[[], bool], timeout: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def group(ignores: tuple[signal.Signals, ...] = ()) -> list[int]:
    """A process group of two, the second a child of the first; their pids."""
    read, write = os.pipe()
    first = os.fork()
    if first == 0:
        os.setpgid(0, 0)
        for number in ignores:
            signal.signal(number, signal.SIG_IGN)
        second = os.fork()
        if second:
            os.write(write, f"{os.getpid()} {second}\n".encode())
        os.closerange(3, 1000)
        while True:
            signal.pause()
    os.close(write)
    with os.fdopen(read) as stream:
        return [int(pid) for pid in stream.readline().split()]


def supervisor(act: Callable[[Guardian, list[int]], None], end: int = signal.SIGKILL) -> list[int]:
    """A process that has a guardian and a group, does `act` and is killed; the group's pids and the guardian's."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            guardian = Guardian()
            pids = group((signal.SIGTERM, signal.SIGHUP))
            act(guardian, pids)
            os.write(write, " ".join(map(str, [*pids, guardian.pid])).encode() + b"\n")
            signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as stream:
        pids = [int(word) for word in stream.readline().split()]
    assert len(pids) == 3
    assert all(map(alive, pids))
    os.kill(pid, end)
    os.waitpid(pid, 0)
    return pids


def put_away(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSEGV])
def test_when_the_supervisor_dies_its_groups_die_with_it(end: signal.Signals) -> None:
    pids = supervisor(lambda guardian, pids: guardian.watch(pids[0]), end)
    try:
        assert until(lambda: not any(map(alive, pids)))
    finally:
        put_away(pids)


def test_a_group_that_is_over_is_left_alone() -> None:
    def act(guardian: Guardian, pids: list[int]) -> None:
        guardian.watch(pids[0])
        guardian.forget(pids[0])

    pids = supervisor(act)
    try:
        assert until(lambda: not alive(pids[2]))
        assert alive(pids[0])
        assert alive(pids[1])
    finally:
        put_away(pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_polite_signal_does_not_end_the_guardian(number: signal.Signals) -> None:
    guardian = Guardian()
    try:
        assert until(lambda: os.getsid(guardian.pid) == guardian.pid and "ignored" in ignored(guardian.pid, number))
        os.kill(guardian.pid, number)
        assert alive(guardian.pid)
    finally:
        guardian.close()


def ignored(pid: int, number: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = int(next(line.split()[1] for line in lines if line.startswith("SigIgn")), 16)
    return "ignored" if mask >> (number - 1) & 1 else "not"


def test_it_holds_no_descriptor_but_its_pipe_and_the_standard_ones() -> None:
    extra = os.open("/dev/null", os.O_RDONLY)
    guardian = Guardian()
    try:
        assert until(lambda: len(os.listdir(f"/proc/{guardian.pid}/fd")) <= 4)
    finally:
        guardian.close()
        os.close(extra)


def test_closing_ends_it_and_leaves_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    guardian = Guardian()
    guardian.close()
    assert not Path(f"/proc/{guardian.pid}").exists()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_telling_a_dead_guardian_fails_nobody() -> None:
    guardian = Guardian()
    os.kill(guardian.pid, signal.SIGKILL)
    assert until(lambda: not alive(guardian.pid))
    guardian.watch(2**22 - 1)
    guardian.close()


def test_a_group_that_is_gone_already_hinders_nobody() -> None:
    def act(guardian: Guardian, pids: list[int]) -> None:
        guardian.watch(2**22 - 1)
        guardian.watch(pids[0])

    pids = supervisor(act)
    try:
        assert until(lambda: not any(map(alive, pids)))
    finally:
        put_away(pids)
