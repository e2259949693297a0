"""A job that does nothing, run a few times in the supervisor before the first fork, on a store in memory.

CPython writes into what it runs: it counts the calls of a function, keeps the answers of its searches beside the code
and the newest ones of all types in one table. What is written before the fork is shared; each child would have to copy
the page first, about 150 of 1,900, while somebody waits for its job.
"""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint
from pathlib import Path
from types import TracebackType

from stellerd import child, config, log, registry, surroundings
from stellerd.channel import Assignment, Channel
from stellerd.context import Context
from stellerd.hookspecs import hookimpl
from stellerd.job import Job
from stellerd.keeper import Keeper
from stellerd.line import Line
from stellerd.redaction import RedactingStream
from stellerd.store import Store

_ROUNDS = 4
_ITSELF = EntryPoint("rehearsal", __name__, registry.GROUP)


class Nothing(Job):
    """A service that is over at once."""

    kind = "service"

    def run(self, ctx: Context) -> None:
        """Look around once, as every service does."""
        ctx.wait(0)


@hookimpl
def stellerd_job() -> type[Job]:
    """As a plugin's."""
    return Nothing


class _Alone(Keeper):
    """Without its thread: there must be none in a process that forks."""

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass


def run() -> None:
    """Go through it; nothing of it is seen, nothing is left open."""
    settings = config.from_tables({"state": {"url": "sqlite:///:memory:"}, "jobs": {"rehearsal": {}}}, Path("/"))
    assignment = Assignment(job="rehearsal", config=settings, parent_pid=os.getpid())
    with log.unheard():
        for _ in range(_ROUNDS):
            registry.warm_up()
            _once(assignment)
    registry.warm_up()


def _once(assignment: Assignment) -> None:
    RedactingStream(1)
    surroundings.apply(assignment.config.jobs[assignment.job], "")
    ours, theirs = Channel.pair()
    store, line = Store(assignment.config.state_url()), Line(theirs, set())
    try:
        loaded = registry.Loaded("rehearsal", "", _ITSELF)
        ticker = child.ticker_of(assignment, loaded, store, line)
        ticker.runner.keeper = _Alone
        ticker.prepare()
        ticker.runner.plan()
        line.stop()  # so that it would end if it could not run, instead of waiting for a store in memory
        ticker.serve()
        ours.receive()
    finally:
        line.close()
        store.close()
        ours.close()
        theirs.close()
