"""`stellerd run`: from a valid configuration to the supervisor's loop."""

from __future__ import annotations

import gc

from stellerd import log, preload
from stellerd.config import Config
from stellerd.logpump import Sink
from stellerd.supervisor import Supervisor


def run(config: Config) -> int:
    """Blocks until the daemon was asked to stop; the exit code.

    Raises: ConfigError when a secret or any job is missing; Unreachable when another daemon runs already.
    """
    config.require_usable()
    style = log.style_of(config.supervisor.log_format)
    file = config.supervisor.log_file
    sink = Sink(file=config.path(file) if file else None)
    log.configure(config.supervisor.log_level, style, write=sink.line)
    if config.supervisor.preload:
        preload.preload(preload.wanted(config), _backend(config), _warn)
    gc.enable()
    return Supervisor(config, sink, style).run()


def _backend(config: Config) -> str:
    """Which database the state store is: no more of its URL is of interest here."""
    return "postgresql" if config.state_url().startswith("postgres") else "sqlite"


def _warn(module: str, why: str) -> None:
    log.get().warning("could not preload", module=module, reason=why)
