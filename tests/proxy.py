"""A network between a daemon and its server that can be cut or swallow everything, in this process."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class Proxy:
    """Listens on a port of 127.0.0.1 and passes on to `target`, a port there too.

    `cut`: connections are closed and refused. `hole`: nothing arrives, in no direction, and nothing is said; what was
    on its way arrives after `heal`, late.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._passing = threading.Event()
        self._passing.set()
        self._refusing = False
        self._over = False
        self.selects = 0
        """How many SELECTs went to the server so far."""

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *error: object) -> None:
        self._over = True
        self._listener.close()
        self._passing.set()
        self._drop()

    def cut(self) -> None:
        """The wire is torn."""
        self._refusing = True
        self._drop()

    def hole(self) -> None:
        """A firewall forgets us."""
        self._passing.clear()

    def heal(self) -> None:
        """All is well again."""
        self._refusing = False
        self._passing.set()

    def _start(self, target: object, *arguments: object) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()  # type: ignore[arg-type]

    def _accept(self) -> None:
        while not self._over:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                client.close()
            else:
                self._start(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        self._passing.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        self._open |= {client, server}
        if self._refusing or self._over:
            self._close(client, server)
            return
        self._start(self._pass_on, client, server, True)
        self._start(self._pass_on, server, client)

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_client: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.selects += data.count(b"SELECT") if is_client else 0
                self._passing.wait()
                sink.sendall(data)
        self._close(source, sink)

    def _close(self, *ends: socket.socket) -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
            end.close()
            self._open.discard(end)

    def _drop(self) -> None:
        self._close(*list(self._open))
