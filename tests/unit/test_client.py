"""The operator's end of the control socket, against daemons that are not there or talk nonsense."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stellerd import client
from stellerd.errors import StellerdError, Unreachable

NOBODY = 65534


@contextlib.contextmanager
def daemon(path: Path, answer: bytes | None) -> Iterator[None]:
    """Answers one request with these bytes and hangs up; None: never answers."""
    over = threading.Event()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            if answer is None:
                over.wait(10)
            else:
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        listener.close()


def test_a_reply_is_handed_over(tmp_path: Path) -> None:
    with daemon(tmp_path / "s", b'{"ok": true, "jobs": []}\n'):
        assert client.ask(tmp_path / "s", "status") == {"jobs": []}


def test_a_refusal_has_the_words_and_the_exit_code_of_the_daemon(tmp_path: Path) -> None:
    with daemon(tmp_path / "s", b'{"ok": false, "error": "no job a", "code": 2}\n'):
        with pytest.raises(StellerdError, match=r"^no job a$") as caught:
            client.ask(tmp_path / "s", "start", job="a")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("folder", ["", "no/such/folder"])
def test_no_daemon_at_all_says_how_to_start_one(tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / "s"
    with pytest.raises(Unreachable, match=f"no daemon answers at {path}; start it with: stellerd run"):
        client.ask(path, "status")


def test_a_socket_that_was_left_behind_is_no_daemon(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(tmp_path / "s"))
    with pytest.raises(Unreachable, match="no daemon answers"):
        client.ask(tmp_path / "s", "status")


@pytest.mark.parametrize(
    "answer",
    [b"", b"garbage\n", b"[]\n", b"5\n", b"null\n", b'"ok"\n', b'{"ok": false, "code": "x"}\n', b"[" * 100_000 + b"\n",
     b"\xff\xfe\n", b'{"ok": tr'],
    ids=range(10),
)  # fmt: skip
def test_a_reply_that_is_none_is_said_to_be_none(tmp_path: Path, answer: bytes) -> None:
    with daemon(tmp_path / "s", answer):
        with pytest.raises(Unreachable, match=f"the daemon at {tmp_path}/s does not answer: "):
            client.ask(tmp_path / "s", "status")


def test_a_daemon_that_hangs_is_given_up(tmp_path: Path) -> None:
    with daemon(tmp_path / "s", None), pytest.raises(Unreachable, match="does not answer: timed out"):
        client.ask(tmp_path / "s", "status", timeout=0.1)


def test_a_socket_of_others_says_whom_to_be(tmp_path: Path) -> None:
    """Asked as another user when the tests run as root, or with the mode alone when they do not."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        os.chmod(tmp_path / "s", 0)
        for folder in (tmp_path, *tmp_path.parents[:3]):
            if os.geteuid() == 0 and folder != Path("/tmp"):
                folder.chmod(folder.stat().st_mode | 0o011)
        assert said_by_nobody(tmp_path / "s") == f"{tmp_path}/s: permission denied; use the daemon's user or root"


def said_by_nobody(path: Path) -> str:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "it worked"
        try:
            if os.geteuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            client.ask(path, "status")
        except StellerdError as error:
            said = str(error)
        finally:
            os.write(write, said.encode())
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as stream:
        return stream.read()


def test_asking_leaks_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(Unreachable):
            client.ask(tmp_path / "s", "status")
    assert len(os.listdir("/proc/self/fd")) <= before
