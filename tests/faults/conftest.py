"""The long forms of the fault suite: `pytest -m soak`; they stay out of every other run."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Known here too, so that the folder runs by itself."""
    config.addinivalue_line("markers", "soak: minutes long; only with -m soak")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without -m the long forms are left out."""
    if "soak" not in str(config.getoption("markexpr", "")):
        long = [item for item in items if item.get_closest_marker("soak")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)
