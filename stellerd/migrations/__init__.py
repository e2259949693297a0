"""The state store's past: each change of its tables since the first release, for `stellerd db upgrade` (alembic)."""
