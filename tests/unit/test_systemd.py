"""sd_notify against real sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from stellerd import systemd


def listening(address: str) -> socket.socket:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(address)
    manager.settimeout(5)
    return manager


def test_a_manager_with_a_path_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(str(tmp_path / "notify")) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert systemd.notify("READY=1", "STATUS=3 of 3 jobs up")
        assert manager.recv(1000) == b"READY=1\nSTATUS=3 of 3 jobs up"


def test_a_manager_with_an_abstract_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"stellerd-test-{os.getpid()}"
    with listening(f"\0{name}") as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert systemd.notify("STOPPING=1")
        assert manager.recv(1000) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["", "/no/such/socket", "@no-such-socket", "x" * 200])
def test_a_manager_that_is_not_there_fails_nobody(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert systemd.notify("READY=1"), "nothing to say again"


def test_without_a_manager_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert systemd.notify("READY=1")


def test_a_manager_that_does_not_read_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(str(tmp_path / "notify")):
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert not all(systemd.notify("WATCHDOG=1") for _ in range(10_000))


def test_what_a_full_queue_does_not_take_is_told_again_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later: list[Callable[[], None]] = []
    manager = systemd.Manager(lambda seconds, callback: later.append(callback))
    with listening(str(tmp_path / "notify")) as socket_of_manager:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        while systemd.notify("WATCHDOG=1"):
            pass
        for up in range(50):
            manager.tell(f"STATUS={up} of 50 jobs up")
        manager.tell("READY=1", "STATUS=50 of 50 jobs up")
        manager.tell("STATUS=49 of 50 jobs up")
        manager.tell("STOPPING=1")
        heard = []
        while len(heard) < 100 and "STOPPING=1" not in heard:
            heard.append(socket_of_manager.recv(1000).decode())
            for callback in [later.pop(0) for _ in list(later)]:
                callback()
    told = [text for text in heard if text != "WATCHDOG=1"]
    assert told == [
        "STATUS=49 of 50 jobs up", "READY=1\nSTATUS=50 of 50 jobs up", "STATUS=49 of 50 jobs up", "STOPPING=1",
    ]  # fmt: skip


def test_a_burst_of_states_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    later: list[Callable[[], None]] = []
    monkeypatch.setattr(systemd, "notify", lambda *lines: told.append("\n".join(lines)) or True)
    manager = systemd.Manager(lambda seconds, callback: later.append(callback))
    for up in range(50):
        manager.tell(f"STATUS={up} of 50 jobs up")
    assert told == ["STATUS=0 of 50 jobs up"]
    later.pop()()
    assert told[1:] == ["STATUS=49 of 50 jobs up"]
    manager.tell("STATUS=49 of 50 jobs up")
    manager.tell("READY=1", "STATUS=50 of 50 jobs up")
    assert told[-1] == "READY=1\nSTATUS=50 of 50 jobs up", "what is no mere state does not wait"


def test_telling_leaks_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/no/such/socket")
    before = len(os.listdir("/proc/self/fd"))
    systemd.notify("READY=1")
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [("20000000", "", 10.0), ("20000000", "me", 10.0), ("20000000", "1", None), ("", "", None), ("0", "", None),
     ("soon", "", None)],
)  # fmt: skip
def test_the_watchdog_is_fed_twice_as_often_as_asked(
    usec: str, pid: str, interval: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "me" else pid)
    assert systemd.watchdog_interval() == interval


@pytest.mark.parametrize(
    ("text", "levels", "expected"),
    [
        (b"a\nb", b"3", b"<3>a\n<3>b"),
        (b"a\n\nb", b"347", b"<3>a\n<4>\n<7>b"),
        (b"", b"6", b"<6>"),
        (b"a\0<0>b", b"6", b"<6>a\\0<0>b"),
        (b"<0>a", b"6", b"<6><0>a"),
        (b"x" * 40960 + b"<0>y", b"4", b"<4>" + b"x" * 40960 + b"\n<4><0>y"),
        (b"x" * 40960 + b"\n", b"46", b"<4>" + b"x" * 40960 + b"\n<6>"),
    ],
)
def test_each_line_for_the_journal_names_its_priority(text: bytes, levels: bytes, expected: bytes) -> None:
    assert systemd.journal_lines(text, levels) == expected
