"""The control socket: a JSON object a line in, one out. It never waits for a client nor runs what is unlisted."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import json
import os
import pwd
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stellerd import log, wire
from stellerd.errors import StellerdError, Unreachable
from stellerd.loop import IN, OUT, Loop, Timer, say
from stellerd.texts import reason_of
from stellerd.wire import short_name

MAX_CLIENTS = 64
BACKLOG = 1024
MAX_REQUEST = 64 * 1024
MAX_UNREAD = 8 * 1024 * 1024
IDLE_S = 30.0
_DEAF_S = 0.5
_REQUESTS_PER_TURN = 64  # whoever asks more at once waits for the rest of the loop's work
_UNMAPPED = 65534  # what user_namespaces(7) shows of users and groups outside
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


class Talk(Protocol):
    """What goes on between a command and its client after the first reply."""

    def hear(self, line: bytes) -> None:
        """A further line of the client."""

    def lost(self) -> None:
        """The client is gone."""


@dataclass(frozen=True)
class Opens:
    """A command that goes on after its first reply: called with the `Client` too, it gives that a `Talk`."""

    call: Callable[[dict[str, Any], Any], dict[str, Any]]


Command = tuple[bool, Callable[[dict[str, Any]], dict[str, Any]] | Opens]


class Occupied(Unreachable):
    """Another daemon is taking this place at the moment: to be tried again."""


class Control:
    """Listens at `path`, where a command that changes something is for root and for the daemon's own user alone."""

    def __init__(self, loop: Loop, path: Path, commands: Mapping[str, Command]) -> None:
        self.loop, self.path, self.commands = loop, path, commands
        self.clients: set[Client] = set()
        self.admin_group = ""
        self._sockets: dict[Path, socket.socket] = {}
        self._mine: dict[Path, tuple[int, int] | None] = {}
        self._deaf: dict[socket.socket, Timer] = {}
        self._add(path, _listen(path), "")

    def admit(self, group: str, path: Path) -> None:
        """Listen at `path` too: whoever connects there is a member of `group` and may use every command.

        A second socket, since the unit's PrivateUsers= hides from us who a peer is; the kernel lets in the group alone.
        Raises: StellerdError saying what is wrong with the folder.
        """
        self._add(path, _listen_for(group, path), group)
        self.admin_group = group

    def _add(self, path: Path, listener: socket.socket, group: str) -> None:
        self._sockets[path], self._mine[path] = listener, _identity(path)
        self.loop.add(listener.fileno(), lambda events: self._accept(listener, group))

    def _accept(self, listener: socket.socket, group: str) -> None:
        """All that wait, within reason: a burst would fill the queue and be refused."""
        for _ in range(MAX_CLIENTS):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:  # no descriptor left: make room, and look again later instead of without end
                self._drop_oldest()
                self.loop.modify(listener.fileno(), 0)
                self._deaf[listener] = self.loop.after(_DEAF_S, lambda: self.loop.modify(listener.fileno(), IN))
                return
            if sum(client.talk is None for client in self.clients) >= MAX_CLIENTS:
                self._drop_oldest()
            try:
                self.clients.add(Client(self, connection, group))
            except OSError:  # the kernel watches no more descriptors for us
                connection.close()

    def _drop_oldest(self) -> None:
        if quiet := [client for client in self.clients if client.talk is None]:
            min(quiet, key=lambda client: client.last_used).close()

    def reply(self, line: bytes, uid: int, client: Client | None = None) -> bytes:
        """The line that answers a request line of a client with this user id, whatever the command raises."""
        try:
            return wire.encode(self.answer(line, uid, client))
        except Exception as error:  # noqa: BLE001  the guard of all commands: the client is told, the daemon goes on
            say("internal error in a command", error, request=line[:200].decode("utf-8", "replace"))
            why = f"internal error: {type(error).__name__}: {error}; the daemon's log has the traceback"
            return wire.encode({"ok": False, "error": why, "code": 70})

    def answer(self, line: bytes, uid: int, client: Client | None = None) -> dict[str, Any]:
        """The reply to one request line of a client with this user id."""
        group = client.group if client else ""
        try:
            request = json.loads(line)
            name = request["command"]
            changes, call = self.commands[name]
        except (ValueError, TypeError, KeyError, RecursionError):
            return {"ok": False, "error": f"not a request; commands are: {', '.join(self.commands)}", "code": 2}
        if changes and not group and uid != 0 and not _is_our_own(uid):
            return {"ok": False, "error": f"{name} is for {self.who_may()}", "code": 1}
        if changes:
            about = {"job": job} if isinstance(job := request.get("job"), str) else {}
            log.get().info("asked", command=name, by=_who(uid, group), **about)
        try:
            return {"ok": True, **(call.call(request, client) if isinstance(call, Opens) else call(request))}
        except StellerdError as error:
            return {"ok": False, "error": str(error), "code": error.exit_code}

    def who_may(self) -> str:
        """Who may use a command that changes something, as a part of a sentence."""
        own = f"the user {_user_name(os.getuid())}"
        return f"root, {own} and the members of {self.admin_group}" if self.admin_group else f"root and {own}"

    def close(self) -> None:
        """Hang up and remove the sockets."""
        for client in list(self.clients):
            client.close()
        for timer in self._deaf.values():
            timer.cancel()
        for path, listener in self._sockets.items():
            self.loop.remove(listener.fileno())
            if _identity(path) == self._mine[path]:  # else somebody removed it, and another daemon listens there
                path.unlink(missing_ok=True)
            listener.close()  # only now may its inode be another's


