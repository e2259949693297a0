"""What a reload finds: every change with its effect, and no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from stellerd import config
from stellerd.config import Config
from stellerd.reload import RESTARTED_BY, Change, changes
from stellerd.settings import OF_THE_DAEMON, JobSettings, StateSettings, SupervisorSettings


def parsed(text: str) -> Config:
    return config.parse(text, Path("/x.toml"))


def found(old: str, new: str) -> list[Change]:
    return changes(parsed(old), parsed(new))


def test_the_same_file_changes_nothing() -> None:
    text = '[broker]\nurl = "amqp://u:secret@h"\n[limits.b]\nrate = "2/1h"\n[jobs.a]\n[jobs.a.settings]\nx = [1]'
    assert found(text, text) == []


@pytest.mark.parametrize(
    ("old", "new", "key", "effect"),
    [
        ("[jobs.a]", "[jobs.a]\nevery = '5m'", "jobs.a.every", "live"),
        ("[jobs.a]", "[jobs.a]\nenv = { A = 'b' }", "jobs.a.env", "restart"),
        ("[jobs.a]", "[jobs.a]\n[jobs.a.settings]\nx = 1", "jobs.a.settings.x", "next run"),
        ("[jobs.a]\n[jobs.a.settings]\nx = 1", "[jobs.a]", "jobs.a.settings.x", "next run"),
        ("", "[jobs.a]", "jobs.a", "start"),
        ("[jobs.a]", "", "jobs.a", "stop"),
        ("[jobs.a]", "[jobs.a]\nenabled = false", "jobs.a", "stop"),
        ("[jobs.a]\nenabled = false", "[jobs.a]", "jobs.a", "start"),
        ("", "[limits.b]\nrate = '1/1s'", "limits.b", "next run"),
        ("[limits.b]\nrate = '1/1s'", "[limits.b]\nrate = '2/1s'", "limits.b", "next run"),
        ("", "[supervisor]\nlog_level = 'debug'", "supervisor.log_level", "live"),
        ("", "[supervisor]\nsocket = 'x'", "supervisor.socket", "daemon"),
        ("", "[state]\nkeep = '1d'", "state.keep", "live"),
        ("", "[state]\nurl = 'sqlite:///x'", "state.url", "daemon"),
    ],
)
def test_a_change_is_named_with_its_effect(old: str, new: str, key: str, effect: str) -> None:
    assert [(change.key, change.effect) for change in found(old, new)] == [(key, effect)]


@pytest.mark.parametrize("table", ["state", "broker", "databases.d"])
def test_a_new_password_is_a_change_and_not_shown(table: str) -> None:
    old, new = (f'[{table}]\nurl = "postgresql://u:canary-{which}@h/db"' for which in ("old", "new"))
    [change] = found(old, new)
    assert change.key.startswith(table)
    assert "canary" not in repr(change)


@pytest.mark.parametrize(
    "values",
    [("env = {A = 'canary-1'}", "env = {A = 'canary-2'}"), ("settings.x = 'canary-1'", "settings.x = 'canary-2'")],
)
def test_values_that_may_be_secret_are_not_shown(values: tuple[str, str]) -> None:
    [change] = found(*(f"[jobs.a]\n{value}" for value in values))
    assert "canary" not in repr(change)


def test_keys_that_restart_something_are_keys_that_there_are() -> None:
    assert set(JobSettings.model_fields) >= RESTARTED_BY
    assert set(SupervisorSettings.model_fields) >= OF_THE_DAEMON["supervisor"]
    assert set(StateSettings.model_fields) >= OF_THE_DAEMON["state"]
