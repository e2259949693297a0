"""`run-once brand_sync --dry-run`: the lines that say what a run would write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from stellerd_brand_sync.catalogue import Findings
from stellerd_brand_sync.categories import CategoryRow
from stellerd_brand_sync.merge import Merge
from stellerd_brand_sync.statements import TOUCHED_IDS

LINES = 200
"""So many of each kind are shown one by one; the rest is a number."""
_LONGEST = 60
_LEAD = 12
_OF_BRAND = {
    "Name": "name", "CountryCode": "country", "CurrencyCode": "currency", "Description": "description",
    "Disclaimer": "disclaimer", "RedemptionInstructions": "redemption", "Terms": "terms", "LogoUrl": "logo",
    "ModifiedDate": "modified",
}  # fmt: skip
_OF_PRODUCT = {
    "Name": "name",
    "MinFaceValue": "low",
    "MaxFaceValue": "high",
    "Count": "stock",
    "ModifiedDate": "modified",
}
_OF_PRICE = {"Min": "price_low", "Max": "price_high", "CurrencyCode": "currency"}
_OLD_BRAND = ", ".join(f't."{column}"' for column in _OF_BRAND)
_NEW_BRAND = ", ".join(f"s.{name}" for name in _OF_BRAND.values())
_BRANDS = f"""
SELECT s.internal_id, s.name, x.id IS NULL, {_OLD_BRAND}, {_NEW_BRAND}
  FROM bs_plan_brands x JOIN bs_brands s ON s.position = x.position LEFT JOIN "Brands" t ON t."Id" = x.id
 WHERE (x.id IS NULL) = :new ORDER BY s.position LIMIT :lines"""  # noqa: S608 - ours
_LINKS = """
SELECT b."InternalId", x.category_id, x.id IS NULL FROM bs_plan_links x JOIN "Brands" b ON b."Id" = x.brand_id
 ORDER BY 1, 2"""
# A price or configuration without a plan is as it was: both sides are null then
_OLD = [
    't."BrandInternalId"', *(f't."{column}"' for column in _OF_PRODUCT), *(f'q."{column}"' for column in _OF_PRICE),
    'c."CommissionTypeId"',
]  # fmt: skip
_NEW = [
    "b.internal_id", *(f"s.{name}" for name in _OF_PRODUCT.values()),
    *(f"CASE WHEN y.product_id IS NOT NULL THEN s.{name} END" for name in _OF_PRICE.values()),
    "CASE WHEN z.product_id IS NOT NULL THEN s.commission END",
]  # fmt: skip
_PRODUCT_COLUMNS = ("BrandInternalId", *_OF_PRODUCT, *(f"price.{column}" for column in _OF_PRICE), "CommissionTypeId")
_PRODUCTS = f"""
SELECT s.id, s.name, b.internal_id, {", ".join(_OLD)}, {", ".join(_NEW)}
  FROM ({TOUCHED_IDS}) w JOIN bs_products s ON s.id = w.product_id JOIN bs_brands b ON b.position = s.position
  LEFT JOIN "Products" t ON t."Id" = s.id
  LEFT JOIN bs_plan_prices y ON y.product_id = s.id LEFT JOIN "ProductPricings" q ON q."Id" = y.id
  LEFT JOIN bs_plan_configurations z ON z.product_id = s.id
  LEFT JOIN "ProductPricingConfigurations" c ON c."Id" = z.id
 WHERE (t."Id" IS NULL) = :new ORDER BY s.id LIMIT :lines"""  # noqa: S608 - ours


def show(log: Any, found: Findings, *, out_of_stock: bool) -> None:
    """Log what is new, what changes from what to what, and what has vanished.

    A line of text from outside has no control characters: the log sees to that.
    """
    merge, counters = found.merge, found.counters
    if counters["new"] or counters["changed"] or counters["rows"]:
        show_categories(log, merge.known_categories().stored, found.categories)
        _brands(log, merge)
        _links(log, merge)
        _products(log, merge, counters)
    if counters["vanished"]:
        _vanished(log, found, out_of_stock)


def show_categories(log: Any, stored: Mapping[int, CategoryRow], rows: Iterable[CategoryRow]) -> None:
    """Log which categories are new or change."""
    for number, name, description in rows:
        before = stored.get(number)
        if before is None:
            log.info("would add category", category=number, Name=name)
        elif changes := changed(("Name", "Description"), before[1:], (name, description)):
            log.info("would change category", category=number, **changes)


def _brands(log: Any, merge: Merge) -> None:
    for new, verb in ((True, "would add brand"), (False, "would change brand")):
        rows = _rows(merge, _BRANDS, new=new, lines=LINES)
        for key, name, _, *values in rows:
            half = len(_OF_BRAND)
            what = {"Name": name} if new else changed(_OF_BRAND, values[:half], values[half:])
            log.info(verb, brand=key, **what)
        count = f"SELECT count(*) FROM bs_plan_brands x WHERE (x.id IS NULL) = {'true' if new else 'false'}"  # noqa: S608
        _rest(log, verb, "brands", _rows(merge, count)[0][0] - len(rows))


def _links(log: Any, merge: Merge) -> None:
    """Of stored brands; those of a new brand go without saying."""
    signs: dict[str, list[str]] = {}
    for key, number, new in _rows(merge, _LINKS):
        signs.setdefault(key, []).append(f"{'+' if new else '-'}{number}")
    for key, texts in list(signs.items())[:LINES]:
        log.info("would link brand", brand=key, categories=" ".join(texts))
    _rest(log, "would link brand", "brands", len(signs) - LINES)


def _products(log: Any, merge: Merge, counters: Mapping[str, int]) -> None:
    for new, verb, total in ((True, "would add product", "new"), (False, "would change product", "changed")):
        rows = _rows(merge, _PRODUCTS, new=new, lines=LINES)
        for number, name, brand, *values in rows:
            half = len(_PRODUCT_COLUMNS)
            what = {"Name": name} if new else changed(_PRODUCT_COLUMNS, values[:half], values[half:])
            log.info(verb, product=number, brand=brand, **what)
        _rest(log, verb, "products", counters[total] - len(rows))


def _vanished(log: Any, found: Findings, out_of_stock: bool) -> None:
    listed = 0
    for number, name, brand, stock in _first(found.missing.names(), LINES):
        listed += 1
        fate = {"Count": _pair(stock, 0)} if out_of_stock and stock != 0 else {}
        log.info("vanished product", product=number, brand=brand, Name=name, **fate)
    _rest(log, "vanished product", "products", found.counters["vanished"] - listed)


def _first(rows: Iterator[Any], most: int) -> Iterator[Any]:
    return (row for row, _ in zip(rows, range(most), strict=False))


def _rest(log: Any, verb: str, what: str, number: int) -> None:
    if number > 0:
        log.info(f"{verb}: more", **{what: number})


def _rows(merge: Merge, statement: str, **parameters: Any) -> list[Any]:
    return list(merge.connection.execute(sa.text(statement), parameters))


def changed(columns: Iterable[str], old: Iterable[Any], new: Iterable[Any]) -> dict[str, str]:
    """old -> new of the columns that differ."""
    return {
        name: _pair(before, after) for name, before, after in zip(columns, old, new, strict=True) if before != after
    }


def _pair(old: Any, new: Any) -> str:
    return f"{_short(old, new)} -> {_short(new, old)}"


def _short(value: Any, other: Any) -> str:
    """As people read it; of a long text the part where it begins to differ from the other one."""
    if value is None:
        return "null"
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ")
    if isinstance(value, Decimal) or not isinstance(value, str):
        return f"{value}"
    start = max(0, _common(value, other) - _LEAD) if len(value) > _LONGEST and isinstance(other, str) else 0
    cut = value[start : start + _LONGEST]
    return f'"{"…" if start else ""}{cut}{"…" if start + _LONGEST < len(value) else ""}"'


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common from their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
