"""One brand of the catalogue after another, from the vendor's JSON to rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal

import msgspec

from stellerd_brand_sync.aside import Aside
from stellerd_brand_sync.categories import CategoryBook
from stellerd_brand_sync.mend import loose
from stellerd_brand_sync.rows import (
    Brand,
    BrandRows,
    Complaint,
    Product,
    ProductRow,
    brand_row,
    link,
    price_row,
    product_row,
)
from stellerd_brand_sync.salvage import Salvage
from stellerd_brand_sync.seen import Seen
from stellerd_brand_sync.spared import Spared

_decode_brand = msgspec.json.Decoder(Brand, float_hook=Decimal).decode


class Decoder:
    """Reads brands; remembers ids, so that a second brand or product of the same id in one catalogue is found.

    `fetched` counts the products that came, usable or not; `brands` are the internal ids of the usable brands, `clean`
    those of which nothing was put aside; `spared` is what came in a form that cannot be stored, but has not vanished.
    """

    def __init__(self, book: CategoryBook, aside: Aside) -> None:
        self.book, self.aside = book, aside
        self.fetched = 0
        self.brands: set[str] = set()
        self.clean: set[str] = set()
        self.spared = Spared()
        self._products = Seen()

    def read(self, raws: Iterable[tuple[int, msgspec.Raw]]) -> Iterator[BrandRows]:
        """The rows of each usable brand of (position in the catalogue, JSON) pairs; whatever cannot be stored goes to
        `aside` with its reason."""
        for position, raw in raws:
            rows = self._whole(position, raw) or self._salvage(position, raw)
            if rows is not None:
                yield rows

    def _whole(self, position: int, raw: msgspec.Raw) -> BrandRows | None:
        """A brand without any fault; None, and nothing done, when it has one."""
        try:
            brand = _decode_brand(raw)
            if brand.products is None:
                return None
            products = [_product(position, product) for product in brand.products]
            rows = BrandRows(brand_row(position, brand), products)
            if rows.brand[1] in self.brands:
                return None
            complaints = link(rows, brand, self.book, raw)
        except Exception:  # noqa: BLE001  whatever it is, `Salvage` finds the part that has it
            return None
        if not self._products.add_all(row[0] for row in products):
            return None
        self._take(rows, len(products), complaints)
        return rows

    def _salvage(self, position: int, raw: msgspec.Raw) -> BrandRows | None:
        """As much of a brand as can be stored; None when it is nothing."""
        found = Salvage(position, raw, self.book, self.brands, self._products)
        found.read()
        self.spared += found.spared
        for error in found.unforeseen:
            self.aside.unforeseen(error)
        self._take(found.rows, found.fetched, found.complaints)
        for row in found.rows.products if found.rows else ():
            self._products.add(row[0])
        return found.rows

    def refuse(self, key: str, raw: msgspec.Raw) -> None:
        """The database cannot store this brand: it has not vanished, and is looked at again."""
        self.brands.discard(key)
        self.clean.discard(key)
        self.spared.add_brand(loose(raw))

    def _take(self, rows: BrandRows | None, fetched: int, complaints: Iterable[Complaint]) -> None:
        self.fetched += fetched
        for complaint in complaints:
            self.aside.add(*complaint)
        if rows is not None:
            self.brands.add(rows.brand[1])
            if rows.clean:
                self.clean.add(rows.brand[1])


def _product(brand: int, product: Product) -> ProductRow:
    row, largest = product_row(brand, product)
    return (*row, *price_row(largest, product.price))