class Client:
    """One connection; dropped when it is silent for IDLE_S, asks too much or reads too little."""

    def __init__(self, control: Control, connection: socket.socket, group: str = "") -> None:
        self.control, self.socket, self.loop, self.group = control, connection, control.loop, group
        connection.setblocking(False)
        packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.uid = _CREDENTIALS.unpack(packed)[1]
        self.talk: Talk | None = None
        """While there is one, this connection may be silent for as long as it likes."""
        self._in, self._out = wire.Lines(), bytearray()
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
        left = IDLE_S if self.talk else self.last_used + IDLE_S - self.loop.clock()
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
        self._in.add(data)
        self.last_used = self.loop.clock()
        if data:
            self._answer()
        else:
            self.close()

    def _answer(self) -> None:
        for _ in range(_REQUESTS_PER_TURN):
            if len(self._out) > MAX_UNREAD or (line := self._in.take()) is None:
                break
            if self.talk:
                self.talk.hear(line)
            else:
                self._out += self.control.reply(line, self.uid, self)
        self._more = self.loop.after(0, self._go_on, owner=self._fail) if self._in.has_line() else None
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

    def tell(self, message: dict[str, Any], room: int = MAX_UNREAD) -> bool:
        """A message that no request asked for; False, and it is missed, when the client has not read `room` bytes."""
        if self not in self.control.clients or len(self._out) > room:
            return False
        self._out += wire.encode(message)
        try:
            self._send()
        except OSError:
            self.close()
        return True

    def close(self) -> None:
        """Hang up."""
        self._idle.cancel()
        if self._more:
            self._more.cancel()
        if self in self.control.clients:
            self.control.clients.discard(self)
            self.loop.remove(self.socket.fileno())
            self.socket.close()
            if self.talk:
                self.talk.lost()


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file it is, whatever its name is."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _listen(path: Path) -> socket.socket:
    """Bind without a moment of wrong permissions; the folder is ours or is made so.

    Raises: Occupied; Unreachable when another daemon answers there or the folder cannot be used.
    """
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        with _alone_at(path):
            return _bind(path)
    except OSError as error:
        raise Unreachable(f"control socket {path}: {reason_of(error)}") from None


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


def _listen_for(group: str, path: Path) -> socket.socket:
    """Bind in a folder whose files get the group of the folder (setgid): in a user namespace we could not give it.

    Raises: StellerdError when the folder is not the group's, so that nobody else is ever let in.
    """
    cure = f"make it with: install -d -o {_user_name(os.getuid())} -g {group} -m 2750 {path.parent}"
    try:
        wanted, folder = grp.getgrnam(group).gr_gid, path.parent.stat()
    except KeyError:
        raise StellerdError(f"there is no group {group}") from None
    except OSError as error:
        raise StellerdError(f"{path.parent}: {os.strerror(error.errno or 0)}; {cure}") from None
    mode_is_right = folder.st_mode & stat.S_ISGID and not folder.st_mode & stat.S_IRWXO
    if not mode_is_right or folder.st_gid not in {wanted, _UNMAPPED} - {os.getgid()}:
        raise StellerdError(f"{path.parent} is not the folder of {group} alone; {cure}")
    return _listen(path)


def _is_our_own(uid: int) -> bool:
    """Where users are hidden, all of them look like nobody: then whoever runs as nobody cannot know its own user."""
    return uid == os.getuid() and (uid != _UNMAPPED or not _users_are_hidden())


def _users_are_hidden() -> bool:
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]


def _who(uid: int, group: str) -> str:
    return f"a member of {group}" if group and uid == _UNMAPPED else _user_name(uid)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@contextlib.contextmanager
def _alone_at(path: Path) -> Iterator[None]:
    """Two daemons that start at once must not each take the other's socket for one that was left behind.

    The lock is on a file of its own that nobody else may open: whoever can open the folder could hold one on that.
    Raises: Occupied, at once.
    """
    lock = path.with_name(f"{path.name}.lock")
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        found = os.fstat(fd)
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o077:
            raise Unreachable(f"{lock} is in the way: others may open it; remove it")
        if not _is_locked(fd) or not os.path.samestat(found, os.stat(lock)):  # the one before removed it
            raise Occupied(f"control socket {path}: another stellerd that is starting holds {lock}")
        try:
            yield
        finally:
            lock.unlink()
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, short_name(path) as name:
        probe.settimeout(2.0)
        try:
            probe.connect(name)
        except BlockingIOError:  # somebody listens, and has more clients than it accepts: it may be stopped
            return True
        except OSError:
            return False
        return True
