"""Clocks that somebody sets: a bucket's moments follow, so that no step grants early or closes it for good.

Where the time is this host's (SQLite), each grant notes how far the clock is ahead of the uptime. Within one boot that
tells of every step, and the moments move with it. Of a step between two boots, or of a server's clock, only this is
known: nothing was granted later than now, and nobody was told to wait for longer than what was believed then.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from stellerd import hosts, queries
from stellerd.session import Transaction
from stellerd.store import Store

_NOISE_S = 0.25
NONE = timedelta()


def step(store: Store, row: Any) -> timedelta:
    """How far the clock was set since the bucket was last granted from; `row` is the bucket's, if any."""
    ahead = store.ahead()
    if ahead is None or row is None or row.boot != hosts.boot() or abs(ahead - row.ahead) < _NOISE_S:
        return NONE
    return timedelta(seconds=ahead - row.ahead)


def follow(store: Store, connection: Transaction, row: Any) -> Any:
    """Let a locked bucket's moments go with the clock; its row as it is then."""
    ahead = store.ahead()
    if ahead is None or (row.boot == hosts.boot() and abs(ahead - row.ahead) < _NOISE_S):
        return row
    moved = step(store, row)
    if moved:
        for hit in connection.execute(queries.HITS, of_bucket=row.name):
            connection.execute(queries.MOVE_HIT, of_hit=hit.id, at=hit.at + moved)
    moments = {name: plus(getattr(row, name), moved) for name in ("not_before", "override_until")}
    connection.execute(queries.SET_CLOCK, of_bucket=row.name, boot=hosts.boot(), ahead=ahead, **moments)
    return connection.execute(queries.LOCK_BUCKET, of_bucket=row.name).one()


def plus(moment: datetime | None, moved: timedelta) -> datetime | None:
    """A moment that goes with the clock."""
    return None if moment is None else moment + moved


def pull_back(connection: Transaction, row: Any, now: datetime, not_before: datetime | None) -> None:
    """Write down what cannot be later than it was found to be: else it would be found so again and again."""
    connection.execute(queries.PULL_BACK_HITS, of_bucket=row.name, now=now, at=now)
    connection.execute(queries.CLOSE_BUCKET, of_bucket=row.name, not_before=not_before, source=row.source)


def at_most(moment: datetime | None, latest: datetime) -> datetime | None:
    """A moment that cannot be after `latest`."""
    return None if moment is None else min(moment, latest)
