"""The one thread of a job process: while a run is on it renews the lease."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from stellerd.errors import StellerdError
from stellerd.store import LEASE_S, Claim, Store


class Keeper:
    """Renews at a third of the lease's life; calls `lost(why)` once when the lease is gone or cannot be proved."""

    def __init__(self, store: Store, claim: Claim, lost: Callable[[str], None], lease_s: float = LEASE_S) -> None:
        self.store, self.claim, self.lost, self.lease_s = store, claim, lost, lease_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _keep(self) -> None:
        misses = 0
        while not self._over.wait(self.lease_s / 3):
            try:
                if not self.store.renew(self.claim):
                    self.lost("another process has it now")
                    return
                misses = 0
            except StellerdError as error:  # the store is away: the lease still holds for two more tries
                misses += 1
                if misses >= 2:
                    self.lost(f"could not be renewed: {error}")
                    return
