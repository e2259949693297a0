"""Parameters of the v2 catalogue, read as the vendor reads them: names in any case, unknown ones ignored."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from typing import Any
from urllib.parse import parse_qsl

from stellerd_bamboo_sandbox.catalog import Query


class BadQuery(Exception):
    """A parameter cannot be read; the text becomes the `message` of a 400."""


def read_query(text: str) -> Query:
    """The parameters in the part of a URL behind the question mark; empty ones count as absent.

    Raises: BadQuery naming the parameter.
    """
    values: dict[str, Any] = {}
    for name, value in parse_qsl(text, keep_blank_values=False):
        known = _PARAMETERS.get(name.lower())
        if known is None:
            continue
        field, read = known
        try:
            values[field] = read(value)
        except ValueError:
            raise BadQuery(f"The value '{value}' is not valid for {name}.") from None
    return Query(**values)


def _number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,10}", text, re.ASCII) or not least <= int(text) <= most:
            raise ValueError(text)
        return int(text)

    return read


def _code(letters: int) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(rf"[A-Za-z]{{{letters}}}", text):
            raise ValueError(text)
        return text.upper()

    return read


def _day(text: str) -> str:
    return date.fromisoformat(text).isoformat()


_INT32 = 2**31 - 1
_PARAMETERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "pagesize": ("page_size", _number(1, _INT32)),
    "pageindex": ("page_index", _number(0, _INT32)),
    "brandid": ("brand_id", str),
    "productid": ("product_id", _number(1, _INT32)),
    "countrycode": ("country", _code(2)),
    "currencycode": ("currency", _code(3)),
    "name": ("name", str),
    "modifieddate": ("modified", _day),
}
