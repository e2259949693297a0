"""The keeper renews while a run is on and says once when it cannot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from stellerd.claims import Claim, boottime
from stellerd.errors import Unreachable
from stellerd.keeper import Keeper


class Lease:
    """A store's `renew` with answers prepared; the last one is given for ever."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.enough = threading.Event()

    def renew(self, claim: Claim) -> bool:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if self.asked >= 4:
            self.enough.set()
        if isinstance(answer, Exception):
            raise answer
        return answer


def claim(lease_s: float) -> Claim:
    return Claim(1, "a", "me", 1, None, 1, boottime() + lease_s, lease_s)


def kept(lease: Lease, wait: Callable[[list[str]], Any], lease_s: float = 0.06, **more: Any) -> list[str]:
    lost: list[str] = []
    store: Any = lease
    with Keeper(store, claim(lease_s), lost.append, **more):
        wait(lost)
    return lost


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_lease_is_renewed_again_and_again() -> None:
    lease = Lease(True)
    assert kept(lease, lambda lost: lease.enough.wait(10)) == []
    assert lease.asked >= 4


def test_a_lease_that_somebody_else_has_is_lost_at_once_and_told_once() -> None:
    lease = Lease(True, False)
    assert kept(lease, lambda lost: until(lambda: lost)) == ["another process has it now"]
    assert lease.asked == 2


def test_a_store_that_is_away_once_loses_nothing() -> None:
    lease = Lease(Unreachable("away"), True)
    assert kept(lease, lambda lost: lease.enough.wait(10)) == []


@pytest.mark.parametrize("error", [Unreachable("away"), RuntimeError("a driver's mistake"), ValueError("x")])
def test_a_store_that_stays_away_loses_the_lease(error: Exception) -> None:
    [why] = kept(Lease(error), lambda lost: until(lambda: lost))
    assert why == f"could not be renewed: {error}"


def test_the_end_of_a_run_is_not_held_up() -> None:
    began = time.monotonic()
    assert kept(Lease(True), lambda lost: None, lease_s=60) == []
    assert time.monotonic() - began < 2


def test_no_thread_is_left() -> None:
    kept(Lease(True), lambda lost: None)
    assert all(thread.name != "keeper" for thread in threading.enumerate())


def test_a_sign_of_life_is_given_more_often_than_the_lease_is_renewed() -> None:
    signs: list[int] = []
    lease = Lease(True)
    wait = lambda lost: until(lambda: len(signs) >= 5)  # noqa: E731
    kept(lease, wait, lease_s=60, alive=lambda: signs.append(1), alive_every=0.005)
    assert lease.asked == 0
