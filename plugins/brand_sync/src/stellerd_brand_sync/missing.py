"""What is stored but no longer in the catalogue."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from stellerd_brand_sync.merge import Merge
from stellerd_brand_sync.spared import Spared
from stellerd_brand_sync.tables import SYSTEM_USER

_LIST = {
    "postgresql": "(SELECT CAST(json_array_elements_text(CAST(:{name} AS json)) AS {kind}))",
    "sqlite": "(SELECT value FROM json_each(:{name}))",
}
_EMPTY = """
UPDATE "Products" AS t SET "Count" = 0, "UpdatedAt" = :now, "UpdatedBy" = :user
 WHERE t."Count" IS DISTINCT FROM 0 AND """
_NAMES = """
SELECT t."Id", t."Name", t."BrandInternalId", t."Count" FROM "Products" t WHERE """
_COUNT = """
SELECT count(*) FROM "Products" t WHERE """
_OWNERS = """
SELECT DISTINCT t."BrandInternalId" FROM "Products" t WHERE t."BrandInternalId" IS NOT NULL AND """
# What is staged or belongs to an unchanged brand is in the catalogue, whatever else is said of it
_UNSEEN = """NOT EXISTS (SELECT 1 FROM bs_products s WHERE s.id = t."Id")
   AND coalesce(t."BrandInternalId", '') NOT IN {unchanged}"""
_SPARED = """(t."Id" IN {ids} OR coalesce(t."BrandInternalId", '') IN {brands})"""


class Missing:
    """Products that the catalogue lacks. `unchanged`: internal ids of brands that are as they were."""

    def __init__(self, merge: Merge, unchanged: Iterable[str], spared: Spared) -> None:
        self._merge, self._unchanged, self._spared = merge, list(unchanged), spared

    def count(self, stored: int, usable: int) -> int:
        """How many: `stored` products in all, `usable` ones of them in the catalogue."""
        if self._spared.anything:
            return 0
        return max(0, stored - usable - self._count_spared())

    def out_of_stock(self) -> int:
        """Say of each that there are none left; how many rows said otherwise."""
        verb = _EMPTY if self._merge.write else _COUNT + 't."Count" IS DISTINCT FROM 0 AND '
        found = self._run(f"{verb}{_UNSEEN} AND NOT {_SPARED}", now=self._merge.at, user=SYSTEM_USER)
        return int(found.rowcount if self._merge.write else found.scalar_one())

    def names(self) -> Iterator[tuple[int, str, str, int | None]]:
        """Id, name, brand and stock of each."""
        yield from self._run(f'{_NAMES}{_UNSEEN} AND NOT {_SPARED} ORDER BY t."Id"')

    def owners_of_spared(self) -> set[str]:
        """Internal ids of the brands that spared products are stored under."""
        if not self._spared:
            return set()
        return set(self._run(f"{_OWNERS}{_SPARED}").scalars())

    def _count_spared(self) -> int:
        if not self._spared:
            return 0
        return int(self._run(f"{_COUNT}{_UNSEEN} AND {_SPARED}").scalar_one())

    def _run(self, statement: str, **parameters: Any) -> Any:
        _ = self._merge.staging  # the statement names its tables, which are empty when nothing changed
        text = statement.format(
            unchanged=self._list("unchanged", "text"),
            ids=self._list("ids", "integer"),
            brands=self._list("brands", "text"),
        )
        lists = {"unchanged": self._unchanged, "ids": sorted(self._spared.ids), "brands": sorted(self._spared.brands)}
        named = {name: json.dumps(values) for name, values in lists.items()} | parameters
        return self._merge.connection.execute(sa.text(text), {n: v for n, v in named.items() if f":{n}" in text})

    def _list(self, name: str, kind: str) -> str:
        return _LIST[self._merge.connection.dialect.name].format(name=name, kind=kind)
