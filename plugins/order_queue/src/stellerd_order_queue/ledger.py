"""Which orders are due, who is at them, and what was published when: the platform's "Orders" and our own table."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa

from stellerd import errors
from stellerd_order_queue.database import create, transaction
from stellerd_order_queue.dialects import Dialect, Row, dialect_of
from stellerd_order_queue.envelope import NIL, message_id
from stellerd_order_queue.records import Candidate, Claimed, Found, Incomplete, Refusal, Rules, Span, Survey, Wanted

PAGE = 10_000
"""Orders looked at in one query: large, so that a database without the advised index scans few times."""
CLAIM = 2_000
"""Orders claimed in one transaction."""
TABLE = "stellerd_published_orders"
_SAME_TIME_S = 1.0
"""Clocks this close are the same: nothing here is that exact."""
_LONGEST_CLAIM_S = 3600.0
"""Of any host, whatever its settings: a claim that seems to last longer was made by a clock that has been put back."""


class Ledger:
    """Everything the job says to its database. Each call is one short transaction; all raise as `transaction` does."""

    def __init__(
        self, engine: sa.Engine, name: str, rules: Rules, owner: uuid.UUID | None = None, wanted: Wanted | None = None
    ) -> None:
        self._engine, self._name, self._rules = engine, name, rules
        self._wanted = wanted or Wanted()
        self._dialect: Dialect = dialect_of(engine)
        self._say = self._dialect.say
        self._owner = owner or uuid.uuid4()
        self._excluded = self._dialect.texts(status.lower() for status in rules.excluded)
        self._ahead = timedelta()
        self._others = False
        """Whether somebody else is claiming too."""

    @property
    def table(self) -> str:
        """The ledger's table, as people write it."""
        return f"{self._dialect.schema}.{TABLE}" if self._dialect.schema else TABLE

    def exists(self) -> bool:
        """Whether the ledger's table is there."""
        with transaction(self._engine, self._name, reads_only=True) as connection:
            return sa.inspect(connection).has_table(TABLE, schema=self._dialect.schema)

    def create(self) -> None:
        """Make the ledger's table unless it is there; needs no right to create when it is.

        One of an earlier version is brought up to date by its owner; to others it is good enough.
        """
        if not self.exists():
            create(self._engine, self._name, self._dialect.create_ledger)
        elif not self._names_failures():
            with contextlib.suppress(errors.StellerdError):
                create(self._engine, self._name, self._dialect.upgrade_ledger)

    def _names_failures(self) -> bool:
        with transaction(self._engine, self._name, reads_only=True) as connection:
            columns = sa.inspect(connection).get_columns(TABLE, schema=self._dialect.schema)
        return any(column["name"] == "failure" for column in columns)

    def follow_clock(self, here: Callable[[], datetime] = partial(datetime.now, UTC)) -> None:
        """Go by the database's clock from now on: hosts whose own differ agree on what is due and what is claimed."""
        if (ask := self._say.get("clock")) is None:
            return  # SQLite is on this host
        with transaction(self._engine, self._name, reads_only=True) as connection:
            ahead: timedelta = connection.execute(ask).scalar_one() - here()
        self._ahead = ahead if abs(ahead.total_seconds()) > _SAME_TIME_S else timedelta()

    def create_orders(self) -> None:
        """Make "Orders" and "Users" unless they are there."""
        create(self._engine, self._name, self._dialect.create_orders)

    def without_table(self) -> Ledger:
        """This ledger as if it were empty; only the readers work."""
        bare = Ledger(self._engine, self._name, self._rules, self._owner, self._wanted)
        bare._say, bare._ahead = self._dialect.say_without_ledger, self._ahead
        return bare

    def survey(self, now: datetime, recent: datetime, span: Span | None = None) -> Survey:
        """Count what waits; recent is what was created at `recent` or later. Only what lies in `span` counts as due."""
        values = self._common(now) | self._bounds(span or Span())
        values |= {"recent": self._dialect.bound(recent), "max_attempts": self._rules.max_attempts}
        with transaction(self._engine, self._name, reads_only=True) as connection:
            return Survey(*connection.execute(self._say["survey"], values).one())

    def stuck(self, now: datetime, size: int) -> list[str]:
        """The oldest `size` pending orders that were published `max_attempts` times or more."""
        values = self._common(now) | {"max_attempts": self._rules.max_attempts, "size": size}
        with transaction(self._engine, self._name, reads_only=True) as connection:
            return list(connection.scalars(self._say["stuck"], values))

    def named(self, now: datetime) -> Found | None:
        """The order that was asked for, None when there is no such one."""
        with transaction(self._engine, self._name, reads_only=True) as connection:
            row = connection.execute(self._say["named"], self._common(now)).first()
        if row is None:
            return None
        return Found(row[0], row[1], row[2], bool(row[3]), bool(row[4]), _lacking(row[5:]))

    def incomplete(self, now: datetime, size: int) -> list[Incomplete]:
        """Orders that lack what decides whether they are pending, `size` at most."""
        with transaction(self._engine, self._name, reads_only=True) as connection:
            rows = connection.execute(self._say["incomplete"], self._common(now) | {"size": size})
            return [Incomplete(row[0], _lacking(row[1:])) for row in rows]

    def still_pending(self, claimed: Sequence[Claimed], now: datetime) -> set[str]:
        """Those that have no vendor order id, no excluded status and the same request id by now."""
        values = self._common(now) | self._dialect.pairs([(each.key, each.written) for each in claimed])
        with transaction(self._engine, self._name, reads_only=True) as connection:
            return set(connection.scalars(self._say["still"], values))

    def pages(
        self, now: datetime, span: Span, calling: Callable[..., list[Candidate]] = lambda call, *args: call(*args)
    ) -> Iterator[list[Candidate]]:
        """The due orders of a span, oldest first, `PAGE` at a time; no transaction is open between pages.

        `calling` makes the calls, and may make one again that failed.
        """
        at, key = self._dialect.earliest, self._dialect.first_key
        while True:
            page = calling(self._page, now, span, at, key, PAGE)
            if page:
                yield page
            if len(page) < PAGE:
                return
            at, key = page[-1].created, page[-1].key

    def first(self, now: datetime, span: Span, size: int) -> list[Candidate]:
        """The oldest `size` due orders of a span."""
        return self._page(now, span, self._dialect.earliest, self._dialect.first_key, size)

    def _bounds(self, span: Span) -> dict[str, Any]:
        return {
            "since": self._dialect.bound(span.since) if span.since else self._dialect.earliest,
            "before": self._dialect.bound(span.before) if span.before else self._dialect.latest,
        }

    def _page(self, now: datetime, span: Span, at: str, key: str, size: int) -> list[Candidate]:
        values = self._common(now) | self._bounds(span) | {"at": at, "id": key, "size": size}
        with transaction(self._engine, self._name, reads_only=True) as connection:
            rows = connection.execute(self._say["page"], values).all()
        usable = self._dialect.usable
        return [Candidate(a, b, c, d, e or 0, bool(f), usable(b)) for a, b, c, d, e, f in rows]

    def claim(self, candidates: Sequence[Candidate], now: datetime) -> tuple[list[Claimed], list[Refusal]]:
        """Take those that are free and still pending; whoever is not in the answer is somebody else's.

        Several processes may claim at once: each order goes to one of them. What is ours already is free to us: a
        claim whose answer was lost can be made again.
        """
        wanted = {each.key: each for each in candidates}
        rows = [(each.key, r, message_id(r), each.request or r) for each in candidates if (r := each.request_id)]
        bad = [Refusal(each, _unusable(each)) for each in candidates if each.request_id is None]
        with transaction(self._engine, self._name) as connection:
            if self._others:
                rows = self._without_taken(connection, rows, now)
            mine = self._take(connection, rows, wanted, now)
            left = [row for row in rows if row[0] not in mine]
            lost = self._fates(connection, left, wanted, now) if left else []
            self._others = self._others or len(lost) < len(left)
        claimed = [Claimed(key, r, m, wanted[key].attempts, written) for key, r, m, written in rows if key in mine]
        return claimed, bad + lost

    def _without_taken(self, connection: sa.Connection, rows: list[Row], now: datetime) -> list[Row]:
        """A look is a tenth of the work of trying to claim what another has."""
        values = self._common(now) | {"ids": self._dialect.many(row[0] for row in rows)}
        taken = set(connection.scalars(self._say["taken"], values))
        return [row for row in rows if row[0] not in taken]

    def _take(
        self, connection: sa.Connection, rows: list[Row], wanted: dict[str, Candidate], now: datetime
    ) -> set[str]:
        values = self._common(now) | {
            "until": self._moment(now, self._rules.claim),
        }
        obsolete = [row[0] for row in rows if wanted[row[0]].obsolete]
        if obsolete:
            connection.execute(self._say["forget"], values | {"ids": self._dialect.many(obsolete)})
        known = [row[0] for row in rows if wanted[row[0]].known_request is not None]
        known = [key for key in known if not wanted[key].obsolete]
        mine: set[str] = set()
        fresh = [row for row in rows if row[0] not in set(known)]
        if fresh:
            mine.update(connection.scalars(self._say["fresh"], values | self._dialect.rows(fresh)))
        known += [row[0] for row in fresh if row[0] not in mine]  # made since the page was read, perhaps by us
        if known:
            mine.update(connection.scalars(self._say["renew"], values | {"ids": self._dialect.many(known)}))
        return mine

    def _fates(
        self, connection: sa.Connection, rows: list[Row], wanted: dict[str, Candidate], now: datetime
    ) -> list[Refusal]:
        refusals = []
        values = self._common(now) | self._dialect.rows(rows)
        for key, pending, vendor_id, status, twin, renamed in connection.execute(self._say["fate"], values):
            if not pending:
                refusals.append(Refusal(wanted[key], _what_changed(vendor_id, status), True))
            elif renamed:
                refusals.append(Refusal(wanted[key], "its RequestId is another one since it was read", True))
            elif twin is not None:
                reason = (
                    f"RequestId {wanted[key].request} is also that of order {twin}: the consumer would see one only"
                )
                refusals.append(Refusal(wanted[key], reason))
        return refusals

    def refuse(self, refusals: Iterable[Refusal], now: datetime) -> None:
        """Remember orders that cannot be published, so that they are looked at again after the longest pause only."""
        again = self._moment(now, self._rules.republish_cap)
        rows = [
            {
                "id": each.candidate.key,
                "request": each.candidate.request or str(NIL),
                "reason": each.reason,
                "next_due": again,
            }
            for each in refusals
        ]
        if rows:
            with transaction(self._engine, self._name) as connection:
                connection.execute(self._say["refuse"], rows)

    def mark_published(self, keys: Sequence[str], now: datetime) -> None:
        """The broker answers for these: their next turn comes after the pause, twice as long each time.

        Whoever holds the claim by now: a confirm is a fact.
        """
        pauses = {"pause": self._rules.republish_after, "cap": self._rules.republish_cap}
        self._change("mark", keys, self._common(now) | pauses)

    def release(self, keys: Sequence[str]) -> None:
        """Give claims of ours back: the orders are due again, under the same message ids."""
        self._change("release", keys, {"owner": self._dialect.as_id(self._owner)})

    def fail(self, reasons: Mapping[str, Sequence[str]], now: datetime) -> None:
        """Give claims of ours back, each under the reason why its message is not published."""
        if reasons and not self._names_failures():
            self.release([key for keys in reasons.values() for key in keys])
            return
        values = {"owner": self._dialect.as_id(self._owner), "now": self._moment(now)}
        for reason, keys in reasons.items():
            self._change("fail", keys, values | {"reason": reason})

    def _change(self, statement: str, keys: Sequence[str], values: dict[str, Any]) -> None:
        if keys:
            with transaction(self._engine, self._name) as connection:
                connection.execute(self._say[statement], values | {"ids": self._dialect.many(keys)})

    def prune(self, old: datetime) -> int:
        """Forget orders that are done and were due before `old`; returns how many."""
        with transaction(self._engine, self._name) as connection:
            values = {"old": self._moment(old), "excluded": self._excluded}
            return connection.execute(self._say["prune"], values).rowcount

    def _moment(self, now: datetime, later_s: float = 0.0) -> Any:
        return self._dialect.moment(now + self._ahead + timedelta(seconds=later_s))

    def _common(self, now: datetime) -> dict[str, Any]:
        """`too_late`, `too_long`: what ends after these was written by a clock that has been put back."""
        too_long = max(2 * self._rules.claim, _LONGEST_CLAIM_S)
        return {
            "now": self._moment(now), "excluded": self._excluded,
            "too_late": self._moment(now, 2 * self._rules.republish_cap), "too_long": self._moment(now, too_long),
            "owner": self._dialect.as_id(self._owner), "order": self._wanted.order, "forced": self._wanted.forced,
        }  # fmt: skip


def _lacking(nulls: Sequence[Any]) -> tuple[str, ...]:
    return tuple(name for name, null in zip(("OrderId", "Status", "CreateDate"), nulls, strict=True) if null)


def _what_changed(vendor_id: int | None, status: str | None) -> str:
    if vendor_id is None:
        return "the order is gone since it was read"
    if vendor_id:
        return f"placed since it was read: the vendor's order id is {vendor_id}"
    return f'closed since it was read: its status is "{status}"'


def _unusable(candidate: Candidate) -> str:
    if candidate.request is None:
        return "RequestId is null: the platform never gave the order one"
    if str(candidate.request).strip("{}") == str(NIL):
        return "RequestId is the nil UUID: the platform never gave the order one"
    return f'RequestId "{candidate.request}" is not a UUID'
