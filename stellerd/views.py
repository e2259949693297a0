"""How the commands show things: tables for people, JSON for programs (docs/reference/json.md)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stellerd.durations import format_duration
from stellerd.status import from_iso
from stellerd.texts import clean, clean_lines

_COLORS = {
    "ok": "green", "RUNNING": "green", "partial": "yellow", "deferred": "yellow", "skipped": "dim", "running": "cyan",
    "STARTING": "cyan", "STOPPING": "cyan", "BACKOFF": "yellow", "STOPPED": "dim", "EXITED": "dim",
}  # fmt: skip


_EFFECTS = {
    "live": "in force now", "next run": "from the next run on", "restart": "its process was restarted",
    "start": "started", "stop": "stopped", "daemon": "needs a restart of the daemon",
}  # fmt: skip


def print_json(value: Any) -> None:
    """For programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print(table: Table) -> None:
    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column, header_style="bold", overflow="fold", no_wrap=column not in ("NOTE", "COUNTERS", "REASON")
        )
    return table


def _colored(state: str) -> str:
    return f"[{_COLORS.get(state, 'red')}]{state}[/]"


def short(seconds: float) -> str:
    """A duration with its two largest units ("2h5m"), below ten seconds with a tenth."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    for unit in (86400, 3600, 60):
        if seconds >= unit:
            smaller = {86400: 3600, 3600: 60, 60: 1}[unit]
            return format_duration(float(int(seconds // smaller) * smaller))
    return f"{int(seconds)}s"


def _moment(text: str | None) -> str:
    if not text:
        return "-"
    at = from_iso(text)
    away = (at - datetime.now(UTC)).total_seconds()
    return f"{at:%H:%M:%S}Z ({'in ' + short(away) if away > 0 else short(-away) + ' ago'})"


def counters(values: dict[str, int], *, phases: bool = False) -> str:
    """ "products 8,026, new 12": counters that are zero are left out; in tables also how long each phase took."""
    shown = {name: amount for name, amount in values.items() if amount and (phases or not name.endswith("_ms"))}
    return ", ".join(f"{clean(name)} {amount:,}" for name, amount in shown.items())


def _safe(text: str) -> str:
    return escape(str(clean(text)))


def status(reply: dict[str, Any], as_json: bool) -> None:
    """The daemon and its jobs."""
    if as_json:
        print_json(reply)
        return
    stopping = ", stopping" if reply["stopping"] else ""
    click.echo(
        f"stellerd {reply['version']}, pid {reply['pid']}, up {short(reply['uptime'])}{stopping}, {reply['config']}"
    )
    if refused := reply["reload_refused"]:
        click.echo(f"reload refused at {_second(refused['at'])}; the configuration from before stays in force:")
        click.echo(clean_lines(refused["reason"]))
    table = _table("JOB", "STATE", "PID", "UP", "LAST RUN", "NEXT RUN", "NOTE")
    for job in reply["jobs"]:
        up = "-" if job["uptime"] is None else short(job["uptime"])
        pid = str(job["pid"] or "-")
        table.add_row(job["job"], _colored(job["state"]), pid, up, _last(job), _next(job), _note(job))
    _print(table)
    for run in reply.get("run_once", ()):  # a daemon of the version before does not know it
        click.echo(_once_row(run))
    for job in reply["jobs"]:
        if job["detail"]:
            click.echo(f"\n{job['job']}:\n{clean_lines(job['detail'].rstrip())}")


def _once_row(run: dict[str, Any]) -> str:
    done = run["progress"]
    far = f", {done['done']:,}/{done['total'] or '?'} {clean(done['unit'])}" if done else ""
    ending = f", ending: {clean(run['ending'])}" if run["ending"] else ""
    state = "running" if run["run"] else "waiting"
    who = f"pid {run['pid']}, user {run['uid']}, began {_moment(run['since'])}"
    return f"run-once {run['job']}: {state}, {who}{far}{ending}"


def _last(job: dict[str, Any]) -> str:
    run = job["last_run"]
    if run is None:
        return "-"
    return f"{_colored(run['state'])} {_moment(run['finished_at'])}"


def _next(job: dict[str, Any]) -> str:
    if job["run"]:
        progress = job["progress"]
        if progress and progress["total"]:
            return f"running {progress['done']:,}/{progress['total']:,}"
        return "serving" if job["kind"] == "service" else "running"
    return _moment(job["next_run"]["at"]) if job["next_run"] else "-"


def _note(job: dict[str, Any]) -> str:
    parts = [f"[yellow]{flag}[/]" for flag in ("degraded", "paused") if job[flag]]
    if job["restarts"]:
        parts.append(f"{job['restarts']} restarts")
    run = job["last_run"]
    if job["reason"]:
        parts.append(_safe(job["reason"]))
    elif run and run["reason"] and not job["run"]:
        parts.append(_safe(run["reason"]))
    if run and run["counters"]:
        parts.append(escape(counters(run["counters"])))
    if job["next_run"] and job["next_run"]["why"]:
        parts.append(_safe(job["next_run"]["why"]))
    return "; ".join(part for part in parts if part)


def next_runs(jobs: list[dict[str, Any]], as_json: bool) -> None:
    """When each job runs next, soonest first."""
    rows = [{"job": job["job"], "paused": job["paused"], **(job["next_run"] or {})} for job in jobs if job["next_run"]]
    rows.sort(key=lambda row: row["at"])
    if as_json:
        print_json({"next": rows})
        return
    table = _table("JOB", "NEXT RUN", "SLOT", "WHY")
    for row in rows:
        why = "paused" if row["paused"] else row["why"] or row["trigger"]
        table.add_row(row["job"], _moment(row["at"]), f"{from_iso(row['slot']):%H:%M:%S}Z", _safe(why))
    _print(table)


def accepted(command: str, reply: dict[str, Any], as_json: bool) -> None:
    """What became of a command to one job."""
    if as_json:
        print_json(reply)
        return
    paused = ", paused" if reply["paused"] else ""
    click.echo(f"{reply['job']}: {command} accepted, now {reply['state']}{paused}")
    if reply["note"]:
        click.echo(f"stellerd: {reply['note']}", err=True)


def reloaded(changes: list[dict[str, Any]], as_json: bool) -> None:
    """What a reload changed, and from when on."""
    if as_json:
        print_json({"changes": changes})
        return
    for change in changes:
        values = "" if change["old"] is None and change["new"] is None else f": {change['old']} → {change['new']}"
        click.echo(f"{change['key']}{values} ({_EFFECTS[change['effect']]})")
    if not changes:
        click.echo("nothing changed")


def history(runs: list[dict[str, Any]], operations: list[dict[str, Any]], as_json: bool) -> None:
    """Runs and what people did to limits, newest first."""
    if as_json:
        print_json({"runs": runs, "operations": operations})
        return
    table = _table("RUN", "JOB", "STATE", "TRIGGER", "STARTED", "TOOK", "COUNTERS", "REASON")
    rows = [(run["started_at"], _run_row(run)) for run in runs]
    rows += [(done["at"], _operation_row(done)) for done in operations]
    for _, row in sorted(rows, key=lambda dated: from_iso(dated[0]), reverse=True):
        table.add_row(*row)
    _print(table)


def _run_row(run: dict[str, Any]) -> list[str]:
    took = "-" if run["seconds"] is None else short(run["seconds"])
    row = [str(run["id"]), run["job"], _colored(run["state"]), run["trigger"], _second(run["started_at"]), took]
    return [*row, escape(counters(run["counters"])), _safe(run["reason"])]


def _operation_row(done: dict[str, Any]) -> list[str]:
    who = f"{done['actor']}@{done['host']}"
    return ["-", _safe(done["subject"]), _safe(done["action"]), _safe(who), _second(done["at"]), "-", "",
            _safe(done["detail"])]  # fmt: skip


def _second(text: str) -> str:
    return from_iso(text).strftime("%Y-%m-%d %H:%M:%SZ")


def limits(buckets: list[dict[str, Any]], as_json: bool) -> None:
    """A row for each window of each bucket."""
    if as_json:
        print_json({"limits": buckets})
        return
    table = _table("LIMIT", "RATE", "USED", "NEXT SLOT", "CLOSED UNTIL", "BREAKER", "NOTE")
    for bucket in buckets:
        for window in bucket["windows"]:
            closed = f"{_moment(bucket['not_before'])} by {bucket['source']}" if bucket["not_before"] else "-"
            slot = _moment(max(filter(None, (window["next_slot"], bucket["not_before"])), key=from_iso, default=None))
            used = f"{window['used']:,}/{window['limit']:,}"
            breaker = bucket["breaker"] + (f" ({bucket['failures']} failures)" if bucket["failures"] else "")
            table.add_row(
                _safe(bucket["bucket"]), window["rate"], used, "now" if slot == "-" else slot, _safe(closed), breaker,
                _safe(_limit_note(bucket)),
            )  # fmt: skip
    _print(table)


def _limit_note(bucket: dict[str, Any]) -> str:
    notes = []
    if override := bucket["override"]:
        until = f"until {_second(override['until'])}" if override["until"] else "until reset"
        notes.append(f"operator's rate {until}; configured: {', '.join(bucket['configured'])}")
    if bucket["used_as"]:
        notes.append(f"last used as {', '.join(bucket['used_as'])}, by another configuration")
    if bucket["learned_wait"] is not None:
        notes.append(f"the server last said to wait {short(bucket['learned_wait'])}")
    return "; ".join(notes)


def outcome(run: dict[str, Any]) -> None:
    """One run's end, in a line or two."""
    took = "" if run["seconds"] is None else f" in {short(run['seconds'])}"
    said = f": {clean(run['reason'])}" if run["reason"] else ""
    click.echo(f"{run['job']}: {run['state']}{took}{said}")
    if run["not_before"]:
        at = from_iso(run["not_before"])
        click.echo(f"  next slot at {at:%Y-%m-%d %H:%M:%S} UTC, {_moment(run['not_before']).split(' ', 1)[1][1:-1]}")
    if run["counters"]:
        click.echo(f"  {counters(run['counters'], phases=True)}")


