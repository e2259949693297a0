"""Use the libraries once before the fork, so that their lazily built parts are shared by all children.

Imported for its effect by `preload`, on the supervisor's side, before any job runs. No connection survives it.
"""

from __future__ import annotations

from datetime import UTC, datetime

import requests
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import make_url

from stellerd.schema import metadata, runs


def run() -> None:
    """Compile and run a statement on SQLite in memory, compile one for PostgreSQL, prepare a request."""
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(sa.select(runs).where(runs.c.started_at < datetime.now(UTC))).all()
    engine.dispose()
    make_url("postgresql+psycopg://localhost/x").get_dialect()
    str(
        sa.select(runs)
        .with_for_update()
        .compile(
            dialect=postgresql.dialect()  # type: ignore[no-untyped-call]
        )
    )
    requests.Session().prepare_request(requests.Request("GET", "http://localhost/", auth=("a", "b")))


run()
