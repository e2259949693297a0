"""A plugin and a vendor that leak a secret in every form they can: none of it is found where it must not be."""

from __future__ import annotations

import base64
import json
import random
import shlex
from pathlib import Path
from urllib.parse import quote

import pytest
from daemon import Daemon, job

CANARY = 'kanarie/0815+"gelb"'
LEAKS = """
import base64, json
from urllib.parse import quote
from stellerd import Secret, Settings
class S(Settings):
    key: Secret
    size: int = 5
"""
BODY = """
key = ctx.settings.key.reveal()
forms = [key, json.dumps(key), quote(key, safe=""), quote(key), key.encode().hex()]
forms += [base64.b64encode(b"x" * n + b":" + key.encode() + b"y").decode() for n in range(3)]
for form in forms:
    print("printed", form)
    for at in range(0, len(form), 3):
        print(form[at:at + 3], end="", flush=True)
    print()
    sys.stdout.buffer.write(form.encode() + b"\\n")
    ctx.log.error(f"logged {form}", field=form, deep={form: [form]})
    ctx.quarantine("row", form, f"bad {form}", {"echo": [form, {"a": form}]})
    ctx.progress(1, 2, form)
sys.stderr.write(key[:7])
HOW
"""
ENDINGS = [
    "raise errors.JobFailed(' '.join(forms))", "raise ValueError(' '.join(forms))", "return Skipped(' '.join(forms))",
    "return Done(problems=tuple(forms))", "raise SystemExit(' '.join(forms))",
    "raise errors.Unreachable(' '.join(forms))",
    "return Deferred(ctx.now() + __import__('datetime').timedelta(hours=1), ' '.join(forms))",
    "raise KeyError(key) from ValueError(forms[5])", "os._exit(3)",
    "sys.stdout.write(key[:9]); sys.stdout.write(key[9:])",
]  # fmt: skip
COMMANDS = [
    "status", "status --json", "history", "history --json", "history it", "next", "next --json", "logs it", "check",
    "check --json", "check --connect", "config show", "config show --json", "config schema", "limits show", "db check",
    "limits show --json", "db check --json", "plugins list", "reload", "trigger it", "pause it", "resume it",
    "restart it", "run-once it",
    "run-once it --json", "run-once it --dry-run", "run-once it --set size=x", "run-once it --set key=5", "version",
]  # fmt: skip


def forms() -> list[bytes]:
    """What is looked for: each beginning of eight characters or more would be found by its first eight."""
    plain = [CANARY, json.dumps(CANARY)[1:-1], quote(CANARY), quote(CANARY, safe=""), CANARY.encode().hex()]
    packed = [base64.b64encode(b"x" * n + CANARY.encode()).decode()[4 if n else 0 : 16] for n in range(3)]
    return [text[:8].encode() for text in plain] + [text[:9].encode() for text in packed]


def hits(texts: dict[str, bytes]) -> list[tuple[str, bytes, bytes]]:
    """Where a form was found, with its surroundings."""
    return [
        (name, form, text[max(0, at - 60) : at + 40])
        for name, text in texts.items() for form in forms() if (at := text.find(form)) >= 0
    ]  # fmt: skip


def leaky(folder: Path, ending: str) -> Daemon:
    """A daemon of one job that ends this way; the secret is in its environment alone."""
    plugin = LEAKS + job(BODY.replace("HOW", ending), extra="Settings = S")
    toml = "[limits.vendor]\nrate = '1/1s'\n[jobs.it]\n[jobs.it.settings]\nkey = { env = 'THE_CANARY' }\n"
    return Daemon(folder, {"it": plugin}, toml, env={"THE_CANARY": CANARY})


def found_after(daemon: Daemon, commands: list[str]) -> list[tuple[str, bytes, bytes]]:
    """Runs the daemon and the commands beside it, then looks everywhere."""
    said: dict[str, bytes] = {}
    with daemon:
        daemon.until_job("it", lambda entry: entry["last_run"] or entry["restarts"] or entry["reason"])
        for number, command in enumerate(commands):
            result = daemon.cli(*shlex.split(command))
            said[f"{number} {command}"] = (result.stdout + result.stderr).encode()
    files = [path for path in daemon.folder.iterdir() if path.is_file()]
    assert any(path.name == "state.db" for path in files)
    return hits(said | {str(path): path.read_bytes() for path in files})


def test_the_search_finds_each_form() -> None:
    for form in (CANARY, json.dumps(CANARY), quote(CANARY), quote(CANARY, safe=""), CANARY.encode().hex()):
        assert hits({"x": f"before {form} after".encode()})
    for before in range(4):
        assert hits({"x": base64.b64encode(b"x" * before + CANARY.encode() + b"yy")})


def test_no_secret_is_found_after_commands_and_runs(tmp_path: Path) -> None:
    commands = ["status", "history --json", "logs it", "run-once it", "run-once it --json", "run-once it --set size=x"]
    daemon = leaky(tmp_path, ENDINGS[1])
    assert found_after(daemon, commands) == []
    assert "printed ***" in daemon.log_file.read_text()


@pytest.mark.soak
def test_no_secret_is_found_after_150_commands(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    for number, ending in enumerate(ENDINGS):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert found_after(leaky(folder, ending), random.Random(seed + number).sample(COMMANDS, 15)) == [], ending
