"""Brands: what is constant about each, rendered once as JSON pieces around the place of its products."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from stellerd_bamboo_sandbox.mix import Draw, mix_of
from stellerd_bamboo_sandbox.texts import Text, json_string
from stellerd_bamboo_sandbox.words import CATEGORIES, COUNTRIES, FIRST_NAMES, SECOND_NAMES, Country

_DAYS_PER_MONTH = 28
_STYLES = ("objects",) * 6 + ("ids", "names", "names", "missing")
TEXT_FIELDS = ("description", "disclaimer", "redemptionInstructions", "terms")


@dataclass(frozen=True, slots=True)
class Brand:
    """One brand; `head` + its products joined by commas + `tail` is its JSON object."""

    internal_id: str
    name: str
    country: Country
    modified: str
    name_json: bytes
    """JSON string of the name without the closing quote: product names go on from it."""
    head: tuple[bytes, ...]
    tail: bytes


def stamp(draw: Draw) -> str:
    """A vendor time: no zone, 0 to 7 digits of a fraction."""
    day = f"{2019 + draw.below(7)}-{1 + draw.below(12):02d}-{1 + draw.below(_DAYS_PER_MONTH):02d}"
    second = draw.below(86_400)
    digits = draw.below(8)
    fraction = f".{draw.below(10**digits):0{digits}d}" if digits else ""
    return f"{day}T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}{fraction}"


def make_brand(seed: int, index: int, pool: Sequence[Text], categories: str) -> Brand:
    """Brand number `index` of a seed; `categories` as in the settings."""
    draw = Draw(mix_of(seed, 0xB4A4D, index))
    country = COUNTRIES[draw.below(len(COUNTRIES))]
    name = f"{FIRST_NAMES[draw.below(len(FIRST_NAMES))]} {SECOND_NAMES[draw.below(len(SECOND_NAMES))]} {country.code}"
    internal_id = str(100_019 + index * 11)
    modified = stamp(draw)
    escaped = draw.below(2) == 0
    name_json = json_string(name, escaped)
    facts = b'{"internalId":"%b","name":%b,"countryCode":"%b","currencyCode":"%b"' % (
        internal_id.encode(), name_json, country.code.encode(), country.currency.encode(),
    )  # fmt: skip
    logo = f"https://cdn.example.com/brands/{internal_id}.png" if draw.below(12) else ""
    rest = f',"logoUrl":"{logo}","modifiedDate":"{modified}","products":['.encode()
    head = (facts, *_texts(draw, pool, name_json, escaped), rest)
    return Brand(internal_id, name, country, modified, name_json[:-1], head, _categories(draw, categories, escaped))


def _texts(draw: Draw, pool: Sequence[Text], name_json: bytes, escaped: bool) -> list[bytes]:
    pieces: list[bytes] = []
    for field in TEXT_FIELDS:
        chance = draw.below(12)
        key = f',"{field}":'.encode()
        if chance < 2:
            pieces.append(key + (b"null" if chance else b'""'))
            continue
        text = pool[draw.below(len(pool))]
        opening = (
            json_string("<p><strong>", escaped)[:-1] + name_json[1:-1] + json_string("</strong></p>\n", escaped)[1:-1]
        )
        pieces += [key + opening, text.escaped if escaped else text.plain, b'"']
    return pieces


def _categories(draw: Draw, style: str, escaped: bool) -> bytes:
    """End of the object, with `categories` in one of the spellings the contract names."""
    picked = sorted({draw.below(len(CATEGORIES)) for _ in range(draw.below(4))})
    chance = draw.below(10)
    if style == "mixed":
        style = _STYLES[chance]
    if style == "missing":
        return b"]}"
    rows = [category_json(*CATEGORIES[place], style, escaped) for place in picked]
    return b'],"categories":[' + b",".join(rows) + b"]}"


def category_json(number: int, name: str, style: str, escaped: bool = False) -> bytes:
    """A category as an object, a plain id or a string."""
    if style == "ids":
        return str(number).encode()
    text = json_string(name, escaped)
    return text if style == "names" else b'{"id":%d,"name":%b,"description":""}' % (number, text)


def categories_body() -> bytes:
    """The answer of the categories endpoint."""
    rows = [{"id": number, "name": name, "description": ""} for number, name in CATEGORIES]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()
