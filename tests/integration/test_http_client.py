"""The HTTP client against real servers on the loopback: limits, refusals, hostile bodies, slow servers, TLS."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import structlog
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from stellerd import Secret, http
from stellerd.durations import parse_rate
from stellerd.errors import BadReply, ConfigError, HttpStatus, RateLimited, StellerdError, Unreachable
from stellerd.http import Http, retry_after, wait_seconds
from stellerd.limiter import Limit, Limiter
from stellerd.store import Store
from stellerd.testing import Clock

PASSWORD = "kanarie-4711-rot"
START = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)
Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """Answers each GET with `answer`, and remembers what was asked."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.answer: Answer = reply(b"{}")
        self.over = threading.Event()
        self.seen_at_request: list[Any] = []
        self.on_request: Callable[[], Any] = lambda: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
                outer.seen_at_request.append(outer.on_request())
                with contextlib.suppress(OSError):
                    outer.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # the client hung up, as it should

        self.server = Quiet(("127.0.0.1", 0), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def reply(body: bytes = b"", status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock(START)


@pytest.fixture
def limiter(tmp_path: Path, clock: Clock) -> Iterator[Limiter]:
    state = Store(f"sqlite:///{tmp_path}/state.db", clock)
    state.create()
    yield Limiter(state, {"b": Limit((parse_rate("1000/1h"),), 0.0), "tight": Limit((parse_rate("2/1h"),), 0.0)})
    state.close()


class Client:
    """Makes clients of the bucket with few words."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.stopping = False

    def __call__(self, bucket: str = "b", **options: Any) -> Http:
        given: dict[str, Any] = {"auth": None, "timeout": 5.0, "max_bytes": 1024 * 1024} | options
        return Http(self.limiter, bucket, self.wait, log=structlog.get_logger(), **given)

    def wait(self, seconds: float) -> bool:
        return self.stopping


@pytest.fixture
def client(limiter: Limiter) -> Client:
    return Client(limiter)


# --- the good case


def test_a_reply_has_status_headers_and_body(server: Server, client: Client) -> None:
    server.answer = reply(b'{"a": 1}', X_Page="3")
    answer = client().get(f"{server.url}/catalog", params={"page": "2"}, headers={"Cache-Control": "public"})
    assert (answer.status, answer.headers["x-page"], answer.body) == (200, "3", b'{"a": 1}')
    path, headers = server.requests[0]
    assert (path, headers["cache-control"], headers["accept"]) == ("/catalog?page=2", "public", "application/json")


@pytest.mark.parametrize("encoding", ["gzip", "chunked"])
def test_a_body_arrives_whole(server: Server, client: Client, encoding: str) -> None:
    body = json.dumps([{"name": "ü" * 100}] * 1000).encode()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for at in range(0, len(body), 1000):
            part = body[at : at + 1000]
            handler.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")

    server.answer = answer if encoding == "chunked" else reply(gzip.compress(body), Content_Encoding="gzip")
    assert client().get(server.url).body == body


def test_a_timeout_longer_than_a_socket_can_have_is_no_failure(server: Server, client: Client) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.1)
        reply(b"{}")(handler)

    server.answer = answer
    assert client(timeout=2**32 / 1000 + 0.001).get(server.url).body == b"{}"  # 1 ms, for poll(2)


def test_an_empty_body_is_an_empty_body(server: Server, client: Client) -> None:
    server.answer = reply(b"")
    assert client().get(server.url).body == b""


@pytest.mark.parametrize("password", [PASSWORD, "p:w€ü"])
def test_credentials_are_sent_as_basic_authorization(server: Server, client: Client, password: str) -> None:
    client(auth=("client", Secret("plain", password))).get(server.url)
    sent = server.requests[0][1]["authorization"]
    assert base64.b64decode(sent.removeprefix("Basic ")) == f"client:{password}".encode()


def test_both_halves_of_the_credentials_may_be_secret(server: Server, client: Client) -> None:
    client(auth=(Secret("plain", "the-client-id"), Secret("plain", PASSWORD))).get(server.url)
    assert base64.b64decode(server.requests[0][1]["authorization"][6:]) == f"the-client-id:{PASSWORD}".encode()


def test_no_credentials_of_the_home_folder_are_sent(
    server: Server, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    client().get(server.url)
    assert "authorization" not in server.requests[0][1]


def test_no_proxy_of_the_environment_is_used(server: Server, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert client().get(server.url).status == 200


# --- limits


def test_the_slot_is_spent_before_the_request_arrives(server: Server, client: Client, limiter: Limiter) -> None:
    client("tight").get(server.url)
    server.on_request = lambda: limiter.closed_until("tight")
    client("tight").get(server.url)
    assert server.seen_at_request == [None, START + timedelta(hours=1)]


def test_a_closed_bucket_sends_nothing(server: Server, client: Client) -> None:
    for _ in range(2):
        client("tight").get(server.url)
    with pytest.raises(RateLimited, match="tight: limit used up"):
        client("tight").get(server.url)
    assert len(server.requests) == 2


def test_a_refused_url_spends_no_slot(client: Client, limiter: Limiter) -> None:
    for _ in range(5):
        with pytest.raises(StellerdError):
            client("tight").get("http://example.com/")
    assert limiter.closed_until("tight") is None


def test_a_missing_secret_spends_no_slot(server: Server, client: Client, limiter: Limiter) -> None:
    for _ in range(5):
        with pytest.raises(ConfigError, match="environment variable NO_SUCH is not set"):
            client("tight", auth=("u", Secret("env", "NO_SUCH"))).get(server.url)
    assert limiter.closed_until("tight") is None


TEXT = "Too many requests. Please wait for 3406 seconds (≈57 minutes) for the next request"


@pytest.mark.parametrize(
    "body",
    [
        TEXT, "Please wait for 3406 seconds.", json.dumps(TEXT), json.dumps(TEXT, ensure_ascii=False),
        json.dumps({"message": TEXT}), json.dumps({"error": TEXT}), json.dumps({"detail": TEXT}),
        json.dumps({"Message": TEXT}), json.dumps({"error": "x", "message": None, "detail": TEXT}),
        json.dumps({"error": {"message": TEXT}}), json.dumps([TEXT]), "PLEASE  WAIT\nFOR 3406 SECONDS",
        f"<html><body><p>{TEXT}</p></body></html>", "wait for 3,406 seconds", "wait for 3406.0 seconds",
    ],
    ids=range(15),
)  # fmt: skip
def test_every_form_of_a_wait_is_learned(server: Server, client: Client, limiter: Limiter, body: str) -> None:
    server.answer = reply(body.encode(), 429)
    with pytest.raises(RateLimited, match="b: the server answered 429, next slot at 2026-03-29 01:26:46 UTC"):
        client().get(server.url)
    assert limiter.closed_until("b") == START + timedelta(seconds=3406)


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ("wait for 2 minutes", 120), ("wait for 1 hour", 3600), ("wait for 1.5 minutes", 90), ("wait for 5", 5),
        ("wait for 5 min", 300), ("wait for 5m.", 300), ("wait for 2 hrs", 7200), ("wait for 2h", 7200),
        ("wait for 9 here", 9), ("wait for 9 ms", 9), ("wait for it", None), ("wait 5 seconds", None), ("", None),
        ("{}", None), ("[" * 50000, None), ("null", None),
        ('{"a":' * 5000, None), ("wait for 999999999999 seconds", 999999999999),
    ],
)  # fmt: skip
def test_what_a_body_says(body: str, seconds: float | None) -> None:
    assert wait_seconds(body) == seconds


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ("try again in 7 min", 420), ('{"message": "try again in 1,000 min"}', 60000), ("quota: 0.5h", 1800),
        ("wait for 5 seconds", 5), ("try again in some min", None), ("wait for 5 seconds, try again in 2 min", 120),
    ],
)  # fmt: skip
def test_patterns_of_the_configuration_come_first(body: str, seconds: float | None) -> None:
    patterns = (r"again in (?P<minutes>\S+) min", r"quota: (?P<hours>[\d.]+)h")
    assert wait_seconds(body, patterns) == seconds


def test_a_configured_pattern_is_used(server: Server, client: Client, limiter: Limiter) -> None:
    limiter.limits = {"b": replace(limiter.limits["b"], wait_patterns=(r"in (?P<minutes>\d+) min",))}
    server.answer = reply(b"try again in 3 min", 429)
    with pytest.raises(RateLimited):
        client().get(server.url)
    assert limiter.closed_until("b") == START + timedelta(seconds=180)


def refused(status: int) -> Answer:
    return reply(b"no", status)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("answer", [hang_up, refused(503)], ids=["no answer", "503"])
def test_failures_in_a_row_close_the_bucket(server: Server, client: Client, limiter: Limiter, answer: Answer) -> None:
    server.answer = answer
    for _ in range(5):
        with pytest.raises((Unreachable, HttpStatus)):
            client().get(server.url)
    with pytest.raises(RateLimited, match="b: closed since the server does not answer, next slot at 2026"):
        client().get(server.url)
    assert len(server.requests) == 5


@pytest.mark.parametrize("status", [200, 404, 401])
def test_an_answer_ends_the_row_of_failures(server: Server, client: Client, status: int) -> None:
    for answer in (*[hang_up] * 4, refused(status), *[hang_up] * 4):
        server.answer = answer
        with contextlib.suppress(Unreachable, HttpStatus):
            client().get(server.url)
    assert len(server.requests) == 9


def test_the_probe_after_the_pause_opens_the_bucket(
    server: Server, client: Client, limiter: Limiter, clock: Clock
) -> None:
    server.answer = hang_up
    for _ in range(5):
        with pytest.raises(Unreachable):
            client().get(server.url)
    clock.advance(60)
    server.answer = reply(b"{}")
    server.on_request = lambda: limiter.closed_until("b")
    client().get(server.url)
    assert server.seen_at_request[-1] == START + timedelta(seconds=60 + 60)
    assert limiter.closed_until("b") is None


def test_a_process_that_was_asked_to_end_counts_no_failure(server: Server, client: Client, limiter: Limiter) -> None:
    server.answer = reply(b"x" * 100)
    client.stopping = True
    for _ in range(6):
        with pytest.raises(Unreachable, match="given up"):
            client().get(server.url)
    assert limiter.closed_until("b") is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120), (" 120 ", 120), ("0", 0), (format_datetime(START + timedelta(seconds=90), usegmt=True), 90),
        ("Sun, 29 Mar 2026 00:29:00 GMT", 0), ("soon", None), ("", None), (None, None), ("-5", None), ("1.5", None),
        ("9" * 400, float("inf")), ("Sun, 99 Mar 2026 00:29:00 GMT", None), ("Sun, 29 Mar 99999 00:29:00 GMT", None),
    ],
)  # fmt: skip
def test_what_retry_after_says(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, START) == seconds


_HUGE_ZONE = "Sun, 29 Mar 2026 00:30:00 +99999999999999"


@pytest.mark.parametrize(
    ("headers", "patterns", "seconds"),
    [
        ({"Date": _HUGE_ZONE, "Retry-After": "120"}, (), 120),
        ({"Date": _HUGE_ZONE}, (), 3406),
        ({"Retry-After": _HUGE_ZONE}, (), 3406),
        ({"Date": _HUGE_ZONE, "Retry-After": _HUGE_ZONE}, (), 3406),
        ({"Date": "Mon, 01 Jan 0001 00:00:00 +2359", "Retry-After": "Fri, 31 Dec 9999 23:59:59 -2359"}, (), 3406),
        ({"Date": ", ", "Retry-After": "00:00"}, (), 3406),
        ({"Retry-After": "٣"}, (), 3406),
        ({}, (r"(?P<seconds>nan)",), 3406),
        ({}, (r"(?P<seconds>inf)",), 3406),
        ({}, (r"(?P<seconds>-1)",), 3406),
        ({}, (r"(?P<hours>never)?",), 3406),
    ],
)
def test_a_429_is_learned_whatever_its_headers_hold(
    server: Server, client: Client, limiter: Limiter, headers: dict[str, str], patterns: tuple[str, ...], seconds: float
) -> None:
    limiter.limits = {"b": replace(limiter.limits["b"], wait_patterns=patterns)}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(429)
        for name, value in headers.items():
            handler._headers_buffer.append(f"{name}: {value}\r\n".encode())  # type: ignore[attr-defined]
        handler.end_headers()
        handler.wfile.write(b"nan inf -1: please wait for 3406 seconds")

    server.answer = answer
    with pytest.raises(RateLimited):
        client().get(server.url)
    assert limiter.closed_until("b") == START + timedelta(seconds=seconds)


_TIMES = st.builds(
    "Sun, {} {} {} {} {}".format,
    st.integers(-1, 400), st.sampled_from(["Jan", "Dec", "Xxx", ""]), st.integers(0, 10**6),
    st.sampled_from(["00:00:00", "23:59:60", "99:99:99", "1:2", ""]),
    st.sampled_from(["GMT", "", "+0000", "-2359"]) | st.integers(-(10**20), 10**20).map("{:+d}".format),
)  # fmt: skip
_WAITS = st.from_regex(r"(again in|wait for) *(-?[0-9,._]{1,30}|nan|inf|٣|1e999) *(min|h|s|seconds)?")


@given(header=st.text() | _TIMES | _WAITS, date=st.text() | _TIMES, body=st.text() | _WAITS)
def test_no_text_breaks_the_reading_of_a_wait(header: str, date: str, body: str) -> None:
    patterns = (r"again in (?P<minutes>\S+)", r"wait for *(?P<seconds>[^s]*)?")
    now = http._date(date) or START
    for seconds in (retry_after(header, now), wait_seconds(body, patterns), wait_seconds(json.dumps(body))):
        assert seconds is None or seconds >= 0


def test_what_is_no_wait_closes_for_a_whole_window(limiter: Limiter) -> None:
    assert limiter.learn("b", float("nan")) == START + timedelta(hours=1)


def test_retry_after_comes_before_the_body(server: Server, client: Client, limiter: Limiter) -> None:
    server.answer = reply(TEXT.encode(), 429, Retry_After="60")
    with pytest.raises(RateLimited):
        client().get(server.url)
    assert limiter.closed_until("b") == START + timedelta(seconds=60)


def test_a_date_to_retry_after_is_read_by_the_servers_clock(server: Server, client: Client, limiter: Limiter) -> None:
    """Here it is some other time; the server says how far away the date is by saying what time it has."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(429)
        handler.send_header("Date", format_datetime(START + timedelta(days=900), usegmt=True))
        handler.send_header("Retry-After", format_datetime(START + timedelta(days=900, seconds=90), usegmt=True))
        handler.end_headers()

    server.answer = answer
    with pytest.raises(RateLimited):
        client().get(server.url)
    assert limiter.closed_until("b") == START + timedelta(seconds=90)


def test_a_429_that_cannot_be_recorded_is_a_429_all_the_same(
    server: Server, client: Client, limiter: Limiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer = reply(TEXT.encode(), 429)
    monkeypatch.setattr(limiter, "learn", away)
    with pytest.raises(RateLimited) as caught:
        client().get(server.url)
    assert caught.value.until is not None
    assert abs(caught.value.until - datetime.now(UTC) - timedelta(seconds=3406)) < timedelta(seconds=10)


def away(*arguments: Any) -> Any:
    raise Unreachable("state store: away")


# --- a request that leaves late


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> list[float]:
    """Seconds that each commit of a slot takes, in turn; the store's clock and this machine's see them go by."""
    passed, waits = [0.0], list[float]()
    take = Limiter._take

    def slow(*arguments: Any) -> Any:
        granted = take(*arguments)
        seconds = waits.pop(0) if waits else 0.0
        clock.advance(seconds)
        passed[0] += seconds
        return granted

    monkeypatch.setattr(Limiter, "_take", slow)
    monkeypatch.setattr("stellerd.limiter.boottime", lambda: passed[0])
    return waits


def hourly(limiter: Limiter) -> timedelta:
    """Make the bucket one with a margin of a second; its window."""
    limiter.limits = {"b": Limit((parse_rate("2/1h"),), 1.0)}
    return timedelta(hours=1, seconds=1)


def test_the_window_of_a_late_request_begins_when_it_left(
    server: Server, client: Client, limiter: Limiter, slow_disk: list[float]
) -> None:
    """Else the third request could reach the server before its hour is over."""
    window = hourly(limiter)
    slow_disk.append(7.0)
    for _ in range(2):
        client().get(server.url)
    assert limiter.closed_until("b") == START + timedelta(seconds=7) + window


def test_the_window_of_a_prompt_request_begins_when_its_slot_was_spent(
    server: Server, client: Client, limiter: Limiter, slow_disk: list[float]
) -> None:
    window = hourly(limiter)
    slow_disk.append(0.2)
    for _ in range(2):
        client().get(server.url)
    assert limiter.closed_until("b") == START + window


def test_a_slot_that_was_committed_after_its_window_is_not_used(
    server: Server, client: Client, limiter: Limiter, clock: Clock, slow_disk: list[float]
) -> None:
    """Another process may have been granted the next one meanwhile, and its request be on the way."""
    limiter.limits = {"b": Limit((parse_rate("1/1s"),), 0.0)}
    slow_disk += [1.5, 0.2]
    client().get(server.url)
    assert limiter.closed_until("b") == START + timedelta(seconds=1.5 + 0.2 + 1)
    clock.advance(10)
    slow_disk += [60.0] * 3
    asked = len(server.requests)
    with pytest.raises(RateLimited, match="the state store is slower than its window"):
        client().get(server.url)
    assert len(server.requests) == asked


def full_queue() -> tuple[socket.socket, list[socket.socket]]:
    """A listener whose queue is full: the kernel drops the next SYN, which is sent again a second later."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = []
    for _ in range(2):
        waiting.append(socket.socket())
        waiting[-1].setblocking(False)
        waiting[-1].connect_ex(listener.getsockname())
    return listener, waiting


def test_a_lost_packet_brings_no_two_requests_together(tmp_path: Path) -> None:
    """At 1/900ms, of real sockets and clocks: the first one's SYN is lost, the second one's is not."""
    listener, waiting = full_queue()
    arrivals: list[float] = []

    def serve() -> None:
        while len(arrivals) < 2:
            connection, _ = listener.accept()
            if connection.recv(4096):
                arrivals.append(time.monotonic())
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            connection.close()

    def ask(name: str) -> None:
        state = Store(f"sqlite:///{tmp_path}/state.db")
        client = Client(Limiter(state, {"b": Limit((parse_rate("1/900ms"),))}))
        client.wait = lambda seconds: bool(time.sleep(seconds))  # type: ignore[method-assign]
        client().get(f"http://127.0.0.1:{listener.getsockname()[1]}/{name}")
        state.close()

    Store(f"sqlite:///{tmp_path}/state.db").create()
    first = threading.Thread(target=ask, args=("first",))
    first.start()
    time.sleep(0.1)  # its SYN is dropped by then
    for one in waiting:
        one.close()
    threads = [first, threading.Thread(target=serve), threading.Thread(target=ask, args=("second",))]
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(10)
    listener.close()
    assert len(arrivals) == 2
    assert arrivals[1] - arrivals[0] >= 0.9


def test_a_server_that_cannot_be_reached_costs_no_slot(client: Client, limiter: Limiter) -> None:
    for _ in range(3):
        with pytest.raises(Unreachable):
            client("tight").get("http://127.0.0.1:1/")
    assert limiter.closed_until("tight") is None


def test_a_late_request_whose_lateness_cannot_be_recorded_is_answered(
    server: Server, client: Client, limiter: Limiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiter, "sent", away)
    assert client().get(server.url).status == 200


def test_an_unreadable_wait_closes_for_a_whole_window(server: Server, client: Client, limiter: Limiter) -> None:
    server.answer = reply(b"slow down", 429, Retry_After="later")
    with pytest.raises(RateLimited):
        client().get(server.url)
    assert limiter.closed_until("b") == START + timedelta(hours=1)


@pytest.mark.parametrize("fault", ["reset", "stall", "huge", "stopping"])
def test_a_429_is_learned_though_its_body_fails(server: Server, client: Client, limiter: Limiter, fault: str) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(429)
        handler.send_header("Retry-After", "60")
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        handler.wfile.write(b"x" * (500_000 if fault == "huge" else 10))
        if fault == "stall":
            server.over.wait(5)

    server.answer = answer
    client.stopping = fault == "stopping"
    with pytest.raises(RateLimited, match="the server answered 429"):
        client(timeout=0.5).get(server.url)
    assert limiter.closed_until("b") == START + timedelta(seconds=60)


# --- refusals


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b"", "answered 401; the credentials were refused"),
        (403, b'{"error": "IP not in list"}', 'answered 403; no access (IP not allowed?): "IP not in list"'),
        (400, b'{"message": "bad page"}', 'answered 400: "bad page"'),
        (500, b"oops", 'answered 500: "oops"'),
        (502, b"<html><title>Bad</title>\r\n<b>Gateway</b></html>", 'answered 502: "Bad Gateway"'),
        (503, b"\x1b[2J\x00\xff", "answered 503"),
        (204, b"", "answered 204"),
        (418, b"[" * 60000, "answered 418"),
    ],
)
def test_a_refusal_says_what_the_server_said(
    server: Server, client: Client, status: int, body: bytes, said: str
) -> None:
    server.answer = reply(body, status)
    with pytest.raises(HttpStatus) as caught:
        client().get(f"{server.url}/v1/catalog")
    assert str(caught.value).startswith(f"{server.url}/v1/catalog: {said}")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert caught.value.status == status


@pytest.mark.parametrize("padding", range(190, 205))
def test_credentials_that_a_server_echoes_are_not_in_the_reason(server: Server, client: Client, padding: int) -> None:
    """Cut in the middle or not, in base64, JSON and URL form."""

    def echo(request: BaseHTTPRequestHandler) -> None:
        said = request.headers["Authorization"]
        body = json.dumps({"message": "x" * (padding - 30) + f" {said} {quote(PASSWORD)} {PASSWORD}"})
        reply(body.encode(), 403)(request)

    server.answer = echo
    with pytest.raises(HttpStatus) as caught:
        client(auth=("user", Secret("plain", PASSWORD))).get(server.url)
    word = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    for secret in (word, PASSWORD):
        assert all(secret[:size] not in str(caught.value).partition("xxx ")[2] for size in range(6, len(secret)))


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example\\@127.0.0.1/", "http://evil.example\\\\@127.0.0.1/", "http:\\\\127.0.0.1/",
        "http://127.0.0.1 /", "http://127.0.0.1\t.evil.example/", "http://127.0.0.1\n@evil.example/", "http://evil.example#@127.0.0.1/",
        "http://evil.example?@127.0.0.1/", "http://127.0.0.1:80@evil.example/", "http://127.0.0.1.evil.example/",
        "http://[::1]@evil.example/", "http://[::1].evil.example/", "http:///127.0.0.1/", "http://", "https://", "ftp://[::1]/",
        "//127.0.0.1/", "http://localhost.evil.example/", "http://localhost@evil.example/", "http://[::ffff:10.0.0.1]/",
    ],
)  # fmt: skip
def test_a_url_that_two_parsers_read_differently_is_not_asked(
    client: Client, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("urllib3.util.connection.create_connection", refuse)
    with pytest.raises(Unreachable, match="refused") as caught:
        client().get(url)
    assert str(caught.value).isprintable()


def test_a_password_that_is_no_secret_is_refused_where_it_is_given(client: Client) -> None:
    auth: Any = ("user", "password")
    with pytest.raises(TypeError, match=r"auth: needs \(user, password\), the password being a setting of the type"):
        client(auth=auth)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(server: Server, client: Client, status: int) -> None:
    elsewhere = Server()
    try:
        server.answer = reply(status=status, Location=f"{elsewhere.url}/steal")
        with pytest.raises(HttpStatus, match=f"answered {status}, a redirect; stellerd follows none"):
            client(auth=("u", Secret("plain", PASSWORD))).get(server.url)
        assert elsewhere.requests == []
    finally:
        elsewhere.close()


def test_nothing_is_retried(server: Server, client: Client) -> None:
    server.answer = reply(b"", 503)
    with pytest.raises(HttpStatus):
        client().get(server.url)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "http://127.evil.example/", "http://127.0.0.1.evil.example/", "ftp://127.0.0.1/",
        "http://localhost.evil.example/", "http://10.0.0.1/", "http://[::2]/", "file:///etc/passwd", "//h/",
        f"http://u:{PASSWORD}@example.com/x?key=1",
    ],
)  # fmt: skip
def test_plain_http_is_for_loopback_alone(client: Client, url: str) -> None:
    with pytest.raises(Unreachable, match="refused; only https is used"):
        client().get(url)


# --- hostile bodies


def test_a_body_over_the_cap_is_refused(server: Server, client: Client) -> None:
    server.answer = reply(b"x" * 2_000_000)
    with pytest.raises(BadReply, match="the body is larger than 1048576 bytes"):
        client().get(server.url)


def test_a_body_of_exactly_the_cap_is_fine(server: Server, client: Client) -> None:
    server.answer = reply(b"x" * 1024 * 1024)
    assert len(client().get(server.url).body) == 1024 * 1024


def bomb(size: int) -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as stream:
        for _ in range(size // 2**20):
            stream.write(bytes(2**20))
    return packed.getvalue()


def test_a_gzip_bomb_costs_little_memory(server: Server, tmp_path: Path) -> None:
    cap = 8 * 1024 * 1024
    server.answer = reply(bomb(400 * 2**20), Content_Encoding="gzip")
    code = f"""
import resource, structlog
from stellerd import http
from stellerd.http import Http
from stellerd.errors import BadReply
class Open:
    def await_open(self, *args, **kwargs): pass
    def acquire(self, *args, **kwargs): pass
    def report(self, *args, **kwargs): pass
    def sent(self, slot): pass
client = Http(Open(), "b", lambda s: False, auth=None, timeout=60, max_bytes={cap}, log=structlog.get_logger())
client.max_bytes = 0
try: client.get({server.url!r})
except BadReply: pass
client.max_bytes = {cap}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try: client.get({server.url!r})
except BadReply as error: print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    said, grown = done.stdout.splitlines()
    assert said.endswith(f"the body is larger than {cap} bytes")
    assert int(grown) * 1024 < cap + 16 * 1024 * 1024


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_a_body_is_held_once(server: Server, encoding: str) -> None:
    size = 96 * 2**20
    server.answer = reply(bomb(size) if encoding == "gzip" else bytes(size), Content_Encoding=encoding)
    code = f"""
import resource, structlog
from stellerd import http
from stellerd.http import Http
class Open:
    def await_open(self, *args, **kwargs): pass
    def acquire(self, *args, **kwargs): pass
    def sent(self, *args): pass
    def report(self, *args, **kwargs): pass
client = Http(Open(), "b", lambda s: False, auth=None, timeout=60, max_bytes=2**30, log=structlog.get_logger())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(client.get({server.url!r}).body))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    length, grown = map(int, done.stdout.split())
    assert length == size
    assert grown * 1024 < size + 24 * 2**20


PACKED = gzip.compress(b'{"brands": []}')


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b"this is not packed at all"), ("deflate", b"nor asked for"), ("br", b"x"), ("zstd", b"x"),
        ("gzip, gzip", gzip.compress(PACKED)), ("gzip", PACKED + b"more"), ("gzip", PACKED[:-6] + bytes(6)),
    ],
    ids=["no gzip", "deflate", "br", "zstd", "twice", "more behind it", "wrong checksum"],
)  # fmt: skip
def test_a_body_that_cannot_be_unpacked_is_a_bad_reply(
    server: Server, client: Client, encoding: str, body: bytes
) -> None:
    server.answer = reply(body, Content_Encoding=encoding)
    with pytest.raises(BadReply):
        client().get(server.url)


@pytest.mark.parametrize("cut", [1, 4, 8, 12, 200, -5, -1])
@pytest.mark.parametrize("ending", ["length", "connection"])
def test_a_packed_body_that_ends_in_its_middle_is_no_body(
    server: Server, client: Client, cut: int, ending: str
) -> None:
    packed = gzip.compress(bytes(range(256)) * 100)[:cut]
    server.answer = reply(packed, Content_Encoding="gzip")
    if ending == "connection":
        server.answer = lambda handler: (
            handler.send_response(200), handler.send_header("Content-Encoding", "gzip"), handler.end_headers(),
            handler.wfile.write(packed), None,
        )[-1]  # fmt: skip
    with pytest.raises(BadReply, match="ends in its middle"):
        client().get(server.url)


def test_packed_bodies_may_follow_each_other(server: Server, client: Client) -> None:
    server.answer = reply(gzip.compress(b"one ") + gzip.compress(b"two") + bytes(9), Content_Encoding="x-gzip")
    assert client().get(server.url).body == b"one two"


def test_only_what_can_be_unpacked_is_asked_for(server: Server, client: Client) -> None:
    client().get(server.url)
    assert server.requests[0][1]["accept-encoding"] == "gzip"


@pytest.mark.parametrize("how", ["length", "chunk"])
def test_a_body_cut_short_is_no_body(server: Server, client: Client, how: str) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        if how == "chunk":
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            handler.wfile.write(b"1000\r\nonly this")
        else:
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"brands": []}')
        handler.close_connection = True

    server.answer = answer
    with pytest.raises((BadReply, Unreachable)):
        client().get(server.url)


def reset(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()


def reset_at_half(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"x" * 500)
    handler.wfile.flush()
    reset(handler)


def no_http(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"220 mail.example ESMTP\r\n")


def endless_header(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("X-Long", "x" * 200_000)
    handler.end_headers()


@pytest.mark.parametrize("answer", [reset, reset_at_half, no_http, endless_header], ids=lambda answer: answer.__name__)
def test_a_broken_answer_is_one_clear_error(server: Server, client: Client, answer: Answer) -> None:
    server.answer = answer
    with pytest.raises((Unreachable, BadReply)) as caught:
        client(auth=("u", Secret("plain", PASSWORD))).get(f"{server.url}/catalog?key={PASSWORD}")
    text = str(caught.value)
    assert text.startswith(f"{server.url}/catalog: ")
    assert "object at 0x" not in text
    assert PASSWORD not in text


def test_nobody_listening_is_unreachable(client: Client) -> None:
    with pytest.raises(Unreachable, match=r"^http://127\.0\.0\.1:1/x: Connection refused$"):
        client().get("http://127.0.0.1:1/x")


# --- slow servers


def seconds_of(act: Callable[[], Any]) -> float:
    began = time.monotonic()
    with pytest.raises(Unreachable):
        act()
    return time.monotonic() - began


def drip(after_headers: bool) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"\r\n" if after_headers else b"X-Slow: "))
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.02)

    return answer


def stall(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"x" * 500)
    handler.wfile.flush()
    time.sleep(4)


def late_stall(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"x" * 500)
    handler.wfile.flush()
    server_is_slow = threading.Event()
    server_is_slow.wait(1.0)
    handler.wfile.write(b"x" * 500)
    handler.wfile.flush()
    server_is_slow.wait(4)


@pytest.mark.parametrize("answer", [drip(True), drip(False), stall], ids=["body drips", "headers drip", "stalls"])
def test_the_whole_exchange_has_one_deadline(server: Server, client: Client, answer: Answer) -> None:
    server.answer = answer
    assert seconds_of(lambda: client(timeout=0.6).get(server.url)) < 1.5


def test_a_body_that_stalls_late_gets_the_rest_of_the_time_not_all_of_it_again(server: Server, client: Client) -> None:
    server.answer = late_stall
    with pytest.raises(Unreachable, match=r"no whole answer within 1\.2 s"):
        client(timeout=1.2).get(server.url)
    assert seconds_of(lambda: client(timeout=1.2).get(server.url)) < 1.9


def test_a_server_that_says_nothing_is_given_up(server: Server, client: Client) -> None:
    server.answer = lambda handler: (server.over.wait(4), None)[1]
    assert seconds_of(lambda: client(timeout=0.4).get(server.url)) < 1.5


def test_a_process_that_shall_end_gives_a_download_up(server: Server, client: Client) -> None:
    server.answer = reply(b"x" * 900_000)
    client.stopping = True
    with pytest.raises(Unreachable, match="this process is stopping"):
        client().get(server.url)


def test_a_given_up_exchange_leaves_no_connection_open(server: Server, client: Client) -> None:
    server.answer = reply(b"x" * 2_000_000)
    before = connections()
    for _ in range(5):
        with pytest.raises(BadReply):
            client().get(server.url)
    deadline = time.monotonic() + 5
    while connections() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert connections() <= before


def connections() -> int:
    import psutil

    return sum(1 for c in psutil.Process().net_connections("tcp") if c.status == "ESTABLISHED")


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return new_certificate(tmp_path_factory.mktemp("tls"), "cert")


def new_certificate(folder: Path, name: str, by: str = "") -> tuple[Path, Path]:
    """Key and certificate for 127.0.0.1."""
    key, cert = folder / f"{name}.key", folder / f"{name}.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {cert} -days 2 -subj /CN=localhost {by}"
    subprocess.run([*command.split(), "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return key, cert


@pytest.fixture
def tls_server(certificate: tuple[Path, Path]) -> Iterator[Server]:
    with serving(*certificate) as made:
        yield made


@contextlib.contextmanager
def serving(key: Path, cert: Path) -> Iterator[Server]:
    """A server that shows this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    made = Server(context)
    try:
        yield made
    finally:
        made.close()


def test_a_certificate_that_nobody_signed_is_refused(tls_server: Server, client: Client) -> None:
    with pytest.raises(Unreachable, match="certificate verify failed"):
        client(auth=("u", Secret("plain", PASSWORD))).get(tls_server.url)
    assert tls_server.requests == []


def test_a_certificate_that_is_trusted_is_accepted(
    tls_server: Server, client: Client, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(certificate[1]))
    tls_server.answer = reply(b"safe")
    assert client(auth=("u", Secret("plain", PASSWORD))).get(tls_server.url).body == b"safe"


def test_a_certificate_of_another_name_is_refused(
    tls_server: Server, client: Client, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(certificate[1]))
    with pytest.raises(Unreachable, match="certificate verify failed: Hostname mismatch"):
        client().get(tls_server.url.replace("127.0.0.1", "localhost"))


def test_an_authority_that_only_an_older_python_accepts(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Python 3.13 on urllib3 is strict by default; here it is on every version."""
    made = urllib3.connection.create_urllib3_context

    def strict(**options: Any) -> ssl.SSLContext:
        context = made(**options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(urllib3.connection, "create_urllib3_context", strict)
    key, authority = new_certificate(tmp_path, "ca")
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(authority))
    with serving(*new_certificate(tmp_path, "cert", by=f"-CA {authority} -CAkey {key}")) as server:
        with pytest.raises(Unreachable, match=r"does not include key usage extension.*renew the CA's certificate"):
            client().get(server.url)


@pytest.mark.parametrize("answer", [drip(True), drip(False), stall], ids=["body drips", "headers drip", "stalls"])
def test_the_deadline_holds_under_tls_too(
    tls_server: Server,
    client: Client,
    certificate: tuple[Path, Path],
    answer: Answer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(certificate[1]))
    tls_server.answer = answer
    assert seconds_of(lambda: client(timeout=0.6).get(tls_server.url)) < 1.5


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_no_variable_of_the_environment_changes_whom_we_trust(
    tls_server: Server, client: Client, certificate: tuple[Path, Path], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(certificate[1]))
    with pytest.raises(Unreachable, match="certificate verify failed"):
        client().get(tls_server.url)


# --- messages


@pytest.mark.parametrize("status", [401, 500, 429, 302])
def test_no_message_has_credentials_or_query(server: Server, client: Client, status: int) -> None:
    server.answer = reply(b"", status, Location="http://127.0.0.1:1/")
    url = server.url.replace("http://", f"http://user:{PASSWORD}@") + f"/x?key={PASSWORD}"
    with pytest.raises(StellerdError) as caught:
        client(auth=("client", Secret("plain", PASSWORD))).get(url)
    assert PASSWORD not in f"{caught.value!r} {caught.value}"
