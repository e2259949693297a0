"""What the supervised jobs of bench/supervisor.py do, the same under every supervisor.

As a program: `python _supervisor_jobs.py NAME KIND`. Told where by $BENCH_FIFO (a line "name pid monotonic-ns" for each
process that is up), $BENCH_GO (a FIFO whose writer says "start printing") and $BENCH_URL (a page to fetch).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

LINE = b"2026-01-01 12:00:00 INFO worker: processed item 1234567890 of the batch, ok\n"
LINES = 500_000  # of 76 bytes: 38 MB


def say(name: str) -> None:
    """Tell the bench that this process is up."""
    fd = os.open(os.environ["BENCH_FIFO"], os.O_WRONLY)
    os.write(fd, f"{name} {os.getpid()} {time.monotonic_ns()}\n".encode())
    os.close(fd)


def pause() -> None:
    """Until a signal ends the process."""
    while True:
        signal.pause()


def act(name: str, kind: str, wait: Callable[[], None] = pause) -> None:
    """Be a job of this kind; `wait` is how its supervisor likes it to be idle."""
    if kind in ("libs", "work"):
        three_libs()
    if kind == "work":
        real_work()
    if kind == "family" and os.fork() == 0:
        name, wait = f"{name}-grandchild", pause
    say(name)
    if kind == "exits":
        os._exit(1)
    if kind == "talks":
        talk(name)
    wait()


def three_libs() -> None:
    """Import what jobs of this kind usually need."""
    import pika  # noqa: F401
    import requests  # noqa: F401
    import sqlalchemy.dialects.postgresql.psycopg
    import sqlalchemy.dialects.sqlite.pysqlite  # noqa: F401


def real_work() -> None:
    """One fetch, 5,000 rows in and out of a database, 1,000 messages encoded: touches what a run touches."""
    import pika
    import requests
    import sqlalchemy as sa

    items = requests.get(os.environ["BENCH_URL"], timeout=10).json()
    engine = sa.create_engine("sqlite://")
    table = sa.Table("item", sa.MetaData(), *(sa.Column(name, sa.String) for name in items[0]))
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(sa.insert(table), items)
        rows = connection.execute(sa.select(table).order_by(table.c.name)).all()
    for row in rows[:1000]:
        b"".join(pika.BasicProperties(message_id=row.name, delivery_mode=2).encode())
    engine.dispose()


def talk(name: str) -> None:
    """Print LINES lines when told to, each with a write of its own as a logging handler does, then say so."""
    with open(os.environ["BENCH_GO"], "rb") as go:
        go.read()
    for _ in range(LINES):
        os.write(1, LINE)  # below PIPE_BUF: whole or not at all
    say(f"{name}-done")


if __name__ == "__main__":
    act(sys.argv[1], sys.argv[2])
