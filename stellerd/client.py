"""The operator's end of the control socket."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from stellerd import wire
from stellerd.errors import StellerdError, Unreachable


class Refused(StellerdError):
    """The daemon, or the mode of its socket, said no; `exit_code` is what the daemon named."""


class NoDaemon(Unreachable):
    """No daemon listens there."""


def ask(path: Path, command: str, timeout: float = 10.0, **fields: Any) -> dict[str, Any]:
    """Send one command, return the daemon's reply.

    Raises: NoDaemon; Unreachable when it does not answer; Refused with its own words.
    """
    with Connection(path, timeout) as connection:
        return connection.ask(command, **fields)


class Connection:
    """A connection to the daemon's control socket; a context manager. `timeout`: longest wait for a reply (s).

    Raises: NoDaemon; Refused when this user may not connect; Unreachable.
    """

    def __init__(self, path: Path, timeout: float = 10.0) -> None:
        self.path = path
        self._lines = wire.Lines()
        with self._in_words():
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self.socket.settimeout(timeout)
                with wire.short_name(path) as name:
                    self.socket.connect(name)
            except BaseException:
                self.socket.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoDaemon(f"no daemon answers at {self.path}; start it with: stellerd run") from None
        except PermissionError:
            raise Refused(f"{self.path}: permission denied; use the daemon's user or root") from None
        except (OSError, ValueError, RecursionError) as error:
            raise Unreachable(f"the daemon at {self.path} does not answer: {error}") from None

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """The reply to one command.

        Raises: Unreachable when there is none; Refused with the daemon's own words.
        """
        self.send(command, **fields)
        reply = self.next()
        if not reply.pop("ok", False):
            refused = Refused(str(reply.get("error", "refused")))
            with self._in_words():
                refused.exit_code = int(reply.get("code", 1))
            raise refused
        return reply

    def send(self, command: str, **fields: Any) -> None:
        """Send one command. Raises: Unreachable."""
        with self._in_words():
            self.socket.sendall(wire.encode({"command": command, **fields}))

    def next(self) -> dict[str, Any]:
        """The next message, waited for. Raises: Unreachable when none comes."""
        while (message := self.take()) is None:
            self.read()
        return message

    def read(self) -> None:
        """Take in what has come; waits when there is nothing. Raises: Unreachable at the end."""
        with self._in_words():
            data = self.socket.recv(65536)
            if not data:
                raise ValueError("it hung up")
            self._lines.add(data)

    def take(self) -> dict[str, Any] | None:
        """The next message that came as a whole; None: there is none. Raises: Unreachable when it is no message."""
        line = self._lines.take()
        if line is None:
            return None
        with self._in_words():
            message = json.loads(line)
            if not isinstance(message, dict) or not isinstance(message.get("code", 1), int):
                raise ValueError("what it says is no reply")
            return message
