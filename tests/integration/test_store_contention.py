"""Several processes at the same rows of the state store: nobody waits for ever, nobody works with an old picture."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from daemon import until
from pruned import prune

from stellerd import queries
from stellerd.durations import parse_rate
from stellerd.limiter import Limit, Limiter
from stellerd.pruning import steps, take_turn
from stellerd.schema import quarantine, runs
from stellerd.store import Claim, Store

SLOT = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)


@pytest.fixture
def stores(postgres_url: str) -> Iterator[tuple[Store, Store]]:
    """Two processes' stores on one PostgreSQL."""
    both = Store(postgres_url), Store(postgres_url)
    both[0].create()
    yield both
    for store in both:
        store.close()


def waiters(url: str) -> int:
    """How many sessions of this database wait for a lock."""
    asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        [count] = connection.execute(asked).fetchone() or (0,)
        return int(count)


class Aside:
    """Something done in a thread; `result` re-raises what it raised."""

    def __init__(self, work: Any) -> None:
        self._work, self._found = work, list[Any]()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found.append((self._work(), None))
        except Exception as error:  # noqa: BLE001  the test shall see it, whatever it is
            self._found.append((None, error))

    def result(self) -> Any:
        """What came of it."""
        self._thread.join(30)
        [(result, error)] = self._found
        if error is not None:
            raise error
        return result


def test_a_run_that_ends_while_it_is_taken_over_makes_no_deadlock(
    stores: tuple[Store, Store], postgres_url: str
) -> None:
    old, new = stores
    claim = old.claim("j", SLOT, "schedule")
    assert isinstance(claim, Claim)
    with new.begin() as connection:
        now = new.now(connection)
        new.lock_lease(connection, "j", now)
        ending = Aside(lambda: old.finish(claim, "ok", reason="", counters={}))
        until(lambda: waiters(postgres_url))
        connection.execute(queries.LOSE_OLDER, of_job="j", before_epoch=claim.epoch + 1, at=now)
        connection.execute(queries.FENCE_OFF, of_job="j", expires_at=now)
    assert ending.result().state == "lost"


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_database_with_another_isolation_grants_no_slot_twice(
    stores: tuple[Store, Store], postgres_url: str, level: str
) -> None:
    """A transaction that waited for the bucket's row has to see the slot that was spent meanwhile."""
    database = sa.make_url(postgres_url).database
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        setting = f"default_transaction_isolation = '{level}'"
        connection.execute(f'ALTER DATABASE "{database}" SET {setting}'.encode())
    first, second = (Store(postgres_url) for _ in range(2))
    limits = {"b": Limit((parse_rate("1/1h"),))}
    with first.begin() as making:
        making.execute(queries.MAKE_BUCKET, name="b", rates="1/1h", failures=0)
    with first.begin() as holding:
        Limiter(first, limits)._lock(holding, "b", limits["b"])
        asking = Aside(lambda: Limiter(second, limits).try_acquire("b"))
        until(lambda: waiters(postgres_url))
        holding.execute(queries.SPEND, bucket="b", at=first.now(holding))
    assert asking.result() is not None
    first.close()
    second.close()


def old_runs(store: Store, count: int) -> None:
    """So many of `j`, each with a quarantined item, that ended long ago."""
    row = {"job": "j", "attempt": 1, "trigger": "manual", "state": "ok", "reason": "", "counters": {}, "host": "h",
           "pid": 1, "owner": "o", "epoch": 1, "started_at": SLOT, "finished_at": SLOT}  # fmt: skip
    with store.begin() as connection:
        for number in range(10_001, 10_001 + count):  # whoever counts up from 1 meets none of them
            connection.execute(sa.insert(runs).values(id=number, slot=SLOT + timedelta(hours=number - 10_000), **row))
            item = {"run": number, "entity": "e", "key": "k", "reason": "r", "at": SLOT}
            connection.execute(sa.insert(quarantine).values(item))


def test_many_old_runs_go_in_steps_between_which_a_job_may_write(stores: tuple[Store, Store]) -> None:
    state, other = stores
    old_runs(state, 1201)
    written, taken = 0, []
    for took in steps(state, 3600):
        taken.append(took)
        claim = other.claim("other", None, "manual")
        assert isinstance(claim, Claim)
        other.finish(claim, "ok", reason="", counters={})
        written += 1
    assert taken == [0, 500, 500, 200]
    assert [len(state.history(job, 2000)) for job in ("j", "other")] == [1, written]
    with state.reading() as connection:
        assert connection.execute(sa.select(quarantine.c.run)).scalars() == [11_201]


def test_one_process_of_all_prunes_once_an_hour(stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    state, other = stores
    assert [take_turn(one) for one in (state, other, state)] == [True, False, False]
    with state.begin() as connection:
        hours = state.now(connection) + timedelta(hours=1.3)
    for clock in (hours, hours + timedelta(days=900)):
        monkeypatch.setattr(other, "clock", lambda: clock)  # noqa: B023
        assert [take_turn(other) for _ in range(2)] == [True, False]
    assert take_turn(state)  # a clock that was years ahead does not keep it from being done
    assert state.history() == []


def test_two_who_prune_nevertheless_do_not_wait_for_each_other(stores: tuple[Store, Store]) -> None:
    state, other = stores
    old_runs(state, 5)
    with state.begin() as connection:
        now = state.now(connection)
        assert len(connection.execute(queries.OLD_RUNS, before=now, now=now, at_most=3).scalars()) == 3
        assert list(steps(other, 3600)) == [0, 1]
    assert list(steps(other, 3600)) == [0, 3]


def test_pruning_waits_for_who_has_the_bucket(stores: tuple[Store, Store], postgres_url: str) -> None:
    """Both delete the same old grants: without an order each could wait for the other."""
    state, other = stores
    limits = {"b": Limit((parse_rate("1/1s"),))}
    Limiter(state, limits).try_acquire("b")
    with state.begin() as holding:
        Limiter(state, limits)._lock(holding, "b", limits["b"])
        pruned = Aside(lambda: prune(other, 0))
        until(lambda: waiters(postgres_url))
        holding.execute(queries.FORGET_HITS, of_bucket="b", before=state.now(holding))
    assert pruned.result() == 0