def check(file: str, rows: list[dict[str, Any]], connect: bool, as_json: bool) -> None:
    """What `check` found."""
    if as_json:
        print_json({"config": file, "connect": connect, "jobs": rows})
        return
    click.echo(f"{file}: configuration is valid")
    for row in rows:
        said = "ok" if row["ok"] else clean_lines(row["reason"])
        click.echo(f"{row['job']}: {said}{'' if row['enabled'] else ' (not enabled)'}")
        if row["detail"]:
            click.echo(clean_lines(row["detail"].rstrip()))


def databases(rows: list[dict[str, Any]], as_json: bool) -> None:
    """What `db check` found; the SQL that mends it stands by itself, to be copied."""
    if as_json:
        print_json({"databases": rows})
        return
    for row in rows:
        many = len(row["problems"])
        said = row["reason"] or ("ok" if row["ok"] else f"{many} problem{'s' if many > 1 else ''}")
        click.echo(f"{row['of']}: {clean_lines(said)}")
        for one in row["problems"]:
            click.echo(f"  {clean_lines(one['problem'])}")
            if one["sql"]:
                click.echo("".join(f"    {line}\n" for line in str(clean_lines(one["sql"])).splitlines()), nl=False)


def plugins(rows: list[dict[str, str]], as_json: bool) -> None:
    """Installed plugins."""
    if as_json:
        print_json({"plugins": rows})
        return
    table = _table("PLUGIN", "DISTRIBUTION", "VERSION", "ENTRY POINT")
    for row in rows:
        columns = (row["plugin"], row.get("distribution", "-"), row.get("version", "-"), row["entry_point"])
        table.add_row(*map(_safe, columns))
    _print(table)


def config(file: str, tables: dict[str, Any], as_json: bool) -> None:
    """The configuration in force."""
    if as_json:
        print_json(tables)
        return
    import tomli_w

    click.echo(f"# {file}, with every default")
    click.echo(tomli_w.dumps(tables), nl=False)


class Progress:
    """A bar on standard error while a run is on; nothing when nobody watches."""

    def __init__(self, job: str, visible: bool) -> None:
        self.job, self.visible = job, visible
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def show(self, message: dict[str, Any]) -> None:
        """Move the bar."""
        if not self.visible:
            return
        if self._bar is None:
            from rich import progress

            columns = (
                "{task.description}",
                progress.BarColumn(),
                "{task.completed:,}/{task.total:,} {task.fields[unit]}",
            )
            self._bar = progress.Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
            self._bar.start()
            self._task = self._bar.add_task(self.job, total=message["total"], unit=message["unit"])
        self._bar.update(
            self._task, completed=message["done"], total=message["total"] or message["done"], unit=message["unit"],
            refresh=True,
        )  # fmt: skip

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
