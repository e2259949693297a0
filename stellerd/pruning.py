"""Forgetting what is old: finished runs with their quarantine, what people did, grants that no window counts.

In small transactions, since jobs wait for the same rows meanwhile, and on SQLite for any writer.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import sqlalchemy as sa

from stellerd import queries
from stellerd.durations import parse_rates
from stellerd.schema import buckets, operations, quarantine, runs
from stellerd.session import Transaction
from stellerd.store import CREATE_LOCK, Store

_LOCK = CREATE_LOCK + 1
_STEP, _PAUSE_S = 500, 0.005


def prune(store: Store, keep_s: float) -> int:
    """Forget what is older than `keep_s` seconds; the number of runs. 0, at once, while another process does it.

    Each job's newest scheduled run stays, since its slots hang on it. Raises: Unreachable.
    """
    with store.begin() as connection:
        if not _alone(connection):
            return 0
        old = store.now(connection) - timedelta(seconds=keep_s)
        connection.execute(sa.delete(operations).where(operations.c.at < old))
        newest = sa.select(sa.func.max(runs.c.id).label("id")).where(runs.c.slot.is_not(None)).group_by(runs.c.job)
        kept = connection.execute(newest).scalars()
    _prune_hits(store, keep_s)
    gone = 0
    while step := _prune_runs(store, old, kept):
        gone += step
        time.sleep(_PAUSE_S)  # others get their turn
    return gone


def _prune_runs(store: Store, old: datetime, kept: list[int]) -> int:
    query = sa.select(runs.c.id).where(runs.c.finished_at < old, runs.c.id.not_in(kept)).limit(_STEP)
    with store.begin() as connection:
        gone = connection.execute(query).scalars() if _alone(connection) else []
        if not gone:
            return 0
        connection.execute(sa.delete(quarantine).where(quarantine.c.run.in_(gone)))
        return connection.execute(sa.delete(runs).where(runs.c.id.in_(gone))).rowcount


def _prune_hits(store: Store, keep_s: float) -> None:
    """Of buckets in use each grant does so by itself; others may come back with their rates."""
    with store.reading() as connection:
        names = connection.execute(sa.select(buckets.c.name)).scalars()
    for name in names:
        with store.begin() as connection:  # the bucket's row first, as who grants does, or two could deadlock
            bucket = connection.execute(queries.LOCK_BUCKET, of_bucket=name).one()
            rates = parse_rates(bucket.rates) + parse_rates(bucket.override_rates or bucket.rates)
            kept_s = max(keep_s, *(2 * rate.period for rate in rates))  # the margin of a window is not known here
            before = store.now(connection) - timedelta(seconds=kept_s)
            connection.execute(queries.FORGET_HITS, of_bucket=name, before=before)


def _alone(connection: Transaction) -> bool:
    """Until the transaction ends no other process prunes; SQLite has one writer anyway."""
    if connection.dialect.name != "postgresql":
        return True
    return bool(connection.execute(queries.TRY_LOCK, of_lock=_LOCK).scalar_one())
