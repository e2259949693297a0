"""Use the libraries once before the fork, so that their lazily built parts are shared by all children.

Called by `preload`, on the supervisor's side, before any job runs. No connection survives it.
"""

from __future__ import annotations

import sys

import setproctitle
import sqlalchemy as sa

from stellerd import hosts, queries, rehearsal
from stellerd.database import open_engine
from stellerd.schema import bookkeeping, metadata
from stellerd.statements import Statement, create_all, dialect_of


def run(backend: str) -> None:
    """Compile the store's statements for "sqlite" or "postgresql", use an engine in memory, prepare a request if there
    may be any, and go through the start of a job."""
    engine = open_engine("sqlite://", "warmup")
    with engine.begin() as connection:
        connection.execute(sa.select(sa.literal(1))).all()
    engine.dispose()
    create_all(metadata, backend)
    create_all(bookkeeping, backend)
    for statement in Statement.known:
        if statement not in queries.TELLERS.values() or statement is queries.TELLERS[backend]:
            statement.compiled(backend)
    hosts.machine()
    name = setproctitle.getthreadtitle()
    setproctitle.getproctitle()  # finds out where the title stands, and leaves the interpreter's path as the name
    setproctitle.setthreadtitle(name)
    if "psycopg" in sys.modules:
        dialect_of("postgresql")
    if "requests" in sys.modules:
        _prepare_a_request()
    rehearsal.run()


def _prepare_a_request() -> None:
    import requests

    import stellerd.http  # noqa: F401  for its children

    requests.Session().prepare_request(requests.Request("GET", "http://localhost/", auth=("a", "b")))
