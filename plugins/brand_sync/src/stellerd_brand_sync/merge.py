"""From staged rows to the platform's tables: find what differs, write only that, count it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from stellerd_brand_sync import refusal, values
from stellerd_brand_sync import statements as sql
from stellerd_brand_sync.categories import CategoryBook, CategoryRow
from stellerd_brand_sync.rows import BrandRows
from stellerd_brand_sync.staging import BATCH, Staging
from stellerd_brand_sync.tables import SYSTEM_USER


@dataclass
class Tally:
    """Products that are new or changed, brands that are new, and rows written in all."""

    new: int = 0
    changed: int = 0
    new_brands: int = 0
    rows: int = 0

    def __iadd__(self, other: Tally) -> Tally:
        self.new += other.new
        self.changed += other.changed
        self.new_brands += other.new_brands
        self.rows += other.rows
        return self


class Merge:
    """The merge within one open transaction.

    `write` False: find out what differs and count it, write nothing but temporary tables.
    """

    def __init__(self, connection: sa.Connection, now: datetime, *, write: bool = True) -> None:
        self.connection, self.write = connection, write
        self.at: Any = now if connection.dialect.name == "postgresql" else values.stamp(now)
        self._parameters = {"now": self.at, "user": SYSTEM_USER}
        self._staging: Staging | None = None

    @property
    def staging(self) -> Staging:
        """The temporary tables, made when they are needed: most of the time nothing has changed."""
        if self._staging is None:
            self._staging = Staging(self.connection)
        return self._staging

    def known_categories(self) -> CategoryBook:
        """The categories there are."""
        return CategoryBook(self.connection.exec_driver_sql('SELECT "Id", "Name", "Description" FROM "Categories"'))

    def categories(self, rows: Iterable[CategoryRow]) -> int:
        """Insert or update categories, few as they are one by one; none is ever deleted. How many were written."""
        stored = self.known_categories().stored
        changed = [row for row in rows if stored.get(row[0]) != row]
        for statement, known in ((sql.UPDATE_CATEGORY, True), (sql.INSERT_CATEGORY, False)):
            some = [
                {"id": number, "name": name, "description": description, **self._parameters}
                for number, name, description in changed
                if (number in stored) is known
            ]
            if some and self.write:
                self.connection.execute(sa.text(statement), some)
        return len(changed)

    def stage(self, brands: Iterable[BrandRows], digests: Sequence[str], progress: Callable[[int], None]) -> int:
        """Load decoded brands, a batch at a time; how many products they have. `progress(brands so far)`."""
        with self.staging.loading():
            return self._stage(brands, digests, progress)

    def stage_each(
        self, brands: Iterable[BrandRows], digests: Sequence[str], refused: Callable[[BrandRows, Exception], None]
    ) -> int:
        """As `stage`, one by one: what the database cannot take is `refused`, and the others are loaded."""
        products = 0
        _ = self.staging  # made outside the savepoints
        for brand in brands:
            try:
                with self.connection.begin_nested(), self.staging.loading():
                    products += self._load([brand], digests)
            except (DBAPIError, psycopg.Error) as error:
                if not refusal.is_of_rows(getattr(error, "orig", error)):
                    raise
                refused(brand, error)
        return products

    def _stage(self, brands: Iterable[BrandRows], digests: Sequence[str], progress: Callable[[int], None]) -> int:
        batch: list[BrandRows] = []
        number = size = products = 0
        for number, brand in enumerate(brands, start=1):
            batch.append(brand)
            size += 1 + len(brand.products)
            if size >= BATCH:
                products += self._load(batch, digests)
                progress(number)
                batch, size = [], 0
        products += self._load(batch, digests)
        progress(number)
        return products

    def _load(self, batch: list[BrandRows], digests: Sequence[str]) -> int:
        if not batch:
            return 0
        brands = [(*item.brand, digests[item.brand[0]] if item.clean else None, len(item.products)) for item in batch]
        products = [row for item in batch for row in item.products]
        self.staging.load("bs_products", products)
        self.staging.load("bs_links", [row for item in batch for row in item.links])
        self.staging.load("bs_brands", brands)  # the last one's texts are packed by the server meanwhile
        return len(products)

    def owners(self) -> set[str]:
        """Brands that staged products are stored under, where the catalogue names another one."""
        return set(self.connection.exec_driver_sql(sql.OWNERS).scalars())

    def apply(self, new_categories: Sequence[CategoryRow]) -> Tally:
        """Merge what is staged."""
        tally = Tally(rows=self.categories(new_categories))
        self._run(sql.FIND_BRANDS)
        changed, tally.new_brands = self._carry_out(sql.BRANDS)
        if tally.new_brands and self.write:
            self._run(sql.FIND_NEW_BRANDS)
        tally.rows += changed + tally.new_brands
        changed, tally.new = self._carry_out(sql.PRODUCTS)
        tally.rows += changed + tally.new
        touched = changed
        for target in (sql.PRICES, sql.CONFIGURATIONS):
            found = sum(self._carry_out(target))
            tally.rows += found
            touched += found
        tally.rows += sum(self._carry_out(sql.LINKS))
        if touched:
            tally.changed = int(self.connection.exec_driver_sql(sql.TOUCHED).scalar_one()) - tally.new
        return tally

    def _carry_out(self, target: sql.Target) -> tuple[int, int]:
        """Plan one table and write what the plan says; how many rows are changed and added."""
        found = sum(self._run(statement) for statement in target.find)
        if not found:
            return 0, 0
        count = f"SELECT count(id) FROM {target.plan}"  # noqa: S608 - ours
        changed = int(self.connection.exec_driver_sql(count).scalar_one())
        if self.write and changed:
            self._run(target.change)
        if self.write and found > changed:
            self._run(target.add)
        return changed, found - changed

    def begin_again(self) -> None:
        """The temporary tables went with a savepoint."""
        self._staging = None

    def finish(self) -> None:
        """Drop the temporary tables."""
        if self._staging is not None:
            self._staging.drop()
            self._staging = None

    def stored(self) -> tuple[int, int]:
        """How many products and brands the platform has now."""
        products, brands = self.connection.exec_driver_sql(sql.STORED).one()
        return products, brands

    def _run(self, statement: str) -> int:
        return self.connection.execute(sa.text(statement), self._parameters if ":now" in statement else {}).rowcount
