"""How the commands show things: tables for people, JSON for programs (docs/reference/json.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from stellerd import tables
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
    click.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity (RFC 8259); a counter of an old record may be one."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _colored(state: str, more: str = "") -> Text:
    return Text.assemble((state, _COLORS.get(state, "red")), more)


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
    return f"{from_iso(text):%H:%M:%S}Z ({_away(text)})" if text else "-"


def _away(text: str | None) -> str:
    if not text:
        return "-"
    seconds = (from_iso(text) - datetime.now(UTC)).total_seconds()
    return f"in {short(seconds)}" if seconds > 0 else f"{short(-seconds)} ago"


def counters(values: dict[str, int], *, phases: bool = False) -> str:
    """ "products 8,026, new 12": counters that are zero are left out; in tables also how long each phase took."""
    shown = {name: amount for name, amount in values.items() if amount and (phases or not name.endswith("_ms"))}
    return ", ".join(f"{clean(name)} {amount:,}" for name, amount in shown.items())


def _safe(text: str) -> str:
    return str(clean(text))


_STATUS = {
    "job": "JOB", "state": "STATE", "last": "LAST RUN", "ago": "LAST RUN", "next": "NEXT RUN", "in": "NEXT RUN",
    "up": "UP", "pid": "PID", "note": "NOTE",
}  # fmt: skip


def status(reply: dict[str, Any], as_json: bool, wide: bool = False) -> None:
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
    layouts = "job state last next up pid note", "job state last next note", "job state ago in note"
    tables.show(_STATUS, [_status_row(job) for job in reply["jobs"]], layouts, wide=wide)
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


def _status_row(job: dict[str, Any]) -> tables.Row:
    up = "-" if job["uptime"] is None else short(job["uptime"])
    return {
        "job": job["job"], "state": _colored(job["state"]), "last": _last(job, _moment), "ago": _last(job, _away),
        "next": _next(job, _moment), "in": _next(job, _away), "up": up, "pid": str(job["pid"] or "-"),
        "note": _note(job),
    }  # fmt: skip


def _last(job: dict[str, Any], say: Callable[[str | None], str]) -> Text:
    run = job["last_run"]
    return Text("-") if run is None else _colored(run["state"], f" {say(run['finished_at'])}")


def _next(job: dict[str, Any], say: Callable[[str | None], str]) -> str:
    if job["run"]:
        progress = job["progress"]
        if progress and progress["total"]:
            return f"running {progress['done']:,}/{progress['total']:,}"
        return "serving" if job["kind"] == "service" else "running"
    return say(job["next_run"]["at"]) if job["next_run"] else "-"


def _note(job: dict[str, Any]) -> Text:
    parts: list[str | Text] = [Text(flag, "yellow") for flag in ("degraded", "paused") if job[flag]]
    if job["restarts"]:
        parts.append(f"{job['restarts']} restarts")
    run = job["last_run"]
    if job["reason"]:
        parts.append(_safe(job["reason"]))
    elif run and run["reason"] and not job["run"]:
        parts.append(_safe(run["reason"]))
    if run and run["counters"]:
        parts.append(counters(run["counters"]))
    if job["next_run"] and job["next_run"]["why"]:
        parts.append(_safe(job["next_run"]["why"]))
    return Text("; ").join(part if isinstance(part, Text) else Text(part) for part in parts if part)


def next_runs(jobs: list[dict[str, Any]], as_json: bool, wide: bool = False) -> None:
    """When each job runs next, soonest first."""
    rows = [{"job": job["job"], "paused": job["paused"], **(job["next_run"] or {})} for job in jobs if job["next_run"]]
    rows.sort(key=lambda row: row["at"])
    if as_json:
        print_json({"next": rows})
        return
    shown = [
        {
            "job": row["job"], "next": _moment(row["at"]),
            "slot": f"{from_iso(row['slot']):%H:%M:%S}Z" if row["slot"] else "-",
            "why": _safe("paused" if row["paused"] else row["why"] or row["trigger"]),
        }
        for row in rows
    ]  # fmt: skip
    headings = {"job": "JOB", "next": "NEXT RUN", "slot": "SLOT", "why": "WHY"}
    tables.show(headings, shown, ("job next slot why", "job next why"), wide=wide)


def accepted(command: str, reply: dict[str, Any], as_json: bool) -> None:
    """What became of a command to one job."""
    if as_json:
        print_json(reply)
        return
    paused = ", paused" if reply["paused"] else ""
    click.echo(f"{reply['job']}: {command} accepted, now {reply['state']}{paused}")
    if reply["note"]:
        click.echo(f"stellerd: {reply['note']}", err=True)


def reloaded(changes: list[dict[str, Any]], tried_again: list[str], as_json: bool) -> None:
    """What a reload changed, and from when on; jobs that had been given up are tried again with every reload."""
    if as_json:
        print_json({"changes": changes, "tried_again": tried_again})
        return
    for change in changes:
        values = "" if change["old"] is None and change["new"] is None else f": {change['old']} → {change['new']}"
        click.echo(f"{change['key']}{values} ({_EFFECTS[change['effect']]})")
    for job in tried_again:
        click.echo(f"{job}: was FATAL, is started again")
    if not changes and not tried_again:
        click.echo("nothing changed")


_HISTORY = {
    "run": "RUN", "job": "JOB", "state": "STATE", "started": "STARTED", "brief": "STARTED", "took": "TOOK",
    "trigger": "TRIGGER", "note": "NOTE",
}  # fmt: skip


def history(runs: list[dict[str, Any]], operations: list[dict[str, Any]], as_json: bool, wide: bool = False) -> None:
    """Runs and what people did to limits, newest first."""
    if as_json:
        print_json({"runs": runs, "operations": operations})
        return
    rows = [(run["started_at"], _run_row(run)) for run in runs]
    rows += [(done["at"], _operation_row(done)) for done in operations]
    rows.sort(key=lambda dated: from_iso(dated[0]), reverse=True)
    layouts = (
        "run job state started took trigger note",
        "run job state started took note",
        "run job state brief took note",
    )
    tables.show(_HISTORY, [row for _, row in rows], layouts, wide=wide)


def _run_row(run: dict[str, Any]) -> tables.Row:
    said = filter(None, (_safe(run["reason"]), counters(run["counters"])))
    return {
        "run": str(run["id"]), "job": run["job"], "state": _colored(run["state"]), "trigger": run["trigger"],
        "started": _second(run["started_at"]), "brief": _brief(run["started_at"]),
        "took": "-" if run["seconds"] is None else short(run["seconds"]), "note": "; ".join(said),
    }  # fmt: skip


def _operation_row(done: dict[str, Any]) -> tables.Row:
    return {
        "run": "-", "job": _safe(done["subject"]), "state": _safe(done["action"]), "trigger": "operator",
        "started": _second(done["at"]), "brief": _brief(done["at"]), "took": "-",
        "note": _safe(f"{done['actor']}@{done['host']}: {done['detail']}"),
    }  # fmt: skip


def _brief(text: str) -> str:
    return from_iso(text).strftime("%m-%d %H:%M:%SZ")


def _second(text: str) -> str:
    return from_iso(text).strftime("%Y-%m-%d %H:%M:%SZ")


_LIMITS = {
    "limit": "LIMIT", "rate": "RATE", "used": "USED", "next": "NEXT SLOT", "in": "NEXT SLOT", "until": "CLOSED UNTIL",
    "for": "CLOSED", "breaker": "BREAKER", "note": "NOTE",
}  # fmt: skip


def limits(buckets: list[dict[str, Any]], as_json: bool, wide: bool = False) -> None:
    """A row for each window of each bucket."""
    if as_json:
        print_json({"limits": buckets})
        return
    rows = [_limit_row(bucket, window) for bucket in buckets for window in bucket["windows"]]
    layouts = (
        "limit rate used next until breaker note",
        "limit rate used in for breaker note",
        "limit rate used in for note",
    )
    tables.show(_LIMITS, rows, layouts, wide=wide)


def _limit_row(bucket: dict[str, Any], window: dict[str, Any]) -> tables.Row:
    closed = bucket["not_before"]
    slot = max(filter(None, (window["next_slot"], closed)), key=from_iso, default=None)
    return {
        "limit": _safe(bucket["bucket"]), "rate": window["rate"], "used": f"{window['used']:,}/{window['limit']:,}",
        "next": _moment(slot) if slot else "now", "in": _away(slot) if slot else "now",
        "until": _safe(f"{_moment(closed)} by {bucket['source']}") if closed else "-",
        "for": _safe(f"{_away(closed)} by {bucket['source']}") if closed else "-",
        "breaker": bucket["breaker"] + (f" ({bucket['failures']} failures)" if bucket["failures"] else ""),
        "note": _safe(_limit_note(bucket)),
    }  # fmt: skip


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


def check(file: str, rows: list[dict[str, Any]], warnings: list[str], connect: bool, as_json: bool) -> None:
    """What `check` found."""
    if as_json:
        print_json({"config": file, "connect": connect, "jobs": rows, "warnings": warnings})
        return
    for warning in warnings:
        click.echo(f"stellerd: warning: {clean_lines(warning)}", err=True)
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
    headings = {"plugin": "PLUGIN", "distribution": "DISTRIBUTION", "version": "VERSION", "entry_point": "ENTRY POINT"}
    shown = [{key: _safe(row.get(key, "-")) for key in headings} for row in rows]
    tables.show(headings, shown, (" ".join(headings),), wide=True)


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
