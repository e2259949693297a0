"""A job's process from the fork to its end: fork contract, plugin, schedule loop."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import setproctitle

from stellerd import assembly, log, reading, redaction, surroundings, tomlschema
from stellerd.channel import DUMP_SIGNAL, Assignment, Channel
from stellerd.claims import Held
from stellerd.config import Config, plugin_settings, shown_settings
from stellerd.errors import Busy, ConfigError, StellerdError, UsageError
from stellerd.job import Job
from stellerd.line import Line
from stellerd.redaction import RedactingStream, redact
from stellerd.registry import Loaded, Observer
from stellerd.runner import Runner
from stellerd.status import RunRecord, from_iso
from stellerd.store import Store
from stellerd.ticker import Ticker

_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None)  # once, before the fork
# a closed connection is an OSError of the plugin's, not the end of the process: Python ignores SIGPIPE too
_OTHER_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}


def main(assignment: Assignment, channel: Channel, log_fd: int | None) -> None:
    """Everything a job's process ever does; ends with os._exit, so that nothing of the parent's is run again.

    `log_fd` becomes its standard output and error; None: it keeps those of the parent, or, where a
    person waits, both are its standard error.
    """
    code = 70
    try:
        _after_fork(assignment, channel, log_fd)
        log.configure(assignment.config.supervisor.log_level, assignment.style, mark=assignment.log_mark)
        name = assignment.job
        surroundings.apply(assignment.config.jobs[name], assignment.config.where("jobs", name))
        _die_with_parent(assignment)  # again: a change of user forgets it (prctl(2))
        code = _live(assignment, channel)
    except StellerdError as error:
        code = error.exit_code
        _last_words(assignment, channel, code, str(error), getattr(error, "detail", ""))
    except BaseException as error:  # noqa: BLE001  whatever it was, the supervisor shall know
        _last_words(assignment, channel, code, f"{type(error).__name__}: {error}", traceback.format_exc())
    finally:
        redaction.release()
        os._exit(code)


def _last_words(assignment: Assignment, channel: Channel, code: int, reason: str, detail: str) -> None:
    reason, detail = redact(reason), redact(detail)
    channel.send("failed", reason=reason, detail=detail, code=code)
    if assignment.mode == "serve":  # else whoever asked for it says it
        log.get(job=assignment.job).error("cannot work", reason=reason, **({"traceback": detail} if detail else {}))


def _after_fork(assignment: Assignment, channel: Channel, log_fd: int | None) -> None:
    """The fork contract: die with the parent, own group, default signals, no descriptor of others, no core file.
    `random` seeds itself anew after a fork."""
    _die_with_parent(assignment)
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in _OTHER_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the daemon's terminal or pipe is not a job's to read
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  for as long as the process lives
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        os.environ.pop(name, None)  # it is the daemon alone that talks to the service manager
    if log_fd is not None:
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
    elif assignment.mode != "serve":
        os.dup2(2, 1)  # what a plugin prints must not end up in the JSON of `run-once` or `check`
    sys.stdout, sys.stderr = RedactingStream(1), RedactingStream(2)
    ours = channel.fileno()
    os.closerange(3, ours)
    os.closerange(ours + 1, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    surroundings.no_core_file()
    gc.enable()
    faulthandler.enable()
    faulthandler.register(DUMP_SIGNAL, all_threads=True)
    setproctitle.setproctitle(f"stellerd: {assignment.job}")


def _die_with_parent(assignment: Assignment) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != assignment.parent_pid:  # it died before the call
        os._exit(70)


def _live(assignment: Assignment, channel: Channel) -> int:
    config, name = assignment.config, assignment.job
    own_signal = signal.Signals[f"SIG{config.jobs[name].stop_signal}"]
    line = Line(channel, {signal.SIGTERM, signal.SIGINT, own_signal})
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if assignment.mode == "close":
        return _close(assignment, line)
    loaded = Loaded(config.jobs[name].plugin or name, config.where("jobs", name))
    if assignment.mode == "schema":
        schema = tomlschema.of_settings(loaded.job.Settings, name) if loaded.job.Settings else {"type": "object"}
        line.tell("told", {"schema": schema})
        return 0
    if assignment.mode == "settings":
        return _tell_settings(line, config, name, loaded.job)
    observe = loaded.observe(log.get(job=name))
    if loaded.observes:
        line.observe = lambda told: observe(told["hook"], told["job"], told["run"])
        line.hears_while_waiting = loaded.job.kind == "service"
    if loaded.job is Observer:
        return _only_observe(assignment, loaded, line)
    store = _store_of(config, reading.MadeWhenNeeded if assignment.mode in ("check", "databases") else Store)
    if assignment.mode == "serve":
        return ticker_of(assignment, loaded, store, line).serve()
    build = _builder(assignment, loaded, store, line)
    if assignment.mode == "check":
        return _check(assignment, build(config), line)
    if assignment.mode == "databases":
        return _tell_of_databases(build(config), line)
    _recover(assignment, store, assembly.key_of(config, name, loaded.job))
    return run_once(assignment, build(config), line)


def _store_of(config: Config, kind: type[Store] = Store) -> Store:
    return kind(config.state_url(), lease_s=config.state.lease, host=config.state.host)


def _close(assignment: Assignment, line: Line) -> int:
    """Close the record of a run whose process, not of this daemon's schedule, ended without a word."""
    store, death = _store_of(assignment.config), assignment.last_death
    store.recover(death["key"], death["cause"], death["state"], death["run"], from_iso(death["at"]))
    record = next((run for run in store.history(death["key"], 50) if run.id == death["run"]), None)
    line.tell("told", {"run": record.to_json() if record else None})
    return 0


