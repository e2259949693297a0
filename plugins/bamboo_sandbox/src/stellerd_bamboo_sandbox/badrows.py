"""Rows that no platform can store, one kind each; they come on top of the good catalogue."""

from __future__ import annotations

import json
from typing import Any

from stellerd_bamboo_sandbox.catalog import Extra

FIRST_ID = 900_000_000
"""Vendor ids of bad rows start here, far from the good ones."""
_DROP = object()

BRANDS: dict[str, dict[str, Any]] = {
    "internal_id_missing": {"internalId": _DROP},
    "internal_id_empty": {"internalId": ""},
    "internal_id_null": {"internalId": None},
    "brand_name_null": {"name": None},
    "brand_name_nul": {"name": "Gift\u0000Shop"},
    "country_number": {"countryCode": 49},
    "currency_null": {"currencyCode": None},
    "brand_date_text": {"modifiedDate": "yesterday"},
    "products_text": {"products": "none"},
}
PRODUCTS: dict[str, dict[str, Any]] = {
    "id_missing": {"id": _DROP},
    "id_null": {"id": None},
    "id_text": {"id": "a17"},
    "id_too_large": {"id": 2**31},
    "name_null": {"name": None},
    "name_nul": {"name": "Gift\u0000Card"},
    "name_half_surrogate": {"name": "Gift \ud83c Card"},
    "face_missing": {"minFaceValue": _DROP},
    "face_null": {"maxFaceValue": None},
    "face_text": {"minFaceValue": "ten"},
    "face_negative": {"minFaceValue": -10, "maxFaceValue": -10},
    "face_inverted": {"minFaceValue": 50, "maxFaceValue": 10},
    "face_too_large": {"minFaceValue": 10**15, "maxFaceValue": 10**15},
    "price_text": {"price": "9.50"},
    "price_too_large": {"price": {"min": 10**11, "max": 10**11, "currencyCode": "USD"}},
    "price_without_currency": {"price": {"min": 9.5, "max": 9.5, "currencyCode": None}},
    "count_text": {"count": "many"},
    "count_too_large": {"count": 2**31},
    "date_text": {"modifiedDate": "31.12.2024"},
}
NO_OBJECTS = {
    "brand_number": ("brand", b"17"),
    "brand_null": ("brand", b"null"),
    "product_text": ("product", b'"card"'),
}
TWINS = ("twin_brand", "twin_product")
"""A row twice with the same key: no bad row by itself, so only on demand."""
KINDS = (*BRANDS, *PRODUCTS, *NO_OBJECTS, *TWINS)


def bad_rows(kinds: list[str]) -> Extra:
    """The JSON rows of some kinds, or of all but the twins."""
    chosen = kinds or [kind for kind in KINDS if kind not in TWINS]
    brands = [row for number, kind in enumerate(chosen) for row in _brand_rows(kind, number)]
    products = [row for number, kind in enumerate(chosen) for row in _product_rows(kind, number)]
    return Extra(brands, products)


def _brand_rows(kind: str, number: int) -> list[bytes]:
    if kind in BRANDS:
        return [_json(_brand(number), BRANDS[kind])]
    if kind == "twin_brand":
        return [_json(_brand(number), {}), _json(_brand(number), {"name": "Twin Shop"})]
    owner, row = NO_OBJECTS.get(kind, ("", b""))
    return [row] if owner == "brand" else []


def _product_rows(kind: str, number: int) -> list[bytes]:
    if kind in PRODUCTS:
        return [_json(_product(number), PRODUCTS[kind])]
    if kind == "twin_product":
        return [_json(_product(number), {}), _json(_product(number), {"name": "Twin Card"})]
    owner, row = NO_OBJECTS.get(kind, ("", b""))
    return [row] if owner == "product" else []


def _brand(number: int) -> dict[str, Any]:
    return {
        "internalId": f"bad-{number}", "name": f"Bad Shop {number}", "countryCode": "US", "currencyCode": "USD",
        "description": None, "disclaimer": "", "redemptionInstructions": None, "terms": "", "logoUrl": "",
        "modifiedDate": "2024-05-06T07:08:09.1234567", "products": [_product(1_000 + number)], "categories": [],
    }  # fmt: skip


def _product(number: int) -> dict[str, Any]:
    return {
        "id": FIRST_ID + number, "name": f"Bad Card {number}", "minFaceValue": 10, "maxFaceValue": 10, "count": None,
        "price": {"min": 9, "max": 9, "currencyCode": "USD"}, "modifiedDate": "2024-05-06T07:08:09",
    }  # fmt: skip


def _json(row: dict[str, Any], changes: dict[str, Any]) -> bytes:
    merged = {key: value for key, value in (row | changes).items() if value is not _DROP}
    return json.dumps(merged).encode("ascii")
