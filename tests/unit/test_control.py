"""The control socket, spoken to over real connections by the good, the slow and the hostile."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stellerd import client, control
from stellerd.control import IDLE_S, MAX_CLIENTS, MAX_REQUEST, Control
from stellerd.errors import StellerdError, Unreachable, UsageError
from stellerd.loop import Loop

NOBODY = 65534


class Talk:
    """What a command goes on with."""

    def __init__(self, peer: control.Client) -> None:
        self.peer = peer
        self.heard: list[bytes] = []
        self.is_lost = False

    def hear(self, line: bytes) -> None:
        self.heard.append(line)

    def lost(self) -> None:
        self.is_lost = True


class Daemon:
    """A control socket on a loop of its own in this thread; `turn_while` serves until a condition holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = Loop()
        self.late = 0.0
        self.loop.clock = lambda: time.monotonic() + self.late  # type: ignore[method-assign]
        self.changed: list[Any] = []
        self.control = Control(self.loop, path, {
            "status": (False, lambda request: {"jobs": []}),
            "big": (False, lambda request: {"text": "x" * 1_000_000}),
            "change": (True, self.change),
            "refuse": (False, self.refuse),
            "talk": (True, control.Opens(self.talk)),
        })  # fmt: skip
        self.talks: list[Talk] = []

    def change(self, request: dict[str, Any]) -> dict[str, Any]:
        self.changed.append(request)
        return {"done": True}

    def talk(self, request: dict[str, Any], peer: control.Client) -> dict[str, Any]:
        peer.talk = Talk(peer)
        self.talks.append(peer.talk)
        return {"begun": True}

    def refuse(self, request: dict[str, Any]) -> dict[str, Any]:
        raise UsageError("no such thing")

    def serve(self, until: Callable[[], object], timeout: float = 10.0) -> None:
        deadline = time.monotonic() + timeout
        while not until():
            assert time.monotonic() < deadline, "not in time"
            tick = self.loop.after(0.01, lambda: None)
            self.loop.turn()
            tick.cancel()

    def connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(10)
        with control.short_name(self.path) as name:
            made.connect(name)
        return made

    def say(self, data: bytes, connection: socket.socket | None = None) -> bytes:
        """One line of reply; b"" when it hung up."""
        own = connection or self.connect()
        got: list[bytes] = []

        def talk() -> None:
            with contextlib.suppress(ConnectionError):
                own.sendall(data)
            line = b""
            with contextlib.suppress(ConnectionError):
                line = own.makefile("rb").readline()
            got.append(line)

        thread = threading.Thread(target=talk)
        thread.start()
        self.serve(lambda: got)
        thread.join()
        if connection is None:
            own.close()
        return got[0]

    def asks(self, request: Any) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(self.say(json.dumps(request).encode() + b"\n"))
        return reply

    def close(self) -> None:
        self.control.close()
        self.loop.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path / "control.sock")
    yield made
    made.close()


# --- the good


def test_a_request_gets_its_reply(daemon: Daemon) -> None:
    assert daemon.asks({"command": "status"}) == {"ok": True, "jobs": []}


def test_one_connection_may_ask_twice(daemon: Daemon) -> None:
    with daemon.connect() as connection:
        for _ in range(2):
            assert json.loads(daemon.say(b'{"command": "status"}\n', connection))["ok"]


def test_a_request_may_come_in_pieces(daemon: Daemon) -> None:
    with daemon.connect() as connection:
        connection.sendall(b'{"comm')
        daemon.serve(lambda: any(one._in for one in daemon.control.clients))
        assert json.loads(daemon.say(b'and": "status"}\n', connection))["ok"]


def test_several_requests_may_come_at_once(daemon: Daemon) -> None:
    with daemon.connect() as connection:
        connection.sendall(b'{"command": "status"}\n' * 50)
        got = bytearray()

        def read() -> bool:
            with contextlib.suppress(BlockingIOError):
                connection.setblocking(False)
                got.extend(connection.recv(65536))
            return got.count(b"\n") == 50

        daemon.serve(read)


def test_a_large_reply_arrives_whole(daemon: Daemon) -> None:
    assert len(daemon.asks({"command": "big"})["text"]) == 1_000_000


