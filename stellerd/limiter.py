"""Rate-limit buckets that survive crashes and restarts and are shared by every process and host.

A bucket is a log of its grants (a sliding window). A slot is spent in a transaction that is committed before the
request is sent: whatever happens to the process afterwards, nobody is granted early. No store, no request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from stellerd import clockstep, queries
from stellerd.claims import boottime
from stellerd.durations import Rate, format_rates, parse_rates
from stellerd.errors import ConfigError, RateLimited
from stellerd.session import Transaction
from stellerd.store import Store

PATIENCE_S = 10.0
_REMEMBERED_S, _FEW = 86400.0, 10_000
MAX_LEARNED_S = 86400.0
SERVER, BREAKER, OPERATOR = "server", "breaker", "operator"
"""Who closed a bucket: a 429, failures in a row, a person."""
_CLOSED_BY = {
    SERVER: "closed by the server's 429",
    BREAKER: "closed since the server does not answer",
    OPERATOR: "closed by an operator",
}
_TRIES = 3
_MARGIN, _MOST_MARGIN_S = 0.02, 1.0
_HARDLY = 1.5
BREAKER_FAILURES = 5
BREAKER_PAUSE_S = 60.0


@cache
def _spans(rates: tuple[Rate, ...], margin: float | None, extra: float) -> tuple[tuple[int, timedelta], ...]:
    margins = (extra + (min(_MOST_MARGIN_S, rate.period * _MARGIN) if margin is None else margin) for rate in rates)
    return tuple((rate.limit, timedelta(seconds=rate.period + more)) for rate, more in zip(rates, margins, strict=True))


@dataclass(frozen=True)
class Slot:
    """The right to send one request; `spent` is the `boottime` of the grant."""

    bucket: str
    hit: int
    spent: float


@dataclass(frozen=True)
class Limit:
    """The rules of one bucket; periods, margin, cap and pause in seconds."""

    rates: tuple[Rate, ...]
    margin: float | None = None
    max_learned: float = MAX_LEARNED_S
    wait_patterns: tuple[str, ...] = ()
    breaker_failures: int = BREAKER_FAILURES
    breaker_pause: float = BREAKER_PAUSE_S
    extra: float = 0.0
    """Added to each margin since the server was found to count more strictly."""

    def spans(self) -> tuple[tuple[int, timedelta], ...]:
        """(limit, window) pairs, each window with its margin: the server's clock starts when a request arrives,
        ours when the slot is spent, and the network is not equally fast each time."""
        return _spans(self.rates, self.margin, self.extra)

    def wider(self) -> float:
        """The next `extra`: it doubles, up to a second and to half of the shortest window."""
        shortest = min(rate.period for rate in self.rates)
        return min(max(2 * self.extra, _MARGIN * shortest), _MOST_MARGIN_S, shortest / 2)

    def skew(self) -> float:
        """The least margin, in seconds: how late a request may arrive after its slot was spent."""
        return min(span.total_seconds() - rate.period for rate, (_, span) in zip(self.rates, self.spans(), strict=True))

    def remembered(self) -> timedelta:
        """How long grants are kept even if no window of ours counts them, while they are few: those of another
        process's configuration, or of tomorrow's, may be longer."""
        return timedelta(seconds=min(_REMEMBERED_S, max(_FEW * rate.period / rate.limit for rate in self.rates)))

    def longest(self) -> float:
        """Seconds of the longest window."""
        return max(rate.period for rate in self.rates)

    def in_force(self, row: Any, seen: Look) -> Limit:
        """The limit with the rates that an operator put in its place, if any; `row` is the bucket's."""
        over = seen.override_until is not None and seen.override_until <= seen.now
        if not row or row.override_rates is None or over:
            return self
        return replace(self, rates=parse_rates(row.override_rates))


