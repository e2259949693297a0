"""Connections on which an answer has a deadline as a whole: libraries allow their timeout anew for each read."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import requests
import urllib3


class _HeadersInTime:
    """http.client allows the read timeout for each byte of the headers; here it is for all of them together."""

    timeout: float
    sock: socket.socket
    connected: Callable[[], None]
    """Called once the connection stands; what it raises is raised, and nothing is sent."""
    sent: Callable[[], None]
    """Called once the request has left."""

    def connect(self) -> None:
        """See the library."""
        super().connect()  # type: ignore[misc]
        self.connected()

    def getresponse(self) -> Any:
        """What it says. Raises: TimeoutError."""
        self.sent()
        late, sock = threading.Event(), self.sock  # http.client may let go of it with the last header
        guard = threading.Timer(self.timeout, _shut, (sock, late))
        guard.daemon = True
        guard.start()
        try:
            response = super().getresponse()  # type: ignore[misc]
        finally:
            guard.cancel()
        if late.is_set():  # headers cut short look complete to http.client
            raise TimeoutError("timed out")
        response.socket = sock
        return response


def leave(response: requests.Response, deadline: float) -> None:
    """The next read may take what is left of the time, not the whole of it again."""
    sock: socket.socket | None = getattr(response.raw, "socket", None)
    if sock is not None:
        with contextlib.suppress(OSError):  # closed: the read says so
            sock.settimeout(max(0.001, deadline - time.monotonic()))


def _shut(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError):  # it was closed this very moment
        sock.shutdown(socket.SHUT_RDWR)


class _Http(_HeadersInTime, urllib3.connection.HTTPConnection):  # type: ignore[misc]
    pass


class _Https(_HeadersInTime, urllib3.connection.HTTPSConnection):  # type: ignore[misc]
    pass


class InTime(requests.adapters.HTTPAdapter):
    """Connections whose headers have a deadline, and that say when they stand and when a request has left."""

    def __init__(self, connected: Callable[[], None], sent: Callable[[], None]) -> None:
        self.connected, self.sent = connected, sent
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """See the library."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {
            "http": self._pool(urllib3.HTTPConnectionPool, _Http),
            "https": self._pool(urllib3.HTTPSConnectionPool, _Https),
        }

    def _pool(self, pool: type, connection: type) -> type:
        own = type(
            connection.__name__,
            (connection,),
            {"connected": staticmethod(self.connected), "sent": staticmethod(self.sent)},
        )
        return type(pool.__name__, (pool,), {"ConnectionCls": own})
