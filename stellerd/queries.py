"""The statements of a job process's every day: constants, so that they are compiled before the fork.

`of_…` parameters say which row is meant; the others are the columns' new values.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import bindparam as given
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from stellerd.schema import UNFINISHED as _IS_UNFINISHED
from stellerd.schema import UtcTime, buckets, cursors, hits, leases, operations, runs, version
from stellerd.statements import Insert, Statement
from stellerd.status import LOST

_OF_JOB = leases.c.job == given("of_job")
_RUN = runs.c.id == given("of_run")
_RUN_OF_JOB = runs.c.job == given("of_job")
_STILL_MINE = _OF_JOB & (leases.c.owner == given("of_owner")) & (leases.c.epoch == given("of_epoch"))
_ENDING = ("state", "reason", "finished_at")


class _Clock(FunctionElement[datetime]):
    """The server's clock; NULL on SQLite, which has none of its own."""

    type = UtcTime()
    inherit_cache = True


@compiles(_Clock, "postgresql")
def _server_clock(element: _Clock, compiler: Any, **options: Any) -> str:
    return "clock_timestamp()"


@compiles(_Clock, "sqlite")
def _no_clock(element: _Clock, compiler: Any, **options: Any) -> str:
    return "NULL"


# Which table tells the version: "stellerd_meta" did in the first one
TELLERS = {
    "sqlite": Statement(
        lambda insert: sa.text(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name IN ('stellerd_version', 'stellerd_meta')"
        )
    ),
    "postgresql": Statement(
        lambda insert: sa.text(
            "SELECT name FROM unnest(ARRAY['stellerd_version', 'stellerd_meta']) AS name "
            "WHERE to_regclass(name) IS NOT NULL"
        )
    ),
}
REVISION = Statement(lambda insert: sa.select(version.c.version_num))
MAKE_REVISION = Statement(lambda insert: insert(version).on_conflict_do_nothing(), columns=["version_num"])
CLOCK = Statement(lambda insert: sa.select(_Clock().label("now")))

MAKE_LEASE = Statement(
    lambda insert: insert(leases).on_conflict_do_nothing(), columns=[column.name for column in leases.c]
)
LOCK_LEASE = Statement(lambda insert: sa.select(leases).where(_OF_JOB).with_for_update())
TAKE_LEASE = Statement(
    lambda insert: sa.update(leases).where(_OF_JOB),
    columns=["owner", "epoch", "expires_at", "host", "machine", "pid", "pid_started", "life"],
)
LEASE = Statement(lambda insert: sa.select(leases, _Clock().label("now")).where(_OF_JOB))
MY_LEASE = Statement(lambda insert: sa.select(leases.c.epoch).where(_STILL_MINE).with_for_update(read=True))
PROLONG_LEASE = Statement(lambda insert: sa.update(leases).where(_STILL_MINE), columns=["expires_at"])
RELEASE_LEASE = Statement(lambda insert: sa.update(leases).where(_STILL_MINE).values(owner=""), columns=["expires_at"])
FENCE_OFF = Statement(
    lambda insert: sa.update(leases).where(_OF_JOB).values(owner="", epoch=leases.c.epoch + 1), columns=["expires_at"]
)

_NEW_RUN = ["job", "slot", "attempt", "trigger", "state", "reason", "counters", "host", "pid", "owner", "epoch"]
OPEN_RUN = Statement(lambda insert: insert(runs).returning(runs.c.id), columns=[*_NEW_RUN, "started_at"])
NOTE_RUN = Statement(
    lambda insert: insert(runs).on_conflict_do_nothing(), columns=[*_NEW_RUN, "started_at", "finished_at"]
)
FINISH_RUN = Statement(
    lambda insert: sa.update(runs).where(_RUN, _IS_UNFINISHED),
    columns=[*_ENDING, "counters", "code", "not_before"],
)
CLOSE_RUN = Statement(lambda insert: sa.update(runs).where(_RUN), columns=_ENDING)
LOSE_OLDER = Statement(
    lambda insert: (
        sa.update(runs)
        .where(_RUN_OF_JOB, _IS_UNFINISHED, runs.c.epoch < given("before_epoch"))
        .values(state="lost", reason="its lease went to another run", finished_at=given("at"))
    )
)
RUN = Statement(lambda insert: sa.select(runs).where(_RUN))
UNFINISHED = Statement(lambda insert: sa.select(runs.c.id, runs.c.owner).where(_RUN_OF_JOB, _IS_UNFINISHED))
LAST_ATTEMPT = Statement(
    lambda insert: (
        sa.select(runs.c.attempt, runs.c.state, runs.c.not_before)
        .where(_RUN_OF_JOB, runs.c.slot == given("of_slot"))
        .order_by(runs.c.attempt.desc())
        .limit(1)
    )
)
TIMES_LOST = Statement(
    lambda insert: (
        sa.select(sa.func.count())
        .select_from(runs)
        .where(_RUN_OF_JOB, runs.c.slot == given("of_slot"), sa.or_(*(runs.c.state == one for one in LOST)))
    )
)
LAST_SCHEDULED = Statement(
    lambda insert: (
        sa.select(runs)
        .where(_RUN_OF_JOB, runs.c.slot.is_not(None))
        .order_by(runs.c.slot.desc(), runs.c.attempt.desc())
        .limit(1)
    )
)
LAST_SCHEDULED_UNTIL = Statement(
    lambda insert: (
        sa.select(runs)
        .where(_RUN_OF_JOB, runs.c.slot <= given("until"))
        .order_by(runs.c.slot.desc(), runs.c.attempt.desc())
        .limit(1)
    )
)
SLOTS_AFTER = Statement(lambda insert: sa.select(runs.c.slot).where(_RUN_OF_JOB, runs.c.slot > given("after")))
LAST_FINISHED = Statement(
    lambda insert: sa.select(runs).where(_RUN_OF_JOB, runs.c.state != "running").order_by(runs.c.id.desc()).limit(1)
)
_AT_MOST: Any = given("at_most", type_=sa.Integer)
NEWEST = Statement(lambda insert: sa.select(runs).order_by(runs.c.id.desc()).limit(_AT_MOST))
NEWEST_OF = Statement(lambda insert: sa.select(runs).where(_RUN_OF_JOB).order_by(runs.c.id.desc()).limit(_AT_MOST))