def test_an_error_is_a_reply_with_its_exit_code(daemon: Daemon) -> None:
    assert daemon.asks({"command": "refuse"}) == {"ok": False, "error": "no such thing", "code": 2}


def test_the_client_and_the_socket_understand_each_other(daemon: Daemon) -> None:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(client.ask(daemon.path, "change", job="a")))
    thread.start()
    daemon.serve(lambda: got)
    thread.join()
    assert got == [{"done": True}]
    assert daemon.changed == [{"command": "change", "job": "a"}]


# --- the hostile


@pytest.mark.parametrize(
    "line",
    [
        b"", b"garbage", b"[]", b"5", b"null", b"{}", b'{"command": "close"}', b'{"command": "_commands"}',
        b'{"command": "__class__"}', b'{"command": ["status"]}', b'{"command": {"a": 1}}', b'{"command": null}',
        b'{"command": 5}', b"\xff\xfe", b"[" * 60_000, b'{"a":' * 10_000, b'{"command": "status"', b"NaN", b"1e999",
        b'{"command": "\\ud800"}',
    ],
    ids=range(20),
)  # fmt: skip
def test_what_is_no_request_gets_an_answer_and_harms_nobody(daemon: Daemon, line: bytes) -> None:
    reply = json.loads(daemon.say(line + b"\n"))
    assert reply == {"ok": False, "error": "not a request; commands are: status, big, change, refuse, talk", "code": 2}
    assert daemon.asks({"command": "status"})["ok"]


@pytest.mark.parametrize("data", [b"x" * (MAX_REQUEST * 2), b"\0" * (MAX_REQUEST + 1)], ids=["text", "zeros"])
def test_a_request_that_never_ends_is_hung_up_on(daemon: Daemon, data: bytes) -> None:
    assert daemon.say(data) == b""
    daemon.serve(lambda: not daemon.control.clients)


def test_whoever_asks_much_and_reads_nothing_is_hung_up_on_before_it_costs_memory(daemon: Daemon) -> None:
    with daemon.connect() as connection:
        connection.sendall(b'{"command": "big"}\n' * 200)
        most = 0

        def is_gone() -> bool:
            nonlocal most
            most = max([most, *(len(one._out) for one in daemon.control.clients)])
            return not daemon.control.clients and most > 0

        original = control.Client.close

        def close(one: control.Client) -> None:
            nonlocal most
            most = max(most, len(one._out))
            original(one)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(control.Client, "close", close)
            daemon.serve(is_gone)
    assert most < control.MAX_UNREAD + 3_000_000


def test_a_client_that_hangs_up_at_once_harms_nobody(daemon: Daemon) -> None:
    for _ in range(5):
        connection = daemon.connect()
        connection.sendall(b'{"command": "big"}\n')
        connection.close()
    assert daemon.asks({"command": "status"})["ok"]
    daemon.serve(lambda: not daemon.control.clients)


def test_a_silent_client_is_hung_up_on_in_time(daemon: Daemon) -> None:
    with daemon.connect():
        daemon.serve(lambda: daemon.control.clients)
        daemon.late = IDLE_S + 1
        daemon.serve(lambda: not daemon.control.clients)


def test_one_client_too_many_drops_the_one_that_was_silent_longest(daemon: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        silent = []
        for number in range(MAX_CLIENTS):
            silent.append(stack.enter_context(daemon.connect()))
            daemon.serve(lambda number=number: len(daemon.control.clients) == number + 1)  # type: ignore[misc]
        assert daemon.asks({"command": "status"})["ok"]
        assert len(daemon.control.clients) <= MAX_CLIENTS
        assert silent[0].recv(1) == b""
        silent[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            silent[-1].recv(1)


def test_a_daemon_without_descriptors_left_lives_on(daemon: Daemon) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with daemon.connect() as first, daemon.connect() as second:
        daemon.serve(lambda: len(daemon.control.clients) == 2)
        third = daemon.connect()
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(used, soft), hard))
        plugs = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    plugs.append(os.open("/dev/null", os.O_RDONLY))
            for _ in range(3):
                tick = daemon.loop.after(0.01, lambda: None)
                daemon.loop.turn()
                tick.cancel()
        finally:
            for fd in plugs:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        third.close()
        assert first.fileno() >= 0
        assert second.fileno() >= 0
    assert daemon.asks({"command": "status"})["ok"]


