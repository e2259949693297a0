"""stellerd.toml: each mistake with its exact place and sentence, all at once, and what a right file means."""

from __future__ import annotations

import os
import time
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from stellerd import Duration, Secret, Settings, config, locate
from stellerd.config import Config, plugin_settings
from stellerd.durations import Rate
from stellerd.errors import ConfigError

FILE = Path("/etc/x/stellerd.toml")


def problems(text: str, file: Path = FILE) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, file)
    return caught.value.problems


def parsed(text: str = "", file: Path = FILE) -> Config:
    return config.parse(text, file)


# --- mistakes

MISTAKES = {
    "root for a file": ('[supervisor]\nholds = "/"', "2:1: supervisor.holds: must name a file, not the root directory"),
    "unknown key": ('[jobs.a]\nevry = "1m"', '2:1: jobs.a.evry: unknown key, did you mean "every"?'),
    "unknown table": ("\n[job.a]\n", '2:1: job: unknown key, did you mean "jobs"?'),
    "unlike any key": ("[broker]\nurl='amqp://h'\nzzz = 1", "3:1: broker.zzz: unknown key; known are url"),
    "inside an inline table": ("jobs = { a = { evry = 1 } }", '1:16: jobs.a.evry: unknown key, did you mean "every"?'),
    "dotted": ('  jobs.a.evry = "1m"', '1:3: jobs.a.evry: unknown key, did you mean "every"?'),
    "switch for a duration": (
        "[jobs.a]\nevery = true", '2:1: jobs.a.every: write it as text with a unit, as in "30s"',
    ),
    "negative number for a duration": (
        "[state]\nkeep = -86400.0", "2:1: state.keep: -86400.0 is not a duration: it must be zero or more",
    ),
    "negative margin": (
        "[limits.b]\nrate = '1/1s'\nmargin = -3600.0",
        "3:1: limits.b.margin: -3600.0 is not a duration: it must be zero or more",
    ),
    "number that is none": (
        "[jobs.a]\ntimeout = nan", "2:1: jobs.a.timeout: nan is not a duration: it must be zero or more",
    ),
    "interval of ages": (
        '[jobs.a]\nevery = "500000w"',
        '2:1: jobs.a.every: "500000w" is too long: the longest duration is 3650d',
    ),
    "history of ages": (
        '[state]\nkeep = "1000000d"', '2:1: state.keep: "1000000d" is too long: the longest duration is 3650d',
    ),
    "lease of ages": (
        "[state]\nlease = 1e12", "2:1: state.lease: 1000000000000.0 is too long: the longest duration is 3650d",
    ),
    "lease of nothing": ("[state]\nlease = 0", "2:1: state.lease: must be greater than or equal to 1"),
    "learned wait of ages": (
        "[limits.b]\nrate = '1/1s'\nmax_learned = '9999999w'",
        '3:1: limits.b.max_learned: "9999999w" is too long: the longest duration is 3650d',
    ),
    "window of ages": (
        "[limits.b]\nrate = '1/9999999w'",
        '2:1: limits.b.rate.0: "1/9999999w" is too long: the longest duration is 3650d',
    ),
    "negative size": ("[jobs.a]\nmax_rss = -5", "2:1: jobs.a.max_rss: -5 is not a size: it must be zero or more"),
    "resource limit beyond all": (
        "[jobs.a]\nrlimits = { AS = '9999999GiB' }",
        '2:13: jobs.a.rlimits.AS: "9999999GiB" is too large: the largest size is 1048576GiB',
    ),
    "duration without a unit": (
        '[jobs.a]\nevery = "30"',
        '2:1: jobs.a.every: "30" is not a duration: write a number with a unit, as in "30s", "5m" or "1h30m"',
    ),
    "zero interval": ('[jobs.a]\nevery = "0s"', "2:1: jobs.a.every: must be greater than 0"),
    "rate": ("[limits.b]\nrate = '2 per hour'",
             '2:1: limits.b.rate.0: "2 per hour" is not a rate: write requests per duration, as in "2/1h"'),
    "second rate of a list": (
        "[limits.b]\nrate = [\n  '1/1s',\n  2,\n]", '4:3: limits.b.rate.1: write it as text with a unit, as in "2/1h"',
    ),
    "missing key": ("\n[limits.b]\nmargin = '1s'", "2:1: limits.b.rate: missing; this key is required"),
    "wrong choice": ("[jobs.a]\nmisfire = 'twice'", "2:1: jobs.a.misfire: must be one of 'once' or 'skip'"),
    "text for a switch": ("[jobs.a]\nenabled = 'yes'", "2:1: jobs.a.enabled: must be true or false"),
    "number for a text": ("[supervisor]\nsocket = 1", "2:1: supervisor.socket: must be a text in quotes"),
    "text for a list": ("[jobs.a]\nafter = 'b'\n[jobs.b]", "2:1: jobs.a.after: must be a list"),
    "text for a table": ("state = 'sqlite://'", "1:1: state: must be a table"),
    "text for a table of tables": ("jobs = 'all'", "1:1: jobs: must be a table"),
    "job name": (
        "[jobs.BrandSync]\n",
        "1:1: jobs.BrandSync: not a name: use small letters, digits, - and _, a letter first",
    ),
    "no secret": (
        "[broker]\nurl = { vault = 'x' }",
        '2:1: broker.url: not a secret: write { env = "NAME" }, { file = "path" } or { credential = "name" }',
    ),
    "cap below backoff": ("[jobs.a]\nbackoff = '2m'", "1:1: jobs.a.backoff_cap: shorter than backoff"),
    "after nobody": ("[jobs.a]\nafter = ['b']", '2:10: jobs.a.after.0: no job "b"; there are: a'),
    "after itself": ("[jobs.a]\nafter = ['a']", '2:10: jobs.a.after.0: "a" waits for "a" itself'),
    "empty rate list": (
        "[limits.b]\nrate = []",
        "2:1: limits.b.rate: List should have at least 1 item after validation, not 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_has_its_place_and_its_sentence(name: str) -> None:
    text, line = MISTAKES[name]
    assert problems(text) == [f"{FILE}:{line}"]


def test_jobs_that_wait_for_each_other_are_both_named() -> None:
    lines = problems("[jobs.a]\nafter = ['b']\n[jobs.b]\nafter = ['c']\n[jobs.c]\nafter = ['a']\n")
    assert [line.split(": ", 2)[1] for line in lines] == ["jobs.a.after.0", "jobs.b.after.0", "jobs.c.after.0"]


def test_all_mistakes_are_reported_at_once_in_file_order() -> None:
    text = "[zzz]\n[jobs.b]\nevery = true\nx = 2\n[broker]\nurl = 3\n[jobs.a]\nenabled = 1\n"
    places = [line.removeprefix(f"{FILE}:").split(" ")[0] for line in problems(text)]
    assert places == ["1:1:", "3:1:", "4:1:", "6:1:", "8:1:"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[jobs.a]\nevery = \n", "2:9: Invalid value"),
        ("[a]\n[a]\n", "2:3: Cannot declare ('a',) twice"),
        ("x = 1\nx = 2\n", "2:6: Cannot overwrite a value"),
        ('x = "open', "1:10: Unterminated string at the end of the file"),
        ("[jobs", "1:6: Expected ']' at the end of a table declaration at the end of the file"),
    ],
)
def test_broken_toml_has_its_place_too(text: str, line: str) -> None:
    assert problems(text) == [f"{FILE}:{line}"]


HOSTILE = {  # what TOML's grammar allows, or a parser chokes on
    "arrays without end": ("x = " + "[" * 3000, "1:37: Nested more than 32 deep"),
    "tables without end": ("x = " + "{a=" * 3000, "1:101: Nested more than 32 deep"),
    "nested arrays": (f"[jobs.a.settings]\nx = {'[' * 300}{']' * 300}", "2:37: Nested more than 32 deep"),
    "a long dotted key": (".".join("a" * 200_000) + " = 1", "1:66: Nested more than 32 deep"),
    "a long header": (f"\n[{'.'.join('a' * 5000)}]", "2:67: Nested more than 32 deep"),
    "dotted keys in tables": (f"x = {'{a.a.a.a = ' * 9}1{'}' * 9}", "1:83: Nested more than 32 deep"),
    "a long number": (f"[jobs.a]\nmax_runs = {'9' * 5000}", "2:12: A number of 5,000 characters"),
    "a long hexadecimal number": (f"[jobs.a]\nmax_runs = 0x{'f' * 5000}", "2:12: A number of 5,002 characters"),
    "more than 64 bits": (f"[jobs.a]\nmax_runs = {2**63}", "2:1: A whole number of more than 64 bits"),
    "less than 64 bits": (
        "[jobs.a.settings]\nx = [1, -9223372036854775809]",
        "2:9: A whole number of more than 64 bits",
    ),
    "NUL in a path": ('[supervisor]\nsocket = "a\\u0000b"', "2:1: NUL in a text"),
    "NUL in a variable's name": ('[jobs.a.env]\n"a\\u0000b" = "1"', "2:1: NUL in a text"),
    "NUL in a list": ('[jobs.a]\nafter = ["b", "\\u0000"]', "2:15: NUL in a text"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_break_the_program_is_refused_with_its_place(name: str) -> None:
    text, line = HOSTILE[name]
    began = time.monotonic()
    assert problems(text) == [f"{FILE}:{line}"]
    assert time.monotonic() - began < 2


def test_the_bounds_are_far_from_what_people_write() -> None:
    text = f"[jobs.a.settings]\nx = {'[' * 25}{']' * 25}\ny = {-(2**63)}\nz = {2**63 - 1}\n{'k' * 500} = 1\n"
    assert parsed(text).jobs["a"].settings["z"] == 2**63 - 1


def test_a_file_that_is_no_file_or_without_end_says_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"#" * (locate.LARGEST + 1))
    for name, why in {"pipe": "not a regular file", "large": "larger than 1,048,576 bytes"}.items():
        with pytest.raises(ConfigError, match=f"^{tmp_path / name}: {why}$"):
            config.load(str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"^/dev/zero: not a regular file$"):
        config.load("/dev/zero")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_daemon_is_found_whatever_became_of_its_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f"[supervisor]\nsocket = 's.sock'\n{HOSTILE[name][0]}"[:8000])
    assert locate.control_socket(str(path)) in (tmp_path / "s.sock", Path(locate.DEFAULT_SOCKET))


def test_a_file_that_is_no_text_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match=f"^{path}: not UTF-8 at byte 5$"):
        config.load(str(path))


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{tmp_path}/no.toml: No such file or directory$"):
        config.load(str(tmp_path / "no.toml"))