def _builder(assignment: Assignment, loaded: Loaded, store: Store, line: Line) -> Callable[[Config], Runner]:
    """A function that makes the job's runner by a configuration: the one it was forked with, or a later one."""
    name, heartbeat = assignment.job, assignment.heartbeat
    logger = log.get(job=name)
    observe = loaded.observe(logger)

    def build(config: Config) -> Runner:
        return assembly.runner(
            config, name, loaded.job, store, logger, line.tell, wait=line.wait, step_down=line.stop,
            end=line.end_at_once, observe=lambda hook, run: observe(hook, name, run),
            alive=heartbeat.stamp if heartbeat else None, attended=assignment.attended,
        )  # fmt: skip

    return build


def _only_observe(assignment: Assignment, loaded: Loaded, line: Line) -> int:
    """The life of a plugin without a job: no store, no schedule, what the parent tells of others."""
    if assignment.mode == "serve":
        line.ready = {"job_kind": loaded.job.kind, "every": None, "last_run": None, "observes": True}
        line.say_ready()
        while not line.stopping:
            line.next_command(None)
    elif assignment.mode == "once":
        raise UsageError(f"{assignment.job} has no run: its plugin only observes the runs of other jobs")
    else:
        line.tell("told", {"problems": []})
    return 0


def ticker_of(assignment: Assignment, loaded: Loaded, store: Store, line: Line) -> Ticker:
    """The job's schedule; its first act is to close what processes before this one left open.

    Raises: ConfigError.
    """
    config, job = assignment.config, loaded.job
    key = assembly.key_of(config, assignment.job, job)

    def prepare() -> None:
        _recover(assignment, store, key)
        if line.ready is not None:
            line.ready["last_run"] = _last_run(store, key)

    ticker = Ticker(config, _builder(assignment, loaded, store, line), line, assignment.paused, prepare)
    every = ticker.runner.every if job.kind == "periodic" else None
    line.ready = {"job_kind": job.kind, "every": every, "last_run": None}
    if loaded.observes:
        line.ready["observes"] = True
    return ticker


def _recover(assignment: Assignment, store: Store, key: str) -> None:
    """Close the records that processes before this one left open."""
    store.create()
    if death := assignment.last_death:
        store.recover(key, death["cause"], death["state"], death["run"], from_iso(death["at"]))
    else:
        store.recover(key)


def _tell_settings(line: Line, config: Config, name: str, job: type[Job]) -> int:
    """For `config show`: the settings with their defaults, of secrets only where they come from."""
    try:
        settings = plugin_settings(config, name, job.Settings, with_secrets=False)
        shown, problem = settings.model_dump(mode="json") if settings else {}, ""
    except ConfigError as error:
        shown, problem = shown_settings(config, name, job.Settings), str(error)
    line.tell("told", {"settings": shown, "problem": problem})
    return 0


def _check(assignment: Assignment, runner: Runner, line: Line) -> int:
    """For `check`: the plugin loads and its settings are right; with `connect` its servers answer too."""
    if assignment.connect:
        config = assignment.config
        reading.prove(config.state_url(), config.state.host)
        assembly.check(runner)
        runner.store.close()
    line.tell("told", {})
    return 0


def _tell_of_databases(runner: Runner, line: Line) -> int:
    """For `db check`: what the plugin finds wrong with its databases."""
    problems = [{"problem": str(what), "sql": str(sql)} for what, sql in assembly.database_problems(runner)]
    line.tell("told", {"problems": problems})
    return 0


def _last_run(store: Store, key: str) -> dict[str, Any] | None:
    record = store.last_finished(key)
    return record.to_json() if record else None


def run_once(assignment: Assignment, runner: Runner, line: Line) -> int:
    """`stellerd run-once`: one run under the same lease, limits and history as the daemon's.

    Raises: Busy when somebody else holds the job for longer than the caller wants to wait.
    """
    deadline = time.monotonic() + assignment.wait_s
    while isinstance(result := runner.run("manual", dry_run=assignment.dry_run), Held):
        if time.monotonic() >= deadline or line.wait(0.5):
            raise Busy(f"{assignment.job} is busy: {result}; wait for it with --wait", result.until)
    if not isinstance(result, RunRecord):
        raise ConfigError(f"{assignment.job}: {result}")
    return result.exit_code
