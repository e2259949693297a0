"""What is stored but no longer in the catalogue."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from stellerd_brand_sync.merge import Merge
from stellerd_brand_sync.tables import SYSTEM_USER

_LIST = {
    "postgresql": "(SELECT CAST(json_array_elements_text(CAST(:{name} AS json)) AS {kind}))",
    "sqlite": "(SELECT value FROM json_each(:{name}))",
}
_EMPTY = """
UPDATE "Products" AS t SET "Count" = 0, "UpdatedAt" = :now, "UpdatedBy" = :user
 WHERE t."Count" IS DISTINCT FROM 0 AND """
_NAMES = """
SELECT t."Id", t."Name", t."BrandInternalId" FROM "Products" t WHERE """
_GONE = """NOT EXISTS (SELECT 1 FROM bs_products s WHERE s.id = t."Id")
   AND coalesce(t."BrandInternalId", '') NOT IN {unchanged} AND t."Id" NOT IN {spared}"""


class Missing:
    """Products that the catalogue lacks. `unchanged`: brands that are as they were; `spared`: ids of products that
    are in the catalogue, in a form that cannot be stored."""

    def __init__(self, merge: Merge, unchanged: Iterable[str], spared: set[int]) -> None:
        self._merge, self._unchanged, self._spared = merge, unchanged, spared

    def count(self, stored: int, usable: int) -> int:
        """How many: `stored` products in all, `usable` ones of them in the catalogue."""
        spared = 0
        if self._spared:
            statement = f'SELECT count(*) FROM "Products" WHERE "Id" IN {self._list("spared", "integer")}'  # noqa: S608 - ours
            spared = int(self._merge.connection.execute(sa.text(statement), {"spared": self._json()}).scalar_one())
        return max(0, stored - usable - spared)

    def out_of_stock(self) -> int:
        """Say of each that there are none left; how many rows said otherwise."""
        if not self._merge.write:
            return 0
        return int(self._run(_EMPTY, {"now": self._merge.at, "user": SYSTEM_USER}).rowcount)

    def names(self) -> Iterator[tuple[int, str, str]]:
        """Id, name and brand of each."""
        yield from self._run(_NAMES, {})

    def _run(self, statement: str, parameters: dict[str, Any]) -> Any:
        _ = self._merge.staging  # the statement names its tables, which are empty when nothing changed
        text = statement + _GONE.format(
            unchanged=self._list("unchanged", "text"), spared=self._list("spared", "integer")
        )
        lists = {"unchanged": json.dumps(list(self._unchanged)), "spared": self._json()}
        return self._merge.connection.execute(sa.text(text), parameters | lists)

    def _json(self) -> str:
        return json.dumps(sorted(self._spared))

    def _list(self, name: str, kind: str) -> str:
        return _LIST[self._merge.connection.dialect.name].format(name=name, kind=kind)
