"""The one thread of a job process: while a run is on it renews the lease and shows that the process is alive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from stellerd.store import LEASE_S, Claim, Store

_GONE = "another process has it now"


class Keeper:
    """Renews at a third of the lease's life; calls `lost(why)` once when the lease is gone or cannot be proved."""

    def __init__(
        self,
        store: Store,
        claim: Claim,
        lost: Callable[[str], None],
        lease_s: float = LEASE_S,
        *,
        alive: Callable[[], None] | None = None,
        alive_every: float = 0.0,
    ) -> None:
        self.store, self.claim, self.lost, self.lease_s = store, claim, lost, lease_s
        self.alive, self.alive_every = alive, alive_every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _keep(self) -> None:
        pause = self.lease_s / 3
        renew_at, misses = time.monotonic() + pause, 0
        while not self._over.wait(min(self.alive_every or pause, pause)):
            if self.alive:
                self.alive()
            if time.monotonic() < renew_at:
                continue
            renew_at += pause
            why = self._renew()
            misses = misses + 1 if why else 0
            if why == _GONE or misses >= 2:  # the store may be away once: the lease still holds
                self.lost(why)
                return

    def _renew(self) -> str:
        """Why it could not be renewed; empty when it was."""
        try:
            return "" if self.store.renew(self.claim) else _GONE
        except Exception as error:  # noqa: BLE001  whatever it is, the lease cannot be proved; `lost` gets the reason
            return f"could not be renewed: {error}"
