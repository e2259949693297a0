"""An order whose RequestId changes: the old one does not go out if that can be helped, the new one goes at once."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stellerd_order_queue import delivery
from stellerd_order_queue.ledger import Ledger

Take = Callable[[], Counter[str]]


def rename(orders: Any, old: str) -> str:
    new = str(uuid.uuid4())
    orders.update(old, RequestId=new if orders.is_sqlite else uuid.UUID(new))
    return new


class Renaming:
    """Gives every order another RequestId before or after the first claim."""

    def __init__(self, orders: Any, old: list[str], patch: pytest.MonkeyPatch, *, before: bool) -> None:
        self._orders, self._old, self._before = orders, old, before
        self._claim = Ledger.claim
        self.new: list[str] = []
        patch.setattr(Ledger, "claim", lambda ledger, *args: self._claimed(ledger, *args))

    def _claimed(self, ledger: Ledger, *args: Any) -> Any:
        if self._before:
            self._rename()
        answer = self._claim(ledger, *args)
        self._rename()
        return answer

    def _rename(self) -> None:
        if not self.new:
            self.new = [rename(self._orders, old) for old in self._old]


@pytest.mark.parametrize("before", [True, False], ids=["before its claim", "after its claim"])
def test_an_order_renamed_while_it_is_taken_goes_out_under_its_new_id_alone(
    orders: Any, job: Any, spool: Path, spooled: Take, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    monkeypatch.setattr(delivery, "RECHECK_S", -1.0)  # as if each had waited for its turn
    renaming = Renaming(orders, orders.add(20), monkeypatch, before=before)
    harness = job(orders.url, f"spool://{spool}")
    record = harness.run()
    assert spooled() == Counter()
    assert (record.counters["published"], record.counters["pending"]) == (0, 20)
    assert "RequestId" in harness.quarantined()[0]["reason"]
    assert harness.run().counters["published"] == 20
    assert spooled() == Counter(renaming.new)


def test_an_order_renamed_after_it_was_published_is_due_at_once_and_once(
    orders: Any, job: Any, spool: Path, spooled: Take
) -> None:
    old = orders.add(3)
    harness = job(orders.url, f"spool://{spool}")
    harness.run()
    assert spooled() == Counter(old)
    new = rename(orders, old[1])
    assert [harness.run().counters["published"] for _ in range(3)] == [1, 0, 0]
    assert spooled() == Counter([new])
    assert orders.sql(f"SELECT attempts, count(*) FROM {orders.ledger_table} GROUP BY 1") == [(1, 3)]


def test_a_refused_order_that_is_mended_is_due_at_once(orders: Any, job: Any, spool: Path, spooled: Take) -> None:
    nil = "00000000-0000-0000-0000-000000000000"
    orders.add(request=nil if orders.is_sqlite else uuid.UUID(nil))
    harness = job(orders.url, f"spool://{spool}")
    assert [harness.run().counters["refused"] for _ in range(2)] == [1, 0]
    new = rename(orders, nil)
    assert [harness.run().counters["published"] for _ in range(2)] == [1, 0]
    assert spooled() == Counter([new])


@pytest.mark.parametrize("written", ["{%s}", "%s", "upper", "plain"])
def test_sqlite_the_same_id_written_otherwise_is_the_same(
    written: str, make_orders: Any, job: Any, tmp_path: Path, spooled: Take
) -> None:
    orders = make_orders(f"sqlite:///{tmp_path}/odd.db")
    (old,) = orders.add()
    harness = job(orders.url, f"spool://{tmp_path}/spool")
    harness.run()
    forms = {"upper": old.upper(), "plain": uuid.UUID(old).hex}
    orders.update(old, RequestId=forms.get(written) or written % old)
    assert [harness.run().counters["pending"] for _ in range(2)] == [0, 0]
    assert spooled() == Counter([old])


@pytest.mark.parametrize("odd", ["12345678_2345678_2345678_2345678", "١٢٣٤٥٦٧٨-1234-5678-1234-567812345678"])
def test_sqlite_what_only_python_reads_as_an_id_is_none(odd: str, make_orders: Any, job: Any, tmp_path: Path) -> None:
    orders = make_orders(f"sqlite:///{tmp_path}/odd.db")
    orders.add(request=odd)
    record = job(orders.url, f"spool://{tmp_path}/spool").run()
    assert (record.counters["refused"], record.counters["published"]) == (1, 0)


def test_several_claimers_see_a_renamed_order(orders: Any, job: Any, spool: Path, spooled: Take) -> None:
    """Who knows of others looks first at what is taken."""
    (old,) = orders.add()
    harness = job(orders.url, f"spool://{spool}")
    harness.run()
    new = rename(orders, old)
    spooled()
    claim = Ledger.claim

    def with_others(ledger: Ledger, *args: Any) -> Any:
        ledger._others = True
        return claim(ledger, *args)

    Ledger.claim = with_others  # type: ignore[method-assign]
    try:
        assert harness.run().counters["published"] == 1
    finally:
        Ledger.claim = claim  # type: ignore[method-assign]
    assert spooled() == Counter([new])
