"""The tables of the first version, which kept its number in stellerd_meta."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "stellerd_meta", sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False)
    )
    _runs()
    op.create_table(
        "leases",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("machine", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("pid_started", sa.Float, nullable=False),
    )
    _limits()
    op.create_table(
        "cursors",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.JSON, nullable=False),
    )
    op.create_table(
        "quarantine",
        sa.Column("id", _ID, primary_key=True, autoincrement=True),
        sa.Column("run", _ID, nullable=False),
        sa.Column("entity", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("payload", sa.JSON),
        sa.Column("at", _TIME, nullable=False),
    )
    op.create_index("quarantine_by_run", "quarantine", ["run"])


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", _ID, primary_key=True, autoincrement=True),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("slot", _TIME),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("trigger", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("counters", sa.JSON, nullable=False),
        sa.Column("code", sa.Integer),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("finished_at", _TIME),
        sa.Column("not_before", _TIME),
        sa.UniqueConstraint("job", "slot", "attempt", name="runs_one_per_slot"),
    )
    op.create_index("runs_by_job", "runs", ["job", "id"])
    op.create_index("runs_by_end", "runs", ["finished_at"])


def _limits() -> None:
    op.create_table(
        "buckets",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("rates", sa.Text, nullable=False),
        sa.Column("not_before", _TIME),
        sa.Column("source", sa.Text),
        sa.Column("learned_wait", sa.Float),
        sa.Column("failures", sa.Integer, nullable=False),
    )
    op.create_table(
        "hits",
        sa.Column("id", _ID, primary_key=True, autoincrement=True),
        sa.Column("bucket", sa.Text, nullable=False),
        sa.Column("at", _TIME, nullable=False),
    )
    op.create_index("hits_by_bucket", "hits", ["bucket", "at"])
