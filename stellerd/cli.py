"""The `stellerd` command. Nothing heavy is imported before the command that needs it."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from stellerd.errors import ConfigError, StellerdError, UsageError
from stellerd.limits import limits
from stellerd.options import JSON, complain
from stellerd.options import load as _load

if TYPE_CHECKING:
    from stellerd.config import Config


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-c", "--config", "file", metavar="FILE",
    help="Configuration; default: $STELLERD_CONFIG, ./stellerd.toml, /etc/stellerd/stellerd.toml.",
)  # fmt: skip
@click.pass_context
def cli(context: click.Context, file: str | None) -> None:
    """Supervise scheduled job plugins. Without a command: run the daemon."""
    context.obj = file
    if context.invoked_subcommand is None:
        context.invoke(run)


cli.add_command(limits)


def main() -> None:
    """Entry point: errors become one message and an exit code, never a traceback."""
    try:
        code = cli.main(standalone_mode=False)
    except StellerdError as error:
        complain(f"stellerd: {error}")
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _leave(code: int) -> NoReturn:
    """End without taking apart what was loaded, object by object: that is a fifth of the time that stopping takes."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # it was closed, or nobody reads it any more
            stream.flush()
    os._exit(code)


def _ask(context: click.Context, command: str, **fields: Any) -> dict[str, Any]:
    from stellerd import client, locate

    return client.ask(locate.control_socket(context.obj), command, **fields)


def _known(config: Config, job: str) -> None:
    if job not in config.jobs:
        raise UsageError(f'{config.file}: no job "{job}"; there are: {", ".join(config.jobs) or "none"}')


@cli.command()
@click.pass_context
def run(context: click.Context) -> NoReturn:
    """Run the daemon in the foreground (the default)."""
    gc.disable()  # imports make little garbage, and looking for it takes 20 ms; the daemon enables it again
    from stellerd import config, daemon

    _leave(daemon.run(config.load(context.obj)))


@cli.command("run-once")
@click.argument("job")
@click.option("--dry-run", is_flag=True, help="Read and compare, change nothing; limits are spent as ever.")
@click.option(
    "--wait", "wait", is_flag=False, flag_value="1h", default=None, metavar="[DURATION]",
    help="Wait for a busy job to become free (default at most 1h).",
)  # fmt: skip
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change a setting of the job for this run.")
@JSON
@click.pass_context
def run_once(
    context: click.Context, job: str, dry_run: bool, wait: str | None, sets: tuple[str, ...], as_json: bool
) -> int:
    """Run JOB once, now, under the same lease, limits and history as the daemon.

    A daemon that is up runs it, under its configuration in force; else this command does.
    """
    from stellerd import attended

    return attended.run_once(context.obj, job, dry_run=dry_run, wait=wait, sets=sets, as_json=as_json)


@cli.command()
@JSON
@click.pass_context
def status(context: click.Context, as_json: bool) -> int:
    """Show what the daemon and its jobs are doing."""
    from stellerd import views

    views.status(_ask(context, "status"), as_json)
    return 0


@cli.command()
@click.argument("job", required=False)
@click.option("-n", "--limit", default=20, show_default=True, type=click.IntRange(1, 10000), help="How many runs.")
@JSON
@click.pass_context
def history(context: click.Context, job: str | None, limit: int, as_json: bool) -> int:
    """Show the newest runs, of JOB or of all, from the state store; without JOB also what people did to limits."""
    from stellerd import reading, views
    from stellerd.buckets import operations_of

    config = _load(context)
    if job:
        _known(config, job)
    with reading.store(config.state_url()) as (store, is_there):
        runs = store.history(job, limit)
        since = runs[-1].started_at if len(runs) == limit else None
        operations = [] if job else operations_of(store, limit, since)
    if not is_there:
        click.echo("stellerd: there is no state store yet: nothing was run", err=True)
    views.history([run.to_json() for run in runs], operations, as_json)
    return 0


@cli.command()
@click.option("--connect", is_flag=True, help="Also talk to the databases, brokers and servers the jobs need.")
@JSON
@click.pass_context
def check(context: click.Context, connect: bool, as_json: bool) -> int:
    """Check the configuration and every plugin's settings."""
    from stellerd import attended

    config = _load(context)
    if problems := config.problems_of_secrets():
        raise ConfigError(problems)
    return attended.check(config, connect=connect, as_json=as_json)


@cli.group()
def plugins() -> None:
    """Job plugins."""


@plugins.command("list")
@JSON
def plugins_list(as_json: bool) -> int:
    """Show the installed plugins; none is imported."""
    from stellerd import registry, views

    rows = [
        {"plugin": name, "entry_point": point.value, **_distribution(point)}
        for name, point in registry.installed().items()
    ]
    views.plugins(rows, as_json)
    return 0


def _distribution(point: Any) -> dict[str, str]:
    return {"distribution": point.dist.name, "version": point.dist.version} if point.dist else {}


