"""What is wrong with an answer is said in our words, not in Python's."""

from __future__ import annotations

import socket
import threading

import pytest
import requests
import urllib3

from stellerd.http import _plain

OK = b"HTTP/1.1 200 OK\r\n"
NO_HTTP = "the answer is not HTTP as it should be"
ANSWERS = {
    OK + b"Content-Length: 100\r\n\r\nabc": "the answer broke off after 3 bytes, 97 more expected",
    OK + b"Transfer-Encoding: chunked\r\n\r\n10\r\nabc": "the answer broke off after 0 bytes",
    OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n": NO_HTTP,
    OK + b"Transfer-Encoding: chunked\r\n\r\n": NO_HTTP,
    OK + b"X: " + b"y" * 70_000 + b"\r\n\r\n": NO_HTTP,
    OK + b"X: y\r\n" * 200 + b"\r\n": NO_HTTP,
    OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc": NO_HTTP,
    b"SSH-2.0-something\r\n\r\n": NO_HTTP,
    b"HTTP/1.1 abc OK\r\n\r\n": NO_HTTP,
    b"": "the server closed the connection without an answer",
}


def serve(answer: bytes) -> int:
    """The port of a server that says this to the first who asks."""
    server = socket.create_server(("127.0.0.1", 0))

    def say() -> None:
        with server, server.accept()[0] as client:
            client.recv(65536)
            client.sendall(answer)

    threading.Thread(target=say, daemon=True).start()
    return int(server.getsockname()[1])


def read(url: str) -> None:
    with requests.Session() as session:
        session.trust_env = False
        response = session.get(url, stream=True, timeout=20)
        while response.raw.read1(65536, decode_content=False):
            pass


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: repr(answer[:60]))
def test_a_broken_answer(answer: bytes) -> None:
    with pytest.raises((requests.RequestException, urllib3.exceptions.HTTPError)) as caught:
        read(f"http://127.0.0.1:{serve(answer)}/")
    assert _plain(caught.value) == ANSWERS[answer]
