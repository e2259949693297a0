"""The vendor's brands and products as JSON, and as the rows that the tables take."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from stellerd_brand_sync import values
from stellerd_brand_sync.categories import CategoryBook
from stellerd_brand_sync.values import Unusable
from stellerd_brand_sync.wire import readable

_Text = str | None
BrandRow = tuple[int, str, str, str, str, _Text, _Text, _Text, _Text, _Text, str, int]
"""position, internal id, name, country, currency, description, disclaimer, redemption, terms, logo, modified, and 1
where `categories` says something."""
PriceRow = tuple[str, str, str, int] | tuple[None, None, None, None]
"""min, max (8 decimals), currency, commission type; all None without a usable price."""
ProductRow = tuple[int, int, str, str, str, int | None, str, _Text, _Text, _Text, int | None]
"""id, brand's position, name, min and max face value (4 decimals), stock, modified, and the four of the price."""
ProductAlone = tuple[int, int, str, str, str, int | None, str]
LinkRow = tuple[int, int]
"""brand's position, category id."""
NO_PRICE: PriceRow = (None, None, None, None)
MAPPING = 2
"""Version of how JSON becomes rows, kept with each brand's digest: to be raised with every change of that."""

COMMISSION_INCLUDED, COMMISSION_EXTRA = 1, 2


class Price(msgspec.Struct, rename="camel"):
    """`price` of a product; amounts are any JSON until `values.amount` has seen them."""

    min: Any
    max: Any
    currency_code: str


class Sold(msgspec.Struct, rename="camel"):
    """What of a product has nothing to do with its price."""

    id: int
    name: str
    min_face_value: Any
    max_face_value: Any
    modified_date: str
    count: int | str | None = None


class Product(Sold, rename="camel"):
    """One of a brand's `products`."""

    price: Price | msgspec.UnsetType | None = msgspec.UNSET


class Shop(msgspec.Struct, rename="camel"):
    """What of a brand has nothing to do with its products."""

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


class Brand(Shop, rename="camel"):
    """One of the catalogue's `brands` with everything in it: most can be read so, in one go."""

    products: list[Product] | None = None


@dataclass
class BrandRows:
    """Everything one brand becomes; `clean`: nothing of it was put aside."""

    brand: BrandRow
    products: list[ProductRow] = field(default_factory=list)
    links: list[LinkRow] = field(default_factory=list)
    clean: bool = True


class Complaint(NamedTuple):
    """What is put aside of a brand."""

    entity: str
    key: str
    reason: str
    raw: bytes


def brand_row(position: int, brand: Shop) -> BrandRow:
    """Raises: Unusable."""
    key = values.line("internalId", brand.internal_id or "")
    if not key.strip():
        raise Unusable("internalId is missing or empty; brands are stored by it")
    return (
        position, key, values.line("name", brand.name), values.country("countryCode", brand.country_code),
        values.currency("currencyCode", brand.currency_code), values.prose("description", brand.description),
        values.prose("disclaimer", brand.disclaimer),
        values.prose("redemptionInstructions", brand.redemption_instructions),
        values.prose("terms", brand.terms), values.prose("logoUrl", brand.logo_url),
        values.moment("modifiedDate", brand.modified_date), int(_says_something(brand.categories)),
    )  # fmt: skip


def link(rows: BrandRows, brand: Shop, book: CategoryBook, raw: msgspec.Raw) -> list[Complaint]:
    """Give a brand its links. Categories that cannot be read cost it their update, not its place."""
    position, key = rows.brand[:2]
    if not rows.brand[-1]:
        return []
    try:
        found = book.links(brand.categories)
    except Exception as error:  # noqa: BLE001  it costs these links
        rows.brand, rows.clean = (*rows.brand[:-1], 0), False
        return [Complaint("category", key, f"brand {key}: {readable(error)}; its links stay as they are", bytes(raw))]
    rows.links = [(position, number) for number in found.ids]
    rows.clean = rows.clean and not found.unknown
    reason = f"brand {key}: no category of that name is known, and without an id it cannot be created"
    return [Complaint("category", name, reason, bytes(brand.categories)) for name in found.unknown]


def product_row(brand: int, product: Sold) -> tuple[ProductAlone, Decimal]:
    """The row without its price, and the largest face value, which decides about that. Raises: Unusable."""
    number = values.whole("id", product.id, 1)
    low, high, largest = values.span("minFaceValue", product.min_face_value, "maxFaceValue", product.max_face_value, 4)
    row = (
        number, brand, values.line("name", product.name), low, high,
        values.stock("count", product.count), values.moment("modifiedDate", product.modified_date),
    )  # fmt: skip
    return row, largest


def price_row(largest: Decimal, price: Price | msgspec.UnsetType | None) -> PriceRow:
    """All None for `null`, which is the vendor's word for a product without a price. Raises: Unusable."""
    if price is None:
        return NO_PRICE
    if price is msgspec.UNSET:
        raise Unusable("price is missing; the product is stored, its price and configuration stay as they are")
    low, high, most = values.span("price.min", price.min, "price.max", price.max, 8)
    commission = COMMISSION_INCLUDED if largest > most else COMMISSION_EXTRA
    return low, high, values.currency("price.currencyCode", price.currency_code), commission


def _says_something(categories: msgspec.Raw) -> bool:
    """False when `categories` is missing or null: then nothing is known, and links stay as they are."""
    return bytes(categories).strip() not in (b"", b"null")
