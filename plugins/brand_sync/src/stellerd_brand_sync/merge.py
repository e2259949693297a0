"""From staged rows to the platform's tables: find what differs, write only that, count it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from stellerd_brand_sync import statements as sql
from stellerd_brand_sync import values
from stellerd_brand_sync.categories import CategoryBook, CategoryRow
from stellerd_brand_sync.decode import BrandRows
from stellerd_brand_sync.staging import BATCH, Staging
from stellerd_brand_sync.tables import SYSTEM_USER


class Merge:
    """The merge within one open transaction.

    `write` False: find out what differs and count it, write nothing but temporary tables.
    """

    def __init__(self, connection: sa.Connection, now: datetime, *, write: bool = True) -> None:
        self.connection, self.write = connection, write
        self.staging = Staging(connection)
        at: Any = now if connection.dialect.name == "postgresql" else values.stamp(now)
        self._parameters = {"now": at, "user": SYSTEM_USER}
        self.rows = 0
        """Rows written, or that would be."""

    def known_categories(self) -> CategoryBook:
        """The categories there are."""
        stored = self.connection.exec_driver_sql('SELECT "Id", "Name" FROM "Categories"')
        return CategoryBook((number, name) for number, name in stored)

    def categories(self, rows: Sequence[CategoryRow]) -> None:
        """Insert or update categories; none is ever deleted."""
        self.staging.load("bs_categories", rows)
        self._plan(sql.PLAN_CATEGORIES)
        self._apply(sql.UPDATE_CATEGORIES, sql.INSERT_CATEGORIES)

    def stage(self, brands: Iterable[BrandRows], progress: Callable[[int], None]) -> int:
        """Load decoded brands, a batch at a time; how many products they have. `progress(brands so far)`."""
        batch: list[BrandRows] = []
        number = size = products = 0
        for number, brand in enumerate(brands, start=1):
            batch.append(brand)
            size += 1 + len(brand.products)
            if size >= BATCH:
                products += self._load(batch)
                progress(number)
                batch, size = [], 0
        products += self._load(batch)
        progress(number)
        return products

    def _load(self, batch: list[BrandRows]) -> int:
        products = [row for item in batch for row in item.products]
        self.staging.load("bs_brands", [item.brand for item in batch])
        self.staging.load("bs_products", products)
        self.staging.load("bs_prices", [row for item in batch for row in item.prices])
        self.staging.load("bs_links", [row for item in batch for row in item.links])
        return len(products)

    def catalogue(self, new_categories: Sequence[CategoryRow]) -> dict[str, int]:
        """Merge what was staged; the counters of the run."""
        self.staging.analyse()
        self.categories(new_categories)
        self._run(sql.FIND_BRANDS)
        self._plan(sql.PLAN_BRANDS)
        self._apply(sql.UPDATE_BRANDS, sql.INSERT_BRANDS, sql.FIND_NEW_BRANDS)
        self._plan(sql.PLAN_PRODUCTS)
        self._apply(sql.UPDATE_PRODUCTS, sql.INSERT_PRODUCTS)
        self._plan(sql.PLAN_PRICES)
        self._apply(sql.UPDATE_PRICES, sql.INSERT_PRICES)
        self._plan(sql.PLAN_CONFIGURATIONS)
        self._apply(sql.UPDATE_CONFIGURATIONS, sql.INSERT_CONFIGURATIONS)
        self._plan(sql.PLAN_NEW_LINKS)
        self._plan(sql.PLAN_OLD_LINKS)
        self._apply(sql.DELETE_LINKS, sql.INSERT_LINKS)
        return self._counters()

    def _counters(self) -> dict[str, int]:
        fetched = int(self.connection.exec_driver_sql(sql.STAGED).scalar_one())
        new, touched, vanished, new_brands = self.connection.exec_driver_sql(sql.TOUCHED).one()
        pending = (0, 0) if self.write else (new, new_brands)
        return {
            "products": self.stored("products") + pending[0],
            "brands": self.stored("brands") + pending[1],
            "new": new,
            "changed": touched - new,
            "unchanged": fetched - touched,
            "vanished": vanished,
        }

    def finish(self) -> None:
        """Drop the temporary tables."""
        self.staging.drop()

    def stored(self, what: str) -> int:
        """How many "brands" or "products" the platform has now."""
        return int(self.connection.exec_driver_sql(sql.STORED[what]).scalar_one())

    def _plan(self, statement: str) -> None:
        self.rows += self._run(statement)

    def _apply(self, *statements: str) -> None:
        if self.write:
            for statement in statements:
                self._run(statement)

    def _run(self, statement: str) -> int:
        return self.connection.execute(sa.text(statement), self._parameters if ":now" in statement else {}).rowcount
