"""Redaction: no form of a known secret gets into a log line or a stream, however it is encoded or cut up."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellerd import Secret, log, redaction
from stellerd.redaction import MASK, RedactingStream, redact, shortened
from tests.daemon import until

CANARY = "kanarie-0815-gelb"


def revealed(value: str) -> None:
    Secret("plain", value).reveal()


def test_a_revealed_value_is_blanked_out() -> None:
    revealed(CANARY)
    assert redact(f"a {CANARY} b {CANARY}") == "a *** b ***"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://u:{CANARY}@host/db", CANARY),
        ("amqp://u:p%40ss%2Fword@host/%2F", "p@ss/word"),
        ("amqp://u:p%40ss%2Fword@host/%2F", "p%40ss%2Fword"),
        ("postgresql://u:slash/and#hash@host/db", "slash/and#hash"),
        ("postgresql://u:question?mark@host/db", "question?mark"),
        (f"postgresql://host/db?user=u&password={CANARY}", CANARY),
        (f"https://host/hook?token={CANARY}", CANARY),
    ],
)
def test_of_a_url_what_is_secret_is_blanked_out(url: str, shown: str) -> None:
    revealed(url)
    assert shown not in redact(f"cannot use {shown}!")
    assert shown not in redact(f"cannot use {url}!")


def test_of_a_url_the_host_stays_readable() -> None:
    revealed(f"postgresql://alice:{CANARY}@db.example/steller")
    assert redact("db.example/steller alice") == "db.example/steller alice"


@pytest.mark.parametrize("value", ['quo"te-1234', "back\\slash-1234", "new\nline-1234", "üñí-1234", "tab\t-1234"])
@pytest.mark.parametrize(
    "escape", [str, repr, json.dumps, lambda v: json.dumps(v, ensure_ascii=False), lambda v: quote(v, safe="")]
)
def test_an_escaped_value_is_blanked_out_too(value: str, escape: Any) -> None:
    revealed(value)
    assert "1234" not in redact(f"said {escape(value)}")


@given(st.text("ab/%\\é", min_size=4, max_size=12), st.text("ab/%@", min_size=1, max_size=8))  # no URL: see above
def test_the_longer_of_two_secrets_is_not_half_shown(value: str, rest: str) -> None:
    redaction._forms.clear()
    redaction._in_base64.clear()
    revealed(value)
    revealed(value + rest)
    assert redact(value + rest) == "***"


def test_a_very_short_value_blanks_out_no_innocent_words() -> None:
    revealed("on")
    assert redact("connection") == "connection"


@pytest.mark.parametrize("style", ["json", "text", "color"])
@pytest.mark.parametrize("value", [CANARY, 'quo"te\\-1234', "p ü-1234"])
def test_no_log_line_has_a_revealed_value(style: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    revealed(value)
    lines = io.StringIO()
    log.configure("debug", style, write=lambda line: print(line, file=lines))
    logger = log.get(url=f"x://u:{value}@h", field=value)
    logger.error(f"event {value}", nested={"a": [value]}, traceback=f"Traceback\n{value}")
    try:
        password = value
        raise ValueError(f"bad {password}")
    except ValueError:
        logger.exception("it raised")
    assert "Traceback" in lines.getvalue()
    assert value not in lines.getvalue()
    assert "1234" not in lines.getvalue()


# --- encodings


AWKWARD = ["it's-0815+gelb", "kanarie-0815-gelb", "p?ss/w+rd&<1234>", "üñí/1234 =x", 'quo"te\\1234/~']
ENCODINGS: dict[str, Callable[[str], str]] = {
    "url": lambda text: quote(text, safe=""),
    "url path": quote,
    "form": quote_plus,
    "url in lower case": lambda text: re.sub("%..", lambda match: match[0].lower(), quote(text, safe="")),
    "url, all but letters": lambda text: quote(text, safe="").replace("-", "%2D").replace("~", "%7E"),
    "json": json.dumps,
    "json with escaped slashes": lambda text: json.dumps(text).replace("/", "\\/"),
    "json of .NET": lambda text: "".join(
        f"\\u{ord(char):04X}" if char in "&'+<>\"`" or ord(char) > 126 else char for char in text.replace("\\", "\\\\")
    ),
    "html": html.escape,
    "html of .NET": lambda text: html.escape(text).replace("&#x27;", "&#39;"),
    "sql": lambda text: text.replace("'", "''"),
    "hex": lambda text: text.encode().hex(),
    "HEX": lambda text: text.encode().hex().upper(),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_encoded_secret_is_blanked_out(encoding: str) -> None:
    for value in AWKWARD:
        revealed(value)
        assert ENCODINGS[encoding](value).strip('"') not in redact(f"said <{ENCODINGS[encoding](value)}>")


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode], ids=["standard", "urlsafe"])
@given(before=st.binary(max_size=7), after=st.binary(max_size=7), value=st.sampled_from(AWKWARD))
def test_base64_of_a_secret_among_other_bytes_is_blanked_out_as_a_whole(
    encode: Callable[[bytes], bytes], before: bytes, after: bytes, value: str
) -> None:
    revealed(value)
    word = encode(before + value.encode() + after).decode()
    assert redact(f"Authorization: Basic {word}; next") == f"Authorization: Basic {MASK}; next"


def test_each_line_of_a_key_is_blanked_out_by_itself() -> None:
    revealed("-----BEGIN KEY-----\nMIIEvQIBADANBg\nabc\nkqhkiG9w0BAQEF\n-----END KEY-----\n")
    assert redact("| MIIEvQIBADANBg\n| abc\n| kqhkiG9w0BAQEF") == "| ***\n| abc\n| ***"


def test_a_value_with_blanks_around_it_is_blanked_out_without_them() -> None:
    revealed(f"  {CANARY} ")
    assert redact(f"<{CANARY}>") == "<***>"


def test_a_text_is_cut_only_after_its_secrets_are_out() -> None:
    revealed(CANARY)
    for chars in range(len(CANARY) + 4):
        assert CANARY[:4] not in shortened(f"as {CANARY}", chars)


# --- streams


@pytest.fixture
def written() -> Iterator[tuple[RedactingStream, Callable[[], str]]]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    stream = RedactingStream(writing)
    came = bytearray()

    def read() -> str:
        with contextlib.suppress(BlockingIOError):
            came.extend(os.read(reading, 65536))
        return came.decode()

    yield stream, read
    os.close(reading)
    os.close(writing)


Written = tuple[RedactingStream, Callable[[], str]]


def test_a_secret_written_in_pieces_is_blanked_out(written: Written) -> None:
    stream, read = written
    revealed(CANARY)
    for seed in range(200):
        pieces, rest = [], f"a {CANARY} and {CANARY}, "
        while rest:
            size = random.Random(seed * 1000 + len(rest)).randint(1, 6)
            pieces.append(rest[:size])
            rest = rest[size:]
        for piece in pieces:
            print(piece, end="", file=stream, flush=True)
    print(file=stream)
    assert read() == "a *** and ***, " * 200 + "\n"


@pytest.mark.parametrize("pieces", [["xxab", "cab"], ["abcab", "c"], ["ab", "cab"], ["abc", "ababcab"]], ids=str)
def test_a_secret_that_begins_as_it_ends_is_blanked_out(written: Written, pieces: list[str]) -> None:
    stream, read = written
    revealed("abcab")
    for piece in pieces:
        stream.write(piece)
    stream.release()
    assert "abcab" not in read()
    assert MASK in read()


def test_a_secret_of_several_lines_is_blanked_out_line_by_line(written: Written) -> None:
    stream, read = written
    key = "-----BEGIN KEY-----\nabcdefgh\nijklmnop\n-----END KEY-----"
    revealed(key)
    for line in key.splitlines():
        print(line, file=stream)
    assert read() == "***\n"


def test_bytes_are_redacted_too_and_come_in_order(written: Written) -> None:
    stream, read = written
    revealed("schlüssel-1234")
    stream.write("one ")
    for byte in "schlüssel-1234 zwei ü\n".encode():
        stream.buffer.write(bytes([byte]))
    stream.buffer.flush()
    assert read() == "one *** zwei ü\n"


def test_what_only_looked_like_the_beginning_of_a_secret_comes_a_moment_later(written: Written) -> None:
    stream, read = written
    revealed(CANARY)
    print("name: kanarie", end="", file=stream, flush=True)
    assert "kanarie" not in read()
    until(lambda: read() == "name: kanarie", 5)


def test_what_is_held_back_is_written_once_when_the_process_forks(written: Written) -> None:
    stream, read = written
    revealed(CANARY)
    stream.write("kan")
    if (pid := os.fork()) == 0:
        stream.release()
        os._exit(0)
    os.waitpid(pid, 0)
    stream.release()
    assert read() == "kan"
