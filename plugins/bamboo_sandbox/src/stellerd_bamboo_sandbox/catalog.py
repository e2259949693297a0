"""The catalogue: a seeded assortment that drifts from edition to edition, as bodies of JSON."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from stellerd_bamboo_sandbox.brands import Brand, make_brand
from stellerd_bamboo_sandbox.mix import Draw, mix_of
from stellerd_bamboo_sandbox.products import FIRST_ID, FRESH, Revision, first_id, product_json
from stellerd_bamboo_sandbox.texts import text_pool

BLOCK = 256 * 1024
PRODUCTS_PER_BRAND = 16
MAX_PAGE_SIZE = 100
Item = tuple[bytes, ...]
"""Pieces of one brand's JSON object."""


@dataclass(frozen=True)
class Shape:
    """What makes a catalogue: equal shapes give equal bytes on every machine."""

    products: int = 8_026
    brands: int = 0
    """0: one for every 16 products."""
    seed: int = 1
    price_drift: float = 0.01
    """Share of the prices that change from one edition to the next."""
    product_drift: int = 4
    """Products that vanish, and new ones that come, from one edition to the next."""
    odd_rows: float = 0.0
    categories: str = "mixed"


@dataclass(frozen=True)
class Body:
    """A reply's body in pieces that are shared, not copied."""

    pieces: Sequence[bytes]

    @property
    def length(self) -> int:
        """Bytes in all."""
        return sum(map(len, self.pieces))

    def blocks(self, limit: int | None = None) -> Iterator[bytes]:
        """The bytes, at most `limit` of them, in blocks of about 256 KiB."""
        block = bytearray()
        left = self.length if limit is None else limit
        for piece in self.pieces:
            block += piece[:left]
            left -= min(left, len(piece))
            if len(block) >= BLOCK:
                yield bytes(block)
                block.clear()
            if not left:
                break
        if block:
            yield bytes(block)

    def joined(self) -> bytes:
        """The whole body."""
        return b"".join(self.pieces)


@dataclass(frozen=True)
class Query:
    """Parameters of the paged catalogue; None: not asked for."""

    page_index: int = 0
    page_size: int = MAX_PAGE_SIZE
    brand_id: str | None = None
    product_id: int | None = None
    country: str | None = None
    currency: str | None = None
    name: str | None = None
    modified: str | None = None
    """`2022-08-21`: what was modified after it."""

    @property
    def filtered(self) -> bool:
        """Something narrows the answer."""
        narrow = (self.brand_id, self.product_id, self.country, self.currency, self.name, self.modified)
        return any(value is not None for value in narrow)


@dataclass(frozen=True)
class Extra:
    """Rows that a fault adds: whole brands at the end, products in front of the first ones of existing brands."""

    brands: Sequence[bytes] = ()
    products: Sequence[bytes] = ()


