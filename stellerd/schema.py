"""The tables of the state store, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator

REVISION = "0005"
"""The newest of `stellerd/migrations/versions`, which a new store has from the start."""
metadata = MetaData()
bookkeeping = MetaData()


class UtcTime(TypeDecorator[datetime]):
    """timestamptz; on SQLite, which knows no zones, UTC text that sorts like time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone must not reach the store")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        at: datetime = value
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


class AnyText(TypeDecorator[str]):
    """Text from anywhere: what a database cannot hold (NUL, half a surrogate pair) is kept as its escape."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


class AnyJson(TypeDecorator[Any]):
    """A value from anywhere, for people to look at: what JSON or a database has no word for (NaN, a Decimal, an object)
    is kept as its text, so that no run fails of it."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        try:
            return json.loads(json.dumps(value, default=str), parse_constant=str)
        except (TypeError, ValueError, RecursionError) as error:
            return f"not kept, since it is no JSON: {type(error).__name__}: {error}"


UNFINISHED = text("state = 'running'")
"""Of all runs; literal, so that a planner can tell that the index on them serves."""
_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up by itself for INTEGER only

version = Table(  # alembic's, in its form
    "stellerd_version", bookkeeping, Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="stellerd_version_pkc"),
)  # fmt: skip

runs = Table(
    "runs",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("job", Text, nullable=False),
    Column("slot", UtcTime),  # null for a run that a person asked for
    Column("attempt", Integer, nullable=False),
    Column("trigger", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", AnyText, nullable=False),
    Column("counters", AnyJson, nullable=False),
    Column("code", Integer),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("owner", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("finished_at", UtcTime),
    Column("not_before", UtcTime),
    UniqueConstraint("job", "slot", "attempt", name="runs_one_per_slot"),
    Index("runs_by_job", "job", "id"),
    Index("runs_by_end", "finished_at"),
    Index("runs_unfinished", "job", sqlite_where=UNFINISHED, postgresql_where=UNFINISHED),
)

leases = Table(
    "leases",
    metadata,
    Column("job", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("host", Text, nullable=False),
    Column("machine", Text, nullable=False),  # identity in which the pid means something
    Column("pid", Integer, nullable=False),
    Column("pid_started", Float, nullable=False),
    Column("life", Float, nullable=False, server_default="60"),  # seconds from one renewal to the end, its holder's
)

buckets = Table(
    "buckets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("rates", Text, nullable=False),
    Column("not_before", UtcTime),
    Column("source", Text),  # who closed it: "server" (429), "operator", "breaker"
    Column("learned_wait", Float),
    Column("failures", Integer, nullable=False),  # in a row
    Column("override_rates", Text),  # an operator's, in place of the configured ones
    Column("override_until", UtcTime),  # null: until reset
    Column("boot", Text),  # of the machine whose clock was last granted by, where the store has none of its own
    Column("ahead", Float),  # that clock then, in seconds from the machine's uptime
)

hits = Table(
    "hits",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("bucket", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
    Index("hits_by_bucket", "bucket", "at"),
)

cursors = Table(
    "cursors",
    metadata,
    Column("job", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", JSON, nullable=False),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("run", _Id, nullable=False),
    Column("entity", AnyText, nullable=False),
    Column("key", AnyText, nullable=False),
    Column("reason", AnyText, nullable=False),
    Column("payload", AnyJson),
    Column("at", UtcTime, nullable=False),
    Index("quarantine_by_run", "run"),
)

operations = Table(  # what people did to limits, for `history`
    "operations",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("at", UtcTime, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", AnyText, nullable=False),
    Column("actor", AnyText, nullable=False),
    Column("host", Text, nullable=False),
    Index("operations_by_time", "at"),
)