@cli.group()
def config() -> None:
    """The configuration."""


@config.command("show")
@JSON
@click.pass_context
def config_show(context: click.Context, as_json: bool) -> int:
    """Print the configuration in force, defaults included, of secrets only their source."""
    from stellerd import attended

    attended.show_config(_load(context), as_json)
    return 0


@config.command("schema")
@click.pass_context
def config_schema(context: click.Context) -> int:
    """Print the JSON Schema of the configuration, with the settings of its jobs, for an editor."""
    from stellerd import attended

    attended.show_schema(_load(context))
    return 0


@cli.group()
def db() -> None:
    """The state store's tables, and the databases of the jobs."""


@db.command("init")
@click.pass_context
def db_init(context: click.Context) -> int:
    """Create the state store's tables; the daemon does so by itself where it may."""
    from stellerd import upkeep

    return upkeep.init(_load(context))


@db.command("upgrade")
@click.pass_context
def db_upgrade(context: click.Context) -> int:
    """Bring the state store's tables to this version of stellerd; stop the daemon on all hosts first."""
    from stellerd import upkeep

    return upkeep.upgrade(_load(context))


@db.command("sql")
@click.option("--from", "since", metavar="VERSION", help="Version to start from; default: the one that is there.")
@click.pass_context
def db_sql(context: click.Context, since: str | None) -> int:
    """Print the SQL that `db upgrade` would run, for somebody else to run it."""
    from stellerd import upkeep

    return upkeep.sql(_load(context), since)


@db.command("check")
@JSON
@click.pass_context
def db_check(context: click.Context, as_json: bool) -> int:
    """Look at the state store and at every job's databases; name each problem with the SQL that mends it."""
    from stellerd import upkeep

    return upkeep.check(_load(context), as_json)


def _job_command(name: str, help_text: str) -> None:
    @cli.command(name, help=help_text)
    @click.argument("job")
    @JSON
    @click.pass_context
    def command(context: click.Context, job: str, as_json: bool) -> int:
        from stellerd import views

        views.accepted(name, _ask(context, name, job=job), as_json)
        return 0


_job_command("trigger", "Run JOB now, in the daemon, once its current run is over.")
_job_command("start", "Start JOB's process.")
_job_command("stop", "Stop JOB's process; it stays down, also over a restart of the daemon, until it is started.")
_job_command("restart", "Stop and start JOB's process.")
_job_command("pause", "Hold JOB's schedule, also over a restart of the daemon; `trigger` still runs it.")
_job_command("resume", "Go on with JOB's schedule.")


@cli.command("next")
@JSON
@click.pass_context
def next_runs(context: click.Context, as_json: bool) -> int:
    """Show when each job really runs next, limits included."""
    from stellerd import views

    views.next_runs(_ask(context, "status")["jobs"], as_json)
    return 0


@cli.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on as lines come, until interrupted.")
@click.option("-n", "--lines", default=50, show_default=True, type=click.IntRange(0, 1000), help="How many at first.")
@click.pass_context
def logs(context: click.Context, job: str, follow: bool, lines: int) -> int:
    """Show JOB's last log lines, as the daemon keeps them."""
    import time

    from stellerd import client, locate

    path, seen = locate.control_socket(context.obj), 0
    while True:
        new = client.ask(path, "logs", job=job, since=seen)["lines"]
        for _, text in new if seen else new[-lines:] if lines else []:
            click.echo(text)
        seen = new[-1][0] if new else seen
        if not follow:
            return 0
        time.sleep(0.3)


@cli.command()
@JSON
@click.pass_context
def reload(context: click.Context, as_json: bool) -> int:
    """Read the configuration again; what is wrong with it changes nothing."""
    from stellerd import views

    views.reloaded(_ask(context, "reload")["changes"], as_json)
    return 0


@cli.command()
@click.pass_context
def shutdown(context: click.Context) -> int:
    """End the daemon gracefully."""
    _ask(context, "shutdown")
    click.echo("stopping")
    return 0


@cli.group()
def spool() -> None:
    """A folder of messages that stands in for a broker."""


@spool.command("flush")
@click.option(
    "--to", "target", required=True, metavar="URL",
    help="amqp(s)://…, `broker` (the configured one), @FILE, env:NAME or credential:NAME; a password in a URL is "
    "visible to every user of this host.",
)  # fmt: skip
@click.option("--from", "source", metavar="FOLDER", help="The spool; default: the configured [broker] url.")
@JSON
@click.pass_context
def spool_flush(context: click.Context, target: str, source: str | None, as_json: bool) -> int:
    """Deliver a spool's messages to a broker; what it confirms is removed from the spool."""
    from stellerd import attended

    return attended.flush(context.obj, source, target, as_json)


@cli.command()
def version() -> int:
    """Print the version."""
    import stellerd

    click.echo(stellerd.__version__)
    return 0


if __name__ == "__main__":
    main()
