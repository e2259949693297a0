"""The OrderCreated message exactly as the .NET consumer reads it: ids, addresses and the JSON envelope, all pure."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import uuid
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import urlsplit

CONTENT_TYPE = "application/vnd.masstransit+json"
NAMESPACE = uuid.UUID("6c2f0b8e-4d57-5f0e-9a43-0f6f2b1d7c59")
"""Ours, and for good: a message id must be the same whenever and wherever an order is published again."""
NIL = uuid.UUID(int=0)
_NAMESPACE_BYTES = NAMESPACE.bytes
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
_DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}


class Message(NamedTuple):
    """One order's message; `id` and `correlation_id` are also AMQP properties, `body` is UTF-8 JSON."""

    key: str
    """The order's primary key, as the database writes it."""
    id: str
    correlation_id: str
    body: bytes


def message_id(request_id: str) -> str:
    """The id that every message about this request carries, so that a consumer's inbox can drop a second one.

    `request_id`: hyphenated, lower case. uuid5 in our namespace (RFC 9562 section 5.5), four times as fast as uuid's.
    """
    text = hashlib.sha1(_NAMESPACE_BYTES + request_id.encode(), usedforsecurity=False).hexdigest()
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{_VARIANT[text[16]]}{text[17:20]}-{text[20:32]}"


def iso_utc(moment: datetime) -> str:
    """An aware datetime as ISO-8601 in UTC with `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def address(broker_url: str, name: str) -> str:
    """rabbitmq://host[:port][/vhost]/name of an exchange on the broker, without credentials.

    The default vhost and the default port are left out, as MassTransit does. A spool has no host: `localhost`.
    """
    parts = urlsplit(broker_url)
    host = parts.hostname if parts.scheme in _DEFAULT_PORTS else None
    place = f"[{host}]" if host and ":" in host else host or "localhost"
    if host and parts.port not in (None, _DEFAULT_PORTS[parts.scheme]):
        place += f":{parts.port}"
    vhost = parts.path.partition("/")[2].partition("/")[0] if host else ""
    folder = "" if vhost.upper() in ("", "%2F") else f"/{vhost}"
    return f"rabbitmq://{place}{folder}/{name}"


class Envelopes:
    """Builds messages of one type for one broker; what does not change from order to order is written once."""

    def __init__(self, broker_url: str, message_type: str, message_property: str) -> None:
        marks = {"messageId": "\x00", "correlationId": "\x00", "conversationId": "\x00", "sentTime": "\x00"}
        text = json.dumps(
            {
                "messageType": [f"urn:message:{message_type}"],
                "sourceAddress": address(broker_url, "stellerd-order-queue"),
                "destinationAddress": address(broker_url, message_type),
                "headers": {},
                "host": {
                    "machineName": socket.gethostname(),
                    "processName": "stellerd",
                    "processId": os.getpid(),
                    "assembly": "stellerd_order_queue",
                },
                "message": {message_property: "\x00"},
                **marks,
            },
            separators=(",", ":"),
        )
        self._parts = text.split("\\u0000")

    def build(self, key: str, request_id: str, identity: str, sent: str) -> Message:
        """The message of one order; `identity` is its `message_id`, `sent` as `iso_utc` writes it."""
        a, b, c, d, e, f = self._parts
        body = f"{a}{request_id}{b}{identity}{c}{request_id}{d}{request_id}{e}{sent}{f}"
        return Message(key, identity, request_id, body.encode())
