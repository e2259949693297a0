"""Use the libraries once before the fork, so that their lazily built parts are shared by all children.

Called by `preload`, on the supervisor's side, before any job runs. No connection survives it.
"""

from __future__ import annotations

import requests
import setproctitle
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from stellerd import hosts, queries, registry
from stellerd.database import open_engine
from stellerd.schema import bookkeeping, metadata
from stellerd.statements import Statement, create_all


def run(backend: str) -> None:
    """Compile the store's statements for "sqlite" or "postgresql", use an engine in memory, prepare a request."""
    engine = open_engine("sqlite://", "warmup")
    with engine.begin() as connection:
        connection.execute(sa.select(sa.literal(1))).all()
    engine.dispose()
    create_all(metadata, backend)
    create_all(bookkeeping, backend)
    for statement in Statement.known:
        if statement not in queries.TELLERS.values() or statement is queries.TELLERS[backend]:
            statement.compiled(backend)
    registry.warm_up()
    hosts.machine()
    setproctitle.getproctitle()  # finds out where the title stands
    make_url("postgresql+psycopg://localhost/x").get_dialect()
    requests.Session().prepare_request(requests.Request("GET", "http://localhost/", auth=("a", "b")))
