"""What changed between two configurations, and what each change asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stellerd.config import Config

Effect = Literal["live", "next run", "restart", "start", "stop", "daemon"]

RESTARTED_BY = frozenset({"plugin", "log", "concurrent", "env", "cwd", "umask", "nice", "rlimits", "user"})
"""Keys of a job that its process was forked with."""
OF_THE_DAEMON = frozenset({"socket", "admin_group", "admin_socket", "preload", "log_format", "log_file", "holds"})
"""Keys of [supervisor] that only a restart of the daemon brings."""
_OF_THE_STATE: dict[str, Effect] = {"keep": "live", "lease": "live", "host": "daemon"}


@dataclass(frozen=True)
class Change:
    """One key; `job` is empty when it belongs to no job. Values are as `config show` shows them: no secret."""

    key: str
    old: Any
    new: Any
    effect: Effect
    job: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the log and the operator."""
        return {"key": self.key, "old": self.old, "new": self.new, "effect": self.effect}


def changes(old: Config, new: Config) -> list[Change]:
    """Every difference, in the order of the file's tables."""
    before, after = _tables(old), _tables(new)
    found = [
        Change(f"supervisor.{key}", value, after["supervisor"][key], "daemon" if key in OF_THE_DAEMON else "live")
        for key, value in before["supervisor"].items()
        if value != after["supervisor"][key]
    ]
    if old.state.url != new.state.url:  # the secrets themselves: two passwords look the same in the tables
        found.append(Change("state.url", before["state"]["url"], after["state"]["url"], "daemon"))
    for table in ("databases", "limits"):
        found += _entries(table, getattr(old, table), getattr(new, table), before[table], after[table])
    if old.broker != new.broker:
        found.append(Change("broker", before["broker"], after["broker"], "next run"))
    for key, effect in _OF_THE_STATE.items():
        if before["state"][key] != after["state"][key]:
            found.append(Change(f"state.{key}", before["state"][key], after["state"][key], effect))
    for job in {**before["jobs"], **after["jobs"]}:
        found += _job(job, before["jobs"].get(job), after["jobs"].get(job))
    return found


def _tables(config: Config) -> dict[str, Any]:
    """Plain values that can be compared. What a plugin's settings hold is the plugin's to know: see `_settings`."""
    tables = config.model_dump(mode="json")
    tables["jobs"] = {name: job for name, job in tables["jobs"].items() if job["enabled"]}
    return tables


def _entries(
    table: str, old: Mapping[str, Any], new: Mapping[str, Any], before: dict[str, Any], after: dict[str, Any]
) -> list[Change]:
    return [
        Change(f"{table}.{name}", before.get(name), after.get(name), "next run")
        for name in {**before, **after}
        if old.get(name) != new.get(name)
    ]


def _job(name: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[Change]:
    if before is None or after is None:
        return [Change(f"jobs.{name}", None, None, "start" if before is None else "stop", name)]
    found = []
    for key in before:
        if before[key] == after[key]:
            continue
        if key == "settings":
            found += _settings(name, before[key], after[key])
        else:
            effect: Effect = "restart" if key in RESTARTED_BY else "live"
            hidden = key == "env"  # people put secrets there
            old, new = (None, None) if hidden else (before[key], after[key])
            found.append(Change(f"jobs.{name}.{key}", old, new, effect, name))
    return found


def _settings(name: str, before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Only the keys: which values are secret the supervisor cannot know."""
    return [
        Change(f"jobs.{name}.settings.{key}", None, None, "next run", name)
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]
