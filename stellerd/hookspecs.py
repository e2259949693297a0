"""Every hook a plugin may implement; group of the entry points: `stellerd`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from stellerd.job import Job

hookspec = pluggy.HookspecMarker("stellerd")
hookimpl = pluggy.HookimplMarker("stellerd")


@hookspec(firstresult=True)
def stellerd_job() -> type[Job] | None:
    """The job class of this plugin."""


@hookspec
def stellerd_run_started(job: str, run: Mapping[str, Any]) -> None:
    """A run of any job of this daemon began; an error in here is logged and changes nothing."""


@hookspec
def stellerd_run_finished(job: str, run: Mapping[str, Any]) -> None:
    """A run of any job of this daemon ended; an error in here is logged and changes nothing."""
