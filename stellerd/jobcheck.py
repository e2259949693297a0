"""Whether a class is a job that can be run: one judgement for the daemon, `check`, `run-once` and the test kit."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from stellerd.durations import duration, parse_rate
from stellerd.job import Job
from stellerd.settings import JobSettings, Settings

_METHODS = ("run", "check", "needs", "database_problems")
_KNOWN = [name for name in vars(Job) if not name.startswith("_")]


def problems(job: type[Job]) -> list[str]:
    """A line for each mistake in the class's attributes and methods; nothing of it is called."""
    return [f"{job.__name__}.{problem}" for problem in (*_of_attributes(job), *_of_methods(job), *_unknown(job))]


def _of_attributes(job: type[Any]) -> Iterator[str]:
    if job.kind not in ("periodic", "service"):
        yield f'kind: must be "periodic" or "service", not {job.kind!r}'
    if why := _refused(lambda: duration(job.every)):
        yield f"every: {why}"
    elif not duration(job.every):
        yield "every: must be greater than 0"
    if not isinstance(job.concurrent, bool):
        yield f"concurrent: must be True or False, not {job.concurrent!r}"
    if job.Settings is not None and not (isinstance(job.Settings, type) and issubclass(job.Settings, Settings)):
        yield "Settings: must be a subclass of stellerd.Settings, or None"
    if not isinstance(job.buckets, tuple | list) or not all(isinstance(one, str) for one in job.buckets):
        yield f'buckets: must be names in a tuple, as in ("vendor",), not {job.buckets!r}'
    yield from _of_limits(job.limits)


def _of_limits(limits: Any) -> Iterator[str]:
    if not isinstance(limits, Mapping):
        yield f'limits: must be rates by bucket, as in {{"vendor": "2/1h"}}, not {limits!r}'
        return
    for bucket, rate in limits.items():
        if not isinstance(bucket, str) or not isinstance(rate, str):
            yield f'limits: must be rates by bucket, as in {{"vendor": "2/1h"}}, not {bucket!r}: {rate!r}'
        elif why := _refused(lambda rate=rate: parse_rate(rate)):
            yield f"limits[{bucket!r}]: {why}"


def _refused(read: Any) -> str:
    try:
        read()
    except ValueError as error:
        return str(error)
    return ""


def _of_methods(job: type[Job]) -> Iterator[str]:
    if job.run is Job.run:
        yield "run: missing; a job does its work in run(self, ctx)"
    for name in _METHODS:
        method = getattr(job, name)
        bound = isinstance(inspect.getattr_static(job, name), staticmethod | classmethod)
        if not callable(method):
            yield f"{name}: must be a method, not {method!r}"
        elif inspect.iscoroutinefunction(method) or (inspect.isgeneratorfunction(method) and name == "run"):
            yield f"{name}: must be a plain method, neither async nor a generator"
        elif not _takes(method, *[None] * (1 if bound else 2)):
            yield f"{name}: must take (self, ctx)"
    if not _takes(job):
        yield "__init__: must take no arguments; settings come with ctx"


def _takes(function: Any, *arguments: None) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # written in C: nothing is known of it
        return True
    return True


def _unknown(job: type[Job]) -> Iterator[str]:
    """Values that look as if stellerd should read them. Methods, and names that are like none of its own, are the
    author's."""
    for cls in job.__mro__[: job.__mro__.index(Job)]:
        for name, value in vars(cls).items():
            if name.startswith("_") or name in _KNOWN or callable(value) or hasattr(value, "__get__"):
                continue
            if name in JobSettings.model_fields and isinstance(value, str | int | float):
                yield f"{name}: no attribute of a job; [jobs.NAME] sets it"
            elif close := difflib.get_close_matches(name, _KNOWN, 1, 0.8):
                yield f'{name}: no attribute of a job, did you mean "{close[0]}"?'
