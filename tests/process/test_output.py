"""What commands print: JSON stays JSON whatever a plugin prints, messages name the place, and no secret gets out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from daemon import QUIET, Daemon, job

PRINTS = "print('{')\nprint('loud', flush=True)\nsys.stdout.buffer.write(b'bytes\\n')\n"
LOUD = PRINTS.replace("sys.", "__import__('sys').") + job(PRINTS, extra="def check(self, ctx):\n    print('checks')")


@pytest.mark.parametrize(
    "command", [["run-once", "it"], ["check"], ["check", "--connect"], ["config", "show"]], ids=str
)
def test_what_a_plugin_prints_is_not_part_of_the_json(tmp_path: Path, command: list[str]) -> None:
    result = Daemon(tmp_path, {"it": LOUD}, "[jobs.it]\n").cli(*command, "--json")
    assert json.loads(result.stdout)
    assert "loud" in result.stderr


def test_a_counter_that_is_no_number_leaves_the_json_valid(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, {"it": job("ctx.counters['x'] = float('nan')")}, "[jobs.it]\n")
    daemon.cli("run-once", "it")
    shown = daemon.cli("history", "--json").stdout
    assert "NaN" not in shown
    assert json.loads(shown)["runs"]


SETTINGS = """
from stellerd import Secret, Settings
class S(Settings):
    size: int = 5
    name: str = "x"
    key: Secret | None = None
    keys: list[Secret] = []
"""
CANARY = "kanarie-0815-gelb"


def with_settings(body: str = "return None") -> str:
    return SETTINGS + job(body, extra="Settings = S")


def test_config_show_hides_only_what_may_be_secret_when_a_setting_is_wrong(tmp_path: Path) -> None:
    toml = f"""
        [jobs.it.env]
        TOKEN = "{CANARY}"
        [jobs.it.settings]
        size = "big"
        name = "shown"
        kee = "{CANARY}"
        key = "{CANARY}"
        keys = ["{CANARY}"]
    """
    result = Daemon(tmp_path, {"it": with_settings()}, toml).cli("config", "show", "--json")
    table = json.loads(result.stdout)["jobs"]["it"]
    assert table["settings"] == {"size": "big", "name": "shown", "kee": "***", "key": "***", "keys": "***"}
    assert table["env"] == {"TOKEN": "***"}
    assert result.returncode == 78
    assert "jobs.it.settings.kee: unknown key" in result.stderr
    assert CANARY not in result.stdout + result.stderr


def test_config_show_needs_no_secret(tmp_path: Path) -> None:
    toml = "[jobs.it.settings]\nkey = { credential = 'not_here' }\n"
    result = Daemon(tmp_path, {"it": with_settings()}, toml).cli("config", "show", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["jobs"]["it"]["settings"]["key"] == {"credential": "not_here"}


def test_a_mistake_in_set_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, {"it": with_settings()}, "[jobs.it.settings]\nsize = 1\n")
    result = daemon.cli("run-once", "it", "--set", "size=big", "--set", "nmae=y")
    assert result.returncode == 78
    assert "--set size: jobs.it.settings.size: must be" in result.stderr
    assert '--set nmae: jobs.it.settings.nmae: unknown key, did you mean "name"?' in result.stderr
    assert "stellerd.toml" not in result.stderr


def test_a_socket_name_that_is_too_long_is_named_as_that(tmp_path: Path) -> None:
    toml = f'[supervisor]\nsocket = "{"s" * 105}"\nholds = "holds.json"\n[jobs.it]\n'
    result = Daemon(tmp_path, {"it": QUIET}, toml).cli("run")
    assert result.returncode == 69
    assert "AF_UNIX path too long" in result.stderr
    assert "Success" not in result.stderr


def test_a_configuration_that_anybody_may_write_is_warned_of(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, {"it": QUIET}, "[jobs.it]\n")
    daemon.config.chmod(0o666)
    assert f"warning: {daemon.config} can be written by every user" in daemon.cli("check").stderr
    with daemon:
        assert any("can be written by every user" in line.get("reason", "") for line in daemon.logs())


def test_an_unknown_option_in_the_state_stores_url_is_a_sentence(tmp_path: Path) -> None:
    toml = "[state]\nurl = 'postgresql://stellerd@127.0.0.1:1/db?colour=blue'\n[jobs.it]\n"
    result = Daemon(tmp_path, {"it": QUIET}, toml).cli("history")
    assert result.returncode == 78
    assert 'invalid connection option "colour"' in result.stderr
    assert "Traceback" not in result.stderr


def test_a_reload_that_revives_a_job_says_so(tmp_path: Path) -> None:
    broken = "import os\nif not os.path.exists('mended'): raise ValueError('not yet')\n" + QUIET
    toml = f"[jobs.it]\ncwd = '{tmp_path}'\n"
    with Daemon(tmp_path, {"it": broken}, toml) as daemon:
        daemon.until_state("it", "FATAL")
        (tmp_path / "mended").touch()
        assert daemon.cli("reload").stdout == "it: was FATAL, is started again\n"
        daemon.until_state("it", "RUNNING")
        assert json.loads(daemon.cli("reload", "--json").stdout) == {"changes": [], "tried_again": []}