# --- who may


def as_nobody(path: Path, command: str) -> dict[str, Any]:
    """What the daemon answers to another user."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            client.ask(path, command)
            code = 0
        except StellerdError as error:
            code = 42 if "change is for root and the user root" in str(error) else 43
        finally:
            os._exit(code)
    return {"pid": pid}


@pytest.mark.parametrize(("uid", "may"), [(0, True), (os.getuid(), True), (NOBODY - 1, False), (-1, False)])
def test_root_and_the_daemons_own_user_may_change(daemon: Daemon, uid: int, may: bool) -> None:
    assert daemon.control.answer(b'{"command": "change"}', uid)["ok"] is may


@pytest.mark.parametrize(("command", "code"), [("status", 0), ("change", 42)])
def test_another_user_may_look_but_not_change(tmp_path: Path, command: str, code: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user; the rule itself is tested without")
    for folder in (tmp_path, *tmp_path.parents):
        if folder not in (Path("/"), Path("/tmp")):
            folder.chmod(folder.stat().st_mode | 0o011)
    daemon = Daemon(tmp_path / "control.sock")
    try:
        os.chmod(daemon.path, 0o666)  # what an operator's group would get
        pid = as_nobody(daemon.path, command)["pid"]
        ended: list[int] = []

        def over() -> bool:
            done, how = os.waitpid(pid, os.WNOHANG)
            if done:
                ended.append(os.waitstatus_to_exitcode(how))
            return bool(done)

        daemon.serve(over)
        assert ended == [code]
        assert daemon.changed == []
    finally:
        daemon.close()


def test_the_socket_is_for_its_user_and_group(daemon: Daemon) -> None:
    assert stat.S_IMODE(daemon.path.stat().st_mode) == 0o660


def test_the_socket_never_has_other_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    bind = socket.socket.bind

    class Watched(socket.socket):
        def bind(self, address: Any) -> None:
            bind(self, address)
            modes.append(stat.S_IMODE(os.stat(address).st_mode))

    monkeypatch.setattr(control.socket, "socket", Watched)
    old = os.umask(0)
    try:
        Daemon(tmp_path / "s").close()
        assert os.umask(0) == 0, "the mask is put back"
    finally:
        os.umask(old)
    assert modes == [0o660]


def test_a_new_folder_of_the_socket_is_not_for_others(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        made = Daemon(tmp_path / "run" / "s")
        made.close()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o750


# --- the path


def test_a_path_longer_than_a_socket_allows_works(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 30) / ("deep-" * 20)
    folder.mkdir(parents=True)
    assert len(str(folder)) > 107
    made = Daemon(folder / "control.sock")
    try:
        assert made.asks({"command": "status"})["ok"]
    finally:
        made.close()


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(tmp_path / "s"))
    made = Daemon(tmp_path / "s")
    try:
        assert made.asks({"command": "status"})["ok"]
    finally:
        made.close()


def test_a_second_daemon_is_refused_and_the_first_one_lives(daemon: Daemon) -> None:
    with pytest.raises(Unreachable, match=f"another stellerd is running: it answers at {daemon.path}"):
        Daemon(daemon.path)
    assert daemon.asks({"command": "status"})["ok"]


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(Unreachable, match="is in the way: not a socket"):
        Daemon(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "precious"


def test_a_folder_that_cannot_be_used_says_so() -> None:
    with pytest.raises(Unreachable, match="control socket /proc/no/s: No such file or directory"):
        Daemon(Path("/proc/no/s"))


def test_a_closed_socket_leaves_nothing(tmp_path: Path) -> None:
    gc.collect()  # what earlier tests left open must not end in the middle of this count
    before = len(os.listdir("/proc/self/fd"))
    made = Daemon(tmp_path / "s")
    with made.connect():
        made.serve(lambda: made.control.clients)
        made.close()
    assert not (tmp_path / "s").exists()
    assert len(os.listdir("/proc/self/fd")) <= before


def listens(path: Path, barrier: threading.Barrier, winners: list[socket.socket]) -> None:
    barrier.wait()
    with contextlib.suppress(Unreachable):
        winners.append(control._listen(path))


def test_of_daemons_that_start_at_once_one_has_the_socket(tmp_path: Path) -> None:
    for number in range(20):
        path, barrier = tmp_path / f"{number}.sock", threading.Barrier(6)
        winners: list[socket.socket] = []
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))  # left behind by a daemon that was killed
        threads = [threading.Thread(target=listens, args=(path, barrier, winners)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1
        assert control._answers(path)
        winners[0].close()


# --- those who stay


def test_what_a_client_says_in_a_talk_is_heard_and_its_end_noticed(daemon: Daemon) -> None:
    with daemon.connect() as connection:
        assert json.loads(daemon.say(b'{"command": "talk"}\n', connection)) == {"ok": True, "begun": True}
        [talk] = daemon.talks
        connection.sendall(b"one\ntwo\n")
        daemon.serve(lambda: len(talk.heard) == 2)
        assert talk.heard == [b"one", b"two"]
    daemon.serve(lambda: talk.is_lost)
    assert not daemon.control.clients


def test_a_talk_may_be_silent_and_is_not_pushed_out(daemon: Daemon) -> None:
    with daemon.connect() as connection:
        daemon.say(b'{"command": "talk"}\n', connection)
        others = [daemon.connect() for _ in range(MAX_CLIENTS + 5)]
        daemon.say(b'{"command": "status"}\n', others[-1])  # now all of them were let in
        assert len(daemon.control.clients) == MAX_CLIENTS + 1
        daemon.late += 3 * IDLE_S
        daemon.serve(lambda: len(daemon.control.clients) == 1)
        assert not daemon.talks[0].is_lost
        peer = daemon.talks[0].peer
        peer.talk = None  # it is over: now it is one of many
        daemon.late += 3 * IDLE_S
        daemon.serve(lambda: not daemon.control.clients)
        for other in others:
            other.close()


def test_what_may_be_missed_is_when_a_client_does_not_read(daemon: Daemon) -> None:
    with daemon.connect() as connection:
        daemon.say(b'{"command": "talk"}\n', connection)
        peer = daemon.talks[0].peer
        for number in range(200_000):
            peer.tell({"event": "progress", "number": number}, 10_000)
        assert len(peer._out) < 20_000
        peer.tell({"event": "result"})
        seen: list[dict[str, Any]] = []

        def read() -> None:
            for line in connection.makefile("rb"):
                seen.append(json.loads(line))
                if seen[-1]["event"] == "result":
                    return

        thread = threading.Thread(target=read)
        thread.start()
        daemon.serve(lambda: not thread.is_alive())
        numbers = [message["number"] for message in seen[:-1]]
        assert numbers == sorted(numbers)
        assert 0 < len(numbers) < 200_000


def test_only_those_who_may_change_something_may_talk(daemon: Daemon) -> None:
    peer = type("Peer", (), {"uid": NOBODY, "group": ""})
    assert not daemon.control.answer(b'{"command": "talk"}', NOBODY, peer)["ok"]  # type: ignore[arg-type]
    assert not daemon.talks


def test_a_place_that_another_start_takes_is_told_at_once(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "s.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(control.Occupied, match=r"another stellerd that is starting holds .*/s\.lock"):
        Daemon(tmp_path / "s")
    os.close(fd)
    Daemon(tmp_path / "s").close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["open to others", "a link"])
def test_a_lock_file_of_somebody_else_is_refused(tmp_path: Path, kind: str) -> None:
    lock = tmp_path / "s.lock"
    if kind == "a link":
        lock.symlink_to(tmp_path / "precious")
    else:
        lock.touch()
        lock.chmod(0o666)
    with pytest.raises(Unreachable, match=r"Too many levels|others may open it; remove it"):
        Daemon(tmp_path / "s")
    assert not (tmp_path / "precious").exists()


def test_the_socket_of_a_stopped_daemon_with_a_full_queue_is_left_alone(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as clients:
        busy.bind(str(tmp_path / "s"))
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(tmp_path / "s"))
        with pytest.raises(Unreachable, match="another stellerd is running"):
            Daemon(tmp_path / "s")
        assert (tmp_path / "s").exists()
