"""Secrets: where they come from, what refuses to be one, and that the value turns up nowhere else."""

from __future__ import annotations

import copy
import json
import os
import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest

from stellerd import Secret, Settings, config

CANARY = "kanarie-0815-gelb"


def file_of(folder: Path, mode: int = 0o600, text: str = CANARY) -> Path:
    path = folder / "key"
    path.write_text(text)
    path.chmod(mode)
    return path


# --- sources


def test_an_environment_variable_is_read_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Secret("env", "THE_KEY")
    monkeypatch.setenv("THE_KEY", "one")
    assert held.reveal() == "one"
    monkeypatch.setenv("THE_KEY", "two")
    assert held.reveal() == "two"


def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THE_KEY", raising=False)
    with pytest.raises(ValueError, match="environment variable THE_KEY is not set"):
        Secret("env", "THE_KEY").reveal()


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_file_is_read_relative_to_its_base(tmp_path: Path, mode: int) -> None:
    file_of(tmp_path, mode, f"{CANARY}\n")
    assert Secret("file", "key", tmp_path).reveal() == CANARY


@pytest.mark.parametrize("mode", [0o640, 0o644, 0o604, 0o620, 0o601, 0o660])
def test_a_file_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = file_of(tmp_path, mode)
    with pytest.raises(ValueError, match=f"chmod 600 {path}"):
        Secret("file", str(path)).reveal()


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    file_of(tmp_path)
    (tmp_path / "link").symlink_to("key")
    with pytest.raises(ValueError, match=f"secret file {tmp_path}/link: "):
        Secret("file", "link", tmp_path).reveal()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"secret file {tmp_path}/nope: No such file or directory"):
        Secret("file", "nope", tmp_path).reveal()


def test_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"secret file {tmp_path}: not a regular file"):
        Secret("file", ".", tmp_path).reveal()


def test_a_file_that_is_no_text_is_named_without_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"\xff\xfe" + CANARY.encode())
    path.chmod(0o600)
    with pytest.raises(ValueError, match=f"secret file {path}") as caught:
        Secret("file", str(path)).reveal()
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("text", ["", "\n", "\r\n"])
def test_an_empty_file_is_no_secret(tmp_path: Path, text: str) -> None:
    file_of(tmp_path, text=text)
    with pytest.raises(ValueError, match=f"secret file {tmp_path}/key is empty"):
        Secret("file", "key", tmp_path).reveal()


@pytest.mark.timeout(10)
def test_a_pipe_in_its_place_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key", 0o600)
    with pytest.raises(ValueError, match="secret file"):
        Secret("file", "key", tmp_path).reveal()


def test_a_refused_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for name in (str(file_of(tmp_path, 0o644)), str(tmp_path)):
        with pytest.raises(ValueError, match="secret file"):
            Secret("file", name).reveal()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_credential_comes_from_the_folder_that_systemd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_of(tmp_path, 0o440)  # systemd's own mode, for the unit alone
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert Secret("credential", "key").reveal() == CANARY


def test_a_credential_without_systemd_says_how_to_load_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(
        ValueError, match=r'"key" is missing: \$CREDENTIALS_DIRECTORY is not set; .*LoadCredential=key:'
    ):
        Secret("credential", "key").reveal()


def test_a_credential_that_systemd_did_not_find_says_which_file_to_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(
        ValueError, match=r'"key" is missing; .*LoadCredential=key:stellerd.key from /etc/credstore/stellerd.key'
    ):
        Secret("credential", "key").reveal()


class Holder(Settings):
    key: Secret


@pytest.mark.parametrize(
    "raw",
    [{"env": ""}, {"env": "A", "file": "b"}, {"vault": "x"}, {}, 5, True, ["x"], {"env": 5}, {"file": None}],
    ids=str,
)
def test_what_is_no_secret_says_how_to_write_one(raw: Any) -> None:
    with pytest.raises(ValueError, match=r'write \{ env = "NAME" \}, \{ file = "path" \} or \{ credential'):
        Holder.model_validate({"key": raw})


# --- the value turns up nowhere


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Secret:
    monkeypatch.setenv("THE_KEY", CANARY)
    secret = Secret("env", "THE_KEY")
    secret.reveal()
    return secret


@pytest.mark.parametrize(
    "form", [repr, str, ascii, "{!r:>3}".format, "{}".format, lambda s: json.dumps([s], default=str), pickle.dumps]
)
def test_no_form_of_a_secret_has_its_value(held: Secret, form: Any) -> None:
    assert CANARY not in str(form(held))


@pytest.mark.parametrize("form", [repr, str, lambda m: str(m.model_dump()), lambda m: m.model_dump_json()])
def test_no_form_of_a_model_has_its_plain_secret(form: Any) -> None:
    assert CANARY not in form(Holder(key=Secret("plain", CANARY)))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_secret_cannot_be_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="Secret"):
        pickle.dumps(Secret("plain", CANARY), protocol)


def test_a_secret_can_be_copied(held: Secret) -> None:
    assert copy.deepcopy(held) == copy.copy(held) == held


@pytest.mark.parametrize(
    "value",
    [
        CANARY, f"id:{CANARY}", f"postgresql://u:{CANARY}@h/db", f"postgresql://h/db?password={CANARY}",
        f"amqp://h/?auth={CANARY}", f"https://h/x?token={CANARY}", f"basic:{CANARY}@", f"abc:def:{CANARY}",
        f"https://h/#{CANARY}",
    ],
)  # fmt: skip
def test_a_plain_value_is_only_shown_when_it_is_a_url_without_anything_secret(value: str) -> None:
    assert Secret("plain", value).shown() == "***"


@pytest.mark.parametrize(
    "value", ["sqlite:////var/lib/x.db", "spool:///x", "amqp://localhost/%2F", "postgresql+psycopg://u_only/db"]
)
def test_a_url_without_a_password_is_shown(value: str) -> None:
    assert Secret("plain", value).shown() == value


def test_config_show_names_the_source_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("THE_KEY", CANARY)
    text = '[state]\nurl = { env = "THE_KEY" }\n[broker]\nurl = "amqp://u:' + CANARY + '@h"\n'
    loaded = config.parse(text, tmp_path / "x.toml")
    loaded.state_url(), loaded.broker_urls()
    shown = loaded.model_dump_json() + repr(loaded) + str(loaded)
    assert CANARY not in shown
    assert '{"env":"THE_KEY"}' in shown


def test_a_validation_error_names_no_value(tmp_path: Path) -> None:
    text = f'[databases.x]\nurl = ["{CANARY}"]\n[broker]\nurl = {{ password = "{CANARY}" }}\n'
    with pytest.raises(config.ConfigError) as caught:
        config.parse(text, tmp_path / "x.toml")
    assert CANARY not in "".join(traceback.format_exception(caught.value))
