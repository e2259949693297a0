"""The vendor's values as the database keeps them, or the reason why not. Every `check_*` raises `Unusable`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any

from stellerd import Secret

MAX_INT = 2**31 - 1
_SHOWABLE = 10**40
MAX_LINE = 1_000
MAX_TEXT = 100_000
_MONEY = Context(prec=18, traps=[Inexact, InvalidOperation])
_STEP = {4: Decimal("0.0001"), 8: Decimal("0.00000001")}
_CURRENCY = re.compile(r"[A-Z]{3}")
_COUNTRY = re.compile(r"[A-Z]{2,3}")
# Hour 24 is no time of the vendor's; datetime.fromisoformat reads it as the next midnight from Python 3.14 on
_TIME = re.compile(r"\d{4}-\d\d-\d\dT(?!24)\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)?", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,3})?")
_KINDS = {type(None): "null", bool: "a boolean", str: "text", list: "a list", dict: "an object"}


class Unusable(ValueError):
    """A value that cannot be stored; the message is the reason for quarantine."""


def amount(name: str, value: Any) -> Decimal:
    """A JSON number, or a text that JSON would read as one: Python alone also reads "1_000", "١٠٠٠" and "sNaN".

    Raises: Unusable.
    """
    if type(value) is Decimal:
        return value
    if type(value) is int or (type(value) is str and _NUMBER.fullmatch(value.strip())):
        return Decimal(value)
    kind = _KINDS.get(type(value), "")
    raise Unusable(f"{name} is no number: {_short(repr(value)) if kind == 'text' else kind}")


def money(name: str, value: Decimal, places: int) -> tuple[Decimal, str]:
    """`value` with exactly `places` decimals, what numeric(18, places) holds without rounding; and it as text.

    Raises: Unusable when it is negative, not finite, too large, or would have to be rounded.
    """
    try:
        exact = value.quantize(_STEP[places], context=_MONEY)
        if not exact.is_finite():
            raise InvalidOperation
    except Inexact:
        raise Unusable(f"{name} has more than {places} decimals: {_short(value)}") from None
    except InvalidOperation:
        raise Unusable(f"{name} is no number that numeric(18,{places}) can hold: {_short(value)}") from None
    if exact.is_signed():
        if exact:
            raise Unusable(f"{name} is negative: {_short(value)}")
        exact = exact.copy_abs()  # -0 is 0
    return exact, f"{exact:f}"


def span(low_name: str, low: Any, high_name: str, high: Any, places: int) -> tuple[str, str, Decimal]:
    """Two amounts as texts with `places` decimals, mostly one and the same, and the larger one.

    Raises: Unusable as `amount` and `money` do, and when the first is the larger.
    """
    least, least_text = money(low_name, amount(low_name, low), places)
    if type(low) is type(high) and low == high:
        return least_text, least_text, least
    most, most_text = money(high_name, amount(high_name, high), places)
    if least > most:
        raise Unusable(f"{low_name} {least} is above {high_name} {most}")
    return least_text, most_text, most


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{Secret.redact(text)[:40]}…"


def line(name: str, text: str) -> str:
    """A name or other short text.

    Raises: Unusable when it is longer than 1,000 characters or holds a NUL.
    """
    return _text(name, text, MAX_LINE)


def prose(name: str, text: str | None) -> str | None:
    """A description, or None.

    Raises: Unusable when it is longer than 100,000 characters or holds a NUL.
    """
    return None if text is None else _text(name, text, MAX_TEXT)


def _text(name: str, text: str, longest: int) -> str:
    if len(text) > longest:
        raise Unusable(f"{name} is too long: {len(text)} characters, {longest} at most")
    if "\0" in text:
        raise Unusable(f"{name} holds a character that PostgreSQL cannot store (NUL or half a surrogate pair)")
    return text


def currency(name: str, code: str) -> str:
    """An ISO 4217 form: three capital letters. Raises: Unusable."""
    if not _CURRENCY.fullmatch(code):
        raise Unusable(f"{name} is not of the form of a currency code: {_short(code)!r}")
    return code


def country(name: str, code: str) -> str:
    """An ISO 3166 form: two capital letters (three are let pass). Raises: Unusable."""
    if not _COUNTRY.fullmatch(code):
        raise Unusable(f"{name} is not of the form of a country code: {_short(code)!r}")
    return code


def moment(name: str, text: str) -> str:
    """The vendor's time as "2020-09-23 15:01:00.840978", UTC: no zone means UTC, digits past microseconds are cut.

    Raises: Unusable when it is no date and time.
    """
    try:
        if not _TIME.fullmatch(text):
            raise ValueError
        at = datetime.fromisoformat(text)
        return stamp(at) if at.tzinfo else at.isoformat(" ", "microseconds")
    except (ValueError, OverflowError):
        raise Unusable(f"{name} is not a date and time: {_short(text)!r}") from None


def stamp(at: datetime) -> str:
    """An aware time as the text that both databases read as UTC (microseconds always written)."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def whole(name: str, number: int, lowest: int = 0) -> int:
    """An integer that the column holds. Raises: Unusable when it is below `lowest` or above 2³¹-1."""
    if not lowest <= number <= MAX_INT:
        shown = _short(number) if abs(number) < _SHOWABLE else "a number of many digits"
        raise Unusable(f"{name} is out of range: {shown}")
    return number


def stock(name: str, count: int | str | None) -> int | None:
    """How many are left: None = unlimited, 0 = none; the vendor's SDK also allows a text. Raises: Unusable."""
    if count is None:
        return None
    if isinstance(count, str):
        if not re.fullmatch(r"-?[0-9]{1,18}", count.strip()):
            raise Unusable(f"{name} is not a number: {_short(count)!r}")
        count = int(count)
    return whole(name, count)