def test_tables_without_positions_name_file_and_key() -> None:
    with pytest.raises(ConfigError) as caught:
        config.from_tables({"jobs": {"a": {"evry": 1}}}, FILE)
    assert caught.value.problems == [f'{FILE}: jobs.a.evry: unknown key, did you mean "every"?']


# --- a right file


def test_an_empty_file_is_all_defaults() -> None:
    assert parsed().supervisor.stop_timeout == 30.0
    assert parsed().jobs == {}


def test_the_smallest_job_has_every_default() -> None:
    job = parsed("[jobs.a]").jobs["a"]
    assert (job.every, job.timeout, job.backoff, job.misfire, job.log) == (None, 3600.0, 0.5, "once", "pump")


def test_durations_are_seconds_and_rates_are_rates() -> None:
    loaded = parsed("[limits.b]\nrate = ['1/1s', '2/1h']\nmargin = '250ms'\n[jobs.a]\nevery = '1h30m'")
    assert loaded.limits["b"].rate == [Rate(1, 1.0), Rate(2, 3600.0)]
    assert loaded.limits["b"].margin == 0.25
    assert loaded.jobs["a"].every == 5400.0


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parsed().supervisor.socket = "x"  # type: ignore[misc]


def test_what_is_shown_can_be_loaded_again() -> None:
    import tomli_w

    text = "[limits.b]\nrate = '2/1h'\nmargin = '0.5s'\n[jobs.a]\nevery = '90s'\nafter = ['b']\n[jobs.b]\n"
    first = parsed(text)
    shown = tomli_w.dumps(config.without_none(first.model_dump(mode="json")))
    assert parsed(shown).model_dump() == first.model_dump()


