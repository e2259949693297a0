"""`run-once` as clients of the control socket ask for it: the daemon's own children, beside the jobs' processes."""

from __future__ import annotations

import json
import os
from collections.abc import Container
from datetime import date
from typing import TYPE_CHECKING, Any

from stellerd import locate, log
from stellerd.channel import Assignment, Message
from stellerd.config import Config
from stellerd.errors import Busy, StellerdError, UsageError
from stellerd.managed import Managed
from stellerd.once_run import INTERRUPTED, OnceRun, Result, with_sets
from stellerd.status import iso

if TYPE_CHECKING:
    from stellerd.control import Client
    from stellerd.fleet import Fleet

MAX_RUNS = 32
"""At a time. Several may be for one job: the lease says who is first, the others are busy or wait."""
_MAX_SETS = 100
_MAX_WAIT_S = 366 * 86400.0
_PROGRESS_S = 0.1
"""A client is told of progress no more often."""
_PROGRESS_ROOM, _LINES_ROOM = 64 * 1024, 1024 * 1024
"""Bytes that a client may leave unread before it misses progress, or lines."""
_LINES_PER_S = 1024 * 1024
"""Bytes of lines that a client is told of in a second; the daemon's log has all of them."""
_RECORD_CHARS = 1024 * 1024
_TEXT_CHARS = 64 * 1024
TRY_LATER = Busy.exit_code


class RunRequests:
    """The runs that are on. `fleet` keeps their processes in its books, so that whatever befalls all befalls them."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.visits: list[Visit] = []
        self._refusal = ""

    def open(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        """Begin a run for this client; the first reply.

        Raises: UsageError, Busy; nothing was begun.
        """
        if self._refusal:
            raise Busy(self._refusal)
        if len(self.visits) >= MAX_RUNS:
            raise Busy(f"{MAX_RUNS} runs that were asked for are on; try again when one has ended")
        job, sets, wait_s = _checked(request)
        config = self.fleet.config
        changed = with_sets(config, job, sets)
        _may_set(changed, config, job, client.uid)
        visit = Visit(self, client, Assignment(
            job=job, config=changed, parent_pid=os.getpid(), heartbeat=self.fleet.heartbeats.slot(),
            style=self.fleet.style, mode="once", dry_run=request.get("dry_run") is True, wait_s=wait_s,
        ))  # fmt: skip
        return {"pid": visit.entry.pid, "config": str(config.file.absolute()), "digest": locate.digest(config.text)}

    def end_all(self, reason: str) -> None:
        """End all and take no other."""
        self._refusal = reason
        self.end_those_not_in((), reason)

    def end_those_not_in(self, jobs: Container[str], reason: str) -> None:
        """End the runs of all other jobs."""
        for visit in list(self.visits):
            if visit.entry.name not in jobs:
                visit.end(reason)

    def end_those_of(self, job: str, reason: str) -> Managed | None:
        """End the runs of one job; one of their processes, or None: there was none."""
        found = [visit for visit in self.visits if visit.entry.name == job]
        for visit in found:
            visit.end(reason)
        return found[0].entry if found else None

    def to_json(self) -> list[dict[str, Any]]:
        """Those that are on, for `status`."""
        return [visit.to_json() for visit in self.visits]


class Visit:
    """One run and the client that it is for."""

    def __init__(self, requests: RunRequests, client: Client, assignment: Assignment) -> None:
        self.requests, self.client, self.fleet = requests, client, requests.fleet
        self.log = log.get()
        self._told_at = -_PROGRESS_S
        self._second, self._bytes, self._missed = 0, 0, 0
        fleet = self.fleet
        try:
            self.run = OnceRun(
                fleet.loop, assignment, fleet.sink, fleet.guard, fleet.watch, fleet.oom, self._show, self._done,
                self._lines,
            )  # fmt: skip
        except OSError as error:
            if assignment.heartbeat:
                assignment.heartbeat.release()
            raise Busy(f"cannot fork: {os.strerror(error.errno or 0)}") from None
        self.entry = self.run.entry
        client.talk = self
        requests.visits.append(self)
        fleet.guests.append(self.entry)
        self.log.info("run-once", job=self.entry.name, pid=self.entry.pid, uid=client.uid)

    def hear(self, line: bytes) -> None:
        """The client's only further word: it wants the run to end, or the second time, at once."""
        try:
            wants_end = json.loads(line)["command"] == "end"
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        if wants_end:
            self.run.interrupt()

    def lost(self) -> None:
        """Nobody waits for the run any more."""
        self.run.end("interrupted: its client is gone", INTERRUPTED)

    def end(self, reason: str) -> None:
        """End it for a reason that is not the client's; the client is told."""
        self.client.tell({"event": "ending", "reason": reason})
        self.run.end(reason, TRY_LATER)

    def _show(self, kind: str, message: Message) -> None:
        if kind == "run_started":
            fields = {key: message.get(key) for key in ("id", "trigger", "started_at")}
            self.client.tell({"event": kind, "run": fields})
            return
        now = self.fleet.loop.clock()
        if now - self._told_at >= _PROGRESS_S:
            self._told_at = now
            fields = {"done": message["done"], "total": message["total"], "unit": message["unit"][:40]}
            self.client.tell({"event": kind, **fields}, _PROGRESS_ROOM)

    def _lines(self, block: bytes) -> None:
        second = int(self.fleet.loop.clock())
        if second != self._second:
            self._second, self._bytes = second, 0
        self._bytes += len(block)
        message = {"event": "lines", "text": block.decode("utf-8", "replace"), "missed": self._missed}
        if self._bytes <= _LINES_PER_S and self.client.tell(message, _LINES_ROOM):
            self._missed = 0
        else:
            self._missed += block.count(b"\n") + 1

    def _done(self, result: Result) -> None:
        self.requests.visits.remove(self)
        self.fleet.guests.remove(self.entry)
        fields = _bounded(result)
        trace = {"traceback": fields["detail"]} if result.detail else {}
        self.log.info(
            "run-once ended", job=self.entry.name, exit_code=result.exit_code, reason=fields["reason"], **trace
        )
        self.client.tell({"event": "result", **fields, "missed": self._missed})
        self.client.talk, self.client.last_used = None, self.fleet.loop.clock()

    def to_json(self) -> dict[str, Any]:
        """One entry of `run_once` in `status`."""
        entry, ending = self.entry, self.run.ending
        return {
            "job": entry.name, "pid": entry.pid, "uid": self.client.uid, "since": iso(self.run.began),
            "run": entry.run, "progress": entry.progress, "ending": ending.reason if ending else "",
        }  # fmt: skip


