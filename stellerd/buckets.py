"""Buckets as operators see and change them: `stellerd limits`. Works on the store itself, daemon or not."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from stellerd import clockstep, hosts, queries
from stellerd.durations import Rate, format_rates, parse_rates
from stellerd.errors import UsageError
from stellerd.limiter import BREAKER, OPERATOR, Limit, Look, look
from stellerd.schema import buckets, hits, operations
from stellerd.session import Transaction
from stellerd.status import iso
from stellerd.store import Store


class Buckets:
    """Those of the configuration, and those that plugins know and have used."""

    def __init__(self, store: Store, limits: Mapping[str, Limit]) -> None:
        self.store, self.limits = store, limits

    def show(self, bucket: str | None = None) -> list[dict[str, Any]]:
        """Each bucket, or one, with what is used of every window and when it is open (docs/reference/json.md).

        Raises: UsageError when there is no such bucket.
        """
        with self.store.reading() as connection:
            rows = {row.name: row for row in connection.execute(sa.select(buckets).order_by(buckets.c.name))}
            return [self._shown(connection, name, rows.get(name)) for name in self._known(rows, bucket)]

    def set(
        self, bucket: str, *, rates: tuple[Rate, ...] = (), closed_s: float | None = None, for_s: float | None = None
    ) -> None:
        """Put `rates` in place of the configured ones, until reset or for `for_s` seconds; close it for `closed_s`.

        Raises: UsageError when there is no such bucket.
        """
        said = []
        with self.store.begin() as connection:
            now = self._lock(connection, bucket)
            values: dict[str, Any] = {}
            if rates:
                until = None if for_s is None else now + timedelta(seconds=for_s)
                values |= {"override_rates": format_rates(rates), "override_until": until}
                said.append(f"rate {format_rates(rates)} {f'until {iso(until)}' if until else 'until reset'}")
            if closed_s is not None:
                values |= {"not_before": now + timedelta(seconds=closed_s), "source": OPERATOR}
                said.append(f"closed until {iso(now + timedelta(seconds=closed_s))}")
            connection.execute(sa.update(buckets).where(buckets.c.name == bucket).values(**values))
            self._note(connection, now, "limits set", bucket, ", ".join(said))

    def reset(self, bucket: str, *, spent: bool = False) -> None:
        """Back to the configuration: no operator's rate, nobody's `not_before`, no failures counted.

        `spent`: forget the slots that were spent, too. Raises: UsageError when there is no such bucket.
        """
        with self.store.begin() as connection:
            now = self._lock(connection, bucket)
            values = dict.fromkeys(("not_before", "source", "learned_wait", "override_rates", "override_until"))
            connection.execute(sa.update(buckets).where(buckets.c.name == bucket).values(**values, failures=0))
            said = "opened, configured rate in force"
            if spent:
                count = connection.execute(sa.delete(hits).where(hits.c.bucket == bucket)).rowcount
                said += f", {count} spent slots forgotten"
            self._note(connection, now, "limits reset", bucket, said)

    def _known(self, rows: Mapping[str, Any], bucket: str | None) -> list[str]:
        names = sorted({*self.limits, *rows})
        if bucket is not None and bucket not in names:
            raise UsageError(f'no limit "{bucket}"; there are: {", ".join(names) or "none"}')
        return names if bucket is None else [bucket]

    def _lock(self, connection: Transaction, bucket: str) -> datetime:
        """The bucket's row is there and ours until the end of the transaction; the store's time."""
        if bucket in self.limits:
            rates = format_rates(self.limits[bucket].rates)
            connection.execute(queries.MAKE_BUCKET, name=bucket, rates=rates, failures=0)
        row = connection.execute(queries.LOCK_BUCKET, of_bucket=bucket).first()
        self._known({row.name: row} if row else {}, bucket)
        clockstep.follow(self.store, connection, row)
        return self.store.now(connection)

    def _shown(self, connection: Transaction, name: str, row: Any) -> dict[str, Any]:
        configured = self.limits.get(name) or Limit(parse_rates(row.rates))
        seen = look(self.store, connection, name, configured, row)
        limit = configured.in_force(row, seen)
        not_before = seen.not_before
        closed = not_before is not None and not_before > seen.now
        free = seen.next_free(limit)
        windows = zip(limit.rates, limit.spans(), strict=True)
        return {
            "bucket": name,
            "windows": [_window(connection, name, rate, span, seen) for rate, (_, span) in windows],
            "next_slot": iso(free) if free is not None and free > seen.now else None,
            "not_before": _iso(not_before) if closed else None,
            "source": row.source if closed else None,
            "learned_wait": row.learned_wait if row else None,
            "breaker": _breaker(row, closed=closed),
            "failures": row.failures if row else 0,
            "configured": [str(rate) for rate in configured.rates],
            "used_as": _used_as(row, configured),
            "override": None
            if limit is configured
            else {"rates": [str(rate) for rate in limit.rates], "until": _iso(seen.override_until)},
        }

    def _note(self, connection: Transaction, now: datetime, action: str, subject: str, detail: str) -> None:
        who = {"actor": _user(), "host": hosts.this_process(self.store.host)["host"]}
        connection.execute(sa.insert(operations).values(at=now, action=action, subject=subject, detail=detail, **who))


def operations_of(store: Store, limit: int, since: datetime | None = None) -> list[dict[str, Any]]:
    """What people did to limits, newest first."""
    query = sa.select(operations).order_by(operations.c.id.desc()).limit(limit)
    query = query if since is None else query.where(operations.c.at >= since)
    with store.reading() as connection:
        return [row._asdict() | {"at": iso(row.at)} for row in connection.execute(query)]


def _window(connection: Transaction, name: str, rate: Rate, span: timedelta, seen: Look) -> dict[str, Any]:
    inside = (hits.c.bucket == name) & (hits.c.at > seen.now - span)
    used = connection.execute(sa.select(sa.func.count()).select_from(hits).where(inside)).scalar_one()
    nth = seen.nth[rate.limit]
    free = nth + span if nth is not None and nth + span > seen.now else None
    return {
        "rate": str(rate), "used": used, "limit": rate.limit, "window": span.total_seconds(), "next_slot": _iso(free),
    }  # fmt: skip


def _used_as(row: Any, configured: Limit) -> list[str] | None:
    """The rates by which a job used the bucket last, when they are not those of this configuration."""
    return None if row is None or row.rates == format_rates(configured.rates) else row.rates.split(", ")


def _breaker(row: Any, *, closed: bool) -> str:
    """closed: requests go through; open: none does; half-open: the next one is the probe."""
    if row is None or row.source != BREAKER:
        return "closed"
    return "open" if closed else "half-open"


def _iso(at: datetime | None) -> str | None:
    return None if at is None else iso(at)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return "unknown"
