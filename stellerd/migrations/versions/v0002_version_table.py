"""The version is alembic's to keep: stellerd_meta goes, stellerd_version is its own table already."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Drop what nobody reads any more."""
    op.drop_table("stellerd_meta")
