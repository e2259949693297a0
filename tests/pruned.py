"""Forgetting what is old, all of it at once."""

from __future__ import annotations

from stellerd.pruning import steps
from stellerd.store import Store


def prune(store: Store, keep_s: float) -> int:
    """Forget what is older than `keep_s` seconds; the number of runs."""
    before = len(store.history(limit=1_000_000))
    for _ in steps(store, keep_s):
        pass
    return before - len(store.history(limit=1_000_000))
