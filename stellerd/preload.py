"""Import once, fork often: what children need is loaded and warmed in the supervisor before the first fork."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable

_CHILD_SIDE = ("stellerd.child", "stellerd.warmup")


def preload(modules: list[str], warn: Callable[[str, str], None]) -> None:
    """Import what children need, so that they share it and start in milliseconds; a failure is only a warning."""
    for module in (*modules, *_CHILD_SIDE):
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001  any library's import; the job that needs it will say so itself
            warn(module, f"{type(error).__name__}: {error}")
    gc.collect()
    gc.freeze()
