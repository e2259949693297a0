"""HTTP over loopback: sockets, threads, and the faults that happen to an answer on its way."""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from stellerd import errors
from stellerd_bamboo_sandbox.calllog import Call
from stellerd_bamboo_sandbox.vendor import Answer, Request, Vendor

SERVER_NAME = "bamboo-sandbox"
_SPACES = b" " * (1 << 20)
_SLOW_STEPS = 20
_CLOSING_S = 2.0


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        """As the base class, but a client that is gone is an everyday thing and ends the connection."""
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def do_GET(self) -> None:
        """Any method ends here; the vendor decides."""
        url = urlsplit(self.path)
        request = Request(self.command, url.path, url.query, self.headers.get("Authorization", ""))
        answer, call = self.server.vendor.answer(request)
        if self.headers.get("Content-Length") or self.headers.get("Transfer-Encoding"):
            self.close_connection = True  # a body that nobody reads must not be taken for the next request
        way = _WAYS.get(answer.fault.kind if answer.fault else "", _whole)
        way(self, answer, call)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def version_string(self) -> str:
        """The Server header."""
        return SERVER_NAME

    def log_message(self, format: str, *args: Any) -> None:
        """The call log is the log."""

    def head(self, answer: Answer, length: int, **headers: str) -> None:
        """Send status and headers; `length` is the announced one, below 0: none, the connection's end is the end."""
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        if length >= 0:
            self.send_header("Content-Length", str(length))
        else:
            self.send_header("Connection", "close")
        for name, value in {**answer.headers, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def put(self, data: bytes, call: Call) -> None:
        """Send a piece of the body."""
        self.wfile.write(data)
        call.sent += len(data)

    def pause(self, seconds: float) -> bool:
        """Wait; True when the sandbox is stopping."""
        return self.server.stopping.wait(seconds)

    def hang_up(self, reset: bool = False) -> None:
        """End the connection; `reset`: with RST instead of FIN."""
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()  # it holds the socket open
            self.connection.close()


class Server(ThreadingHTTPServer):
    """Listens on loopback; `stop` ends every connection at once."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], vendor: Vendor) -> None:
        self.vendor = vendor
        self.stopping = threading.Event()
        self._connections: set[socket.socket] = set()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="bamboo-sandbox", daemon=True)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            super().__init__(address, Handler)
        except OSError as error:
            raise _not_listening(address, error) from None

    def server_bind(self) -> None:
        """Bind without the base class's look-up of the host's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def start(self) -> None:
        """Accept in a thread of its own."""
        self._thread.start()

    def _serve(self) -> None:
        while not self.stopping.is_set():
            self.handle_request()  # sleeps until somebody connects, without a tick

    def stop(self) -> None:
        """End at once: whoever waits for bytes, on either side, sees the end of the connection."""
        self.stopping.set()
        self.socket.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        self._thread.join()
        self._hang_up_all()
        self.server_close()

    def _hang_up_all(self) -> None:
        with self._changed:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError as error:
                    if error.errno not in (errno.ENOTCONN, errno.EBADF):  # the client was faster
                        raise
            self._changed.wait_for(lambda: not self._connections, _CLOSING_S)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, then let a thread of its own handle it."""
        with self._changed:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection after its end."""
        with self._changed:
            self._connections.discard(request)
            self._changed.notify_all()
        super().shutdown_request(request)


def _not_listening(address: tuple[str, int], error: OSError) -> errors.JobFailed:
    place = f"{address[0]}:{address[1]}"
    if error.errno == errno.EADDRINUSE:
        return errors.JobFailed(
            f"bamboo_sandbox: {place} is in use by another process; end that one or set another `port`"
        )
    return errors.JobFailed(f"bamboo_sandbox: cannot listen on {place}: {error.strerror}")


def _whole(handler: Handler, answer: Answer, call: Call) -> None:
    handler.head(answer, answer.body.length)
    for block in answer.body.blocks():
        handler.put(block, call)


def _part(handler: Handler, answer: Answer, call: Call) -> None:
    """Announce everything, send the share `at` of it."""
    assert answer.fault is not None
    handler.head(answer, answer.body.length)
    for block in answer.body.blocks(int(answer.body.length * answer.fault.at)):
        handler.put(block, call)


def _cut(handler: Handler, answer: Answer, call: Call) -> None:
    _part(handler, answer, call)
    handler.hang_up()


def _reset(handler: Handler, answer: Answer, call: Call) -> None:
    _part(handler, answer, call)
    handler.hang_up(reset=True)


def _stall(handler: Handler, answer: Answer, call: Call) -> None:
    assert answer.fault is not None
    _part(handler, answer, call)
    handler.pause(answer.fault.seconds)
    handler.hang_up()


def _silent(handler: Handler, answer: Answer, call: Call) -> None:
    assert answer.fault is not None
    handler.pause(answer.fault.seconds)
    handler.hang_up()


def _truncated(handler: Handler, answer: Answer, call: Call) -> None:
    assert answer.fault is not None
    length = int(answer.body.length * answer.fault.at)
    handler.head(answer, length)
    for block in answer.body.blocks(length):
        handler.put(block, call)


def _slow_body(handler: Handler, answer: Answer, call: Call) -> None:
    assert answer.fault is not None
    body, start = answer.body.joined(), time.monotonic()
    handler.head(answer, len(body))
    for step in range(_SLOW_STEPS):
        due = start + answer.fault.seconds * (step + 1) / _SLOW_STEPS
        if handler.pause(max(0.0, due - time.monotonic())):
            return handler.hang_up()
        handler.put(body[len(body) * step // _SLOW_STEPS : len(body) * (step + 1) // _SLOW_STEPS], call)
    return None


def _drip(handler: Handler, answer: Answer, call: Call) -> None:
    assert answer.fault is not None
    body = answer.body.joined()
    handler.head(answer, len(body))
    quick = int(len(body) * answer.fault.at)
    handler.put(body[:quick], call)
    for place in range(quick, len(body)):
        if handler.pause(answer.fault.pause):
            return handler.hang_up()
        handler.put(body[place : place + 1], call)
    return None


def _gzip_bomb(handler: Handler, answer: Answer, call: Call) -> None:
    """A small answer that grows a thousandfold: valid JSON with `size` bytes of spaces in it."""
    assert answer.fault is not None
    handler.head(answer, -1, **{"Content-Encoding": "gzip"})
    for block in _bomb(answer.body.joined(), answer.fault.size):
        handler.put(block, call)
    handler.hang_up()


def _bomb(body: bytes, size: int) -> Iterator[bytes]:
    """A gzip stream (RFC 1952) of `size` bytes: spaces, then the body. One packed block serves again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(_SPACES) + packer.flush(zlib.Z_FULL_FLUSH)
    count, checksum = max(0, size - len(body)) // len(_SPACES), 0
    yield b"\x1f\x8b\x08\0\0\0\0\0\2\xff"
    for _ in range(count):
        yield block
        checksum = zlib.crc32(_SPACES, checksum)
    last = zlib.compressobj(9, zlib.DEFLATED, -15)
    total = count * len(_SPACES) + len(body)
    yield last.compress(body) + last.flush() + struct.pack("<II", zlib.crc32(body, checksum), total & 0xFFFFFFFF)


_WAYS: dict[str, Callable[[Handler, Answer, Call], None]] = {
    "cut": _cut, "reset": _reset, "stall": _stall, "silent": _silent, "truncated": _truncated,
    "slow_body": _slow_body, "drip": _drip, "gzip_bomb": _gzip_bomb,
}  # fmt: skip
