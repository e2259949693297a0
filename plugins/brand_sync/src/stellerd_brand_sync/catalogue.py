"""Storing a catalogue in one open transaction: what is unchanged is left out, the rest is staged and merged."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from stellerd_brand_sync import apart, digests, refusal
from stellerd_brand_sync.aside import Aside
from stellerd_brand_sync.categories import CategoryRow
from stellerd_brand_sync.decode import Decoder
from stellerd_brand_sync.digests import Digests, Known
from stellerd_brand_sync.mend import loose
from stellerd_brand_sync.merge import Merge, Tally
from stellerd_brand_sync.missing import Missing
from stellerd_brand_sync.rows import BrandRows
from stellerd_brand_sync.spared import Spared

_ROUNDS = 3


def _accept(usable: int, stored: int) -> None:
    pass


def _quiet(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Order:
    """How a catalogue is to be stored.

    `write` False: compare only. `full`: compare brands that look unchanged too. `complete`: it is the whole
    catalogue, so that what is not in it has vanished; with `out_of_stock` its "Count" becomes 0.
    `guard(usable products, products stored)` may refuse it; `progress(brands, of so many)`; `look` is shown what was
    found before the merge's tables are dropped.
    """

    now: datetime
    write: bool = True
    full: bool = False
    complete: bool = True
    out_of_stock: bool = False
    guard: Callable[[int, int], None] = _accept
    progress: Callable[[int, int], None] = _quiet
    look: Callable[[Findings], None] | None = None


@dataclass(frozen=True)
class Findings:
    """A merge that has been worked out, its tables still there; `categories`: those that brands bring along."""

    merge: Merge
    missing: Missing
    categories: list[CategoryRow]
    counters: dict[str, int]


@dataclass
class Stored:
    """What became of it: usable products in the catalogue, and the run's counters.

    `blind`: a brand came of which nothing can be told, so that nothing counts as vanished.
    """

    usable: int = 0
    blind: bool = False
    counters: dict[str, int] = field(default_factory=dict)


def store(connection: sa.Connection, brands: Sequence[msgspec.Raw], order: Order, aside: Aside) -> Stored:
    """Store a catalogue; what cannot be stored goes to `aside`.

    Raises: what `order.guard` does; JobFailed when the database refuses too much of it.
    """
    return _Storing(connection, brands, order, aside).run()


class _Storing:
    def __init__(self, connection: sa.Connection, brands: Sequence[msgspec.Raw], order: Order, aside: Aside) -> None:
        self.brands, self.order, self.aside = brands, order, aside
        self.merge = Merge(connection, order.now, write=order.write)
        self.digests = Digests(connection, "out-of-stock" if order.out_of_stock else "")
        self.products, self.stored_brands = self.merge.stored()
        self.known = self.digests.load()
        self.unchanged: dict[int, str] = {}

    def run(self) -> Stored:
        began = time.perf_counter()
        self._leave_out()
        staged = self._stage()
        seen = time.perf_counter()
        unchanged = sum(self.known[key].products for key in self.unchanged.values())
        usable = staged + unchanged
        self.order.guard(usable, self.products)
        tally, refused = self._write()
        after = self.products + tally.new
        missing = Missing(self.merge, self.unchanged.values(), self.decoder.spared)
        vanished = missing.count(after, usable - refused) if self.order.complete else 0
        if vanished and self.order.out_of_stock:
            tally.rows += missing.out_of_stock()
        self._forget(missing)
        fetched = self.decoder.fetched + unchanged
        counters = {
            "fetched": fetched, "new": tally.new, "changed": tally.changed,
            "unchanged": usable - tally.new - tally.changed - refused, "unusable": fetched - usable + refused,
            "vanished": vanished, "products": after, "brands": self.stored_brands + tally.new_brands,
            "rows": tally.rows,
        }  # fmt: skip
        self._show(counters)
        self.merge.finish()
        counters |= {"stage_ms": ms(began, seen), "merge_ms": ms(seen, time.perf_counter())}
        return Stored(usable, self.decoder.spared.anything, counters)

    def _show(self, counters: dict[str, int]) -> None:
        """Let `look` see what vanished from unchanged brands too: in earlier runs, but vanished it has."""
        if not self.order.look:
            return
        seen = Spared()
        for position in self.unchanged:
            seen.add_brand(loose(self.brands[position]))
        seen += self.decoder.spared
        missing = Missing(self.merge, (), seen)
        self.order.look(Findings(self.merge, missing, list(self.decoder.book.new.values()), counters))

    def _leave_out(self) -> None:
        """Find the brands that need not be looked at; none, where rows are gone that they had."""
        known: dict[str, Known] = {} if self.order.full else self.known
        self.hashes, self.unchanged = digests.sort(self.brands, known)
        expected = sum(known[key].products for key in self.unchanged.values())
        if expected > self.products or len(self.unchanged) > self.stored_brands:
            self.unchanged = {}

    def _stage(self) -> int:
        """Decode and load the others; again with those unchanged ones whose id or product another brand claims."""
        for attempt in range(_ROUNDS):
            staged = self._stage_once()
            claimed = self._claimed()
            if not claimed:
                break
            self.unchanged = {p: key for p, key in self.unchanged.items() if key not in claimed and attempt < 1}
            self.merge.finish()
            self.aside.clear()
        return staged

    def _stage_once(self) -> int:
        self.decoder = Decoder(self.merge.known_categories(), self.aside)
        pairs = [(position, raw) for position, raw in enumerate(self.brands) if position not in self.unchanged]
        if not pairs:
            return 0
        try:
            with self.merge.connection.begin_nested():
                staged = self.merge.stage(
                    self.decoder.read(pairs), self.hashes, lambda done: self.order.progress(done, len(pairs))
                )
        except (DBAPIError, psycopg.Error) as error:
            if not refusal.is_of_rows(getattr(error, "orig", error)):
                raise
            staged = self._stage_each(pairs)
        self.merge.staging.analyse()
        return staged

    def _stage_each(self, pairs: list[tuple[int, msgspec.Raw]]) -> int:
        """Of some brand the database cannot even take the text, in its encoding."""
        self.aside.clear()
        self.merge.begin_again()
        self.decoder = Decoder(self.merge.known_categories(), self.aside)
        return self.merge.stage_each(self.decoder.read(pairs), self.hashes, self._refuse)

    def _refuse(self, rows: BrandRows, error: Exception) -> None:
        position, key = rows.brand[:2]
        raw = self.brands[position]
        reason = apart.reason_of(getattr(error, "orig", error))
        self.aside.add("brand", key, f"brand {key}: {reason}; nothing of this brand was stored", bytes(raw))
        self.decoder.refuse(key, raw)

    def _claimed(self) -> set[str]:
        if not self.unchanged or not self.decoder.brands:
            return set()
        return set(self.unchanged.values()) & (self.decoder.brands | self.merge.owners())

    def _write(self) -> tuple[Tally, int]:
        """Merge and keep the digests; how many products the refused brands have."""
        tally, guilty = Tally(), list[apart.Guilty]()
        if self.decoder.brands:
            tally, guilty = apart.store(self.merge, self.digests, self.decoder.book.new)
        for brand in guilty:
            raw = self.brands[brand.position]
            self.aside.add("brand", brand.key, brand.reason, bytes(raw))
            self.decoder.spared.add_brand(loose(raw))
        self.decoder.clean -= {brand.key for brand in guilty}
        return tally, sum(brand.products for brand in guilty)

    def _forget(self, missing: Missing) -> None:
        """Look again at brands that went, were not clean, or may lack a product that only came in a bad form."""
        keep = set(self.unchanged.values()) | self.decoder.clean
        if not self.order.complete:
            keep |= self.known.keys() - self.decoder.brands
        if self.order.write:
            self.digests.forget((self.known.keys() | self.decoder.clean) - (keep - missing.owners_of_spared()))


def ms(since: float, until: float) -> int:
    """Milliseconds between two times in seconds."""
    return round((until - since) * 1000)
