"""What may be asked of a run over the control socket, without a daemon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from stellerd import config, run_requests
from stellerd.errors import StellerdError
from stellerd.once_run import with_sets

MEMBER = 65534


def file(settings: str = "") -> Any:
    return config.parse(f"[jobs.it]\n[jobs.it.settings]\n{settings}", Path("stellerd.toml"))


def test_a_set_is_toml_or_else_a_text() -> None:
    changed = with_sets(file("kept = 1\n"), "it", ("n=7", "name=left", "list=[1, 2]", "empty="))
    assert changed.jobs["it"].settings == {"kept": 1, "n": 7, "name": "left", "list": [1, 2], "empty": ""}


@pytest.mark.parametrize("item", ["url=https://evil.example", "path='/etc'", "list=['x']", "table={a = 1}"])
def test_who_is_neither_root_nor_the_daemons_user_may_set_no_text(item: str) -> None:
    before = file("n = 1\nurl = 'https://good.example'\n")
    after = with_sets(before, "it", ("n=2", "on=true", "share=0.5", "since=2026-02-01"))
    run_requests._may_set(after, before, "it", MEMBER)
    after = with_sets(before, "it", (item,))
    for uid in (0, os.getuid()):
        run_requests._may_set(after, before, "it", uid)
    with pytest.raises(StellerdError, match=f"--set {item.partition('=')[0]}: only root"):
        run_requests._may_set(after, before, "it", MEMBER)