class Limiter:
    """Answers "granted" or "next slot at T"; exact among any number of processes on one store."""

    def __init__(self, store: Store, limits: Mapping[str, Limit]) -> None:
        self.store, self.limits = store, limits
        self._extra: dict[str, float] = {}

    def _limit(self, bucket: str) -> Limit:
        if bucket not in self.limits:
            raise ConfigError(f'limits.{bucket}: missing; add [limits.{bucket}] with a rate such as "2/1h"')
        limit = self.limits[bucket]
        return replace(limit, extra=self._extra[bucket]) if bucket in self._extra else limit

    def patterns(self, bucket: str) -> tuple[str, ...]:
        """How the bucket's server names a wait, besides the usual ways."""
        return self._limit(bucket).wait_patterns

    def try_acquire(self, bucket: str, takes_s: float = 0.0) -> datetime | None:
        """Spend a slot now (None), or say when the next one is (aware UTC).

        `takes_s`: longest time until the outcome is told to `report`. Raises: Unreachable when the store is, LeaseLost
        when the run has lost its lease: then nothing may be sent.
        """
        answer = self._take(bucket, takes_s)
        return None if isinstance(answer, Slot) else answer

    def _take(self, bucket: str, takes_s: float) -> datetime | Slot:
        limit, spent = self._limit(bucket), boottime()
        with self.store.fenced() as connection:
            row = self._lock(connection, bucket, limit)
            seen = look(self.store, connection, bucket, limit, row, clockstep.NONE)
            now, valid = seen.now, limit.in_force(row, seen)
            if (free := _refusal(connection, row, seen, valid)) is not None:
                return free
            if row.source == BREAKER:  # half-open: this is the one probe; whoever comes meanwhile waits
                until = now + timedelta(seconds=max(limit.breaker_pause, takes_s))
                connection.execute(queries.CLOSE_BUCKET, of_bucket=bucket, not_before=until, source=BREAKER)
            if seen.nth[max(seen.nth)] is not None:  # there are as many as any window counts: some may be too old
                spans = limit.spans() + valid.spans() + Limit(parse_rates(row.rates)).spans()
                kept = max(limit.remembered(), *(span for _, span in spans))
                connection.execute(queries.FORGET_HITS, of_bucket=bucket, before=now - kept)
            return Slot(bucket, connection.execute(queries.SPEND, bucket=bucket, at=now).scalar_one(), spent)

    def acquire(
        self, bucket: str, wait: Callable[[float], bool], patience: float = PATIENCE_S, takes_s: float = 0.0
    ) -> Slot:
        """Spend a slot, waiting in place when the next one is at most `patience` seconds away.

        `wait(seconds)` sleeps and says whether to give up. Raises: RateLimited with the time of the next slot.
        """
        window = min(span for _, span in self._limit(bucket).spans()).total_seconds()
        for _ in range(_TRIES):
            while not isinstance(free := self._take(bucket, takes_s), Slot):
                self._wait_until(free, bucket, wait, patience)
            if boottime() - free.spent < window:  # else somebody may have been granted the next one meanwhile
                return free
        raise RateLimited(bucket, self._now() + timedelta(seconds=window), "the state store is slower than its window")

    def await_open(self, bucket: str, wait: Callable[[float], bool], patience: float = PATIENCE_S) -> None:
        """Wait in place until there is a slot, and leave it there: for what has to be done before it is spent.

        Raises: as `acquire`.
        """
        while self.closed_until(bucket) is not None and (free := self._checked(bucket)) is not None:
            self._wait_until(free, bucket, wait, patience)

    def _checked(self, bucket: str) -> datetime | None:
        """`closed_until`; what the store has of a wrong clock is put right."""
        limit = self._limit(bucket)
        with self.store.begin() as connection:
            row = self._lock(connection, bucket, limit)
            seen = look(self.store, connection, bucket, limit, row, clockstep.NONE)
            return _refusal(connection, row, seen, limit.in_force(row, seen))

    def _wait_until(self, free: datetime, bucket: str, wait: Callable[[float], bool], patience: float) -> None:
        seconds = (free - self._now()).total_seconds()
        if seconds > patience or wait(max(seconds, 0.001)):
            raise RateLimited(bucket, free, self._why(bucket, free))

    def sent(self, slot: Slot) -> None:
        """The slot's request has left only now: if that took long, the server's window begins as much later.

        Raises: Unreachable.
        """
        if boottime() - slot.spent > self._limit(slot.bucket).skew() / 4:
            with self.store.begin() as connection:
                connection.execute(queries.MOVE_HIT, of_hit=slot.hit, at=self.store.now(connection))

    def _why(self, bucket: str, free: datetime) -> str:
        """What keeps the bucket closed until then."""
        with self.store.reading() as connection:
            row = connection.execute(queries.BUCKET, of_bucket=bucket).first()
        closed = row is not None and row.not_before is not None and row.not_before >= free
        return _CLOSED_BY.get(row.source, "closed") if closed else "limit used up"

    def closed_until(self, bucket: str) -> datetime | None:
        """When the next slot is, or None when there is one now; spends nothing."""
        limit = self._limit(bucket)
        with self.store.reading() as connection:
            row = connection.execute(queries.BUCKET, of_bucket=bucket).first()
            seen = look(self.store, connection, bucket, limit, row)
            free = seen.next_free(limit.in_force(row, seen))
            return free if free is not None and free > seen.now else None

    def learn(self, bucket: str, seconds: float | None) -> datetime:
        """Close the bucket for everybody, since the server said so; None (unreadable) means one full window.

        Where the refused request came hardly a window after another one, this process keeps a wider margin from now on.
        Returns: when it opens (aware UTC). A shorter wait never opens it sooner than a longer one said before.
        """
        limit, wait = self._limit(bucket), self.believed(bucket, seconds)
        with self.store.begin() as connection:
            row = self._lock(connection, bucket, limit)
            if _was_early(connection, bucket, limit):
                self._extra[bucket] = limit.wider()
            until = self.store.now(connection) + timedelta(seconds=wait)
            if row.not_before is not None and row.not_before > until and row.source != BREAKER:
                return row.not_before  # type: ignore[no-any-return]
            connection.execute(
                queries.LEARN, of_bucket=bucket, not_before=until, source=SERVER, learned_wait=wait, failures=0
            )
            return until

    def believed(self, bucket: str, seconds: float | None) -> float:
        """The wait that a server named, capped; one full window for None, or for what is no wait."""
        limit = self._limit(bucket)
        if seconds is None or math.isnan(seconds):
            return limit.longest()
        return min(max(seconds, 0.0), limit.max_learned)

    def report(self, bucket: str, *, answered: bool) -> datetime | None:
        """Count failures in a row; the last of `breaker_failures` closes the bucket for everybody (the circuit opens).

        An answer, whatever it says, ends the row and closes the circuit again. Returns: until when this failure closed
        the bucket (aware UTC), if it did.
        """
        limit = self._limit(bucket)
        if answered:
            with self.store.reading() as connection:
                row = connection.execute(queries.BUCKET, of_bucket=bucket).first()
            if row is None or not row.failures:
                return None  # the usual: nothing to write
        elif not limit.breaker_failures:
            return None
        with self.store.begin() as connection:
            row = self._lock(connection, bucket, limit)
            return self._count(connection, bucket, limit, row, answered)

    def _count(self, connection: Transaction, bucket: str, limit: Limit, row: Any, answered: bool) -> datetime | None:
        failures = 0 if answered else row.failures + 1
        connection.execute(queries.COUNT_FAILURES, of_bucket=bucket, failures=failures)
        if answered:
            if row.source == BREAKER:
                connection.execute(queries.CLOSE_BUCKET, of_bucket=bucket, not_before=None, source=None)
            return None
        until: datetime = self.store.now(connection) + timedelta(seconds=limit.breaker_pause)
        longer = row.not_before is not None and row.not_before > until and row.source != BREAKER
        if failures < limit.breaker_failures or longer:
            return None
        connection.execute(queries.CLOSE_BUCKET, of_bucket=bucket, not_before=until, source=BREAKER)
        return until

    def _lock(self, connection: Transaction, bucket: str, limit: Limit) -> Any:
        """Hold the bucket's row until the transaction ends; the row."""
        rates = format_rates(limit.rates)
        row = connection.execute(queries.LOCK_BUCKET, of_bucket=bucket).first()
        if row is None:
            connection.execute(queries.MAKE_BUCKET, name=bucket, rates=rates, failures=0)
            row = connection.execute(queries.LOCK_BUCKET, of_bucket=bucket).one()
        if row.rates != rates:
            connection.execute(queries.SET_RATES, of_bucket=bucket, rates=rates)
        return clockstep.follow(self.store, connection, row)

    def _now(self) -> datetime:
        with self.store.reading() as connection:
            return self.store.now(connection)


