"""One bad item makes the decoder refuse the whole answer: here it is made to cost no more than that item."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

LEVELS = 64
"""Nesting deeper than this is cut out; the vendor uses six levels."""
_LONGEST_WHOLE = 40
_ESCAPE = re.compile(  # whole pairs and other escapes are matched too, so that no match begins inside one
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)  # linear, whatever it is given
_NAMED = re.compile(r'"(internalId|id|name)"\s*:\s*("(?:[^"\\]|\\.)*"|[0-9]{1,18}(?![0-9]))', re.DOTALL)
_OPEN = {b"]": b"[", b"}": b"{"}


def half_pairs(body: bytearray) -> bool:
    """Half a surrogate pair becomes a NUL, which no text may have.

    Returns: whether there was any. It is mended in place: the body may be large.
    """
    found = False
    for match in _ESCAPE.finditer(body):
        if match["half"]:
            body[match.start() : match.end()] = b"\\u0000"
            found = True
    return found


def nesting(body: bytearray) -> bool:
    """Empty, in place, what is nested deeper than `LEVELS`, which no field of ours is. Returns: whether any was."""
    level, start, found = 0, 0, False
    for match in _TOKEN.finditer(body):
        sign = match[0]
        if sign in (b"[", b"{"):
            level += 1
            start = match.end() if level == LEVELS else start
        elif sign in _OPEN:
            if level == LEVELS and body[start : match.start()].strip():
                body[start : match.start()] = b" " * (match.start() - start)
                found = True
            level -= 1
    return found


class Parts(NamedTuple):
    """A body cut up: its items, which need not be JSON, and what is around them, their list empty."""

    items: list[msgspec.Raw]
    rest: bytes


def split(body: bytes | bytearray, name: bytes) -> Parts | None:
    """Cut out the items of the list `name` of the outermost object (b"": the body itself is the list).

    Returns: None when brackets do not match, so that nobody knows where an item ends.
    """
    cuts = list(_cuts(body, name))
    if len(cuts) < 2:
        return None
    slices = [bytes(body[start + 1 : end]) for start, end in pairwise(cuts)]
    if not slices[-1].strip():  # an empty list, or a comma too many
        slices.pop()
    return Parts([msgspec.Raw(item) for item in slices], bytes(body[: cuts[0] + 1] + body[cuts[-1] :]))


def _cuts(body: bytes | bytearray, name: bytes) -> Iterator[int]:
    """Where the list's brackets and the commas between its items are."""
    depth = 2 if name else 1
    inside, before, opened = False, b"", list[bytes]()
    for match in _TOKEN.finditer(body):
        sign = match[0]
        if inside and len(opened) == depth and sign in b",]":
            yield match.start()
            if sign == b"]":
                return
        if sign in (b"[", b"{"):
            if sign == b"[" and len(opened) == depth - 1 and before == (name and b'"%s"' % name):
                yield match.start()
                inside = True
            opened.append(sign)
        elif sign in _OPEN and (not opened or opened.pop() != _OPEN[sign]):
            return
        before = sign if len(opened) == 1 and name else b""


def loose(raw: bytes | msgspec.Raw) -> Any:
    """What can be told of a bad item: bytes that are not UTF-8 become U+FFFD, numbers too long None, depth is cut.

    Of what is no JSON at all only its names are told; None when there are none.
    """
    body = bytearray(raw)
    nesting(body)
    text = body.decode("utf-8", "replace")
    try:
        return json.loads(text, strict=False, parse_int=_whole)
    except (ValueError, RecursionError):
        return {key: _told(value) for key, value in reversed(_NAMED.findall(text))} or None


def _told(value: str) -> Any:
    try:
        return json.loads(value, strict=False)
    except ValueError:
        return None


def _whole(digits: str) -> int | None:
    return int(digits) if len(digits) <= _LONGEST_WHOLE else None
