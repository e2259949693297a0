"""What a plugin is written against: the `Job` base class and the three outcomes of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:  # the child side; a plugin never imports it by name
    from stellerd.context import Context
    from stellerd.settings import Settings


@dataclass(frozen=True)
class Done:
    """The run did its work. Any `problems` (one line each) make it `partial` instead of `ok`."""

    counters: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """There was a reason not to work; recorded as `skipped`."""

    reason: str


@dataclass(frozen=True)
class Deferred:
    """Not now: run again at `until` (aware UTC); recorded as `deferred`, the schedule waits for it."""

    until: datetime
    reason: str


Outcome = Done | Skipped | Deferred


class Job:
    """A scheduled job. Subclass it, set the class attributes, implement `run`.

    A *periodic* job's `run` is called once a slot; a *service*'s `run` goes on until `ctx.stopping`, and counts as
    ready when it first asks for that (or calls `ctx.wait`).
    """

    kind: ClassVar[Literal["periodic", "service"]] = "periodic"
    every: ClassVar[str | float] = "1h"
    """Default interval, a duration text or a number of seconds; `[jobs.NAME] every` wins."""
    concurrent: ClassVar[bool] = False
    """True: every host runs it at the same time, with slots and cursors of its own; `[jobs.NAME] concurrent` wins."""
    Settings: ClassVar[type[Settings] | None] = None
    """The model of `[jobs.NAME.settings]`; None when the job has no settings."""
    buckets: ClassVar[tuple[str, ...]] = ()
    """Limits that a run cannot do without: the schedule waits until each of them is open."""
    limits: ClassVar[Mapping[str, str]] = {}
    """Rates the plugin's vendor is known to allow, by bucket; `[limits.NAME]` wins."""

    def check(self, ctx: Context) -> None:
        """Prove that what the run needs is there (`stellerd check --connect`).

        Raises: any `stellerd.errors` error that says what is missing.
        """

    def database_problems(self, ctx: Context) -> Iterable[tuple[str, str]]:
        """What is wrong with the job's databases (`stellerd db check`), each as (the problem, the SQL that mends it).

        Read only: a job does not alter tables that are not its own. Raises: Unreachable when it cannot look.
        """
        return ()

    def needs(self, ctx: Context) -> Iterable[str]:
        """The limits that the next run cannot do without; `buckets`, unless settings or circumstances decide.

        Asked for whenever the schedule looks for the next run: to be cheap, and to change nothing.
        """
        return self.buckets

    def run(self, ctx: Context) -> Outcome | None:
        """Do one run (periodic) or serve until `ctx.stopping` (service). None means `Done()`."""
        raise NotImplementedError(f"{type(self).__name__}.run is not implemented")

    def __repr__(self) -> str:  # never the settings: they may hold secrets
        return f"<{type(self).__name__}>"
