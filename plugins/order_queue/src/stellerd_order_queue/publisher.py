"""What every transport offers: messages in, one outcome for each of them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

from stellerd import errors
from stellerd_order_queue.envelope import Message

State = Literal["published", "returned", "nacked", "blocked", "unknown"]


class Outcome(NamedTuple):
    """What became of one message.

    published: the broker answers for it. returned: nothing is bound to the exchange. nacked: the broker took it and
    gave it up (a full queue, say). blocked: the broker takes no messages (a memory or disk alarm); it may have arrived.
    unknown: no answer came; it may have arrived.
    """

    message: Message
    state: State
    reason: str = ""


class Publisher(AbstractContextManager["Publisher"], Protocol):
    """An open way to the broker."""

    def publish(self, messages: Iterable[Message]) -> Iterator[Outcome]:
        """Send the messages; outcomes come in any order, exactly one a message taken from `messages`.

        Raises: Unreachable or JobFailed when the way is gone for good; every message taken has its outcome before.
        """


@dataclass(frozen=True)
class Wishes:
    """How to publish; times in seconds."""

    exchange: str
    window: int = 500
    confirm_timeout: float = 30.0
    connect_timeout: float = 10.0
    heartbeat: float = 30.0
    ca_file: str = ""


def place(url: str) -> str:
    """scheme://host:port/vhost of a broker URL, or the spool's folder: what may be named in a message.

    A password with a "/", "?" or "#" in it that is not percent-encoded ends up in the wrong part: then only the scheme.
    """
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return f"{url.partition(':')[0]}://…"
    if "@" in parts.path + parts.query + parts.fragment:
        return f"{parts.scheme}://…"
    host = parts.hostname or ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"


def open_publisher(urls: Sequence[str], wishes: Wishes) -> Publisher:
    """The transport that the URLs' scheme asks for, opened; of several brokers the first that answers.

    Raises: ConfigError for another scheme; Unreachable or JobFailed when it cannot be opened.
    """
    schemes = {url.partition(":")[0] for url in urls}
    if schemes <= {"amqp", "amqps"}:
        from stellerd_order_queue.amqp import AmqpPublisher  # pika is not loaded for a spool

        return AmqpPublisher(urls, wishes)
    if "spool" in schemes and len(urls) > 1:
        raise errors.ConfigError("broker.url: a spool stands alone; several URLs are brokers, tried in turn")
    if schemes == {"spool"}:
        from stellerd_order_queue.spool import SpoolPublisher

        return SpoolPublisher(urls[0], wishes.window)
    raise errors.ConfigError("broker.url: the scheme is not known; write amqp://…, amqps://… or spool:///folder")