@dataclass
class Catalog:
    """The assortment in its current edition; not safe for several threads at once."""

    shape: Shape = field(default_factory=Shape)

    def __post_init__(self) -> None:
        shape = self.shape
        self.edition = 1
        self.brand_count = shape.brands or max(1, round(shape.products / (PRODUCTS_PER_BRAND + 0.05)))
        counts = _product_counts(shape.seed, shape.products, self.brand_count)
        self._first_slot = [0, *accumulate(counts)]
        self._pool = text_pool(shape.seed)
        self._brands: list[Brand | None] = [None] * self.brand_count
        self._rendered: list[tuple[bytes, str] | None] = [None] * self.brand_count
        self._revisions: dict[int, Revision] = {}

    def advance(self) -> None:
        """Go to the next edition: some prices change, some products vanish, as many new ones come."""
        self.edition += 1
        shape = self.shape
        prices = max(1, round(shape.products * shape.price_drift)) if shape.price_drift else 0
        swaps = min(shape.product_drift, shape.products)
        chosen = random.Random(f"{shape.seed}:{self.edition}").sample(  # deterministic on purpose
            range(shape.products), min(shape.products, prices + swaps)
        )
        newest = FIRST_ID + 2 * shape.products + (self.edition - 2) * swaps
        for number, slot in enumerate(chosen):
            if number < swaps:
                self._revisions[slot] = Revision(newest + number, self.edition, 0)
            else:
                self._revisions[slot] = self._revisions.get(slot, FRESH)._replace(priced=self.edition)
            self._rendered[self._brand_of(slot)] = None

    def whole(self, extra: Extra | None = None) -> Body:
        """The v1 body: `{"brands":[…]}`."""
        return Body([b'{"brands":[', *_separated(self._items(range(self.brand_count), extra)), b"]}"])

    def page(self, query: Query, extra: Extra | None = None, shift: int = 0, key: str = "pageIndex") -> Body:
        """A v2 page; `shift` moves its start by that many brands, `key` is how pageIndex is spelled."""
        size = min(query.page_size, MAX_PAGE_SIZE)
        found = self._find(query)
        more = [] if query.filtered or extra is None else [(row,) for row in extra.brands]
        start = max(0, query.page_index * size + (shift if query.page_index else 0))
        wanted = found[start : start + size]
        head = f'{{"{key}":{query.page_index},"pageSize":{size},"count":{len(found) + len(more)},"items":['
        if query.product_id is not None:
            items = [self._only(index, query.product_id) for index in wanted]
        else:
            items = self._items(wanted, Extra((), extra.products if extra else ()))
            items += more[max(0, start - len(found)) : max(0, start + size - len(found))]
        return Body([head.encode(), *_separated(items), b"]}"])

    def brand(self, index: int) -> Brand:
        """Brand number `index` (from 0)."""
        made = self._brands[index]
        if made is None:
            made = make_brand(self.shape.seed, index, self._pool, self.shape.categories)
            self._brands[index] = made
        return made

    def _items(self, indexes: Sequence[int], extra: Extra | None) -> list[Item]:
        spliced = dict(zip(self._hosts(len(extra.products)), extra.products, strict=False)) if extra else {}
        items = [self._item(index, spliced.get(index, b"")) for index in indexes]
        return items + [(row,) for row in (extra.brands if extra else ())]

    def _item(self, index: int, first: bytes = b"") -> Item:
        brand, (products, _) = self.brand(index), self._products(index)
        comma = b"," if first and products else b""
        return (*brand.head, first, comma, products, brand.tail)

    def _only(self, index: int, product_id: int) -> Item:
        """A brand with one product."""
        brand = self.brand(index)
        slots = range(self._first_slot[index], self._first_slot[index + 1])
        slot = next(slot for slot in slots if self._id(slot) == product_id)
        text, _ = self._product(slot, brand)
        return (*brand.head, text.encode(), brand.tail)

    def _products(self, index: int) -> tuple[bytes, str]:
        """A brand's products joined by commas, and the newest of their dates ("" without products)."""
        kept = self._rendered[index]
        if kept is None:
            brand = self.brand(index)
            slots = range(self._first_slot[index], self._first_slot[index + 1])
            rows = [self._product(slot, brand) for slot in slots]
            kept = ",".join(row[0] for row in rows).encode(), max((row[1] for row in rows), default="")
            self._rendered[index] = kept
        return kept

    def _product(self, slot: int, brand: Brand) -> tuple[str, str]:
        revision = self._revisions.get(slot, FRESH)
        return product_json(self.shape.seed, slot, brand, revision, self.shape.odd_rows)

    def _id(self, slot: int) -> int:
        return self._revisions.get(slot, FRESH).product_id or first_id(slot, self.shape.seed)

    def _brand_of(self, slot: int) -> int:
        low, high = 0, self.brand_count - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._first_slot[middle + 1] <= slot else (low, middle)
        return low

    def _hosts(self, count: int) -> list[int]:
        """The first `count` brands that have products."""
        hosts = (n for n in range(self.brand_count) if self._first_slot[n] < self._first_slot[n + 1])
        return [index for index, _ in zip(hosts, range(count), strict=False)]

    def _find(self, query: Query) -> Sequence[int]:
        if not query.filtered:
            return range(self.brand_count)
        candidates: Sequence[int] = range(self.brand_count)
        if query.product_id is not None:
            slot = next((s for s in range(self.shape.products) if self._id(s) == query.product_id), None)
            candidates = [] if slot is None else [self._brand_of(slot)]
        return [index for index in candidates if self._matches(index, query)]

    def _matches(self, index: int, query: Query) -> bool:
        brand = self.brand(index)
        return (
            query.brand_id in (None, brand.internal_id)
            and query.country in (None, brand.country.code)
            and query.currency in (None, brand.country.currency)
            and (query.name is None or query.name.casefold() in brand.name.casefold())
            and (query.modified is None or max(brand.modified, self._products(index)[1]) > query.modified)
        )


def _product_counts(seed: int, products: int, brands: int) -> list[int]:
    """Products of each brand: a few large ones, many small ones, some without any; `products` in all."""
    draws = [Draw(mix_of(seed, 0xC0, index)).below(1_000) for index in range(brands)]
    weights = [0 if draw < 15 else 60 + draw * draw * draw // 1_000_000 for draw in draws]
    weights[-1] = weights[-1] or 1
    total, given, counts = sum(weights), 0, []
    for reached in accumulate(weights):
        counts.append(products * reached // total - given)
        given += counts[-1]
    return counts


def _separated(items: Sequence[Item]) -> Iterator[bytes]:
    for number, item in enumerate(items):
        if number:
            yield b","
        yield from item
