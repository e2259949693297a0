"""stellerd: a supervisor for scheduled job plugins. These names are the whole public surface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stellerd import errors
from stellerd.job import Deferred, Done, Job, Skipped

if TYPE_CHECKING:
    from stellerd.context import Context
    from stellerd.hookspecs import hookimpl
    from stellerd.secret import Secret
    from stellerd.settings import Duration, Settings

__version__ = "0.1.0"
__all__ = ["Context", "Deferred", "Done", "Duration", "Job", "Secret", "Settings", "Skipped", "errors", "hookimpl"]

_LATE = {  # what costs an import is fetched when it is asked for: `stellerd --help` stays fast
    "Context": "stellerd.context",
    "Duration": "stellerd.settings",
    "Secret": "stellerd.secret",
    "Settings": "stellerd.settings",
    "hookimpl": "stellerd.hookspecs",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'stellerd' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATE[name]), name)
