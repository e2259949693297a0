"""`stellerd limits` on the store itself, without a daemon: show, set, reset, and who did it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from stellerd.cli import cli
from stellerd.durations import parse_rate
from stellerd.errors import UsageError
from stellerd.limiter import Limit, Limiter
from stellerd.status import from_iso
from stellerd.store import Store

TOML = '[limits.vendor]\nrate = ["2/1h", "1/1s"]\nmargin = "0s"\nbreaker_failures = 2\n'
LIMIT = Limit((parse_rate("2/1h"), parse_rate("1/1s")), 0.0, breaker_failures=2)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    made: str = request.getfixturevalue("postgres_url")
    return made


@pytest.fixture
def limiter(url: str) -> Iterator[Limiter]:
    """What a job does with the same bucket."""
    state = Store(url)
    state.create()
    yield Limiter(state, {"vendor": LIMIT, "of_plugin": Limit((parse_rate("7/1m"),))})
    state.close()


class Command:
    def __init__(self, config: Path) -> None:
        self.config = config

    def __call__(self, *words: str) -> Result:
        return CliRunner().invoke(cli, ["-c", str(self.config), *words], catch_exceptions=True)

    def json(self, *words: str) -> Any:
        done = self(*words, "--json")
        assert done.exception is None, done.exception
        return json.loads(done.stdout)

    def shown(self, bucket: str = "vendor") -> dict[str, Any]:
        [found] = self.json("limits", "show", bucket)["limits"]
        return dict(found)


@pytest.fixture
def stellerd(tmp_path: Path, url: str) -> Command:
    config = tmp_path / "stellerd.toml"
    config.write_text(f'[state]\nurl = "{url}"\n{TOML}')
    return Command(config)


def test_an_unused_limit_is_shown_as_configured(stellerd: Command) -> None:
    shown = stellerd.shown()
    assert [(one["rate"], one["used"], one["limit"], one["next_slot"]) for one in shown["windows"]] == [
        ("2/1h", 0, 2, None), ("1/1s", 0, 1, None),
    ]  # fmt: skip
    assert (shown["next_slot"], shown["not_before"], shown["breaker"], shown["override"]) == (
        None,
        None,
        "closed",
        None,
    )


def test_what_is_used_of_each_window_is_shown(stellerd: Command, limiter: Limiter) -> None:
    assert limiter.try_acquire("vendor") is None
    hour, second = stellerd.shown()["windows"]
    assert (hour["used"], hour["next_slot"]) == (1, None)
    assert second["used"] <= 1


def test_the_next_slot_of_a_used_up_limit_is_shown(stellerd: Command, limiter: Limiter) -> None:
    limiter.limits = {"vendor": Limit((parse_rate("2/1h"),), 0.0)}
    assert [limiter.try_acquire("vendor") for _ in range(2)] == [None, None]
    free = limiter.try_acquire("vendor")
    assert free is not None
    shown = stellerd.shown()
    assert abs(from_iso(shown["next_slot"]) - free) < timedelta(milliseconds=1)
    assert shown["windows"][0]["next_slot"] == shown["next_slot"]


def test_a_limit_that_only_a_plugin_knows_is_shown_once_used(stellerd: Command, limiter: Limiter) -> None:
    limiter.try_acquire("of_plugin")
    assert [one["rate"] for one in stellerd.shown("of_plugin")["windows"]] == ["7/1m"]


def test_a_learned_wait_is_shown_with_its_source(stellerd: Command, limiter: Limiter) -> None:
    until = limiter.learn("vendor", 3406)
    shown = stellerd.shown()
    assert (shown["source"], shown["learned_wait"]) == ("server", 3406.0)
    assert abs(from_iso(shown["not_before"]) - until) < timedelta(milliseconds=1)


def test_an_open_circuit_is_shown(stellerd: Command, limiter: Limiter) -> None:
    for _ in range(2):
        limiter.report("vendor", answered=False)
    shown = stellerd.shown()
    assert (shown["breaker"], shown["failures"], shown["source"]) == ("open", 2, "breaker")


def test_an_unknown_limit_is_a_usage_error(stellerd: Command) -> None:
    for words in (["show", "zzz"], ["set", "zzz", "--close", "1m"], ["reset", "zzz"]):
        done = stellerd("limits", *words)
        assert isinstance(done.exception, UsageError)
        assert str(done.exception) == 'no limit "zzz"; there are: vendor'


def test_a_rate_that_was_set_holds_for_the_jobs(stellerd: Command, limiter: Limiter) -> None:
    shown = stellerd.json("limits", "set", "vendor", "--rate", "1/2h")["limits"][0]
    assert shown["override"] == {"rates": ["1/2h"], "until": None}
    assert shown["configured"] == ["2/1h", "1/1s"]
    assert limiter.try_acquire("vendor") is None
    free = limiter.try_acquire("vendor")
    assert free is not None
    assert free - limiter._now() > timedelta(minutes=119)


def test_a_rate_may_hold_for_a_time(stellerd: Command, limiter: Limiter) -> None:
    shown = stellerd.json("limits", "set", "vendor", "--rate", "9/1h", "--rate", "3/1s", "--for", "2h")["limits"][0]
    assert shown["override"]["rates"] == ["9/1h", "3/1s"]
    left = from_iso(shown["override"]["until"]) - limiter._now()
    assert timedelta(minutes=119) < left <= timedelta(hours=2)


def test_a_closed_limit_grants_nothing_until_it_is_reset(stellerd: Command, limiter: Limiter) -> None:
    shown = stellerd.json("limits", "set", "vendor", "--close", "1h")["limits"][0]
    assert shown["source"] == "operator"
    assert limiter.try_acquire("vendor") is not None
    stellerd.json("limits", "reset", "vendor")
    assert limiter.try_acquire("vendor") is None


def test_a_learned_wait_does_not_outlive_a_reset(stellerd: Command, limiter: Limiter) -> None:
    limiter.learn("vendor", 3406)
    limiter.report("vendor", answered=False)
    shown = stellerd.json("limits", "reset", "vendor")["limits"][0]
    assert (shown["not_before"], shown["learned_wait"], shown["failures"], shown["override"]) == (None, None, 0, None)


def test_a_reset_keeps_the_spent_slots_unless_told(stellerd: Command, limiter: Limiter) -> None:
    limiter.try_acquire("vendor")
    assert stellerd.json("limits", "reset", "vendor")["limits"][0]["windows"][0]["used"] == 1
    assert stellerd.json("limits", "reset", "vendor", "--spent")["limits"][0]["windows"][0]["used"] == 0


def test_history_tells_who_did_what(stellerd: Command) -> None:
    stellerd("limits", "set", "vendor", "--rate", "1/2h", "--for", "1h", "--close", "5m")
    stellerd("limits", "reset", "vendor", "--spent")
    reset, done = stellerd.json("history")["operations"]
    assert (reset["action"], reset["subject"], reset["detail"]) == (
        "limits reset", "vendor", "opened, configured rate in force, 0 spent slots forgotten",
    )  # fmt: skip
    assert done["detail"].startswith("rate 1/2h until 20")
    assert ", closed until 20" in done["detail"]
    assert done["actor"]
    assert done["host"]
    assert "limits reset" in stellerd("history").stdout


def test_a_refused_command_leaves_no_trace(stellerd: Command) -> None:
    stellerd("limits", "set", "zzz", "--close", "1m")
    stellerd("limits", "set", "vendor")
    assert stellerd.json("history")["operations"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "limits set: nothing to set; give --rate or --close"),
        (["--for", "1h", "--close", "1h"], "--for says how long a --rate holds"),
        (["--rate", "2"], '--rate: "2" is not a rate'), (["--close", "5"], '--close: "5" is not a duration'),
    ],
)  # fmt: skip
def test_what_cannot_be_set_is_said(stellerd: Command, words: list[str], said: str) -> None:
    done = stellerd("limits", "set", "vendor", *words)
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


def test_a_daemon_with_another_rate_is_shown(stellerd: Command, limiter: Limiter) -> None:
    limiter.try_acquire("vendor")
    assert stellerd.shown()["used_as"] is None
    limiter.limits = {"vendor": Limit((parse_rate("9/1h"),))}
    limiter.try_acquire("vendor")
    assert stellerd.shown()["used_as"] == ["9/1h"]
    assert "last used as 9/1h, by another configuration" in " ".join(stellerd("limits", "show").stdout.split())


def test_the_table_says_it_all(stellerd: Command, limiter: Limiter) -> None:
    limiter.try_acquire("vendor")
    limiter.learn("vendor", 3406)
    stellerd("limits", "set", "vendor", "--rate", "1/2h")
    table = stellerd("limits", "show").stdout
    for text in ("vendor", "1/2h", "1/1", "by server", "operator's rate until reset; configured: 2/1h, 1/1s",
                 "the server last said to wait 56m46s"):  # fmt: skip
        assert text in table


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--close", "9999999w"), '--close: "9999999w" is too long: the longest duration is 3650d'),
        (("--close", "-1s"), '--close: "-1s" is not a duration'),
        (("--close", "5"), '--close: "5" is not a duration'),
        (("--rate", "1/9999999w"), '--rate: "1/9999999w" is too long: the longest duration is 3650d'),
        (("--rate", f"{10**7}/1s"), f'--rate: "{10**7}/1s" is too much'),
        (("--rate", "1/1s", "--for", "500000w"), '--for: "500000w" is too long: the longest duration is 3650d'),
    ],
)
def test_what_is_out_of_bounds_is_refused_before_the_store_is_touched(
    tmp_path: Path, words: tuple[str, ...], why: str
) -> None:
    config = tmp_path / "stellerd.toml"
    config.write_text(f'[state]\nurl = "sqlite:///state.db"\n{TOML}')
    done = Command(config)("limits", "set", "vendor", *words)
    assert isinstance(done.exception, UsageError)
    assert str(done.exception).startswith(why)
    assert not (tmp_path / "state.db").exists()


@pytest.mark.parametrize("option", ["close", "for"])
def test_the_longest_duration_is_one_that_everything_can_work_with(
    limiter: Limiter, stellerd: Command, option: str
) -> None:
    words = ("--close", "3650d") if option == "close" else ("--rate", "1/3650d", "--for", "3650d")
    assert stellerd("limits", "set", "vendor", *words).exception is None
    limiter.try_acquire("vendor")
    free = limiter.closed_until("vendor")
    assert free is not None
    assert free.year > 2030
    assert stellerd.shown()["next_slot"]