@dataclass(frozen=True)
class Look:
    """One look at a bucket: the n-th newest grant, for each n that a window allows, and until when it is closed."""

    now: datetime
    nth: Mapping[int, datetime | None]
    not_before: datetime | None
    override_until: datetime | None
    wrong_clock: bool
    """Something in the store is later than it can be; here it is not."""

    def next_free(self, limit: Limit) -> datetime | None:
        """The first moment at which every window has room and nobody closed the bucket; None: any time."""
        moments = [] if self.not_before is None else [self.not_before]
        moments += [nth + span for count, span in limit.spans() if (nth := self.nth[count]) is not None]
        return max(moments, default=None)


def _was_early(connection: Transaction, bucket: str, limit: Limit) -> bool:
    """Whether a window had just passed when the newest grant was given: then the server's was not over yet."""
    counts = sorted({count for count, _ in limit.spans()})
    skips = {f"skip_{at}": count for at, count in enumerate((0, *counts))}
    _, newest, *before = connection.execute(queries.look(len(skips)), of_bucket=bucket, **skips).one()
    nth = dict(zip(counts, before, strict=True))
    return any(at is not None and newest - at < span * _HARDLY for count, span in limit.spans() if (at := nth[count]))


def _refusal(connection: Transaction, row: Any, seen: Look, valid: Limit) -> datetime | None:
    """When a locked bucket has its next slot; None: now."""
    free = seen.next_free(valid)
    if free is None or free <= seen.now:
        return None
    if seen.wrong_clock:
        clockstep.pull_back(connection, row, seen.now, seen.not_before)
    return free


