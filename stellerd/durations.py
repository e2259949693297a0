"""Durations ("30m"), rates ("2/1h") and sizes ("64MiB") as people write them, and back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")
_WHOLE = re.compile(rf"\s*(?:{_PART.pattern}\s*)+")
_SIZES = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_SIZE = re.compile(r"\s*(\d+)\s*(B|KiB|MiB|GiB)?\s*")


def parse_duration(text: str) -> float:
    """Seconds in a text such as "30m", "1h30m" or "250ms".

    Raises: ValueError when a unit is missing or unknown.
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(f'"{text}" is not a duration: write a number with a unit, as in "30s", "5m" or "1h30m"')
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


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
    limit, slash, period = text.partition("/")
    if not slash or not limit.strip().isdecimal() or int(limit) < 1:
        raise ValueError(f'"{text}" is not a rate: write requests per duration, as in "2/1h"')
    seconds = parse_duration(period)
    if seconds <= 0:
        raise ValueError(f'"{text}" is not a rate: the period must be longer than zero')
    return Rate(int(limit), seconds)


@cache
def format_rates(rates: tuple[Rate, ...]) -> str:
    """Several rates as the store keeps them ("2/1h, 1/1s")."""
    return ", ".join(map(str, rates))


@cache
def parse_rates(text: str) -> tuple[Rate, ...]:
    """And back."""
    return tuple(parse_rate(rate) for rate in text.split(", "))


def format_size(size: int) -> str:
    """The shortest exact text ("256MiB")."""
    unit = next(unit for unit in ("GiB", "MiB", "KiB", "B") if size % _SIZES[unit] == 0)
    return f"{size // _SIZES[unit]}{unit}"


def parse_size(text: str) -> int:
    """Bytes in a text such as "256MiB", "64KiB" or "512".

    Raises: ValueError for an unknown unit.
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f'"{text}" is not a size: write bytes with a unit, as in "64KiB" or "256MiB"')
    return int(match[1]) * _SIZES[match[2] or ""]
