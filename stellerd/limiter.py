"""Rate-limit buckets that survive crashes and restarts and are shared by every process and host.

A bucket is a log of its grants (a sliding window). A slot is spent in a transaction that is committed before the
request is sent: whatever happens to the process afterwards, nobody is granted early. No store, no request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from stellerd.durations import Rate
from stellerd.errors import ConfigError, RateLimited
from stellerd.schema import buckets, hits
from stellerd.store import Store

PATIENCE_S = 10.0
MAX_LEARNED_S = 86400.0


@dataclass(frozen=True)
class Limit:
    """The rules of one bucket; periods, margin and cap in seconds."""

    rates: tuple[Rate, ...]
    margin: float | None = None
    max_learned: float = MAX_LEARNED_S

    def spans(self) -> list[tuple[int, timedelta]]:
        """(limit, window) pairs, each window with its margin: the server's clock starts when a request arrives,
        ours when the slot is spent, and the network is not equally fast each time."""
        return [
            (r.limit, timedelta(seconds=r.period + (min(1.0, r.period * 0.02) if self.margin is None else self.margin)))
            for r in self.rates
        ]

    def longest(self) -> float:
        """Seconds of the longest window."""
        return max(rate.period for rate in self.rates)


class Limiter:
    """Answers "granted" or "next slot at T"; exact among any number of processes on one store."""

    def __init__(self, store: Store, limits: Mapping[str, Limit]) -> None:
        self.store, self.limits = store, limits

    def _limit(self, bucket: str) -> Limit:
        if bucket not in self.limits:
            raise ConfigError(f'limits.{bucket}: missing; add [limits.{bucket}] with a rate such as "2/1h"')
        return self.limits[bucket]

    def try_acquire(self, bucket: str) -> datetime | None:
        """Spend a slot now (None), or say when the next one is (aware UTC).

        Raises: Unreachable when the store is: then nothing may be sent.
        """
        limit = self._limit(bucket)
        with self.store.begin() as connection:
            not_before = self._lock(connection, bucket, limit)
            now = self.store.now(connection)
            free = _next_free(connection, bucket, limit, not_before)
            if free is not None and free > now:
                return free
            oldest = now - max(span for _, span in limit.spans())
            connection.execute(sa.delete(hits).where(hits.c.bucket == bucket, hits.c.at < oldest))
            connection.execute(sa.insert(hits).values(bucket=bucket, at=now))
            return None

    def acquire(self, bucket: str, wait: Callable[[float], bool], patience: float = PATIENCE_S) -> None:
        """Spend a slot, waiting in place when the next one is at most `patience` seconds away.

        `wait(seconds)` sleeps and says whether to give up. Raises: RateLimited with the time of the next slot.
        """
        while (free := self.try_acquire(bucket)) is not None:
            seconds = (free - self._now()).total_seconds()
            if seconds > patience or wait(max(seconds, 0.001)):
                raise RateLimited(bucket, free)

    def closed_until(self, bucket: str) -> datetime | None:
        """When the next slot is, or None when there is one now; spends nothing."""
        limit = self._limit(bucket)
        with self.store.reading() as connection:
            not_before = connection.execute(sa.select(buckets.c.not_before).where(buckets.c.name == bucket)).scalar()
            free = _next_free(connection, bucket, limit, not_before)
            return free if free is not None and free > self.store.now(connection) else None

    def learn(self, bucket: str, seconds: float | None) -> datetime:
        """Close the bucket for everybody, since the server said so; None (unreadable) means one full window.

        Returns: when it opens (aware UTC). A shorter wait never opens it sooner than a longer one said before.
        """
        limit = self._limit(bucket)
        wait = limit.longest() if seconds is None else min(max(seconds, 0.0), limit.max_learned)
        with self.store.begin() as connection:
            before = self._lock(connection, bucket, limit)
            until = self.store.now(connection) + timedelta(seconds=wait)
            if before is not None and before > until:
                return before
            self._update(connection, bucket, not_before=until, source="server", learned_wait=wait)
            return until

    def _lock(self, connection: sa.Connection, bucket: str, limit: Limit) -> datetime | None:
        """Hold the bucket's row until the transaction ends; its `not_before`."""
        rates = ", ".join(map(str, limit.rates))
        query = sa.select(buckets.c.not_before, buckets.c.rates).where(buckets.c.name == bucket).with_for_update()
        row = connection.execute(query).first()
        if row is None:
            insert = self.store.insert(buckets).values(name=bucket, rates=rates, failures=0)
            connection.execute(insert.on_conflict_do_nothing())
            row = connection.execute(query).one()
        if row.rates != rates:
            self._update(connection, bucket, rates=rates)
        not_before: datetime | None = row.not_before
        return not_before

    def _update(self, connection: sa.Connection, bucket: str, **values: Any) -> None:
        connection.execute(sa.update(buckets).where(buckets.c.name == bucket).values(**values))

    def _now(self) -> datetime:
        with self.store.reading() as connection:
            return self.store.now(connection)


def _next_free(connection: sa.Connection, bucket: str, limit: Limit, not_before: datetime | None) -> datetime | None:
    """The first moment at which every window has room and nobody closed the bucket; None: any time."""
    moments = [] if not_before is None else [not_before]
    for count, span in limit.spans():
        newest = sa.select(hits.c.at).where(hits.c.bucket == bucket).order_by(hits.c.at.desc())
        nth = connection.execute(newest.offset(count - 1).limit(1)).scalar()
        if nth is not None:
            moments.append(nth + span)
    return max(moments, default=None)
