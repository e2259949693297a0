"""Commands that fork a job's process while a person waits: run-once, check, config show."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import click

from stellerd import acting, client, locate, log, options, texts, tomlschema, views
from stellerd import config as configuration
from stellerd.config import Config
from stellerd.durations import parse_duration
from stellerd.errors import UsageError
from stellerd.once import Once, Remote
from stellerd.once_run import Result, with_sets
from stellerd.options import complain


def run_once(
    named: str | None, job: str, *, dry_run: bool, wait: str | None, sets: tuple[str, ...], as_json: bool
) -> int:
    """Run a job, in the daemon if one is up, show its progress on a terminal, print its record; the exit code.

    Raises: Refused when the daemon does not let this user; the run is not begun another way then.
    """
    wait_s = _seconds(wait) if wait else 0.0
    with views.Progress(job, sys.stderr.isatty() and not as_json) as progress:
        try:
            connection = client.Connection(locate.control_socket(named))
        except client.NoDaemon:
            result = _run_here(named, job, sets, progress, dry_run=dry_run, wait_s=wait_s)
        else:
            with connection:
                result = Remote(connection, job, progress.show).run(
                    partial(_say_if_different, named, job), dry_run=dry_run, wait=wait_s, sets=sets
                )
    if as_json:
        views.print_json({"job": job, "exit_code": result.exit_code, "reason": result.reason, "run": result.run})
    else:
        _say(job, result)
    return result.exit_code


def _run_here(
    named: str | None, job: str, sets: tuple[str, ...], progress: views.Progress, *, dry_run: bool, wait_s: float
) -> Result:
    config = with_sets(options.read(named), job, sets)
    log.configure(config.supervisor.log_level, log.style_of(config.supervisor.log_format))
    return Once(config, job, progress.show).run(dry_run=dry_run, wait_s=wait_s)


def _say_if_different(named: str | None, job: str, begun: dict[str, Any]) -> None:
    """The configuration in force is the daemon's, as it last read it."""
    file = locate.config_file(named).absolute()
    if os.path.realpath(file) != os.path.realpath(begun["config"]):
        said = f"under its own configuration, {begun['config']}"
    elif begun["digest"] != locate.digest(locate.read(file)):
        said = f"under the configuration in force: {file} was changed since it was read; see: stellerd reload"
    else:
        return
    click.echo(f"stellerd: the daemon runs {job}, {said}", err=True)


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


def check(config: Config, *, connect: bool, as_json: bool) -> int:
    """Check each job in a process of its own; the exit code of the worst."""
    log.configure("error", log.style_of(config.supervisor.log_format))
    rows: list[dict[str, Any]] = []
    for job, entry in config.jobs.items():
        result = Once(config, job).run("check", connect=connect)
        rows.append({
            "job": job, "enabled": entry.enabled, "ok": result.exit_code == 0, "reason": result.reason,
            "exit_code": result.exit_code, "detail": result.detail,
        })  # fmt: skip
    views.check(str(config.file), rows, connect, as_json)
    return max((int(row["exit_code"]) for row in rows if row["enabled"]), default=0)


def show_schema(config: Config) -> None:
    """Print the JSON Schema; a plugin that cannot be loaded leaves its settings open."""
    log.configure("error")
    told = {job: Once(config, job).run("schema").run for job in config.jobs}
    views.print_json(tomlschema.build({job: answer["schema"] for job, answer in told.items() if answer}))


def show_config(config: Config, as_json: bool) -> None:
    """Print the whole configuration; plugins say their own defaults, in processes of their own."""
    log.configure("error")
    tables = config.model_dump(mode="json", exclude_none=True)
    for job, table in tables["jobs"].items():
        told = Once(config, job).run("settings")
        # which of its settings are secret only the plugin knows: without its word none is shown
        hidden = dict.fromkeys(config.jobs[job].settings, "***")
        table["settings"] = told.run["settings"] if told.run else hidden
    views.config(str(config.file), configuration.without_none(tables), as_json)


def flush(named: str | None, source: str | None, target: str, as_json: bool) -> int:
    """Deliver a spool; 0 when nothing is left in it."""
    from stellerd import spooling

    log.configure("warning")
    acting.use_credentials()
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
