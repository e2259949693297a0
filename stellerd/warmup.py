"""Use the libraries once before the fork, so that their lazily built parts are shared by all children.

Imported for its effect by `preload`, on the supervisor's side, before any job runs. No connection survives it.
"""

from __future__ import annotations

import requests
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from stellerd import hosts, queries, registry
from stellerd.database import open_engine
from stellerd.schema import bookkeeping, metadata
from stellerd.statements import Statement, create_all


def run() -> None:
    """Compile the store's statements, use an engine on SQLite in memory, prepare a request."""
    engine = open_engine("sqlite://", "warmup")
    with engine.begin() as connection:
        connection.execute(sa.select(sa.literal(1))).all()
    engine.dispose()
    for backend in ("sqlite", "postgresql"):
        create_all(metadata, backend)
        create_all(bookkeeping, backend)
        for statement in Statement.known:
            if statement not in queries.TELLERS.values() or statement is queries.TELLERS[backend]:
                statement.compiled(backend)
    registry.warm_up()
    hosts.machine()
    make_url("postgresql+psycopg://localhost/x").get_dialect()
    requests.Session().prepare_request(requests.Request("GET", "http://localhost/", auth=("a", "b")))


run()