@pytest.mark.parametrize(
    ("url", "absolute"),
    [
        ("sqlite:///state.db", "sqlite:////etc/x/state.db"),
        ("sqlite:///../lib/state.db", "sqlite:////etc/lib/state.db"),
        ("sqlite:////var/state.db", "sqlite:////var/state.db"),
        ("sqlite+pysqlite:///state.db", "sqlite+pysqlite:////etc/x/state.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("sqlite://", "sqlite://"),
        ("postgresql://h/db", "postgresql://h/db"),
    ],
)
def test_a_relative_database_file_starts_from_the_configuration(url: str, absolute: str) -> None:
    loaded = parsed(f'[state]\nurl = "{url}"\n[databases.d]\nurl = "{url}"')
    assert loaded.state_url() == loaded.database_url("d") == absolute


@pytest.mark.parametrize(
    ("state", "folder"),
    [
        ("url = 'sqlite:///lib/state.db'", "/etc/x/lib"), ("url = 'sqlite:////var/x/state.db?timeout=3'", "/var/x"),
        ("url = 'sqlite:///:memory:'", None), ("url = 'sqlite://'", None),
        ("url = 'postgresql://h/db'", "/var/lib/stellerd"),
        ("url = 'sqlite://'\nfolder = 'jobs'", "/etc/x/jobs"), ("folder = '/srv/x'", "/srv/x"),
    ],
)  # fmt: skip
def test_jobs_have_their_folders_beside_the_state_store(state: str, folder: str | None) -> None:
    assert parsed(f"[state]\n{state}").state_folder() == (folder and Path(folder))


@pytest.mark.parametrize(
    ("url", "absolute"), [("spool:///var/spool", "spool:///var/spool"), ("amqp://h/%2F", "amqp://h/%2F")]
)
def test_a_broker_url_stays_what_it_is(url: str, absolute: str) -> None:
    assert parsed(f'[broker]\nurl = "{url}"').broker_urls() == [absolute]


def test_a_relative_spool_starts_from_the_configuration() -> None:
    assert parsed('[broker]\nurl = "spool://out"').broker_urls() == ["spool:///etc/x/out"]


def test_a_relative_configuration_file_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = parsed("[state]\nurl = 'sqlite:///s.db'", Path("sub/x.toml"))
    assert loaded.state_url() == f"sqlite:///{tmp_path}/sub/s.db"
    assert loaded.path("c.sock") == tmp_path / "sub" / "c.sock"


def test_a_missing_database_says_what_to_add() -> None:
    with pytest.raises(ConfigError, match=r"databases.steller: missing; add \[databases.steller\] with a url"):
        parsed().database_url("steller")


def test_several_brokers_keep_their_order_and_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "amqp://u:s3cret@one")
    loaded = parsed("[broker]\nurl = [{ env = 'ONE' }, 'amqp://two']")
    assert loaded.broker_urls() == ["amqp://u:s3cret@one", "amqp://two"]
    assert loaded.model_dump(mode="json")["broker"] == {"url": [{"env": "ONE"}, "amqp://two"]}
    assert parsed("[broker]\nurl = 'amqp://one'").model_dump(mode="json")["broker"] == {"url": "amqp://one"}


