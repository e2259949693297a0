"""The control socket: a JSON object a line in, one out. It never waits for a client nor runs what is unlisted."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stellerd.errors import StellerdError, Unreachable
from stellerd.loop import IN, OUT, Loop, Timer, say

MAX_CLIENTS = 64
BACKLOG = 1024
MAX_REQUEST = 64 * 1024
MAX_UNREAD = 8 * 1024 * 1024
IDLE_S = 30.0
_DEAF_S = 0.5
_REQUESTS_PER_TURN = 64  # whoever asks more at once waits for the rest of the loop's work
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))

Command = tuple[bool, Callable[[dict[str, Any]], dict[str, Any]]]


class Control:
    """Listens at `path`. A command that changes something is for root and for the daemon's own user alone."""

    def __init__(self, loop: Loop, path: Path, commands: Mapping[str, Command]) -> None:
        self.loop, self.path, self.commands = loop, path, commands
        self.clients: set[Client] = set()
        self._socket = _listen(path)
        self._mine = _identity(path)
        self._deaf: Timer | None = None
        loop.add(self._socket.fileno(), lambda events: self._accept())

    def _accept(self) -> None:
        """All that wait, within reason: a burst would fill the queue and be refused."""
        for _ in range(MAX_CLIENTS):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:  # no descriptor left: make room, and look again later instead of without end
                self._drop_oldest()
                self.loop.modify(self._socket.fileno(), 0)
                self._deaf = self.loop.after(_DEAF_S, self._listen_again)
                return
            if len(self.clients) >= MAX_CLIENTS:
                self._drop_oldest()
            try:
                self.clients.add(Client(self, connection))
            except OSError:  # the kernel watches no more descriptors for us
                connection.close()

    def _listen_again(self) -> None:
        self.loop.modify(self._socket.fileno(), IN)

    def _drop_oldest(self) -> None:
        if self.clients:
            min(self.clients, key=lambda client: client.last_used).close()

    def reply(self, line: bytes, uid: int) -> bytes:
        """The line that answers a request line of a client with this user id, whatever the command raises."""
        try:
            return json.dumps(self.answer(line, uid)).encode() + b"\n"
        except Exception as error:  # noqa: BLE001  the guard of all commands: the client is told, the daemon goes on
            say("internal error in a command", error, request=line[:200].decode("utf-8", "replace"))
            why = f"internal error: {type(error).__name__}: {error}; the daemon's log has the traceback"
            return json.dumps({"ok": False, "error": why, "code": 70}).encode() + b"\n"

    def answer(self, line: bytes, uid: int) -> dict[str, Any]:
        """The reply to one request line of a client with this user id."""
        try:
            request = json.loads(line)
            name = request["command"]
            changes, call = self.commands[name]
        except (ValueError, TypeError, KeyError, RecursionError):
            return {"ok": False, "error": f"not a request; commands are: {', '.join(self.commands)}", "code": 2}
        if changes and uid not in (0, os.getuid()):
            return {"ok": False, "error": f"{name} is for root and the daemon's own user", "code": 1}
        try:
            return {"ok": True, **call(request)}
        except StellerdError as error:
            return {"ok": False, "error": str(error), "code": error.exit_code}

    def close(self) -> None:
        """Hang up and remove the socket."""
        for client in list(self.clients):
            client.close()
        if self._deaf:
            self._deaf.cancel()
        self.loop.remove(self._socket.fileno())
        if _identity(self.path) == self._mine:  # else somebody removed it, and another daemon listens there
            self.path.unlink(missing_ok=True)
        self._socket.close()  # only now may its inode be another's


class Client:
    """One connection; dropped when it is silent for IDLE_S, asks too much or reads too little."""

    def __init__(self, control: Control, connection: socket.socket) -> None:
        self.control, self.socket, self.loop = control, connection, control.loop
        connection.setblocking(False)
        packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.uid = _CREDENTIALS.unpack(packed)[1]
        self._in, self._out = bytearray(), bytearray()
        self._more: Timer | None = None
        """There are requests left for the next turn."""
        self.last_used = self.loop.clock()
        self.loop.add(connection.fileno(), self._ready, owner=self._fail)
        self._idle: Timer = self.loop.after(IDLE_S, self._look, owner=self._fail)

    def _fail(self, error: Exception) -> None:
        say("internal error; the client is hung up on", error)
        self.close()

    def _look(self) -> None:
        """Whether it has been silent for too long."""
        left = self.last_used + IDLE_S - self.loop.clock()
        if left > 0:
            self._idle = self.loop.after(left, self._look, owner=self._fail)
        else:
            self.close()

    def _ready(self, events: int) -> None:
        try:
            if events & OUT:
                self._send()
            if events & ~OUT:
                self._receive()
        except OSError:
            self.close()

    def _receive(self) -> None:
        try:
            data = self.socket.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        self._in += data
        self.last_used = self.loop.clock()
        if data:
            self._answer()
        else:
            self.close()

    def _answer(self) -> None:
        for _ in range(_REQUESTS_PER_TURN):
            end = self._in.find(b"\n")
            if end < 0 or len(self._out) > MAX_UNREAD:
                break
            line = bytes(self._in[:end])
            del self._in[: end + 1]
            self._out += self.control.reply(line, self.uid)
        self._more = self.loop.after(0, self._go_on, owner=self._fail) if b"\n" in self._in else None
        if (len(self._in) > MAX_REQUEST and not self._more) or len(self._out) > MAX_UNREAD:
            self.close()
        else:
            self._send()

    def _go_on(self) -> None:
        try:
            self._answer()
        except OSError:
            self.close()

    def _send(self) -> None:
        if self._out:
            with contextlib.suppress(BlockingIOError):
                sent = self.socket.send(self._out, socket.MSG_NOSIGNAL)
                del self._out[:sent]
        self.loop.modify(self.socket.fileno(), (0 if self._more else IN) | (OUT if self._out else 0))

    def close(self) -> None:
        """Hang up."""
        self._idle.cancel()
        if self._more:
            self._more.cancel()
        if self in self.control.clients:
            self.control.clients.discard(self)
            self.loop.remove(self.socket.fileno())
            self.socket.close()


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file it is, whatever its name is."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _listen(path: Path) -> socket.socket:
    """Bind without a moment of wrong permissions; the folder is ours or is made so.

    Raises: Unreachable when another daemon answers there or the folder cannot be used.
    """
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        with _alone_in(path.parent):
            return _bind(path)
    except OSError as error:
        raise Unreachable(f"control socket {path}: {os.strerror(error.errno or 0)}") from None


def _bind(path: Path) -> socket.socket:
    if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
        raise Unreachable(f"{path} is in the way: not a socket")
    if path.exists() and _answers(path):
        raise Unreachable(f"another stellerd is running: it answers at {path}")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    old = os.umask(0o117)  # rw for the user and the group
    try:
        with short_name(path) as name:
            listener.bind(name)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(old)
    return listener


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two daemons that start at once must not each take the other's socket for one that was left behind."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, short_name(path) as name:
        probe.settimeout(2.0)
        try:
            probe.connect(name)
        except OSError:
            return False
        return True


@contextlib.contextmanager
def short_name(path: Path) -> Any:
    """A name of a socket's path that fits the 107 bytes of unix(7), however deep its folder is."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
