"""When the database refuses the catalogue: find the brands it is about, store all the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from stellerd_brand_sync import refusal
from stellerd_brand_sync.categories import CategoryRow
from stellerd_brand_sync.digests import Digests
from stellerd_brand_sync.merge import Merge, Tally
from stellerd_brand_sync.session import Unstorable
from stellerd_brand_sync.staging import PLANS, STAGES

MOST = 100
"""So many guilty brands are looked for; with more it is the database that is not as the catalogue needs it."""
_Brand = tuple[int, str, int]
"""position, internal id, products."""


class Guilty(NamedTuple):
    """A brand that cannot be stored, and why."""

    position: int
    key: str
    products: int
    reason: str


def store(merge: Merge, digests: Digests, new: Mapping[int, CategoryRow]) -> tuple[Tally, list[Guilty]]:
    """Merge what is staged and remember its digests: all of it, or all but the brands that the database refuses.

    `new`: categories that brands brought. Raises: Unstorable when more than `MOST` brands are refused; SQLAlchemy's
    errors that are about the database.
    """
    try:
        return _attempt(merge, digests, list(new.values())), []
    except DBAPIError as error:
        if refusal.is_server(error):
            raise
    return _Search(merge, digests, new).run()


def _attempt(merge: Merge, digests: Digests, new: Sequence[CategoryRow]) -> Tally:
    with merge.connection.begin_nested():
        tally = merge.apply(new)
        if merge.write:
            digests.remember()
            if merge.connection.dialect.name == "postgresql":  # a deferred constraint shall not wait for the commit
                merge.connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
        return tally


class _Search:
    """Halves what failed until single brands are left; each half that can be stored is, at once."""

    def __init__(self, merge: Merge, digests: Digests, new: Mapping[int, CategoryRow]) -> None:
        self._merge, self._digests, self._new = merge, digests, new
        self._tally, self._guilty = Tally(), list[Guilty]()
        self._last: DBAPIError | None = None

    def run(self) -> tuple[Tally, list[Guilty]]:
        connection = self._merge.connection
        for table in STAGES:
            connection.exec_driver_sql(f"CREATE TEMPORARY TABLE all_{table} AS SELECT * FROM {table}")  # noqa: S608 - ours
        rows = connection.exec_driver_sql("SELECT position, internal_id, products FROM all_bs_brands ORDER BY 1")
        brands = [(position, key, products) for position, key, products in rows]
        self._halve(brands)
        all_refused = len(self._guilty) == len(brands) > 1
        if self._last and all_refused and not refusal.is_of_rows(self._last.orig):
            raise self._last  # what is said of every brand is about the database
        self._fill(brands[0][0], brands[-1][0])
        self._leave([brand.position for brand in self._guilty])
        for table in STAGES:
            connection.exec_driver_sql(f"DROP TABLE all_{table}")
        return self._tally, self._guilty

    def _halve(self, brands: Sequence[_Brand]) -> None:
        middle = len(brands) // 2
        for part in (brands[:middle], brands[middle:]) if middle else (brands,):
            reason = self._refused(part)
            if reason and len(part) > 1:
                self._halve(part)
            elif reason:
                self._accuse(part[0], reason)

    def _accuse(self, brand: _Brand, reason: str) -> None:
        reason = f"brand {brand[1]}: {reason}; nothing of this brand was stored"
        self._guilty.append(Guilty(*brand, reason))
        if len(self._guilty) > MOST:
            raise Unstorable(
                f"catalogue: the database refuses more than {MOST} brands, the last one for this reason: {reason}; "
                "nothing was changed"
            )

    def _refused(self, part: Sequence[_Brand]) -> str:
        """Store a part; "" or why not."""
        self._fill(part[0][0], part[-1][0])
        linked = self._merge.connection.exec_driver_sql("SELECT DISTINCT category_id FROM bs_links").scalars()
        try:
            self._tally += _attempt(self._merge, self._digests, [self._new[n] for n in linked if n in self._new])
        except DBAPIError as error:
            if refusal.is_server(error):
                raise
            self._last = error
            return reason_of(error.orig)
        return ""

    def _leave(self, guilty: Sequence[int]) -> None:
        """What remains staged is what is stored, or was as it is."""
        for table in STAGES:
            statement = sa.text(f"DELETE FROM {table} WHERE position = :position")  # noqa: S608 - ours
            self._merge.connection.execute(statement, [{"position": position} for position in guilty])

    def _fill(self, first: int, last: int) -> None:
        """Stage the brands between two positions and nothing else."""
        self._merge.staging.empty([*STAGES, *PLANS])
        for table in STAGES:
            self._merge.connection.execute(
                sa.text(f"INSERT INTO {table} SELECT * FROM all_{table} WHERE position BETWEEN :first AND :last"),  # noqa: S608 - ours
                {"first": first, "last": last},
            )
        self._merge.staging.analyse()


def reason_of(error: Any) -> str:
    """The constraint's name and what the database said, in one line."""
    said = " ".join(str(error).split("\n")[0].split())
    facts = getattr(error, "diag", None)
    if facts is None or not facts.constraint_name:
        return said
    detail = f" ({facts.message_detail})" if facts.message_detail and facts.sqlstate in ("23503", "23505") else ""
    return f'constraint "{facts.constraint_name}" of "{facts.table_name}" refuses it: {said}{detail}'