def test_a_list_of_no_brokers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"2:1: broker.url: must name at least one broker"):
        parsed("[broker]\nurl = []")


def test_a_missing_broker_says_what_to_add() -> None:
    with pytest.raises(ConfigError, match=r"broker: missing; add \[broker\] with a url"):
        parsed().broker_urls()


def test_missing_secrets_are_all_named_with_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONE", "TWO", "THREE"):
        monkeypatch.delenv(name, raising=False)
    text = "[state]\nurl={env='ONE'}\n[databases.d]\nurl={env='TWO'}\n[broker]\nurl={env='THREE'}"
    assert parsed(text).problems_of_secrets() == [
        f"{FILE}:2:1: state.url: environment variable ONE is not set",
        f"{FILE}:4:1: databases.d.url: environment variable TWO is not set",
        f"{FILE}:6:1: broker.url: environment variable THREE is not set",
    ]


# --- find


def test_the_named_file_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STELLERD_CONFIG", "/from/env.toml")
    assert locate.config_file("/named.toml") == Path("/named.toml")


def test_the_environment_comes_before_the_usual_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "stellerd.toml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STELLERD_CONFIG", "/from/env.toml")
    assert locate.config_file(None) == Path("/from/env.toml")


def test_the_folder_one_stands_in_comes_before_etc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).touch()
    monkeypatch.delenv("STELLERD_CONFIG", raising=False)
    monkeypatch.setattr(locate, "SEARCH", (str(tmp_path / "a.toml"), str(tmp_path / "b.toml")))
    assert locate.config_file(None) == tmp_path / "a.toml"
    (tmp_path / "a.toml").unlink()
    assert locate.config_file(None) == tmp_path / "b.toml"


