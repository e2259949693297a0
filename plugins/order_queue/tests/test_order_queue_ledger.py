"""The ledger: claims that two processes can want, marks, growing pauses, and orders that are put aside."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from stellerd_order_queue import ledger as ledger_module
from stellerd_order_queue.database import create
from stellerd_order_queue.dialects import dialect_of
from stellerd_order_queue.ledger import Ledger
from stellerd_order_queue.records import Candidate, Rules, Span

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
NIL = "00000000-0000-0000-0000-000000000000"
Take = Callable[[], Counter[str]]


def a_ledger(orders: Any, **rules: Any) -> Ledger:
    made = Ledger(orders.engine, "steller", Rules(**{**DEFAULTS, **rules}))
    made.create()
    return made


DEFAULTS: dict[str, Any] = {
    "excluded": ("Failed", "Succeeded"),
    "max_attempts": 3,
    "republish_after": 60.0,
    "republish_cap": 200.0,
    "claim": 30.0,
}


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def waiting(ledger: Ledger, now: datetime = NOW) -> list[Candidate]:
    return [each for page in ledger.pages(now, Span()) for each in page]


def test_what_one_claims_the_other_does_not_see(orders: Any) -> None:
    orders.add(5)
    one, other = a_ledger(orders), a_ledger(orders)
    seen_by_both = waiting(one)
    claimed, refused = one.claim(seen_by_both, NOW)
    assert (len(claimed), refused) == (5, [])
    assert other.claim(seen_by_both, NOW) == ([], [])
    assert waiting(other) == []


def test_a_claim_ends_by_itself(orders: Any) -> None:
    orders.add(2)
    one, other = a_ledger(orders), a_ledger(orders)
    one.claim(waiting(one), NOW)
    assert waiting(other, after(29)) == []
    claimed, _ = other.claim(waiting(other, after(30)), after(30))
    assert len(claimed) == 2


def test_a_released_order_is_due_at_once_and_only_its_owner_can_release_it(orders: Any) -> None:
    orders.add(1)
    one, other = a_ledger(orders), a_ledger(orders)
    (mine,), _ = one.claim(waiting(one), NOW)
    other.release([mine.key])
    assert waiting(other) == []
    one.release([mine.key])
    assert [each.key for each in waiting(other)] == [mine.key]


def test_many_claimers_at_once_share_without_a_double(orders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "PAGE", 40)
    orders.add(400)
    a_ledger(orders)

    def claim_all(_: int) -> list[str]:
        mine = a_ledger(orders)
        gate.wait()
        return [each.key for page in mine.pages(NOW, Span()) for each in mine.claim(page, NOW)[0]]

    gate = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        shares = list(pool.map(claim_all, range(4)))
    everything = [key for share in shares for key in share]
    assert len(everything) == len(set(everything)) == 400


def test_postgres_a_claimer_passes_by_rows_that_another_is_at(pg_orders: Any) -> None:
    pg_orders.add(4)
    ledger = a_ledger(pg_orders)
    claimed, _ = ledger.claim(waiting(ledger), NOW)
    ledger.release([each.key for each in claimed])
    with pg_orders.engine.begin() as busy:
        busy.exec_driver_sql("SET LOCAL statement_timeout = '5s'")
        locked = busy.execute(sa.text(f"SELECT order_id FROM {ledger.table} LIMIT 2 FOR UPDATE")).scalars().all()
        seen = waiting(ledger)
        free, refused = ledger.claim(seen, NOW)  # would wait for ever without SKIP LOCKED
        assert refused == []
        assert {each.key for each in free} == {each.key for each in seen} - {str(key) for key in locked}


def test_pages_follow_each_other_without_gap_or_double(orders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "PAGE", 3)
    same_instant = "2026-06-30 10:00:00+00:00"
    for _ in range(8):
        orders.add(created=same_instant)
    orders.add(3)
    keys = [each.key for each in waiting(a_ledger(orders))]
    assert len(keys) == len(set(keys)) == 11


def test_pauses_double_up_to_the_cap(orders: Any) -> None:
    orders.add(1)
    ledger, now, pauses = a_ledger(orders), NOW, []
    for _ in range(4):
        claimed, _ = ledger.claim(waiting(ledger, now), now)
        ledger.mark_published([each.key for each in claimed], now)
        pause = next(s for s in range(0, 300, 5) if waiting(ledger, now + timedelta(seconds=s)))
        pauses.append(pause)
        now += timedelta(seconds=pause)
    assert pauses == [60, 120, 200, 200]
    assert orders.ledger("attempts")[0][0] == 4


def test_a_mark_whose_answer_was_lost_is_made_again_without_counting_twice(orders: Any) -> None:
    orders.add(1)
    ledger = a_ledger(orders)
    (mine,), _ = ledger.claim(waiting(ledger), NOW)
    ledger.mark_published([mine.key], NOW)
    ledger.mark_published([mine.key], NOW)
    assert orders.ledger("attempts") == [(1,)]
    ledger.mark_published([mine.key], after(-30))  # the clock was put back a little: a confirm is a fact all the same
    assert orders.ledger("attempts") == [(2,)]


def test_a_clock_that_was_wrong_by_a_day_delays_no_order_by_a_day(orders: Any) -> None:
    orders.add(2)
    ledger, wrong = a_ledger(orders), NOW + timedelta(days=1)
    published, abandoned = waiting(ledger, wrong)
    ledger.claim([published, abandoned], wrong)
    ledger.mark_published([published.key], wrong)
    other = a_ledger(orders)
    again = waiting(other)  # the clock is right now
    assert len(again) == 2
    assert len(other.claim(again, NOW)[0]) == 2
    other.mark_published([each.key for each in again], NOW)
    assert waiting(other) == []
    assert sorted(row[0] for row in orders.ledger("attempts")) == [1, 2]


def test_postgres_hosts_whose_clocks_differ_go_by_that_of_the_database(pg_orders: Any) -> None:
    pg_orders.add(2)
    fast, slow = a_ledger(pg_orders), a_ledger(pg_orders)

    def fasts() -> datetime:
        return datetime.now(UTC) + timedelta(minutes=20)

    def slows() -> datetime:
        return datetime.now(UTC) - timedelta(minutes=20)

    fast.follow_clock(fasts)
    slow.follow_clock(slows)
    claimed, _ = slow.claim(waiting(slow, slows()), slows())
    assert waiting(fast, fasts()) == []
    slow.mark_published([each.key for each in claimed], slows())
    assert waiting(fast, fasts()) == []
    assert len(waiting(fast, fasts() + timedelta(seconds=60))) == 2


def test_stuck_orders_are_counted_and_still_offered(orders: Any) -> None:
    orders.add(2)
    ledger, now = a_ledger(orders), NOW
    for attempt in range(1, 5):
        claimed, _ = ledger.claim(waiting(ledger, now), now)
        assert len(claimed) == 2
        ledger.mark_published([each.key for each in claimed], now)
        assert ledger.survey(now, NOW).stuck == (2 if attempt >= 3 else 0)
        now += timedelta(seconds=200)


def test_an_order_that_changed_since_it_was_read_is_not_claimed(orders: Any) -> None:
    placed, done, still = orders.add(3)
    ledger = a_ledger(orders)
    seen = waiting(ledger)
    orders.update(placed, OrderId=99)
    orders.update(done, Status="SUCCEEDED")
    claimed, refusals = ledger.claim(seen, NOW)
    assert [each.request_id for each in claimed] == [still]
    assert all(each.changed for each in refusals)
    assert {each.candidate.request: each.reason for each in refusals} == {
        placed: "placed since it was read: the vendor's order id is 99",
        done: 'closed since it was read: its status is "SUCCEEDED"',
    }


def test_a_published_order_that_was_placed_meanwhile_is_not_claimed_again(orders: Any) -> None:
    (request,) = orders.add(1)
    ledger = a_ledger(orders)
    (mine,), _ = ledger.claim(waiting(ledger), NOW)
    ledger.mark_published([mine.key], NOW)
    seen = waiting(ledger, after(60))
    orders.update(request, OrderId=5)
    claimed, refusals = ledger.claim(seen, after(60))
    assert claimed == []
    assert [each.changed for each in refusals] == [True]


def test_the_ledger_forgets_orders_that_are_done_and_no_other(orders: Any) -> None:
    gone, _ = orders.add(2)
    ledger = a_ledger(orders)
    claimed, _ = ledger.claim(waiting(ledger), NOW)
    ledger.mark_published([each.key for each in claimed], NOW)
    orders.update(gone, OrderId=7)
    assert ledger.prune(after(59)) == 0
    assert ledger.prune(after(61)) == 1
    assert len(orders.ledger("order_id")) == 1


@pytest.mark.parametrize("bad", [NIL, "not-a-uuid", "{" + NIL + "}"])
def test_a_bad_request_id_fails_alone(
    bad: str, orders: Any, job: Any, spool: Path, spooled: Take, request: pytest.FixtureRequest
) -> None:
    if not orders.is_sqlite and bad != NIL:
        bad = NIL  # the column's type keeps anything else out
    orders.add(request=bad if orders.is_sqlite else uuid.UUID(bad))
    good = set(orders.add(3))
    harness = job(orders.url, f"spool://{spool}")
    record = harness.run()
    assert set(spooled()) == good
    assert (record.state, record.counters["refused"], record.counters["published"]) == ("partial", 1, 3)
    (aside,) = harness.quarantined()
    assert aside["entity"] == "order"
    assert "nil UUID" in aside["reason"] or "not a UUID" in aside["reason"]
    again = harness.run()
    assert (again.state, again.counters["pending"], harness.quarantined()) == ("ok", 0, [])


def test_a_refused_order_is_published_once_it_is_mended(orders: Any, job: Any, spool: Path, spooled: Take) -> None:
    orders.add(request=NIL if orders.is_sqlite else uuid.UUID(NIL))
    harness = job(orders.url, f"spool://{spool}", republish_after="1m", republish_cap="1h")
    assert harness.run().counters["refused"] == 1
    mended = str(uuid.uuid4())
    orders.update(NIL, RequestId=mended if orders.is_sqlite else uuid.UUID(mended))
    harness.clock.advance(3600)
    assert harness.run().state == "ok"
    assert set(spooled()) == {mended}


def test_two_orders_with_one_request_id_make_one_message_and_one_refusal(
    orders: Any, job: Any, spool: Path, spooled: Take
) -> None:
    twin = uuid.uuid4()
    orders.add(2, request=twin)
    good = set(orders.add(2))
    harness = job(orders.url, f"spool://{spool}")
    record = harness.run()
    assert record.counters["published"] == 3
    assert spooled() == Counter({str(twin), *good})
    (aside,) = harness.quarantined()
    assert f"RequestId {twin} is also that of order" in aside["reason"]


def test_a_new_request_id_makes_a_published_order_due_under_a_new_message(
    orders: Any, job: Any, spool: Path, spooled: Take
) -> None:
    (old,) = orders.add(1)
    harness = job(orders.url, f"spool://{spool}")
    harness.run()
    assert set(spooled()) == {old}
    new = str(uuid.uuid4())
    orders.update(old, RequestId=new if orders.is_sqlite else uuid.UUID(new))
    harness.clock.advance(901)
    assert harness.run().counters["published"] == 1
    assert set(spooled()) == {new}


def test_sqlite_keys_are_taken_as_they_are_written(make_orders: Any, job: Any, tmp_path: Path, spooled: Take) -> None:
    orders = make_orders(f"sqlite:///{tmp_path}/odd.db")
    (request,) = orders.add(1, request=uuid.uuid4().hex.upper())
    with orders.engine.begin() as connection:
        connection.exec_driver_sql("""UPDATE "Orders" SET "Id" = upper(replace("Id", '-', ''))""")
    harness = job(orders.url, f"spool://{tmp_path}/spool")
    assert harness.run().counters["published"] == 1
    assert set(spooled()) == {str(uuid.UUID(request))}
    assert harness.run().counters["pending"] == 0


def test_kill_9_between_claim_and_mark_loses_nothing(orders: Any, job: Any, spool: Path, spooled: Take) -> None:
    requests = set(orders.add(20))
    pid = os.fork()
    if pid == 0:  # claims everything, and is gone
        try:
            ledger = Ledger(sa.create_engine(orders.url), "steller", Rules(**DEFAULTS))
            ledger.create()
            ledger.claim(waiting(ledger, datetime.now(UTC)), datetime.now(UTC))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    harness = job(orders.url, f"spool://{spool}")
    assert harness.run().counters["pending"] == 0  # the claims hold
    harness.clock.advance(31)
    assert harness.run().counters["published"] == 20
    assert set(spooled()) == requests


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_tables_can_be_created_by_many_at_once(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    gate = threading.Barrier(6)

    def make(_: int) -> None:
        engine = sa.create_engine(url)
        dialect = dialect_of(engine)
        gate.wait()
        create(engine, "steller", dialect.create_orders)
        create(engine, "steller", dialect.create_ledger)
        engine.dispose()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(make, range(6)))
    engine = sa.create_engine(url)
    assert {"Orders", "Users"} <= set(sa.inspect(engine).get_table_names())
    engine.dispose()
