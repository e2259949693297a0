"""What is in the catalogue in a form that cannot be stored: it has not vanished."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from stellerd_brand_sync.values import MAX_INT, MAX_LINE

_DOUBTFUL = {"\0", "\ufffd"}
"""Signs that stand for what could not be read."""


@dataclass
class Spared:
    """Ids of products; internal ids of brands that have products whose ids cannot be told; `anything`: of such a brand
    cannot even be told which one it is."""

    ids: set[int] = field(default_factory=set)
    brands: set[str] = field(default_factory=set)
    anything: bool = False

    def add(self, brand: Any, products: list[Any] | None) -> None:
        """Products of a brand, which may each be anything; None: they cannot be told."""
        self.ids |= ids_of(products or ())
        if products is not None and all(map(_has_id, products)):
            return
        if isinstance(brand, str) and brand.strip() and len(brand) <= MAX_LINE and not _DOUBTFUL & set(brand):
            self.brands.add(brand)
        else:
            self.anything = True

    def add_brand(self, item: Any) -> None:
        """A brand that may be anything."""
        self.add(item.get("internalId") if isinstance(item, dict) else None, products_of(item))

    def __iadd__(self, other: Spared) -> Spared:
        self.ids |= other.ids
        self.brands |= other.brands
        self.anything |= other.anything
        return self

    def __bool__(self) -> bool:
        return bool(self.ids or self.brands)


def products_of(brand: Any) -> list[Any] | None:
    """The products of a bad brand; None when they cannot be told."""
    found = brand.get("products") if isinstance(brand, dict) else None
    return found if isinstance(found, list) else None


def ids_of(products: Iterable[Any]) -> set[int]:
    """Ids of products that may each be anything."""
    return {item["id"] for item in products if _has_id(item)}


def _has_id(product: Any) -> bool:
    number = product.get("id") if isinstance(product, dict) else None
    return type(number) is int and 0 < number <= MAX_INT
