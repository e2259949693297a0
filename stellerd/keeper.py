"""The one thread of a job process: while a run is on it renews the lease and shows that the process is alive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from stellerd.claims import Claim, boottime
from stellerd.store import Store

_GONE = "another process has it now"
_STEP_DOWN = 1 / 3  # of its life is left: the run is asked to end
_END = 1 / 12  # the process is ended
_RETRY = 1 / 12  # between tries while the store is away


class Keeper:
    """Renews at a third of the lease's life. While that fails it retries; `lost(why)` is called once, with a third
    left, and `end(why)` before the lease is over, or at once when it is: then the process must not do anything more.

    Neither may wait for anybody: the supervisor may be stopped, its pipes full. `stubborn`: no `end` for a store that
    is away, since nobody elsewhere takes this lease.
    """

    def __init__(
        self,
        store: Store,
        claim: Claim,
        lost: Callable[[str], None],
        end: Callable[[str], None] = lambda why: None,
        *,
        alive: Callable[[], None] | None = None,
        alive_every: float = 0.0,
        stubborn: bool = False,
    ) -> None:
        self.store, self.claim, self.lease_s = store, claim, claim.lease_s
        self.lost, self.end, self.stubborn = lost, end, stubborn
        self.alive, self.alive_every = alive, alive_every
        self.until = claim.until
        self.why = ""
        """Why the lease could not be renewed the last time."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(1.0)  # a store that does not answer must not hold up the run's end

    def proved(self) -> bool:
        """Whether the lease is this run's for sure, now: what a process asks that may have been stopped for hours."""
        return self.stubborn or (self.why != _GONE and boottime() < self.until)

    def _keep(self) -> None:
        renew_at, told = boottime() + self.lease_s / 3, False
        while not self._over.wait(self._nap(renew_at)):
            if self.alive:
                self.alive()
            if not self.stubborn and boottime() >= self.until - self.lease_s * _END:
                self.end(f"its lease was not renewed in time{f': {self.why}' if self.why else ''}")
                return
            if boottime() >= renew_at:
                self.why = self._renew()
                renew_at = boottime() + self.lease_s * (_RETRY if self.why else 1 / 3)
            stays_away = self.why and not self.stubborn and boottime() >= self.until - self.lease_s * _STEP_DOWN
            if not told and not self._over.is_set() and (self.why == _GONE or stays_away):
                told = True
                self.lost(self.why)
            if self.why == _GONE:
                self.end(f"its lease is gone: {_GONE}")
                return

    def _nap(self, renew_at: float) -> float:
        moments = [renew_at] if self.stubborn else [renew_at, self.until - self.lease_s * _END]
        nap = max(0.001, min(moments) - boottime())
        return min(nap, self.alive_every) if self.alive_every else nap

    def _renew(self) -> str:
        """Why it could not be renewed; empty when it was. A helper asks, since no driver keeps every promise to
        come back in time."""
        asked, answers = boottime(), list[str]()
        helper = threading.Thread(target=lambda: answers.append(self._ask()), name="keeper", daemon=True)
        helper.start()
        helper.join(max(0.0, min(self.lease_s / 4, self.until - self.lease_s * _END - asked)))
        if not answers:
            return "could not be renewed: the state store does not answer"
        if not answers[0]:
            self.until = asked + self.lease_s
        return answers[0]

    def _ask(self) -> str:
        try:
            return "" if self.store.renew(self.claim) else _GONE
        except Exception as error:  # noqa: BLE001  whatever it is, the lease cannot be proved; `lost` gets the reason
            return f"could not be renewed: {error}"
