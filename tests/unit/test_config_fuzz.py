"""No configuration breaks what reads it: mutants of the JSON Schema through what `check` and a reload share."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import structlog
from configfuzz import Fuzzer, in_json
from stellerd_bamboo_sandbox.service import BambooSandbox
from stellerd_brand_sync import BrandSync
from stellerd_order_queue import OrderQueue

from stellerd import assembly, config, preload, reload, tomlschema
from stellerd.config import Config
from stellerd.errors import ConfigError
from stellerd.store import Store

SEED = 20260201
JOBS: dict[str, Any] = {"brand_sync": BrandSync, "order_queue": OrderQueue, "bamboo_sandbox": BambooSandbox}
SCHEMA = tomlschema.build({name: tomlschema.of_settings(job.Settings, name) for name, job in JOBS.items()})
FILE = Path("/etc/x/stellerd.toml")


def judge(text: str, before: Config, store: Store) -> Config | None:
    """What the daemon and `check` do with a file, up to the runner of each job; None: refused with a message."""
    try:
        new = config.parse(text, FILE)
        new.require_usable()
    except ConfigError:
        return None
    json.dumps([change.to_json() for change in reload.changes(before, new)])
    json.dumps(config.without_none(new.model_dump(mode="json", exclude_none=True)))
    preload.wanted(new)
    for name in JOBS.keys() & new.jobs.keys():
        with contextlib.suppress(ConfigError):
            assembly.runner(new, name, JOBS[name], store, structlog.get_logger(), lambda kind, fields: None)
    return new


def fuzz(seed: int, count: int, folder: Path) -> int:
    """How many of `count` mutants were accepted; fails with the text of the first one that breaks something."""
    store, before, accepted = Store(f"sqlite:///{folder}/state.db"), config.parse("[jobs.a]", FILE), 0
    for number, text in enumerate(itertools.islice(Fuzzer(SCHEMA, seed).texts(), count)):
        try:
            new = judge(text, before, store)
        except Exception as error:
            raise AssertionError(f"seed {seed}, mutant {number}: {error!r}\n{in_json(text)}") from error
        if new is not None:
            before, accepted = new, accepted + 1
    return accepted


def test_mutants_are_accepted_or_refused_with_a_message(tmp_path: Path) -> None:
    assert fuzz(SEED, 500, tmp_path) > 50


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(5))
def test_many_mutants_are_accepted_or_refused_with_a_message(tmp_path: Path, seed: int) -> None:
    assert fuzz(SEED + 1 + seed, 5000, tmp_path) > 500
