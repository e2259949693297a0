"""How a job is put together from the configuration: engines, limits, services, runner. One place for every caller."""

from __future__ import annotations

import select
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from traceback import format_exc
from typing import Any

import sqlalchemy as sa

from stellerd import config as configuration
from stellerd import database, hosts
from stellerd.config import Config
from stellerd.context import Services
from stellerd.durations import duration, parse_rate
from stellerd.errors import ConfigError
from stellerd.job import Job
from stellerd.limiter import Limit, Limiter
from stellerd.registry import BrokenPlugin
from stellerd.runner import Emit, Runner
from stellerd.store import Cursor, Store


def never_stopping(seconds: float) -> bool:
    """Sleep; nobody asks this process to stop."""
    select.select([], [], [], seconds)
    return False


def runner(
    config: Config,
    name: str,
    job: type[Job],
    store: Store,
    log: Any,
    emit: Emit,
    *,
    wait: Callable[[float], bool] = never_stopping,
    observe: Callable[[str, dict[str, Any]], None] = lambda hook, run: None,
    step_down: Callable[[], None] = lambda: None,
    end: Callable[[str], None] = lambda why: None,
    alive: Callable[[], None] | None = None,
    attended: bool = False,
) -> Runner:
    """The runner of one job.

    Raises: ConfigError when the plugin's settings are wrong or a limit is missing, BrokenPlugin when it cannot be made.
    """
    entry, key = config.jobs[name], key_of(config, name, job)
    store.set_lease(config.state.lease)
    settings = configuration.plugin_settings(config, name, job.Settings)
    limiter = Limiter(store, limits(config, job))
    if unknown := [_unknown_bucket(config, name, bucket) for bucket in job.buckets if bucket not in limiter.limits]:
        raise ConfigError(unknown)
    services = Services(
        log=log,
        limiter=limiter,
        cursor=Cursor(store, key),
        engine=engines(config),
        broker_urls=config.broker_urls,
        wait=wait,
        progress=lambda done, total, unit: emit("progress", {"done": done, "total": total, "unit": unit}),
        quarantine=store.put_aside,
        host=hosts.this_host(config.state.host),
        folder=config.state_folder(),
    )
    if store.clock is not None:
        services = replace(services, now=store.clock)
    return Runner(
        name, _made(job), settings, store, limiter, services, emit,
        every=entry.every or duration(job.every), misfire=entry.misfire, retry_lost=entry.retry_lost,
        observe=observe, step_down=step_down,
        end=end, key=key, alive=alive, alive_every=(entry.heartbeat_timeout or 0) / 4, attended=attended,
    )  # fmt: skip


def _made(job: type[Job]) -> Job:
    try:
        return job()
    except (Exception, SystemExit) as error:  # noqa: BLE001  any plugin's mistake, told with its traceback
        raise BrokenPlugin(f"{job.__name__}() cannot be made: {type(error).__name__}: {error}", format_exc()) from None


def _unknown_bucket(config: Config, name: str, bucket: str) -> str:
    where = config.where("jobs", name)
    return f'{where}: needs the limit "{bucket}"; add [limits.{bucket}] with a rate such as "2/1h"'


def key_of(config: Config, name: str, job: type[Job]) -> str:
    """What the store knows the job by: one name for all hosts, or one for each when all of them run it."""
    wanted = config.jobs[name].concurrent
    concurrent = job.concurrent if wanted is None else wanted
    return f"{name}@{hosts.this_host(config.state.host)}" if concurrent else name


def limits(config: Config, job: type[Job]) -> dict[str, Limit]:
    """The buckets of the configuration over those the plugin knows of its vendor."""
    known = {bucket: Limit((parse_rate(rate),)) for bucket, rate in job.limits.items()}
    return known | configured_limits(config)


def configured_limits(config: Config) -> dict[str, Limit]:
    """The buckets of the configuration."""
    return {
        bucket: Limit(
            tuple(limit.rate), limit.margin, limit.max_learned, tuple(limit.wait_patterns), limit.breaker_failures,
            limit.breaker_pause,
        )
        for bucket, limit in config.limits.items()
    }  # fmt: skip


def engines(config: Config) -> Callable[[str], sa.Engine]:
    """A function from a database's name to its one engine of this process."""

    @cache
    def engine(name: str) -> sa.Engine:
        return database.open_engine(config.database_url(name), f"databases.{name}")

    return engine


def check(runner: Runner) -> None:
    """Call the plugin's `check` with a context that belongs to no run; the limits it needs by its settings are there.

    Raises: ConfigError, and what the plugin does.
    """
    context = runner.of_no_run()
    if unknown := [bucket for bucket in runner.job.needs(context) if bucket not in runner.limiter.limits]:
        raise ConfigError([f'{runner.name}: needs the limit "{bucket}", and nothing defines it' for bucket in unknown])
    runner.job.check(context)


def database_problems(runner: Runner) -> list[tuple[str, str]]:
    """What the plugin finds wrong with its databases, each with the SQL that mends it."""
    return list(runner.job.database_problems(runner.of_no_run()))
