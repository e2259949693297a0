"""A class that cannot be run is refused with a sentence, before anything of it is called."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from stellerd_bamboo_sandbox.demo_orders import DemoOrders
from stellerd_bamboo_sandbox.service import BambooSandbox
from stellerd_brand_sync import BrandSync
from stellerd_order_queue import OrderQueue

from stellerd import Context, Done, Job, jobcheck
from stellerd.errors import ConfigError
from stellerd.testing import Harness


class Good(Job):
    """With what an author may well have of their own."""

    every = "5m"
    endpoint = "https://vendor.example"
    RATES = {"EUR": 1}
    _evry = "1m"
    log = logging.getLogger()

    @property
    def buket(self) -> str:
        return "x"

    def runs(self) -> int:
        return 1

    def run(self, ctx: Context) -> Done:
        return Done()


async def soon(self: Any, ctx: Any) -> None: ...


def one_by_one(self: Any, ctx: Any) -> Any:
    yield Done()


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": "cron"}, 'kind: must be "periodic" or "service", not \'cron\''),
    "every without a unit": ({"every": "5"}, 'every: "5" is not a duration'),
    "every negative": ({"every": -300}, "every: -300 is not a duration"),
    "every nothing": ({"every": "0s"}, "every: must be greater than 0"),
    "every of ages": ({"every": "500000w"}, 'every: "500000w" is too long'),
    "every a table": ({"every": {"minutes": 5}}, "every: write it as text with a unit"),
    "concurrent": ({"concurrent": "yes"}, "concurrent: must be True or False, not 'yes'"),
    "Settings": ({"Settings": dict}, "Settings: must be a subclass of stellerd.Settings, or None"),
    "Settings an instance": ({"Settings": {"a": 1}}, "Settings: must be a subclass of stellerd.Settings, or None"),
    "buckets": ({"buckets": "text"}, "buckets: must be names in a tuple, as in (\"vendor\",), not 'text'"),
    "limits": ({"limits": ["2/1h"]}, "limits: must be rates by bucket"),
    "limits a table": ({"limits": {"v": {"rate": "2/1h"}}}, "limits: must be rates by bucket"),
    "limits a word": ({"limits": {"v": "often"}}, "limits['v']: this is not a rate"),
    "run a number": ({"run": 5}, "run: must be a method, not 5"),
    "run without ctx": ({"run": lambda self: None}, "run: must take (self, ctx)"),
    "run with more": ({"run": lambda self, ctx, more: None}, "run: must take (self, ctx)"),
    "run static": ({"run": staticmethod(lambda self, ctx: None)}, "run: must take (self, ctx)"),
    "run async": ({"run": soon}, "run: must be a plain method, neither async nor a generator"),
    "run a generator": ({"run": one_by_one}, "run: must be a plain method, neither async nor a generator"),
    "check": ({"check": None}, "check: must be a method, not None"),
    "needs": ({"needs": lambda self: ()}, "needs: must take (self, ctx)"),
    "arguments": ({"__init__": lambda self, url: None}, "__init__: must take no arguments; settings come with ctx"),
    "misspelt": ({"evry": "5m"}, 'evry: no attribute of a job, did you mean "every"?'),
    "misspelt bucket": ({"bucket": "vendor"}, 'bucket: no attribute of a job, did you mean "buckets"?'),
    "of the configuration": ({"misfire": "skip"}, "misfire: no attribute of a job; [jobs.NAME] sets it"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_one_sentence(name: str) -> None:
    attributes, said = MISTAKES[name]
    bad = type("Bad", (Good,), attributes)
    [problem] = jobcheck.problems(bad)
    assert problem.startswith(f"Bad.{said}")
    with pytest.raises(ConfigError):
        Harness(bad)


def test_a_class_without_run_is_no_job() -> None:
    assert jobcheck.problems(type("Bad", (Job,), {})) == ["Bad.run: missing; a job does its work in run(self, ctx)"]


@pytest.mark.parametrize("job", [Good, BrandSync, OrderQueue, BambooSandbox, DemoOrders])
def test_what_is_an_authors_own_is_no_mistake(job: type[Job]) -> None:
    assert jobcheck.problems(job) == []


@pytest.mark.parametrize("every", [300, 1.5, "5m"])
def test_an_interval_may_be_a_number_of_seconds(every: Any) -> None:
    harness = Harness(type("Numbered", (Good,), {"every": every}))
    assert harness.runner.every in (300.0, 1.5)
