"""One brand of the catalogue after another, from the vendor's JSON to rows as the tables take them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal

import msgspec

from stellerd_brand_sync import values
from stellerd_brand_sync.aside import Aside
from stellerd_brand_sync.categories import CategoryBook
from stellerd_brand_sync.values import Unusable
from stellerd_brand_sync.wire import BAD_JSON, readable, short_key

_Text = str | None
BrandRow = tuple[int, str, str, str, str, _Text, _Text, _Text, _Text, _Text, str, int]
"""position, internal id, name, country, currency, description, disclaimer, redemption, terms, logo, modified, and 1
where `categories` says something."""
ProductRow = tuple[int, str, str, str, str, int | None, str]
"""id, brand's internal id, name, min and max face value (4 decimals), stock, modified."""
PriceRow = tuple[int, str, str, str, int]
"""product id, min, max (8 decimals), currency, commission type."""
LinkRow = tuple[str, int]
"""brand's internal id, category id."""

COMMISSION_INCLUDED, COMMISSION_EXTRA = 1, 2


class Price(msgspec.Struct, rename="camel"):
    """`price` of a product."""

    min: Decimal
    max: Decimal
    currency_code: str


class Product(msgspec.Struct, rename="camel"):
    """One of a brand's `products`."""

    id: int
    name: str
    min_face_value: Decimal
    max_face_value: Decimal
    modified_date: str
    count: int | str | None = None
    price: msgspec.Raw = msgspec.Raw()


class Brand(msgspec.Struct, rename="camel"):
    """One of the catalogue's `brands`; products are read one by one afterwards."""

    name: str
    country_code: str
    currency_code: str
    modified_date: str
    internal_id: str | None = None
    logo_url: str | None = None
    description: str | None = None
    disclaimer: str | None = None
    redemption_instructions: str | None = None
    terms: str | None = None
    products: list[msgspec.Raw] | None = None
    categories: msgspec.Raw = msgspec.Raw()


_decode_brand = msgspec.json.Decoder(Brand).decode
_decode_product = msgspec.json.Decoder(Product).decode
_decode_price = msgspec.json.Decoder(Price | None).decode


@dataclass
class BrandRows:
    """Everything one brand becomes."""

    brand: BrandRow
    products: list[ProductRow] = field(default_factory=list)
    prices: list[PriceRow] = field(default_factory=list)
    links: list[LinkRow] = field(default_factory=list)


class Decoder:
    """Reads brands; remembers ids, so that a second brand or product of the same id in one catalogue is found.

    `fetched` counts the products that came, usable or not.
    """

    def __init__(self, book: CategoryBook, aside: Aside) -> None:
        self.book, self.aside = book, aside
        self.fetched = 0
        self._brands: set[str] = set()
        self._products: set[int] = set()

    def read(self, raws: Iterable[msgspec.Raw]) -> Iterator[BrandRows]:
        """The rows of each usable brand; whatever cannot be stored goes to `aside` with its reason."""
        for position, raw in enumerate(raws):
            try:
                brand = _decode_brand(raw)
                self.fetched += len(brand.products or ())
                rows = BrandRows(self._brand_row(position, brand))
            except BAD_JSON as error:
                self.aside.add("brand", short_key(raw, ("internalId", "name"), f"brand {position}"),
                               readable(error), bytes(raw))  # fmt: skip
                continue
            self._add_links(rows, brand, raw)
            for number, product in enumerate(brand.products or ()):
                self._add_product(rows, product, number)
            yield rows

    def _brand_row(self, position: int, brand: Brand) -> BrandRow:
        key = values.line("internalId", brand.internal_id or "")
        if not key.strip():
            raise Unusable("internalId is missing or empty; brands are stored by it")
        row = (
            position, key, values.line("name", brand.name), values.country("countryCode", brand.country_code),
            values.currency("currencyCode", brand.currency_code), values.prose("description", brand.description),
            values.prose("disclaimer", brand.disclaimer),
            values.prose("redemptionInstructions", brand.redemption_instructions),
            values.prose("terms", brand.terms), values.prose("logoUrl", brand.logo_url),
            values.moment("modifiedDate", brand.modified_date), int(_says_something(brand.categories)),
        )  # fmt: skip
        if key in self._brands:
            raise Unusable(f"internalId {key} came twice; the first one is kept")
        self._brands.add(key)
        return row

    def _add_links(self, rows: BrandRows, brand: Brand, raw: msgspec.Raw) -> None:
        """Categories that cannot be read cost the brand its links' update, not its place."""
        key = rows.brand[1]
        if not rows.brand[-1]:
            return
        try:
            found = self.book.links(brand.categories)
        except Unusable as error:
            rows.brand = (*rows.brand[:-1], 0)
            self.aside.add("category", key, f"brand {key}: {error}; its links stay as they are", bytes(raw))
            return
        rows.links = [(key, number) for number in found.ids]
        for name in found.unknown:
            reason = f"brand {key}: no category of that name is known, and without an id it cannot be created"
            self.aside.add("category", name, reason, bytes(brand.categories))

    def _add_product(self, rows: BrandRows, raw: msgspec.Raw, number: int) -> None:
        key = rows.brand[1]
        try:
            product = _decode_product(raw)
            row = self._product_row(key, product)
        except BAD_JSON as error:
            self.aside.add("product", short_key(raw, ("id",), f"{key}, product {number}"), readable(error), bytes(raw))
            return
        rows.products.append(row)
        try:
            rows.prices.append(_price_row(product.id, Decimal(row[4]), product.price))
        except BAD_JSON as error:
            self.aside.add("price", str(product.id), readable(error), bytes(raw))

    def _product_row(self, brand: str, product: Product) -> ProductRow:
        number = values.whole("id", product.id, 1)
        low = values.money("minFaceValue", product.min_face_value, 4)
        high = values.money("maxFaceValue", product.max_face_value, 4)
        if low > high:
            raise Unusable(f"minFaceValue {low} is above maxFaceValue {high}")
        row = (
            number, brand, values.line("name", product.name), f"{low:f}", f"{high:f}",
            values.stock("count", product.count), values.moment("modifiedDate", product.modified_date),
        )  # fmt: skip
        if number in self._products:
            raise Unusable(f"id {number} came twice; the first one is kept")
        self._products.add(number)
        return row


def _says_something(categories: msgspec.Raw) -> bool:
    """False when `categories` is missing or null: then nothing is known, and links stay as they are."""
    return bytes(categories).strip() not in (b"", b"null")


def _price_row(product: int, face: Decimal, raw: msgspec.Raw) -> PriceRow:
    price = _decode_price(raw) if bytes(raw) else None
    if price is None:
        raise Unusable("price is missing; the product is stored, its price and configuration stay as they are")
    low, high = values.money("price.min", price.min, 8), values.money("price.max", price.max, 8)
    if low > high:
        raise Unusable(f"price.min {low} is above price.max {high}")
    commission = COMMISSION_INCLUDED if face - high > 0 else COMMISSION_EXTRA
    return product, f"{low:f}", f"{high:f}", values.currency("price.currencyCode", price.currency_code), commission
