"""Durations ("30m"), rates ("2/1h") and sizes ("64MiB") as people write them, and back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

SHORTEST_S = 0.001
"""The shortest duration but zero."""
LONGEST_S = 3650 * 86400.0
"""The longest duration (ten years): each can be added to any time, and to another duration."""
MOST = 1_000_000
"""The most requests in a window of a rate."""
LARGEST = 1024**5
"""The largest size (1 PiB)."""
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(ms|s|m|h|d|w)")
_WHOLE = re.compile(rf"\s*(?:{_PART.pattern}\s*)+")
_SEEMLY = re.compile(r".{0,4}|[0-9].{0,14}")
_SIZES = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_RATE = re.compile(r"\s*([0-9]{1,15})\s*/(.+)", re.DOTALL)
_SIZE = re.compile(r"\s*([0-9]{1,15})\s*(B|KiB|MiB|GiB)?\s*")


def duration(raw: object) -> float:
    """Seconds in a text with units ("1h30m"), or a number of them.

    Raises: ValueError when it is neither, negative, or out of bounds.
    """
    if isinstance(raw, str):
        return parse_duration(raw)
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise ValueError('write it as text with a unit, as in "30s"')
    if not raw >= 0:  # NaN, too
        raise ValueError(f"{raw} is not a duration: it must be zero or more")
    return _within(float(min(raw, 2 * LONGEST_S)), str(raw))


def parse_duration(text: str) -> float:
    """Seconds in a text such as "30m", "1h30m" or "250ms".

    Raises: ValueError when a unit is missing or unknown, or when it is out of bounds.
    """
    return _within(_seconds(text), _named(text))


def _seconds(text: str) -> float:
    if not _WHOLE.fullmatch(text):
        raise ValueError(f'{_named(text)} is not a duration: write a number with a unit, as in "30s", "5m" or "1h30m"')
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def _named(text: str) -> str:
    """What was written, where that looks like a mistyped amount: anything else may be a secret in the wrong place."""
    return f'"{text}"' if _SEEMLY.fullmatch(text) else "this"


def _within(seconds: float, said: str) -> float:
    if seconds > LONGEST_S:
        raise ValueError(f"{said} is too long: the longest duration is {format_duration(LONGEST_S)}")
    if 0 < seconds < SHORTEST_S:
        raise ValueError(f"{said} is too short: the shortest duration is {format_duration(SHORTEST_S)}")
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest exact text of whole seconds ("1h30m"); below a second in "ms"."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:.3f}".rstrip("0").rstrip(".") + "ms"
    text, rest = "", round(seconds, 3)
    for unit in ("d", "h", "m"):
        size = _UNITS[unit]
        if rest >= size:
            text += f"{int(rest // size)}{unit}"
            rest = round(rest % size, 3)
    return text + (f"{rest:g}s" if rest or not text else "")


@dataclass(frozen=True)
class Rate:
    """At most `limit` requests in any window of `period` seconds."""

    limit: int
    period: float

    def __str__(self) -> str:
        return f"{self.limit}/{format_duration(self.period)}"


def parse_rate(text: str) -> Rate:
    """A rate such as "2/1h" or "50/10s".

    Raises: ValueError when it is not a whole number above 0, a slash and a duration.
    """
    rate = _rate(text)
    if rate.limit > MOST:
        raise ValueError(f"{_named(text)} is too much: at most {MOST:,} requests in a window can be counted")
    return Rate(rate.limit, _within(rate.period, _named(text)))


def _rate(text: str) -> Rate:
    match = _RATE.fullmatch(text)
    if not match or int(match[1]) < 1:
        raise ValueError(f'{_named(text)} is not a rate: write requests per duration, as in "2/1h"')
    seconds = _seconds(match[2])
    if seconds <= 0:
        raise ValueError(f"{_named(text)} is not a rate: the period must be longer than zero")
    return Rate(int(match[1]), seconds)


@cache
def format_rates(rates: tuple[Rate, ...]) -> str:
    """Several rates as the store keeps them ("2/1h, 1/1s")."""
    return ", ".join(map(str, rates))


@cache
def parse_rates(text: str) -> tuple[Rate, ...]:
    """And back: whatever an older version let in, within today's bounds."""
    rates = map(_rate, text.split(", "))
    return tuple(Rate(min(rate.limit, MOST), min(max(rate.period, SHORTEST_S), LONGEST_S)) for rate in rates)


def format_size(size: int) -> str:
    """The shortest exact text ("256MiB")."""
    unit = next(unit for unit in ("GiB", "MiB", "KiB", "B") if size % _SIZES[unit] == 0)
    return f"{size // _SIZES[unit]}{unit}"


def parse_size(text: str) -> int:
    """Bytes in a text such as "256MiB", "64KiB" or "512".

    Raises: ValueError for an unknown unit, or when it is larger than `LARGEST`.
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f'{_named(text)} is not a size: write bytes with a unit, as in "64KiB" or "256MiB"')
    return _in_bounds(int(match[1]) * _SIZES[match[2] or ""], _named(text))


def size(raw: object) -> int:
    """Bytes in a text with a unit, or a number of them.

    Raises: ValueError when it is neither, negative, or larger than `LARGEST`.
    """
    if isinstance(raw, str):
        return parse_size(raw)
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise ValueError('write it as text with a unit, as in "256MiB"')
    if raw < 0:
        raise ValueError(f"{raw} is not a size: it must be zero or more")
    return _in_bounds(raw, str(raw))


def _in_bounds(size: int, said: str) -> int:
    if size > LARGEST:
        raise ValueError(f"{said} is too large: the largest size is {format_size(LARGEST)}")
    return size