def test_no_file_at_all_says_where_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STELLERD_CONFIG", raising=False)
    monkeypatch.setattr(locate, "SEARCH", ("/no/1.toml", "/no/2.toml"))
    with pytest.raises(ConfigError, match=r"looked for /no/1\.toml and /no/2\.toml; name one with -c FILE"):
        locate.config_file(None)


def test_root_takes_the_configuration_it_stands_beside_last_and_only_from_safe_hands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STELLERD_CONFIG", raising=False)
    monkeypatch.setattr(locate, "SEARCH", ("./stellerd.toml", str(tmp_path / "etc.toml")))
    Path("stellerd.toml").touch()
    doubts: list[str] = []
    monkeypatch.setattr(locate, "doubts", lambda file: doubts)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert locate.config_file(None) == Path("stellerd.toml")
    doubts.append("x belongs to user id 7")
    with pytest.raises(ConfigError, match=r"name one with -c FILE; root does not take \./stellerd\.toml: x belongs"):
        locate.config_file(None)
    doubts.clear()
    Path("etc.toml").touch()
    assert locate.config_file(None) == tmp_path / "etc.toml"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert locate.config_file(None) == Path("stellerd.toml")


def test_a_configuration_that_others_may_write_is_doubted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    file = tmp_path / "x.toml"
    file.touch(0o644)
    assert locate.doubts(file) == []
    file.chmod(0o646)
    assert locate.doubts(file) == [f"{file} can be written by every user: chmod o-w {file}"]
    file.chmod(0o644)
    tmp_path.chmod(0o757)
    assert locate.doubts(file) == [f"{tmp_path} can be written by every user: chmod o-w {tmp_path}"]
    tmp_path.chmod(0o1777)  # as /tmp: others cannot replace what is not theirs
    assert locate.doubts(file) == []
    mine = file.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert [
        doubt.endswith(f"belongs to user id {mine}, who can change what runs here") for doubt in locate.doubts(file)
    ] == ([True, True] if mine else [])


def test_a_name_from_the_file_cannot_forge_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse('[jobs."a\\nstellerd: all is well\\u001b[2J"]\n', tmp_path / "x.toml")
    assert str(caught.value).isprintable()


# --- a plugin's own settings


class Endpoint(Settings):
    url: str = "https://x"
    key: Secret | None = None
    waits: list[Duration] = []


class Inner(Settings):
    endpoint: Endpoint = Endpoint()


class PluginSettings(Settings):
    mode: Literal["v1", "v2"] = "v1"
    every: Duration = 60.0
    endpoints: list[Endpoint] = []
    by_name: dict[str, Endpoint] = {}
    inner: Inner = Inner()
    maybe: Endpoint | None = None
    either: Endpoint | str = "x"
    price: Decimal = Decimal(1)
    client_secret: Secret = Secret("plain", "x")
    size: Annotated[int, Field(ge=1)] = 5


def plugin(table: str) -> PluginSettings | None:
    return plugin_settings(parsed(f"[jobs.a]\n[jobs.a.settings]\n{table}"), "a", PluginSettings)