def _checked(request: dict[str, Any]) -> tuple[str, tuple[str, ...], float]:
    """(job, sets, seconds to wait). Raises: UsageError."""
    job, sets, wait_s = request.get("job"), request.get("sets", []), request.get("wait", 0)
    if not isinstance(job, str):
        raise UsageError("job: a name")
    if not isinstance(sets, list) or len(sets) > _MAX_SETS or not all(isinstance(item, str) for item in sets):
        raise UsageError(f"sets: a list of at most {_MAX_SETS} texts KEY=VALUE")
    if not isinstance(wait_s, int | float) or not 0 <= wait_s <= _MAX_WAIT_S:
        raise UsageError("wait: a number of seconds, at most a year")
    return job, tuple(sets), float(wait_s)


def _may_set(changed: Config, config: Config, job: str, uid: int) -> None:
    """URLs, databases and paths are texts: only root and the service's own user may set one.

    Raises: StellerdError.
    """
    if uid in (0, os.getuid()):
        return
    before, after = config.jobs[job].settings, changed.jobs[job].settings
    for key, value in after.items():
        if (key not in before or before[key] is not value) and not isinstance(value, int | float | date):
            raise StellerdError(f"--set {key}: only root and the daemon's own user may set a text, a list or a table")


def _bounded(result: Result) -> dict[str, Any]:
    fields = result.to_json() | {"reason": result.reason[:_TEXT_CHARS], "detail": result.detail[-_TEXT_CHARS:]}
    if result.run and len(json.dumps(result.run)) > _RECORD_CHARS:
        fields["run"] = {**result.run, "counters": {}}
    return fields
