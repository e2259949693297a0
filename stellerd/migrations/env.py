"""What alembic runs for each command; `stellerd.migrate` hands over the connection, or the dialect for `db sql`."""

from __future__ import annotations

from typing import Any

from alembic import context

from stellerd.schema import metadata

OPTIONS: dict[str, Any] = {"version_table": "stellerd_version", "render_as_batch": True, "target_metadata": metadata}

if context.is_offline_mode():
    context.configure(**OPTIONS, dialect_name=context.config.attributes["dialect"], literal_binds=True)
    context.run_migrations()
else:
    context.configure(**OPTIONS, connection=context.config.attributes["connection"])
    context.run_migrations()
