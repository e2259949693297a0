"""`stellerd spool flush`: where the messages lie, where they go, and the plugin that carries them.

The core speaks no broker's protocol. A plugin that writes to a spool has an entry point named after its plugin in the
group `stellerd.spool`: a function `flush(folder, urls, settings, tell)`. It delivers what the folder holds to the first
broker that answers, removes what that broker confirmed, and returns {"delivered": n, "left": n, "problems": [texts]}.
`settings(model)` gives it its own settings, `tell(delivered, total)` is for the person who waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from stellerd import config as configuration
from stellerd import locate
from stellerd.config import Config
from stellerd.errors import ConfigError, UsageError
from stellerd.secret import Secret

GROUP = "stellerd.spool"
CONFIGURED = "broker"


def flush(named: str | None, source: str | None, target: str, tell: Callable[[int, int], None]) -> dict[str, Any]:
    """Deliver a spool. `source`: folder or spool URL, default the configured one; `target`: see `urls_of`.

    Raises: UsageError, ConfigError, and what the plugin raises.
    """
    config = _config(named, needed=source is None or target == CONFIGURED)
    folder = _folder(config, source)
    urls = urls_of(config, target)
    name, carrier = _carrier(config)
    answer: dict[str, Any] = carrier.load()(folder, urls, lambda model: _settings(config, name, model), tell)
    return {"spool": str(folder), **answer}


def _config(named: str | None, *, needed: bool) -> Config | None:
    try:
        file = locate.config_file(named)
    except ConfigError:
        if needed or named:
            raise
        return None
    return configuration.parse(locate.read(file), file)


def _folder(config: Config | None, source: str | None) -> Path:
    if source is None:
        assert config is not None
        source = config.broker_urls()[0]
        if not source.startswith("spool:"):
            raise UsageError("[broker] url is no spool: name the folder with --from")
    folder = Path(unquote(urlsplit(source).path) if source.startswith("spool:") else source)
    if not os.path.isdir(folder):
        raise UsageError(f"{folder}: there is no such folder")
    return folder


def urls_of(config: Config | None, target: str) -> list[str]:
    """ "broker": those of [broker]; "@file", "env:NAME", "credential:name": read from there; else the URL itself.

    Raises: UsageError when the secret cannot be read or the broker is a spool.
    """
    if target == CONFIGURED and config is not None:
        urls = config.broker_urls()
    else:
        urls = [_secret(target)]
    if any(url.startswith("spool:") for url in urls):
        raise UsageError("--to: a spool is delivered to a broker: amqp://… or amqps://…")
    return urls


def _secret(target: str) -> str:
    source, value = "plain", target
    for prefix, kind in (("@", "file"), ("env:", "env"), ("credential:", "credential")):
        if target.startswith(prefix):
            source, value = kind, target.removeprefix(prefix)
    try:
        return Secret(source, value).reveal()
    except ValueError as error:
        raise UsageError(f"--to: {error}") from None


def has_password(target: str) -> bool:
    """Whether the command line itself shows a password, which every user of the host can read."""
    return "@" in target[1:] and "://" in target


def _carrier(config: Config | None) -> tuple[str, EntryPoint]:
    """The plugin that carries, and the name of its job in the configuration.

    Raises: ConfigError when none is installed.
    """
    points = {point.name: point for point in entry_points(group=GROUP)}
    if not points:
        raise ConfigError("no plugin that can deliver a spool is installed: pip install stellerd-order-queue")
    jobs = config.jobs.items() if config else ()
    for job, entry in jobs:
        if (entry.plugin or job) in points:
            return job, points[entry.plugin or job]
    return "", next(iter(points.values()))


def _settings(config: Config | None, job: str, model: Any) -> Any:
    return configuration.plugin_settings(config, job, model) if config and job else model()
