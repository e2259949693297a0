"""One brand of the catalogue after another, from the vendor's JSON to rows as the tables take them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from stellerd_brand_sync import values
from stellerd_brand_sync.aside import Aside
from stellerd_brand_sync.categories import CategoryBook
from stellerd_brand_sync.seen import Seen
from stellerd_brand_sync.values import Unusable
from stellerd_brand_sync.wire import BAD_JSON, ids_of, loose, products_of, readable, short_key

_Text = str | None
BrandRow = tuple[int, str, str, str, str, _Text, _Text, _Text, _Text, _Text, str, int]
"""position, internal id, name, country, currency, description, disclaimer, redemption, terms, logo, modified, and 1
where `categories` says something."""
PriceRow = tuple[str, str, str, int] | tuple[None, None, None, None]
"""min, max (8 decimals), currency, commission type; all None without a usable price."""
ProductRow = tuple[int, int, str, str, str, int | None, str, _Text, _Text, _Text, int | None]
"""id, brand's position, name, min and max face value (4 decimals), stock, modified, and the four of the price."""
_ProductAlone = tuple[int, int, str, str, str, int | None, str]
LinkRow = tuple[int, int]
"""brand's position, category id."""
MAPPING = 1
"""Version of how JSON becomes rows, kept with each brand's digest: to be raised with every change of that."""

COMMISSION_INCLUDED, COMMISSION_EXTRA = 1, 2


class Price(msgspec.Struct, rename="camel"):
    """`price` of a product."""

    min: Decimal
    max: Decimal
    currency_code: str


class _Sold(msgspec.Struct, rename="camel"):
    id: int
    name: str
    min_face_value: Decimal
    max_face_value: Decimal
    modified_date: str
    count: int | str | None = None


class Product(_Sold, rename="camel"):
    """One of a brand's `products`."""

    price: Price | None = None


class LooseProduct(_Sold, rename="camel"):
    """A product whose price is read by itself, because it may be what cannot be read."""

    price: msgspec.Raw = msgspec.Raw()


class _Shop(msgspec.Struct, rename="camel"):
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
    categories: msgspec.Raw = msgspec.Raw()


class Brand(_Shop, rename="camel"):
    """One of the catalogue's `brands` with everything in it: most can be read so, in one go."""

    products: list[Product] | None = None


class LooseBrand(_Shop, rename="camel"):
    """A brand whose products are read one by one, because one of them cannot be."""

    products: list[msgspec.Raw] | None = None


_decode_brand = msgspec.json.Decoder(Brand).decode
_decode_loose_brand = msgspec.json.Decoder(LooseBrand).decode
_decode_loose_product = msgspec.json.Decoder(LooseProduct).decode
_decode_price = msgspec.json.Decoder(Price | None).decode


@dataclass
class BrandRows:
    """Everything one brand becomes; `clean`: nothing of it was put aside."""

    brand: BrandRow
    products: list[ProductRow] = field(default_factory=list)
    links: list[LinkRow] = field(default_factory=list)
    clean: bool = True