def look(
    store: Store, connection: Transaction, bucket: str, limit: Limit, row: Any, moved: timedelta | None = None
) -> Look:
    """Everything in one statement, for the configured windows and an operator's; `row` is the bucket's, if any.

    `moved`: see `clockstep.step`, where it is known already.
    """
    rates = limit.rates + (parse_rates(row.override_rates) if row and row.override_rates else ())
    counts = sorted({rate.limit for rate in rates})
    skips = {f"skip_{at}": count - 1 for at, count in enumerate(counts)}
    now, *found = connection.execute(queries.look(len(counts)), of_bucket=bucket, **skips).one()
    if store.clock is not None or now is None:
        now = store.now(connection)
    moved = clockstep.step(store, row) if moved is None else moved
    told = [clockstep.plus(at, moved) for at in found], clockstep.plus(row and row.not_before, moved)
    real = [clockstep.at_most(at, now) for at in told[0]], clockstep.at_most(told[1], _latest(limit, row, now))
    until = clockstep.plus(row and row.override_until, moved)
    return Look(now, dict(zip(counts, real[0], strict=True)), real[1], until, wrong_clock=real != told)


def _latest(limit: Limit, row: Any, now: datetime) -> datetime:
    """Until when the bucket can be closed at most, by who closed it."""
    if row is None or row.source == OPERATOR:
        return datetime.max.replace(tzinfo=UTC)
    longest = max(limit.max_learned, limit.breaker_pause, MAX_LEARNED_S)
    return now + timedelta(seconds=row.learned_wait if row.source == SERVER and row.learned_wait else longest)
