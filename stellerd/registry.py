"""Plugins: known to the parent by their entry points' metadata alone, imported only where they run."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from stellerd import hookspecs, jobcheck
from stellerd.errors import ConfigError, StellerdError
from stellerd.job import Job

GROUP = "stellerd"
_NAME = re.compile(r"[A-Za-z0-9._-]+")  # of a distribution, which a line of Requires-Dist begins with (PEP 508)


class BrokenPlugin(StellerdError):
    """The plugin cannot be imported; `detail` is the traceback of its import."""

    exit_code = 78

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


def installed() -> dict[str, EntryPoint]:
    """Every installed plugin by name; nothing of it is imported."""
    return {name: points[0] for name, points in every().items()}


def every() -> dict[str, list[EntryPoint]]:
    """The entry points of each name: more than one when several distributions claim it.

    Read again only when a folder of sys.path has changed, as it does when something is installed or removed: a
    supervisor that restarts a job looks in vain most of the time, and a child would dirty 2 MB of shared memory.
    """
    return _installed(tuple((folder, _changed_ns(folder)) for folder in sys.path))


@lru_cache(maxsize=1)
def _installed(folders: tuple[tuple[str, int], ...]) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in sorted(entry_points(group=GROUP)):
        found.setdefault(point.name, []).append(point)
    return {name: _different(points) if len(points) > 1 else points for name, points in found.items()}


def _different(points: list[EntryPoint]) -> list[EntryPoint]:
    """Less those that are found twice. Whose they are is in a file that costs 20 ms to be read."""
    return list({(point.dist.name if point.dist else "", point.value): point for point in points}.values())


def _changed_ns(folder: str) -> int:
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


def requirements(name: str) -> set[str]:
    """What the distribution of a plugin says that it depends on, by import name; none of a plugin that is not there.

    Only of distributions whose import name is their own, as of most.
    """
    point = installed().get(name)
    lines = (point.dist.requires or []) if point and point.dist else []
    names = [match[0] for line in lines if "extra ==" not in line and (match := _NAME.match(line))]
    return {name.lower().replace("-", "_") for name in names}


def find(name: str, where: str) -> EntryPoint:
    """The entry point of a plugin.

    Raises: ConfigError that names what is installed, or all who claim the name.
    """
    known = every()
    if name not in known:
        have = ", ".join(known) or "none"
        raise ConfigError(f'{where}: no plugin "{name}" is installed; installed are: {have}')
    if len(known[name]) > 1:
        owners = " and ".join(f"{point.dist.name if point.dist else '?'} ({point.value})" for point in known[name])
        raise ConfigError(f'{where}: more than one distribution has a plugin "{name}": {owners}; uninstall all but one')
    return known[name][0]


_spare: list[pluggy.PluginManager] = []


def warm_up() -> None:
    """Make the next `Loaded`'s plugin manager already now, where all children share it."""
    _spare[:] = [_manager()]


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return manager


OBSERVER_HOOKS = ("stellerd_run_started", "stellerd_run_finished")


class Observer(Job):
    """The job of a plugin that has observers and no job: it runs nothing and hears of the runs of others."""

    kind = "service"


class Loaded:
    """A plugin that was imported here, with the observers that came along."""

    def __init__(self, name: str, where: str, point: EntryPoint | None = None) -> None:
        point = point or find(name, where)
        self.manager = _spare.pop() if _spare else _manager()
        try:
            self.manager.register(point.load(), name)
            job = self.manager.hook.stellerd_job()
        except (Exception, SystemExit) as error:  # noqa: BLE001  any plugin's import, told with its traceback
            why = f"{type(error).__name__}: {error}"
            raise BrokenPlugin(
                f'plugin "{name}" ({point.value}) cannot be loaded: {why}', traceback.format_exc()
            ) from None
        self.observes = any(getattr(self.manager.hook, name).get_hookimpls() for name in OBSERVER_HOOKS)
        """Whether it wants to know of the runs of all jobs."""
        if job is None and self.observes:
            job = Observer
        if not (isinstance(job, type) and issubclass(job, Job)):
            raise BrokenPlugin(f'plugin "{name}" ({point.value}): stellerd_job() returned no subclass of stellerd.Job')
        if job is not Observer and (problems := jobcheck.problems(job)):
            raise BrokenPlugin(f'plugin "{name}" ({point.value}) cannot be run: {"; ".join(problems)}')
        self.job: type[Job] = job

    def observe(self, log: Any) -> Callable[[str, str, Mapping[str, Any]], None]:
        """A function (hook, job, run) that calls an observer hook and logs its failure: observers are never fatal."""

        def call(hook: str, job: str, run: Mapping[str, Any]) -> None:
            try:
                if hook in OBSERVER_HOOKS:
                    getattr(self.manager.hook, hook)(job=job, run=run)
            except Exception:  # noqa: BLE001  somebody else's code, whose failure must not touch the run
                log.error("an observer raised", hook=hook, traceback=traceback.format_exc())

        return call
