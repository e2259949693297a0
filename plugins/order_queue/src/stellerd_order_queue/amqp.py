"""Publishing to RabbitMQ with a window of confirms; a link that breaks is renewed and what it owed is sent again."""

from __future__ import annotations

import re
import socket
import ssl
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from types import TracebackType
from typing import Any

import pika.exceptions as amqp_errors
from pika.adapters.utils import connection_workflow

from stellerd import errors
from stellerd_order_queue.envelope import Message
from stellerd_order_queue.link import Link, Lost, parameters
from stellerd_order_queue.publisher import Outcome, Wishes, place

SENDS = 2
"""How often one `publish` sends a message whose confirm never came."""


class AmqpPublisher:
    """Opens its connection in the constructor, to the first of the brokers that can be used.

    Raises: Unreachable when nobody answers; JobFailed when the broker answers and refuses us; ConfigError for a URL
    that is none.
    """

    def __init__(self, urls: Sequence[str], wishes: Wishes) -> None:
        self._wishes = wishes
        self._brokers = deque((place(url), _parameters(url, wishes)) for url in urls)
        self._link: Link | None = None
        self._open()

    @property
    def _place(self) -> str:
        """The broker in use."""
        return self._brokers[0][0]

    def __enter__(self) -> AmqpPublisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._link:
            self._link.close()
            self._link = None

    def publish(self, messages: Iterable[Message]) -> Iterator[Outcome]:
        """See `Publisher.publish`. Memory is bounded by the window."""
        fresh = ((message, 0) for message in messages)
        again: deque[tuple[Message, int]] = deque()
        while True:
            link = self._link or self._open()
            self._fill(link, chain(_drained(again), fresh))
            if not link.outstanding and not link.done and not link.lost:
                return
            self._wait(link)
            yield from _drained(link.done)
            if link.lost:
                yield from self._renew(link, again)

    def _fill(self, link: Link, waiting: Iterator[tuple[Message, int]]) -> None:
        """One message alone first: a broker that blocks publishers gets no window of them at each try."""
        free = (self._wishes.window if link.answered and not link.blocked else 1) - len(link.outstanding)
        if free > 0 and not link.lost:
            link.send(list(islice(waiting, free)))

    @staticmethod
    def _wait(link: Link) -> None:
        while link.outstanding and not link.done and not link.lost:
            link.turn()
            if not link.done:
                link.check_deadline()

    def _renew(self, link: Link, again: deque[tuple[Message, int]]) -> Iterator[Outcome]:
        """Take over what a lost link owes: to be sent again, or given back; then open a new one.

        Raises: Unreachable when publishers are blocked: a new connection would be blocked as well.
        """
        reason = f"{self._place}: {_words(link.lost)}"
        self.close()
        yield from _drained(link.done)  # confirms that came while it was being closed
        for sent in link.outstanding.values():
            if sent.sends < SENDS and not link.blocked:
                again.append((sent.message, sent.sends))
            else:
                yield Outcome(sent.message, "blocked" if link.blocked else "unknown", reason)
        if link.blocked:
            yield from (Outcome(message, "blocked", reason) for message, _ in _drained(again))
            raise errors.Unreachable(f"{reason}; look at its memory and disk alarms")
        try:
            self._open()
        except errors.StellerdError:
            yield from (Outcome(message, "unknown", reason) for message, _ in _drained(again))
            raise

    def _open(self) -> Link:
        """Raises: the failure of all brokers, whose kind is the first one's."""
        failures: list[errors.StellerdError] = []
        for _ in range(len(self._brokers)):
            try:
                self._link = Link(self._brokers[0][1], self._wishes)
                return self._link
            except Lost as lost:
                failures.append(explained(lost, self._place, self._wishes.exchange))
                self._brokers.rotate(-1)
        raise type(failures[0])("; ".join(map(str, failures))) from None


def _parameters(url: str, wishes: Wishes) -> Any:
    try:
        return parameters(url, wishes)
    except OSError as error:
        raise errors.ConfigError(f"{wishes.ca_file}: cannot be used as broker_ca: {_words(error)}") from None
    except (ValueError, TypeError, AttributeError, SyntaxError):  # pika's; their texts may quote the password
        raise errors.ConfigError(
            f"broker.url: {place(url)}: not an AMQP URL; write amqps://user:password@host/vhost, special "
            f"characters percent-encoded"
        ) from None


def _drained(queue: deque[Any]) -> Iterator[Any]:
    while queue:
        yield queue.popleft()


def explained(lost: Lost, where: str, exchange: str) -> errors.StellerdError:
    """What people should read when the link cannot be opened; no credentials are in it."""
    cause = _root(lost.cause)
    code, said = getattr(cause, "reply_code", 0), str(getattr(cause, "reply_text", ""))
    if isinstance(cause, amqp_errors.ProbableAuthenticationError | amqp_errors.AuthenticationError):
        return errors.JobFailed(f"{where}: the broker refused the user name or password of [broker] url")
    if isinstance(cause, amqp_errors.ProbableAccessDeniedError) or code == 530:
        return errors.JobFailed(f"{where}: the broker gives this user no access to the virtual host, or there is none")
    if isinstance(cause, ssl.SSLCertVerificationError):
        return errors.JobFailed(f"{where}: the broker's certificate is not trusted: {errors.certificate(cause)}")
    if code == 406:
        return errors.JobFailed(f"{where}: exchange {exchange} exists, but is not fanout and durable: {said}")
    if code in (403, 404):
        return errors.JobFailed(
            f"{where}: exchange {exchange} cannot be used: {said}; "
            f"give the user configure and write permission on it, or declare it (fanout, durable)"
        )
    return errors.Unreachable(f"{where}: {_words(cause or lost)}; is the broker up?")


def _root(error: BaseException | None) -> BaseException | None:
    """The cause inside pika's wrappers: the last attempt of a connection workflow, and what broke in it."""
    while error is not None:
        inner = getattr(error, "exception", None)
        if isinstance(error, connection_workflow.AMQPConnectionWorkflowFailed | amqp_errors.AMQPConnectionError):
            tried = getattr(error, "exceptions", None) or [each for each in error.args if isinstance(each, Exception)]
            inner = tried[-1] if tried else inner
        if inner is None:
            break
        error = inner
    return error


def _words(error: BaseException | None) -> str:
    error = _root(error.cause or error) if isinstance(error, Lost) else _root(error)
    if isinstance(error, socket.gaierror):
        return f"the name cannot be resolved ({error.strerror})"
    if isinstance(error, TimeoutError | connection_workflow.AMQPConnectorStackTimeout):
        return "no answer in time"
    if isinstance(error, amqp_errors.ConnectionClosed | amqp_errors.ChannelClosed):
        return f"closed by the broker: {error.reply_code} {error.reply_text}"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return re.sub(r"<[^>]*>|\(\)", "", text).strip()
