"""Products as JSON text: exact decimals from whole numbers, never a float."""

from __future__ import annotations

from datetime import date, timedelta
from typing import NamedTuple

from stellerd_bamboo_sandbox.brands import Brand
from stellerd_bamboo_sandbox.mix import mix, mix_of
from stellerd_bamboo_sandbox.words import UNITS

FIRST_ID = 200_000
_DISCOUNTS = 120_011
"""Size of the ring of discounts (in 1e-6 of the face value): a prime, so that every drift moves the price."""
_STEP = 7_919
_DAYS = [(date(2019, 1, 1) + timedelta(days=n)).isoformat() for n in range(2_373)]
_TWO = [f"{n:02d}" for n in range(60)]
_DRIFT_DAY = date(2026, 1, 1)
_PRICE_DIGITS = (2, 2, 2, 4, 4, 6, 8, 8)


class Revision(NamedTuple):
    """What drift did to the product in one place of the catalogue."""

    product_id: int = 0
    """0: the first product of this place."""
    born: int = 0
    """Edition in which the product came; 0: it was there from the start."""
    priced: int = 0
    """Edition of the last change of its price; 0: never."""


FRESH = Revision()


def product_json(seed: int, slot: int, brand: Brand, revision: Revision, odd: float) -> tuple[str, str]:
    """The JSON object of the product in place `slot`, and its modifiedDate.

    `odd`: share (0..1) of rows in a rarer form that the contract allows too: price null, count as text.
    """
    bits = mix_of(seed, slot, revision.born)
    more = mix(bits)
    low, high = _face_values(bits, brand.country.unit4)
    bits >>= 20
    strange = odd > 0 and (more >> 32) % 10_000 < odd * 10_000
    modified = _modified(more, max(revision.born, revision.priced))
    number = revision.product_id or first_id(slot, seed)
    price = "null" if strange and bits & 1 else _price(bits, low, high, brand, revision.priced)
    count = f'"{bits % 500}"' if strange and not bits & 1 else _count(bits >> 8)
    name = brand.name_json.decode()
    face = _decimal(low, 0) if low == high else f"{_decimal(low, 0)}-{_decimal(high, 0)}"
    style = (bits >> 20) % 4
    return (
        f'{{"id":{number},"name":{name} {brand.country.currency} {face}",'
        f'"minFaceValue":{_decimal(low, style)},"maxFaceValue":{_decimal(high, style)},'
        f'"count":{count},"price":{price},"modifiedDate":"{modified}"}}'
    ), modified


def first_id(slot: int, seed: int) -> int:
    """Vendor id of the product that is in a place from the start: unique, ascending, with gaps."""
    return FIRST_ID + 2 * slot + (mix(seed ^ slot) & 1)


def _face_values(bits: int, unit4: int) -> tuple[int, int]:
    """Lowest and highest face value in 1e-4 of the currency; about one in eight is a range."""
    low = UNITS[bits % len(UNITS)] * unit4
    if (bits >> 8) % 8:
        return low, low
    return low, low * (2 + (bits >> 11) % 19)


def _decimal(value4: int, style: int) -> str:
    """A number in 1e-4 as text: style 0 and 1 as short as possible, 2 with one digit at least, 3 with four."""
    whole, rest = divmod(value4, 10_000)
    if style == 3:
        return f"{whole}.{rest:04d}"
    if not rest:
        return f"{whole}.0" if style == 2 else str(whole)
    return f"{whole}.{rest:04d}".rstrip("0")


def _price(bits: int, low: int, high: int, brand: Brand, priced: int) -> str:
    """{min,max,currencyCode}: the face value less a discount or plus a surcharge, in the brand's currency or USD."""
    abroad = (bits >> 24) % 5 == 0
    rate6 = brand.country.usd6 if abroad else 1_000_000
    ring = ((bits >> 3) + priced * _STEP) % _DISCOUNTS
    share6 = 1_010_000 - ring  # from 1 % above the face value to 11 % below
    digits = 8 if priced else _PRICE_DIGITS[(bits >> 29) % 8]  # eight: a drift is never rounded away
    currency = "USD" if abroad else brand.country.currency
    bottom = _money(low * rate6 * share6, digits)
    top = bottom if low == high else _money(high * rate6 * share6, digits)
    return f'{{"min":{bottom},"max":{top},"currencyCode":"{currency}"}}'


def _money(value16: int, digits: int) -> str:
    """A number in 1e-16 as text with `digits` decimals, rounded half up."""
    unit = 10 ** (16 - digits)
    whole, rest = divmod((value16 + unit // 2) // unit, 10**digits)
    return f"{whole}.{rest:0{digits}d}"


def _count(bits: int) -> str:
    """Stock: null (unlimited) mostly, 0 (sold out) at times, else a number."""
    chance = bits % 20
    if chance < 14:
        return "null"
    return "0" if chance == 14 else str(1 + (bits >> 5) % 2_000)


def _modified(bits: int, edition: int) -> str:
    second = bits % 86_400
    digits = (bits >> 20) % 8
    fraction = f".{(bits >> 24) % 10**digits:0{digits}d}" if digits else ""
    if edition:  # an edition lasts half an hour of the vendor's time
        day = (_DRIFT_DAY + timedelta(days=edition // 48)).isoformat()
        second = edition % 48 * 1800 + second % 1800
    else:
        day = _DAYS[(bits >> 40) % len(_DAYS)]
    return f"{day}T{_TWO[second // 3600]}:{_TWO[second // 60 % 60]}:{_TWO[second % 60]}{fraction}"