def _each_job(insert: Insert) -> Any:
    """By one step into the index for each, however many runs they have."""
    first = sa.select(sa.func.min(runs.c.job).label("job")).cte("jobs", recursive=True)
    following = sa.select(sa.func.min(runs.c.job)).where(runs.c.job > first.c.job).scalar_subquery()
    jobs = first.union_all(sa.select(following).where(first.c.job.is_not(None)))
    return sa.select(jobs.c.job).where(jobs.c.job.is_not(None))


JOBS = Statement(_each_job)


def _old_runs(insert: Insert) -> Any:
    """All but each job's newest slot, since its schedule goes on from there."""
    later = sa.alias(runs)
    has_later = sa.exists().where(later.c.job == runs.c.job, later.c.slot > runs.c.slot, later.c.slot <= given("now"))
    old = sa.select(runs.c.id).where(runs.c.finished_at < given("before"), runs.c.slot.is_(None) | has_later)
    return old.order_by(runs.c.finished_at).limit(_AT_MOST).with_for_update(skip_locked=True)


OLD_RUNS = Statement(_old_runs)


@cache
def forget(table: sa.Table, of: str, count: int) -> Statement:
    """Delete the rows whose column `of` is one of `count` values."""
    wanted = [given(f"id_{at}", type_=sa.BigInteger) for at in range(count)]
    return Statement(lambda insert: sa.delete(table).where(table.c[of].in_(wanted)))


_ONE_CURSOR = (cursors.c.job == given("of_job")) & (cursors.c.key == given("of_key"))
CURSOR = Statement(lambda insert: sa.select(cursors.c.value).where(_ONE_CURSOR))
MAKE_CURSOR = Statement(lambda insert: insert(cursors).on_conflict_do_nothing(), columns=["job", "key", "value"])


def _upsert_cursor(insert: Insert) -> Any:
    made = insert(cursors)
    return made.on_conflict_do_update(index_elements=["job", "key"], set_={"value": made.excluded.value})


SET_CURSOR = Statement(_upsert_cursor, columns=["job", "key", "value"])

_BUCKET = buckets.c.name == given("of_bucket")
_HIT = hits.c.bucket == given("of_bucket")
LOCK_BUCKET = Statement(lambda insert: sa.select(buckets).where(_BUCKET).with_for_update())
BUCKET = Statement(lambda insert: sa.select(buckets).where(_BUCKET))
MAKE_BUCKET = Statement(lambda insert: insert(buckets).on_conflict_do_nothing(), columns=["name", "rates", "failures"])
SET_RATES = Statement(lambda insert: sa.update(buckets).where(_BUCKET), columns=["rates"])
CLOSE_BUCKET = Statement(lambda insert: sa.update(buckets).where(_BUCKET), columns=["not_before", "source"])
COUNT_FAILURES = Statement(lambda insert: sa.update(buckets).where(_BUCKET), columns=["failures"])
LEARN = Statement(
    lambda insert: sa.update(buckets).where(_BUCKET), columns=["not_before", "source", "learned_wait", "failures"]
)


@cache
def look(windows: int) -> Statement:
    """now, and the newest hit but `skip_0`, `skip_1` …, one for each window of a bucket."""

    def build(insert: Insert) -> Any:
        newest = sa.select(hits.c.at).where(_HIT).order_by(hits.c.at.desc()).limit(1)
        skips = [given(f"skip_{at}", type_=sa.Integer) for at in range(windows)]
        nth = [newest.offset(skip).scalar_subquery().label(f"nth_{at}") for at, skip in enumerate(skips)]
        return sa.select(_Clock().label("now"), *nth)

    return Statement(build)


for _windows in (1, 2, 3):  # the usual ones are compiled before the fork
    look(_windows)
HITS = Statement(lambda insert: sa.select(hits.c.id, hits.c.at).where(_HIT))
SET_CLOCK = Statement(
    lambda insert: sa.update(buckets).where(_BUCKET), columns=["boot", "ahead", "not_before", "override_until"]
)
PULL_BACK_HITS = Statement(lambda insert: sa.update(hits).where(_HIT, hits.c.at > given("now")), columns=["at"])
FORGET_HITS = Statement(lambda insert: sa.delete(hits).where(_HIT, hits.c.at < given("before")))
OLD_HITS = Statement(
    lambda insert: sa.select(hits.c.id).where(_HIT, hits.c.at < given("before")).order_by(hits.c.at).limit(_AT_MOST)
)
BUCKET_NAMES = Statement(lambda insert: sa.select(buckets.c.name).order_by(buckets.c.name))
FORGET_OPERATIONS = Statement(lambda insert: sa.delete(operations).where(operations.c.at < given("before")))
SPEND = Statement(lambda insert: insert(hits).returning(hits.c.id), columns=["bucket", "at"])
MOVE_HIT = Statement(lambda insert: sa.update(hits).where(hits.c.id == given("of_hit")), columns=["at"])