def plugin_problems(table: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plugin(table)
    return [line.removeprefix(f"{FILE}:") for line in caught.value.problems]


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("mod = 'v1'", '3:1: jobs.a.settings.mod: unknown key, did you mean "mode"?'),
        ("mode = 'v3'", "3:1: jobs.a.settings.mode: must be one of 'v1' or 'v2'"),
        ("size = 0", "3:1: jobs.a.settings.size: must be greater than or equal to 1"),
        ("size = '5'", "3:1: jobs.a.settings.size: must be a whole number"),
        ("[jobs.a.settings.inner.endpoint]\nurk = 1",
         '4:1: jobs.a.settings.inner.endpoint.urk: unknown key, did you mean "url"?'),
        ("[[jobs.a.settings.endpoints]]\n[[jobs.a.settings.endpoints]]\nurk = 1",
         '5:1: jobs.a.settings.endpoints.1.urk: unknown key, did you mean "url"?'),
        ("endpoints = [{url = 'a'}, {urk = 1}]",
         '3:28: jobs.a.settings.endpoints.1.urk: unknown key, did you mean "url"?'),
        ("[jobs.a.settings.by_name.b]\nurk = 1",
         '4:1: jobs.a.settings.by_name.b.urk: unknown key, did you mean "url"?'),
        ("[jobs.a.settings.maybe]\nurk = 1", '4:1: jobs.a.settings.maybe.urk: unknown key, did you mean "url"?'),
        ("[jobs.a.settings.inner.endpoint]\nwaits = ['1s', -5]",
         '4:16: jobs.a.settings.inner.endpoint.waits.1: -5 is not a duration: it must be zero or more'),
        ("[[jobs.a.settings.endpoints]]\nkey = { vault = 'x' }",
         '4:1: jobs.a.settings.endpoints.0.key: not a secret: write { env = "NAME" }, { file = "path" } '
         'or { credential = "name" }'),
    ],
)  # fmt: skip
def test_a_mistake_in_plugin_settings_has_its_place(table: str, line: str) -> None:
    assert plugin_problems(table) == [line]


def test_a_mistake_in_one_of_two_possible_models_is_reported_not_raised() -> None:
    lines = plugin_problems("[jobs.a.settings.either]\nurk = 1")
    assert any("urk: unknown key" in line for line in lines)


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("client_secret = { env = 'NO_SUCH' }", "3:1: jobs.a.settings.client_secret"),
        ("[jobs.a.settings.inner.endpoint]\nkey = { env = 'NO_SUCH' }", "4:1: jobs.a.settings.inner.endpoint.key"),
        ("[[jobs.a.settings.endpoints]]\n[[jobs.a.settings.endpoints]]\nkey = { env = 'NO_SUCH' }",
         "5:1: jobs.a.settings.endpoints.1.key"),
        ("by_name.x.key = { env = 'NO_SUCH' }", "3:1: jobs.a.settings.by_name.x.key"),
    ],
)  # fmt: skip
def test_a_missing_secret_is_named_however_deep_it_lies(table: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH", raising=False)
    assert plugin_problems(table) == [f"{key}: environment variable NO_SUCH is not set"]


def test_a_secret_file_of_a_nested_table_starts_from_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("inner value")
    (tmp_path / "key").chmod(0o600)
    text = "[jobs.a.settings.inner.endpoint]\nkey = { file = 'key' }"
    settings = plugin_settings(parsed(text, tmp_path / "x.toml"), "a", PluginSettings)
    assert settings is not None
    assert settings.inner.endpoint.key is not None
    assert settings.inner.endpoint.key.reveal() == "inner value"


def test_settings_for_a_job_that_has_none_are_refused() -> None:
    loaded = parsed("[jobs.a.settings]\nx = 1\ny = 2")
    with pytest.raises(ConfigError) as caught:
        plugin_settings(loaded, "a", None)
    assert caught.value.problems == [
        f"{FILE}:2:1: jobs.a.settings.x: unknown key, this job has no settings",
        f"{FILE}:3:1: jobs.a.settings.y: unknown key, this job has no settings",
    ]


def test_a_job_without_settings_needs_none() -> None:
    assert plugin_settings(parsed("[jobs.a]"), "a", None) is None


def test_the_json_schema_describes_every_key() -> None:
    schema = Config.model_json_schema()
    tables = [schema, *schema["$defs"].values()]
    missing = [
        name
        for table in tables
        if table is not schema
        for name, entry in table.get("properties", {}).items()
        if not entry.get("description")
    ]
    assert missing == []
