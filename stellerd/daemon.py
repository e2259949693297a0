"""`stellerd run`: from a valid configuration to the supervisor's loop."""

from __future__ import annotations

import gc
import sys
from types import TracebackType

from stellerd import hosts, log, preload
from stellerd.config import Config
from stellerd.errors import ConfigError
from stellerd.logpump import Sink
from stellerd.supervisor import Supervisor


def run(config: Config) -> int:
    """Blocks until the daemon was asked to stop; the exit code.

    Raises: ConfigError when a secret is missing; Unreachable when another daemon runs already.
    """
    if problems := config.problems_of_secrets():
        raise ConfigError(problems)
    if not config.jobs:
        raise ConfigError(f"{config.file}: no [jobs.NAME] table: there is nothing to run")
    file = config.supervisor.log_file
    sink = Sink(file=config.path(file) if file else None)
    style = log.style_of(config.supervisor.log_format, sink.journal)
    log.configure(config.supervisor.log_level, style, write=sink.line, journal=sink.journal)
    sys.excepthook = _log_crash
    if config.supervisor.preload:
        preload.preload(preload.wanted(config), _backend(config), _warn)
    if not hosts.knows_boot():
        log.get().warning(
            "boot id unknown: a run that its process left is noticed only when its lease ends",
            reason=f"/proc/sys/kernel/random/boot_id cannot be read and {hosts.BOOT_ID_VARIABLE} is not set",
            hint=f"add Environment={hosts.BOOT_ID_VARIABLE}=%b to the systemd unit",
        )
    gc.enable()
    return Supervisor(config, sink, style).run()


def _log_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In the log's own form, so that it is one entry there and has a priority."""
    log.get().critical("the daemon failed", exc_info=(kind, error, trace))


def _backend(config: Config) -> str:
    """Which database the state store is: no more of its URL is of interest here."""
    return "postgresql" if config.state_url().startswith("postgres") else "sqlite"


def _warn(module: str, why: str) -> None:
    log.get().warning("could not preload", module=module, reason=why)
