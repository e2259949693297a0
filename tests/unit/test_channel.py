"""Messages on the line between supervisor and job: whole, in order, and nothing else."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellerd.channel import MAX_MESSAGE, Channel

Pair = tuple[Channel, Channel]


@pytest.fixture
def pair() -> Iterator[Pair]:
    parent, child = Channel.pair()
    yield parent, child
    parent.close()
    child.close()


def frame(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


@pytest.mark.parametrize("way", [0, 1], ids=["down", "up"])
def test_a_message_arrives_as_it_was_sent(pair: Pair, way: int) -> None:
    assert pair[way].send("progress", done=3, total=None, unit="ü€")
    assert pair[1 - way].receive() == [{"kind": "progress", "done": 3, "total": None, "unit": "ü€"}]


def test_messages_keep_their_order(pair: Pair) -> None:
    for number in range(50):
        pair[1].send("n", number=number)
    assert [message["number"] for message in pair[0].receive()] == list(range(50))


def test_nothing_there_is_no_message_and_no_wait(pair: Pair) -> None:
    assert pair[0].receive() == []
    assert not pair[0].closed


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=30), max_size=3), max_size=5),
    st.lists(st.integers(1, 40), min_size=1),
)
def test_a_message_may_arrive_in_any_pieces(contents: list[dict[str, str]], cuts: list[int]) -> None:
    parent, child = Channel.pair()
    messages: list[dict[str, Any]] = [{"kind": "k", "content": content} for content in contents]
    data = b"".join(frame(json.dumps(message).encode()) for message in messages)
    got = []
    at = turn = 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        child.socket.sendall(data[at : at + size])
        got += parent.receive()
        at, turn = at + size, turn + 1
    parent.close()
    child.close()
    assert got == messages


def test_the_end_of_the_stream_is_noticed_after_the_last_message(pair: Pair) -> None:
    pair[1].send("last")
    pair[1].close()
    assert [message["kind"] for message in pair[0].receive()] == ["last"]
    assert pair[0].closed


def test_half_a_message_at_the_end_is_no_message(pair: Pair) -> None:
    pair[1].socket.sendall(frame(b'{"kind": "k"}')[:-3])
    pair[1].close()
    assert pair[0].receive() == []
    assert pair[0].closed


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!I", MAX_MESSAGE + 1), frame(b"not json"), frame(b"\xff\xfe"), frame(b"[]"), frame(b"5"),
        frame(b"null"), frame(b'{"no": "kind"}'), frame(b'{"kind": 5}'), frame(b"[" * 100_000), frame(b""),
    ],
    ids=["oversized", "text", "bytes", "list", "number", "null", "no kind", "kind", "deep", "empty"],
)  # fmt: skip
def test_whoever_does_not_speak_the_protocol_is_refused(pair: Pair, data: bytes) -> None:
    pair[1].socket.sendall(data)
    with pytest.raises(ValueError, match=r"message|Expecting|codec"):
        pair[0].receive()


def test_a_large_message_arrives(pair: Pair) -> None:
    import threading

    text = "x" * 3_000_000
    sender = threading.Thread(target=pair[1].send, args=("big",), kwargs={"text": text})
    sender.start()
    got: list[dict[str, Any]] = []
    while not got:
        got = pair[0].receive()
    sender.join()
    assert got[0]["text"] == text


def test_a_chatty_child_does_not_keep_the_parent_to_itself(pair: Pair) -> None:
    pair[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 1024 * 1024)
    pair[1].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * 1024 * 1024)
    pair[1].socket.setblocking(False)
    pair[1].socket.send(bytes(8 * 1024 * 1024))
    pair[0]._fill()
    assert len(pair[0]._buffer) <= 16 * 65536


def test_a_reader_that_is_gone_is_noticed(pair: Pair) -> None:
    pair[1].close()
    assert not pair[0].send("trigger")
    assert pair[0].closed


def test_a_reader_that_does_not_read_is_not_waited_for(pair: Pair) -> None:
    sent = 0
    while pair[0].send("trigger"):
        sent += 1
        assert sent < 1_000_000
    assert not pair[0].closed, "it lives: what it says must still be heard"
    pair[1].send("run_finished")
    assert [message["kind"] for message in pair[0].receive()] == ["run_finished"]
    assert len(pair[1].receive()) > 0
    assert pair[0].send("trigger")


def test_what_json_does_not_know_is_sent_as_text(pair: Pair) -> None:
    pair[1].send("k", value={1}.__class__)
    assert pair[0].receive()[0]["value"] == "<class 'set'>"
