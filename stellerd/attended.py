"""Commands that fork a job's process while a person waits: run-once, check, config show."""

from __future__ import annotations

import sys
import tomllib
from typing import Any

import click

from stellerd import config as configuration
from stellerd import log, texts, tomlschema, views
from stellerd.channel import Message
from stellerd.config import Config
from stellerd.durations import parse_duration
from stellerd.errors import UsageError
from stellerd.once import Once, Result
from stellerd.options import complain


def run_once(config: Config, job: str, *, dry_run: bool, wait: str | None, sets: tuple[str, ...], as_json: bool) -> int:
    """Run a job, show its progress on a terminal, print its record; the exit code."""
    config = with_sets(config, job, sets)
    wait_s = _seconds(wait) if wait else 0.0
    log.configure(config.supervisor.log_level, log.style_of(config.supervisor.log_format))
    with views.Progress(job, sys.stderr.isatty() and not as_json) as progress:
        result = Once(config, job, progress.show).run(dry_run=dry_run, wait_s=wait_s)
    if as_json:
        views.print_json({"job": job, "exit_code": result.exit_code, "reason": result.reason, "run": result.run})
    else:
        _say(job, result)
    return result.exit_code


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--wait: {error}") from None


def _say(job: str, result: Result) -> None:
    if result.run:
        views.outcome(result.run)
    else:
        reason = texts.clean_lines(result.reason)
        complain(f"stellerd: {job}: {reason}" if result.exit_code != 78 else f"stellerd: {reason}")
    if result.detail:
        complain(texts.clean_lines(result.detail).removesuffix("\n"), one_entry=True)


def with_sets(config: Config, job: str, sets: tuple[str, ...]) -> Config:
    """The configuration with `key=value` settings of one job changed; a value is TOML, or else a plain text.

    Raises: UsageError when one has no "=".
    """
    changes: dict[str, Any] = {}
    for item in sets:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {item}: write KEY=VALUE")
        try:
            changes[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            changes[key] = text
    entry = config.jobs[job]
    changed = entry.model_copy(update={"settings": entry.settings | changes})
    return config.model_copy(update={"jobs": config.jobs | {job: changed}})


def check(config: Config, *, connect: bool, as_json: bool) -> int:
    """Check each job in a process of its own; the exit code of the worst."""
    log.configure("error", log.style_of(config.supervisor.log_format))
    rows: list[dict[str, Any]] = []
    for job, entry in config.jobs.items():
        result = Once(config, job, _nothing).run("check", connect=connect)
        rows.append({
            "job": job, "enabled": entry.enabled, "ok": result.exit_code == 0, "reason": result.reason,
            "exit_code": result.exit_code, "detail": result.detail,
        })  # fmt: skip
    views.check(str(config.file), rows, connect, as_json)
    return max((int(row["exit_code"]) for row in rows if row["enabled"]), default=0)


def _nothing(message: Message) -> None:
    pass


def show_schema(config: Config) -> None:
    """Print the JSON Schema; a plugin that cannot be loaded leaves its settings open."""
    log.configure("error")
    told = {job: Once(config, job, _nothing).run("schema").run for job in config.jobs}
    views.print_json(tomlschema.build({job: answer["schema"] for job, answer in told.items() if answer}))


def show_config(config: Config, as_json: bool) -> None:
    """Print the whole configuration; plugins say their own defaults, in processes of their own."""
    log.configure("error")
    tables = config.model_dump(mode="json", exclude_none=True)
    for job, table in tables["jobs"].items():
        told = Once(config, job, _nothing).run("settings")
        # which of its settings are secret only the plugin knows: without its word none is shown
        hidden = dict.fromkeys(config.jobs[job].settings, "***")
        table["settings"] = told.run["settings"] if told.run else hidden
    views.config(str(config.file), configuration.without_none(tables), as_json)


def flush(named: str | None, source: str | None, target: str, as_json: bool) -> int:
    """Deliver a spool; 0 when nothing is left in it."""
    from stellerd import spooling

    log.configure("warning")
    if spooling.has_password(target):
        click.echo("stellerd: other users can see the password on this command line: use --to @FILE", err=True)
    with views.Progress("spool", sys.stderr.isatty() and not as_json) as progress:
        answer = spooling.flush(
            named, source, target, lambda done, total: progress.show({"done": done, "total": total, "unit": "messages"})
        )
    if as_json:
        views.print_json(answer)
    else:
        for problem in answer["problems"]:
            click.echo(f"stellerd: {texts.clean_lines(problem)}", err=True)
        click.echo(f"{answer['delivered']} delivered, {answer['left']} left in {answer['spool']}")
    return 1 if answer["left"] else 0
