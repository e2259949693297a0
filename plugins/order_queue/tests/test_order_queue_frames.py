"""Our frames are byte for byte what pika would write."""

from __future__ import annotations

import uuid

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec
from stellerd_order_queue.envelope import Message
from stellerd_order_queue.frames import LARGEST_BODY, Frames


@given(
    st.uuids(),
    st.uuids(),
    st.binary(max_size=LARGEST_BODY),
    st.integers(1, 65535),
    st.from_regex(r"\A\w{1,60}:\w{1,60}\Z"),
)
def test_frames_are_those_of_pika(one: uuid.UUID, two: uuid.UUID, body: bytes, channel: int, exchange: str) -> None:
    expected = pika.BasicProperties(
        content_type="application/vnd.masstransit+json", delivery_mode=2, message_id=str(one), correlation_id=str(two)
    )
    method = spec.Basic.Publish(exchange=exchange, routing_key="", mandatory=True)
    whole = frame.Method(channel, method).marshal() + frame.Header(channel, len(body), expected).marshal()
    whole += frame.Body(channel, body).marshal()
    assert Frames(channel, exchange).of(Message("key", str(one), str(two), body)) == whole


@pytest.mark.parametrize(
    "message",
    [
        Message("key", str(uuid.uuid4()), str(uuid.uuid4()), b"x" * (LARGEST_BODY + 1)),
        Message("key", "short", str(uuid.uuid4()), b"x"),
        Message("key", str(uuid.uuid4()), "short", b"x"),
    ],
)
def test_what_the_template_cannot_hold_is_refused(message: Message) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Frames(1, "A:B").of(message)
