"""Categories: the vendor's list, and what a brand's `categories` mean in each of the forms they come in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from stellerd import errors
from stellerd_brand_sync import values
from stellerd_brand_sync.aside import Aside
from stellerd_brand_sync.mend import loose
from stellerd_brand_sync.values import Unusable
from stellerd_brand_sync.wire import BAD_JSON, Body, decode_list, readable, short_key

CategoryRow = tuple[int, str, str | None]
"""id, name, description."""

KNOWN = {
    1: "Entertainment", 2: "Gaming", 3: "Prepaid Cards", 4: "Fashion & Accessories", 5: "Tools & Home Improvement",
    6: "Airlines & Hotels", 7: "Beauty Wellness & Spa", 9: "eCommerce", 10: "Dining & Restaurants",
    11: "Kids Fashion & Toys", 12: "Travel & Leisure", 13: "Home & Garden", 14: "Learning", 15: "Sports & Lifestyle",
    16: "Electronics", 17: "Crypto", 18: "Supermarkets & Hypermarkets", 19: "Bookstore",
    20: "Telecommunication & Internet", 21: "Department Stores", 22: "Mobile Application", 23: "Shopping Mall",
    24: "Gas Station", 25: "Drugstore", 26: "Pet Shop & Pet Care", 27: "Charity", 30: "Petroleum",
}  # fmt: skip
"""The vendor's list as documented: lends a name to a bare id and an id to a bare name."""


class CategoryItem(msgspec.Struct, rename="camel"):
    """`{id, name, description}`."""

    id: int
    name: str
    description: str | None = None

    def row(self) -> CategoryRow:
        """As it is stored. Raises: Unusable."""
        name = values.line("name", self.name)
        return values.whole("id", self.id, 1), name, values.prose("description", self.description)


_decode_item = msgspec.json.Decoder(CategoryItem).decode
_decode_loose = msgspec.json.Decoder(list[CategoryItem | int | str] | None).decode


def read_list(body: Body, aside: Aside) -> list[CategoryRow]:
    """The vendor's categories; each bad one goes to `aside`.

    Raises: BadReply when the body is no list or has no usable item.
    """
    rows: dict[int, CategoryRow] = {}
    for number, raw in enumerate(decode_list(body, "categories")):
        try:
            row = _decode_item(raw).row()
            if row[0] in rows:
                raise Unusable(f"id {row[0]} came twice; the first one is kept")
            rows[row[0]] = row
        except Exception as error:  # noqa: BLE001  whatever it is, it is this item's
            if not isinstance(error, BAD_JSON):
                aside.unforeseen(error)
            aside.add("category", short_key(loose(raw), ("id", "name"), f"item {number}"), readable(error), bytes(raw))
    if not rows:
        raise errors.BadReply("categories: the answer holds no usable category")
    return list(rows.values())


class Links(NamedTuple):
    """Category ids, each once, and names that no id is known for."""

    ids: list[int]
    unknown: list[str]


class CategoryBook:
    """Which categories there are, by id and by name; notes those that brands bring along."""

    def __init__(self, stored: Iterable[Iterable[Any]]) -> None:
        self.stored: dict[int, CategoryRow] = {}
        self._by_name = {name.casefold(): number for number, name in KNOWN.items()}
        self.new: dict[int, CategoryRow] = {}
        for number, name, description in stored:
            self.stored[number] = number, name, description
            self._by_name[name.strip().casefold()] = number

    def links(self, raw: msgspec.Raw) -> Links:
        """What a brand's `categories` name: a list of objects, ids or names, mixed as they come.

        Raises: Unusable when the list cannot be read; then nothing of it counts.
        """
        try:
            items = _decode_loose(raw) or []
        except BAD_JSON as error:
            raise Unusable(f"categories: {readable(error)}") from None
        numbers = [self._number(item) for item in items]
        ids = dict.fromkeys(number for number in numbers if number is not None)
        return Links(list(ids), [str(item) for item, number in zip(items, numbers, strict=True) if number is None])

    def _number(self, item: CategoryItem | int | str) -> int | None:
        if isinstance(item, CategoryItem):
            row = item.row()
            self._note(row)
            self._by_name.setdefault(row[1].strip().casefold(), row[0])
            return row[0]
        if isinstance(item, str):
            number = self._by_name.get(item.strip().casefold())
            if number is None and re.fullmatch(r"\s*[0-9]{1,10}\s*", item):
                number = int(item)
            if number is None:
                return None
            item = number
        number = values.whole("category id", item, 1)
        self._note(_makeshift(number))
        return number

    def _note(self, row: CategoryRow) -> None:
        """Unknown so far: it will be created. A bare id's makeshift name gives way to a real one."""
        before = self.new.get(row[0], self.stored.get(row[0]))
        if before is None or (before == _makeshift(row[0]) and row != before):
            self.new[row[0]] = row


def _makeshift(number: int) -> CategoryRow:
    return number, KNOWN.get(number, f"Category {number}"), None