class Decoder:
    """Reads brands; remembers ids, so that a second brand or product of the same id in one catalogue is found.

    `fetched` counts the products that came, usable or not; `brands` are the internal ids of the usable brands, `clean`
    those of which nothing was put aside; `spared` are ids of products that came in a form that cannot be stored, and
    `spared_brands` internal ids of brands whose products cannot even be told.
    """

    def __init__(self, book: CategoryBook, aside: Aside) -> None:
        self.book, self.aside = book, aside
        self.fetched = 0
        self.brands: set[str] = set()
        self.clean: set[str] = set()
        self.spared: set[int] = set()
        self.spared_brands: set[str] = set()
        self._products = Seen()

    def read(self, raws: Iterable[tuple[int, msgspec.Raw]]) -> Iterator[BrandRows]:
        """The rows of each usable brand of (position in the catalogue, JSON) pairs; whatever cannot be stored goes to
        `aside` with its reason."""
        for position, raw in raws:
            rows = self._whole(position, raw) or self._piecemeal(position, raw)
            if rows is None:
                continue
            if rows.clean:
                self.clean.add(rows.brand[1])
            yield rows

    def _whole(self, position: int, raw: msgspec.Raw) -> BrandRows | None:
        """A brand without any fault; None, and nothing done, when it has one."""
        try:
            brand = _decode_brand(raw)
            products = [(*_product_row(position, product), *_price(product)) for product in brand.products or ()]
            row = self._brand_row(position, brand)
        except BAD_JSON:
            return None
        if not self._products.add_all(product[0] for product in products):
            return None
        rows = BrandRows(row, products)
        self.fetched += len(products)
        self.brands.add(row[1])
        self._add_links(rows, brand, raw)
        return rows

    def _piecemeal(self, position: int, raw: msgspec.Raw) -> BrandRows | None:
        """As much of a brand as can be stored; None when it is nothing."""
        try:
            brand = _decode_loose_brand(raw)
            rows = BrandRows(self._brand_row(position, brand))
        except BAD_JSON as error:
            key = short_key(raw, ("internalId", "name"), f"brand {position}")
            self.aside.add("brand", key, readable(error), bytes(raw))
            self._spare_brand(loose(raw))
            return None
        self.fetched += len(brand.products or ())
        self.brands.add(rows.brand[1])
        self._add_links(rows, brand, raw)
        for number, product in enumerate(brand.products or ()):
            self._add_product(rows, product, number)
        return rows

    def _spare_brand(self, brand: Any) -> None:
        """What a bad brand has is not gone, though none of it can be stored."""
        products = products_of(brand)
        self.fetched += len(products)
        self._spare(products)
        key = brand.get("internalId") if isinstance(brand, dict) else None
        if isinstance(key, str) and not products:
            self.spared_brands.add(key)

    def _spare(self, products: list[Any]) -> None:
        self.spared |= {number for number in ids_of(products) if number not in self._products}

    def _brand_row(self, position: int, brand: _Shop) -> BrandRow:
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
        if key in self.brands:
            raise Unusable(f"internalId {key} came twice; the first one is kept")
        return row

    def _add_links(self, rows: BrandRows, brand: _Shop, raw: msgspec.Raw) -> None:
        """Categories that cannot be read cost the brand its links' update, not its place."""
        position, key = rows.brand[:2]
        if not rows.brand[-1]:
            return
        try:
            found = self.book.links(brand.categories)
        except Unusable as error:
            rows.brand, rows.clean = (*rows.brand[:-1], 0), False
            self.aside.add("category", key, f"brand {key}: {error}; its links stay as they are", bytes(raw))
            return
        rows.links = [(position, number) for number in found.ids]
        rows.clean = rows.clean and not found.unknown
        for name in found.unknown:
            reason = f"brand {key}: no category of that name is known, and without an id it cannot be created"
            self.aside.add("category", name, reason, bytes(brand.categories))

    def _add_product(self, rows: BrandRows, raw: msgspec.Raw, number: int) -> None:
        try:
            product = _decode_loose_product(raw)
            row = _product_row(rows.brand[0], product)
            if product.id in self._products:
                raise Unusable(f"id {product.id} came twice; the first one is kept")
        except BAD_JSON as error:
            key = short_key(raw, ("id",), f"{rows.brand[1]}, product {number}")
            self.aside.add("product", key, readable(error), bytes(raw))
            self._spare([loose(raw)])
            rows.clean = False
            return
        self._products.add(product.id)
        price: PriceRow = (None, None, None, None)
        try:
            found = _decode_price(product.price) if bytes(product.price) else None
            price = _price(Priced(product.max_face_value, found))
        except BAD_JSON as error:
            rows.clean = False
            self.aside.add("price", str(product.id), readable(error), bytes(raw))
        rows.products.append((*row, *price))


class Priced(NamedTuple):
    """What of a product decides about its price."""

    max_face_value: Decimal
    price: Price | None


def _product_row(brand: int, product: _Sold) -> _ProductAlone:
    number = values.whole("id", product.id, 1)
    low, high = values.span("minFaceValue", product.min_face_value, "maxFaceValue", product.max_face_value, 4)
    return (
        number, brand, values.line("name", product.name), low, high,
        values.stock("count", product.count), values.moment("modifiedDate", product.modified_date),
    )  # fmt: skip


def _says_something(categories: msgspec.Raw) -> bool:
    """False when `categories` is missing or null: then nothing is known, and links stay as they are."""
    return bytes(categories).strip() not in (b"", b"null")


def _price(product: Product | Priced) -> PriceRow:
    price = product.price
    if price is None:
        raise Unusable("price is missing; the product is stored, its price and configuration stay as they are")
    low, high = values.span("price.min", price.min, "price.max", price.max, 8)
    commission = COMMISSION_INCLUDED if product.max_face_value > price.max else COMMISSION_EXTRA
    return low, high, values.currency("price.currencyCode", price.currency_code), commission
