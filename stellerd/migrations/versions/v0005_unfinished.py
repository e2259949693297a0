"""An index on what runs now, so that no claim reads a job's history; how long a lease holds, by who took it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_UNFINISHED = sa.text("state = 'running'")


def upgrade() -> None:
    """A partial index and a column."""
    op.create_index("runs_unfinished", "runs", ["job"], sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED)
    op.add_column("leases", sa.Column("life", sa.Float, nullable=False, server_default="60"))
