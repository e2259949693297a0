"""Forgetting what is old: finished runs with their quarantine, what people did, grants that no window counts.

One process of all that share the store does it, about once an hour, in steps of some milliseconds while it waits for
its next slot.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from stellerd import queries
from stellerd.durations import parse_rates
from stellerd.errors import Unreachable
from stellerd.schema import hits, quarantine, runs
from stellerd.session import Transaction
from stellerd.store import Store

PAUSE_S = 0.005
"""Between two steps: others get their turn."""
_EVERY_S = 3600.0
_STEP = 500
_LEASE = "@pruning"  # no job has such a name


class Pruner:
    """What one process does of it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._steps: Iterator[int] | None = None
        self._look_at = 0.0

    def step(self, keep_s: float) -> bool:
        """Forget a little of what is older than `keep_s` seconds; whether there may be more to do now.

        A store that is away ends it until the next time.
        """
        try:
            if self._steps is None and time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + _EVERY_S / 4
                self._steps = steps(self.store, keep_s) if take_turn(self.store) else None
            if self._steps is not None and next(self._steps, None) is None:
                self._steps = None
        except Unreachable:
            self._steps = None
        return self._steps is not None


def take_turn(store: Store) -> bool:
    """Whether it is time, and now this process's to do; the next turn is in about an hour. Raises: Unreachable."""
    with store.reading() as connection:
        lease = connection.execute(queries.LEASE, of_job=_LEASE).first()
        if lease is not None and not _is_due(lease, store.now(connection)):
            return False
    with store.begin() as connection:
        now = store.now(connection)
        lease = store.lock_lease(connection, _LEASE, now)
        if not _is_due(lease, now):
            return False
        until = now + timedelta(seconds=_EVERY_S * random.uniform(0.75, 1.25))
        connection.execute(queries.TAKE_LEASE, **{**lease._asdict(), "of_job": _LEASE, "expires_at": until})
        return True


def _is_due(lease: Any, now: datetime) -> bool:
    return not timedelta(0) < lease.expires_at - now < timedelta(seconds=2 * _EVERY_S)  # the clock may have been ahead


def steps(store: Store, keep_s: float) -> Iterator[int]:
    """Forget what is older than `keep_s` seconds; after each step, the number of rows that it took.

    Each job's newest slot stays, since its schedule goes on from there. Raises: Unreachable.
    """
    with store.begin() as connection:
        now = store.now(connection)
        old = now - timedelta(seconds=keep_s)
        gone = connection.execute(queries.FORGET_OPERATIONS, before=old).rowcount
    yield gone
    while gone := _forget_runs(store, old, now):
        yield gone
    with store.reading() as connection:
        names = connection.execute(queries.BUCKET_NAMES).scalars()
    for name in names:
        while gone := _forget_hits(store, name, keep_s):
            yield gone


def _forget_runs(store: Store, old: datetime, now: datetime) -> int:
    with store.begin() as connection:
        found = connection.execute(queries.OLD_RUNS, before=old, now=now, at_most=_STEP).scalars()
        _forget(connection, quarantine, "run", found)
        _forget(connection, runs, "id", found)
    return len(found)


def _forget_hits(store: Store, bucket: str, keep_s: float) -> int:
    """Of a bucket in use each grant does so by itself; others may come back with their rates."""
    with store.begin() as connection:  # the bucket's row first, as who grants does, or two could deadlock
        row = connection.execute(queries.LOCK_BUCKET, of_bucket=bucket).first()
        if row is None:
            return 0
        rates = parse_rates(row.rates) + parse_rates(row.override_rates or row.rates)
        kept_s = max(keep_s, *(2 * rate.period for rate in rates))  # the margin of a window is not known here
        before = store.now(connection) - timedelta(seconds=kept_s)
        found = connection.execute(queries.OLD_HITS, of_bucket=bucket, before=before, at_most=_STEP).scalars()
        _forget(connection, hits, "id", found)
    return len(found)


def _forget(connection: Transaction, table: sa.Table, of: str, found: list[int]) -> None:
    if found:
        filled = found + found[-1:] * (_STEP - len(found))  # one statement for any number, compiled once
        connection.execute(queries.forget(table, of, _STEP), **{f"id_{at}": one for at, one in enumerate(filled)})
