"""One AMQP connection with one confirming channel, driven by hand; it opens once, and once lost it stays lost."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pika
import pika.exceptions

from stellerd_order_queue.envelope import Message
from stellerd_order_queue.frames import Frames
from stellerd_order_queue.publisher import Outcome, State, Wishes, place

TICK_S = 0.5
CLOSE_TIMEOUT_S = 2.0
# Every failure it logs, passwordless but with a traceback, is reported by us in words.
logging.getLogger("pika").setLevel(logging.CRITICAL)


class Lost(Exception):
    """The link is gone or never came up; `cause` is what pika said, None when nobody said anything in time."""

    def __init__(self, cause: BaseException | None, reason: str = "") -> None:
        super().__init__(reason or str(cause) or type(cause).__name__)
        self.cause = cause


@dataclass(slots=True)
class Sent:
    """A message on its way; `deadline` is monotonic seconds."""

    message: Message
    sends: int
    deadline: float


def parameters(url: str, wishes: Wishes) -> Any:
    """pika's connection parameters for a broker URL; TLS is always verified, whatever the URL says.

    Raises: ValueError when it is not an AMQP URL.
    """
    if place(url).endswith("…"):
        raise ValueError  # pika would ask the name server for a part of the password
    chosen = pika.URLParameters(url)
    if chosen.ssl_options is not None:
        context = ssl.create_default_context(cafile=wishes.ca_file or None)
        chosen.ssl_options = pika.SSLOptions(context, chosen.host)
    chosen.connection_attempts = 1
    chosen.socket_timeout = chosen.stack_timeout = wishes.connect_timeout
    if "heartbeat" not in parse_qs(urlsplit(url).query):
        chosen.heartbeat = max(1, round(wishes.heartbeat))
    name = f"stellerd order_queue {socket.gethostname()}:{os.getpid()}"  # as the broker's operator sees it
    chosen.client_properties = {"connection_name": name}
    return chosen


class Link:
    """Opens in the constructor, which declares the exchange: fanout, durable, nothing else.

    Raises: Lost.
    """

    def __init__(self, chosen: Any, wishes: Wishes) -> None:
        self._wishes = wishes
        self.outstanding: dict[int, Sent] = {}
        self.done: deque[Outcome] = deque()
        self.lost: Lost | None = None
        self._returned: set[str] = set()
        self.blocked = ""
        """The broker's reason to take nothing from publishers just now (connection.blocked)."""
        self.answered = False
        self._tag = 0
        self._channel: Any = None
        self._closed = False
        self._connection = pika.SelectConnection(
            chosen,
            on_open_error_callback=lambda _, error: self._lose(error),
            on_close_callback=self._on_connection_closed,
        )
        self._loop = self._connection.ioloop
        self._loop.activate_poller()
        self._tick()
        try:
            self._open(time.monotonic() + wishes.connect_timeout)
        except Lost:
            self.close()
            raise

    def _open(self, deadline: float) -> None:
        self._connection.add_on_connection_blocked_callback(self._on_blocked)
        self._connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._until(lambda: self._connection.is_open, deadline)
        try:
            self._declare(passive=False, deadline=deadline)
        except Lost as lost:
            if getattr(lost.cause, "reply_code", 0) != 403 or not self._connection.is_open:
                raise
            self.lost = None  # may not configure: then the exchange has to be there
            self._declare(passive=True, deadline=deadline)

    def _declare(self, passive: bool, deadline: float) -> None:
        ready: list[Any] = []
        self._channel = channel = self._connection.channel(on_open_callback=ready.append)
        channel.add_on_close_callback(lambda _, error: self._lose(error))
        channel.add_on_return_callback(self._on_return)
        self._until(lambda: bool(ready), deadline)
        channel.exchange_declare(
            self._wishes.exchange, "fanout", passive=passive, durable=True, callback=lambda _: ready.append(True)
        )
        self._until(lambda: len(ready) > 1, deadline)
        channel.confirm_delivery(self._on_confirm, callback=lambda _: ready.append(True))
        self._until(lambda: len(ready) > 2, deadline)
        self._frames = Frames(channel.channel_number, self._wishes.exchange)

    def _until(self, ready: Callable[[], bool], deadline: float) -> None:
        while not ready():
            if self.lost:
                raise self.lost
            if time.monotonic() > deadline:
                raise Lost(None, f"no answer within {self._wishes.connect_timeout:g} s")
            self.turn()

    def turn(self) -> None:
        """Wait until something happens, at most `TICK_S`, and deal with it."""
        self._loop.poll()
        self._loop.process_timeouts()

    def _tick(self) -> None:
        self._loop.call_later(TICK_S, self._tick)

    def send(self, batch: Iterable[tuple[Message, int]]) -> None:
        """Write (message, how often it was sent before) pairs, all in one piece: pika alone makes three of each."""
        deadline = time.monotonic() + self._wishes.confirm_timeout
        frames = []
        for message, sends in batch:
            self._tag += 1
            self.outstanding[self._tag] = Sent(message, sends + 1, deadline)
            frames.append(self._frames.of(message))
        if frames:
            self._connection._adapter_emit_data(b"".join(frames))

    def check_deadline(self) -> None:
        """Lose the link when the oldest message waits longer for its confirm than `confirm_timeout`."""
        oldest = next(iter(self.outstanding.values()), None)
        if oldest is None or self.lost or time.monotonic() < oldest.deadline:
            return
        if self.blocked:
            self.lost = Lost(None, f"the broker has blocked publishers ({self.blocked}) and confirms nothing")
        else:
            self.lost = Lost(None, f"no confirm within {self._wishes.confirm_timeout:g} s")

    def close(self) -> None:
        """Say goodbye, wait `CLOSE_TIMEOUT_S` at most, free everything."""
        if self._closed:
            return
        self._closed = True
        if self._connection.is_open:
            self._connection.close()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        while not self._connection.is_closed and time.monotonic() < deadline and not self._never_opened():
            self.turn()
        self._loop.deactivate_poller()
        self._loop.close()

    def _never_opened(self) -> bool:
        return not (self._connection.is_open or self._connection.is_closing)

    def _lose(self, error: BaseException) -> None:
        self.lost = self.lost or Lost(error)

    def _on_connection_closed(self, _: Any, error: BaseException) -> None:
        self._lose(error)

    def _on_blocked(self, _: Any, frame: Any) -> None:
        self.blocked = str(frame.method.reason or "memory or disk alarm")

    def _on_unblocked(self, _: Any, __: Any) -> None:
        self.blocked = ""
        deadline = time.monotonic() + self._wishes.confirm_timeout
        for sent in self.outstanding.values():
            sent.deadline = deadline  # the broker begins to read them now

    def _on_return(self, _: Any, __: Any, properties: Any, ___: bytes) -> None:
        self._returned.add(properties.message_id)  # its ack follows

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        self.answered = True
        refused = method.NAME == "Basic.Nack"
        for tag in confirmed_tags(self.outstanding, method.delivery_tag, method.multiple):
            sent = self.outstanding.pop(tag, None)
            if sent is not None:
                self.done.append(self._outcome(sent.message, refused))

    def _outcome(self, message: Message, refused: bool) -> Outcome:
        state: State = "published"
        reason = ""
        if refused:
            state, reason = "nacked", "the broker refused it (basic.nack): a bound queue is full or gone"
        elif message.id in self._returned:
            state, reason = "returned", f"returned: nothing is bound to exchange {self._wishes.exchange}"
        self._returned.discard(message.id)
        return Outcome(message, state, reason)


def confirmed_tags(outstanding: Iterable[int], tag: int, multiple: bool) -> Iterable[int]:
    """The tags that a confirm means, of ascending `outstanding` ones.

    `multiple`: all up to `tag`, and 0 means all there are (AMQP 0-9-1, basic.ack, delivery-tag).
    """
    if not multiple:
        return (tag,)
    return list(takewhile(lambda each: each <= tag, outstanding) if tag else outstanding)
