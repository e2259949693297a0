"""What an administrator does with the databases: `stellerd db …`."""

from __future__ import annotations

from typing import Any

import click

from stellerd import log, migrate, reading, views
from stellerd.config import Config
from stellerd.errors import StellerdError
from stellerd.once import Once


def init(config: Config) -> int:
    """Make the tables of the state store."""
    new = migrate.init(config.state_url())
    click.echo("the state store's tables were made" if new else "the state store's tables are there and up to date")
    return 0


def upgrade(config: Config) -> int:
    """Bring the state store to this version."""
    before, after = migrate.upgrade(config.state_url())
    click.echo(f"the state store is up to date ({after})" if before == after else f"{before or 'nothing'} → {after}")
    return 0


def sql(config: Config, since: str | None) -> int:
    """Print what `upgrade` would run."""
    click.echo(migrate.sql(config.state_url(), since), nl=False)
    return 0


def check(config: Config, as_json: bool) -> int:
    """Print the problems of the state store and of every job's databases; 1 when there are any."""
    log.configure("error", log.style_of(config.supervisor.log_format))
    rows = [_row("state store", *_store_problems(config))]
    for job in config.jobs:
        result = Once(config, job).run("databases")
        found = [(one["problem"], one["sql"]) for one in result.run["problems"]] if result.run else []
        rows.append(_row(job, found, result.exit_code, result.reason))
    views.databases(rows, as_json)
    return max(int(row["exit_code"]) for row in rows)


def _row(of: str, found: list[tuple[str, str]], code: int = 0, reason: str = "") -> dict[str, Any]:
    problems = [{"problem": problem, "sql": sql} for problem, sql in found]
    return {"of": of, "ok": not (problems or code), "reason": reason, "exit_code": code or int(bool(problems)),
            "problems": problems}  # fmt: skip


def _store_problems(config: Config) -> tuple[list[tuple[str, str]], int, str]:
    """(problems, exit code, why it could not be looked at)."""
    url = config.state_url()
    try:
        with reading.store(url) as (_, is_there):
            pass
        if not is_there:
            return [], 0, "not made yet; the daemon makes it where it may, or: stellerd db init"
        found = [(difference, "") for difference in migrate.differences(url)]
        return found + migrate.missing_grants(url), 0, ""
    except StellerdError as error:
        return [], error.exit_code, str(error)
