"""Import once, fork often: what children need is loaded and warmed in the supervisor before the first fork."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
from collections.abc import Callable

from stellerd import memory, registry
from stellerd.config import Config
from stellerd.errors import ConfigError

_WARMUP = "stellerd.warmup"
_CHILD_SIDE = ("stellerd.child", _WARMUP)
_AUTO = "auto"
_OF_PLUGINS = frozenset({"msgspec", "pika", "psycopg", "requests"})
"""Libraries that plugins are often made with and that start no thread: others must be asked for."""


def wanted(config: Config) -> list[str]:
    """The modules of `[supervisor] preload`, with those that "auto" stands for by this configuration."""
    given = [module for module in config.supervisor.preload if module != _AUTO]
    return given if _AUTO not in config.supervisor.preload else [*_automatic(config), *given]


def missing(config: Config) -> list[str]:
    """A line for each module of `[supervisor] preload` that is not installed: the daemon starts without it."""
    found = []
    for index, module in enumerate(config.supervisor.preload):
        if module != _AUTO and not _there(module):
            where = config.where("supervisor", "preload", index)
            found.append(f'{where}: no module "{module}" is installed; nothing of it is preloaded')
    return found


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except Exception:  # noqa: BLE001  of the package that the module is in, whose import this needs
        return False


def _automatic(config: Config) -> list[str]:
    """The database drivers, and what the plugins of the jobs say they depend on."""
    names = {"requests"} if config.limits else set[str]()
    for name, job in config.jobs.items():
        with contextlib.suppress(Exception):  # of a broken installation; its job will say what is wrong
            names |= registry.requirements(job.plugin or name) & _OF_PLUGINS if job.enabled else set()
    urls = [config.state_url(), *map(config.database_url, config.databases)]
    if any(url.startswith("postgres") for url in urls):
        names |= {"psycopg", "sqlalchemy.dialects.postgresql.psycopg"}
    return sorted(names)


def preload(modules: list[str], backend: str, warn: Callable[[str, str], None]) -> None:
    """Import what children need, so that they share it and start in milliseconds; a failure is only a warning.

    Besides `modules` that is the children's side of stellerd itself; `backend` ("sqlite" or "postgresql") says for
    which database its statements are made ready.
    Raises: ConfigError when a module starts a thread.
    """
    for module in (*modules, *_CHILD_SIDE):
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001  any library's import; the job that needs it will say so itself
            warn(module, f"{type(error).__name__}: {error}")
        if len(os.listdir("/proc/self/task")) > 1:
            raise ConfigError(
                f"[supervisor] preload: {module} starts a thread when it is imported, and a fork beside a thread can "
                "deadlock the child; leave it out of preload: the job that needs it imports it for itself"
            )
    try:
        importlib.import_module(_WARMUP).run(backend)
    except Exception as error:  # noqa: BLE001  whatever it was, jobs start without it, only later
        warn(_WARMUP, f"{type(error).__name__}: {error}")
    memory.trim()  # holes that imports left: a child that fills one would first copy its page
    gc.freeze()  # not collected before: 1,300 objects of garbage are not worth 70 ms of each start
