"""What of a faulty brand can be stored, and what of it must not be taken for vanished."""

from __future__ import annotations

from collections.abc import Container
from decimal import Decimal

import msgspec

from stellerd_brand_sync.categories import CategoryBook
from stellerd_brand_sync.mend import loose
from stellerd_brand_sync.rows import (
    NO_PRICE,
    BrandRows,
    Complaint,
    Price,
    PriceRow,
    Shop,
    Sold,
    brand_row,
    link,
    price_row,
    product_row,
)
from stellerd_brand_sync.seen import Seen
from stellerd_brand_sync.spared import Spared, products_of
from stellerd_brand_sync.values import Unusable
from stellerd_brand_sync.wire import BAD_JSON, readable, short_key


class _Brand(Shop, rename="camel"):
    """A brand whose products are read one by one, because one of them cannot be."""

    products: list[msgspec.Raw] | None = None


class _Product(Sold, rename="camel"):
    """A product whose price is read by itself, because it may be what cannot be read."""

    price: msgspec.Raw = msgspec.Raw()


_decode_brand = msgspec.json.Decoder(_Brand).decode
_decode_product = msgspec.json.Decoder(_Product, float_hook=Decimal).decode
_decode_price = msgspec.json.Decoder(Price | None, float_hook=Decimal).decode


class Salvage:
    """One faulty brand, `read` part by part; `brands` and `products` are the ids that came before.

    `rows` None: nothing of it can be stored. Every exception is the fault of the part that is being read, also one
    that nobody foresaw: such a one is in `unforeseen` as well. Only lack of memory is not.
    """

    def __init__(
        self, position: int, raw: msgspec.Raw, book: CategoryBook, brands: Container[str], products: Seen
    ) -> None:
        self._position, self._raw, self._book = position, raw, book
        self._brands, self._products = brands, products
        self.rows: BrandRows | None = None
        self.fetched = 0
        self.complaints: list[Complaint] = []
        self.unforeseen: list[Exception] = []
        self.spared = Spared()

    def read(self) -> None:
        """Raises: MemoryError alone."""
        try:
            brand = _decode_brand(self._raw)
            row = brand_row(self._position, brand)
            if row[1] in self._brands:
                raise Unusable(f"internalId {row[1]} came twice; the first one is kept")
        except Exception as error:  # noqa: BLE001  see the class
            self._lose(error)
            return
        self.rows = BrandRows(row, clean=False)
        self.complaints += link(self.rows, brand, self._book, self._raw)
        if brand.products is None:
            reason = f"brand {row[1]}: products is missing or null; its products stay as they are"
            self.complaints.append(Complaint("brand", row[1], reason, bytes(self._raw)))
            self.spared.add(row[1], None)
        self.fetched = len(brand.products or ())
        taken = set[int]()
        for number, product in enumerate(brand.products or ()):
            self._add_product(self.rows, product, number, taken)

    def _lose(self, error: Exception) -> None:
        brand = loose(self._raw)
        key = short_key(brand, ("internalId", "name"), f"brand {self._position}")
        self._complain("brand", key, error, self._raw)
        self.fetched = len(products_of(brand) or ())
        self.spared.add_brand(brand)

    def _add_product(self, rows: BrandRows, raw: msgspec.Raw, number: int, taken: set[int]) -> None:
        position, key = rows.brand[:2]
        try:
            product = _decode_product(raw)
            row, largest = product_row(position, product)
            if product.id in self._products or product.id in taken:
                self.spared.add(key, None)  # perhaps it is another one's id
                raise Unusable(f"id {product.id} came twice; the first one is kept")
        except Exception as error:  # noqa: BLE001  see the class
            item = loose(raw)
            self._complain("product", short_key(item, ("id",), f"{key}, product {number}"), error, raw)
            self.spared.add(key, [item])
            return
        taken.add(product.id)
        price: PriceRow = NO_PRICE
        try:
            price = price_row(largest, _decode_price(product.price) if bytes(product.price) else msgspec.UNSET)
        except Exception as error:  # noqa: BLE001  see the class
            self._complain("price", str(product.id), error, raw)
        rows.products.append((*row, *price))

    def _complain(self, entity: str, key: str, error: Exception, raw: msgspec.Raw) -> None:
        self.complaints.append(Complaint(entity, key, readable(error), bytes(raw)))
        if not isinstance(error, BAD_JSON):
            self.unforeseen.append(error)
