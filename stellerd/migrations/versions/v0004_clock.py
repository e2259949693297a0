"""By which clock a bucket was last granted from, so that it can follow when somebody sets that clock."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Two columns."""
    op.add_column("buckets", sa.Column("boot", sa.Text))
    op.add_column("buckets", sa.Column("ahead", sa.Float))
