"""One process that acquires: for bench/limits.py. Run by this project's Python or by that of the peer's environment.

    _limits_worker.py SUBJECT URL LIMIT PERIOD_S (count N | seconds S)

Says "up" once its bucket is open, waits for a line, then acquires: N times (all of them granted), or for S seconds as
fast as it can. Prints {"begin", "end", "grants"}: seconds of the monotonic clock, which all processes share.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

BUCKET = "bench"


def stellerd(url: str, limit: int, period: float) -> Callable[[], bool]:
    """True: granted."""
    from stellerd.durations import Rate
    from stellerd.limiter import Limit, Limiter
    from stellerd.statements import Statement
    from stellerd.store import Store

    store = Store(url)
    store.create()
    for statement in Statement.known:  # as the daemon does before it forks
        statement.compiled(url.partition(":")[0].partition("+")[0])
    limiter = Limiter(store, {BUCKET: Limit((Rate(limit, period),))})
    return lambda: limiter.try_acquire(BUCKET) is None


def pyrate(url: str, limit: int, period: float, *, patient: bool) -> Callable[[], bool]:
    """The peer, as its documentation has it for several processes; `patient`: it waits for its lock."""
    import pyrate_limiter as peer

    rates = [peer.Rate(limit, int(period * 1000))]
    bucket: Any
    if url.startswith("sqlite:///"):
        bucket = peer.SQLiteBucket.init_from_file(
            rates, table=BUCKET, db_path=url.removeprefix("sqlite:///"), use_file_lock=True
        )
    else:
        from psycopg_pool import ConnectionPool

        pool = ConnectionPool(url.replace("postgresql+psycopg", "postgresql"), min_size=1, max_size=2, open=True)
        bucket = peer.PostgresBucket(pool, BUCKET, rates)
    limiter = peer.Limiter(bucket)
    return lambda: bool(limiter.try_acquire(BUCKET, blocking=patient))


def main() -> None:
    """Open, wait, acquire, tell."""
    subject, url, limit, period, mode, amount = sys.argv[1:]
    if subject == "stellerd":
        acquire = stellerd(url, int(limit), float(period))
    else:
        acquire = pyrate(url, int(limit), float(period), patient=mode == "count")
    print("up", flush=True)
    sys.stdin.readline()
    grants: list[tuple[float, float]] = []
    begin = time.monotonic()
    end = begin + float(amount) if mode == "seconds" else float("inf")
    while time.monotonic() < end and (mode == "seconds" or len(grants) < int(amount)):
        asked = time.monotonic()
        if acquire():
            grants.append((asked, time.monotonic()))
    print(json.dumps({"begin": begin, "end": time.monotonic(), "grants": grants}), flush=True)


if __name__ == "__main__":
    main()
