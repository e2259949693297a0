"""The paged catalogue: pages that shift while they are read are noticed, and read again until they agree.

A page is one answer and agrees with itself; two pages need not: whatever comes or goes between them moves the rest, so
that a brand comes twice or is missed. Both may happen at once, and then even the number of brands is right.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from stellerd_brand_sync.fetched import fingerprint
from stellerd_brand_sync.wire import Page, brand_key

PASSES = 5
"""So often at most everything is read."""
Ask = Callable[[int, int], Page]
"""(page index, page size) to the page."""


class Pages:
    """One paged pull. `brands` by key, each as the newest page has it: a list, for one page may have it twice.

    `whole`: nothing is missing, and nothing is in it that went away meanwhile; `count`: brands that there should be.
    """

    def __init__(self, ask: Ask, page_size: int) -> None:
        self._ask, self._size = ask, page_size
        self.brands: dict[str, list[msgspec.Raw]] = {}
        self.count = -1
        self.passes = self.pages = 0
        self.whole = False
        self._agreeing = 0

    @property
    def total(self) -> int:
        """Brands that came."""
        return sum(map(len, self.brands.values()))

    def read(self, trusted: Callable[[str], bool]) -> None:
        """Read until it is whole, or `PASSES` times.

        `trusted(fingerprint)`: brands that need not be confirmed by a second pass, since they are no news. Raises:
        whatever asking does.
        """
        while not self.whole and self.passes < PASSES:
            self.passes += 1
            before = self.pages
            seen, steady = self._pass()
            if self.total > self.count:  # somebody in there has gone
                self._forget_all_but(seen)
            agreed = steady and self.total == self.count and seen == self.brands.keys()
            self._agreeing = self._agreeing + 1 if agreed else 0
            if agreed:
                self.whole = self._agreeing > 1 or self.pages == before + 1 or trusted(fingerprint(seen))

    def _pass(self) -> tuple[set[str], bool]:
        """Read all pages once: the keys that came, and whether it was one catalogue from the first page to the last."""
        seen, steady, index, size = set[str](), True, 0, self._size
        while True:
            page = self._ask(index, size)
            self.pages += 1
            if page.count != self.count:
                self._forget_all_but(seen)  # what is from before belongs to another catalogue
                steady = index == 0
                self.count = page.count
            seen |= self._take(page.items or [])
            size = page.page_size or size
            found = next((one for one in (page.page_index, page.small_index) if one is not None), index)
            if not page.items or (found + 1) * size >= page.count:
                return seen, steady
            if found != index:  # another page than the one asked for: there is no counting on
                return seen, False
            index += 1

    def _take(self, items: list[msgspec.Raw]) -> set[str]:
        came: dict[str, list[msgspec.Raw]] = {}
        for raw in items:
            came.setdefault(brand_key(raw), []).append(raw)
        for key, raws in came.items():
            if len(raws) >= len(self.brands.get(key, ())):
                self.brands[key] = raws
        return came.keys() | set()

    def _forget_all_but(self, keys: set[str]) -> None:
        self.brands = {key: raws for key, raws in self.brands.items() if key in keys}
        self._agreeing = 0
