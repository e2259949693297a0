"""Messages between the supervisor and a job's process: length-prefixed JSON on a socket pair."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stellerd.heartbeat import Heartbeat

if TYPE_CHECKING:
    from stellerd.config import Config

_HEADER = struct.Struct("!I")
DUMP_SIGNAL = signal.SIGRTMAX
"""Makes a job's process write its stacks to its log; none that a job may have as its stop_signal."""
MAX_MESSAGE = 4 * 1024 * 1024
_READS_PER_WAKE = 16  # a chatty child must not keep the supervisor to itself
Message = dict[str, Any]


class Channel:
    """One end of the pair. Messages are objects with a "kind"."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._buffer = bytearray()
        self._unsent = b""
        self.closed = False

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """The parent's end, which never blocks, and the child's."""
        parent, child = socket.socketpair()
        parent.setblocking(False)
        return cls(parent), cls(child)

    def fileno(self) -> int:
        """The descriptor."""
        return self.socket.fileno()

    def send(self, kind: str, **fields: Any) -> bool:
        """Send one message; False when the other side is gone or does not read.

        The parent's end never waits: see `flush` for a message that did not fit as a whole.
        """
        if not self.flush():
            return False
        data = json.dumps({"kind": kind, **fields}, default=str).encode()
        frame = self._unsent = _HEADER.pack(len(data)) + data
        if not self.flush() and len(self._unsent) == len(frame):
            self._unsent = b""  # nothing of it has left: it was never sent
            return False
        return not self.closed

    def shout(self, kind: str, **fields: Any) -> None:
        """One small message without waiting, from any thread; it is dropped when there is no room for it."""
        data = json.dumps({"kind": kind, **fields}, default=str).encode()
        with contextlib.suppress(OSError):
            self.socket.send(_HEADER.pack(len(data)) + data, socket.MSG_DONTWAIT)

    def flush(self) -> bool:
        """Finish the message that was begun; False while the other side does not take all of it."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return False
        except OSError:
            self.closed, self._unsent = True, b""
        return not self.closed

    def receive(self) -> list[Message]:
        """All messages that have arrived; sets `closed` at the end of the stream.

        Raises: ValueError when the other side does not speak this protocol.
        """
        self._fill()
        messages = []
        while len(self._buffer) >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer)
            if size > MAX_MESSAGE:
                raise ValueError(f"a message of {size} bytes")
            if len(self._buffer) < _HEADER.size + size:
                break
            message = _decoded(self._buffer[_HEADER.size : _HEADER.size + size])
            del self._buffer[: _HEADER.size + size]
            messages.append(message)
        return messages

    def _fill(self) -> None:
        for _ in range(_READS_PER_WAKE):
            try:
                data = self.socket.recv(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.closed = True
                return
            self._buffer += data

    def close(self) -> None:
        """Close this end."""
        self.socket.close()


def _decoded(data: bytearray) -> Message:
    try:
        message = json.loads(data)
    except RecursionError:
        raise ValueError("a message nested too deep") from None
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise ValueError("a message without a kind")
    return message


@dataclass
class Assignment:
    """What a job's process is forked with."""

    job: str
    config: Config
    parent_pid: int
    heartbeat: Heartbeat | None = None
    """Where it stamps its signs of life."""
    paused: bool = False
    """An operator holds its schedule."""
    style: str = "json"
    """Form of its log lines: json or text."""
    mode: Literal["serve", "once", "check", "settings", "schema", "databases", "close"] = "serve"
    """once: one run that a person asked for; check: prove that one could work; close: the record of `last_death`; the
    others: say something."""
    attended: bool = False
    """Its parent is the command of a person, who sees its output and is told how it ends."""
    connect: bool = True
    """Whether `check` may talk to servers."""
    dry_run: bool = False
    wait_s: float = 0.0
    """How long `once` waits for a busy job (seconds)."""
    last_death: dict[str, Any] = field(default_factory=dict)
    """run, state, cause and time of the run that the process before this one left unfinished; to close it, its key."""
