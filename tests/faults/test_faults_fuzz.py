"""Random operations on a real daemon. A failure prints how to replay it."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.fuzzer import fuzz

SEED = int(os.environ.get("STELLERD_FUZZ_SEED") or random.SystemRandom().randrange(10**9))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "stellerd-test", str(folder)], check=True)
    try:
        yield folder
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def operations(usual: int) -> int:
    """How many; as many as were asked for."""
    return int(os.environ.get("STELLERD_FUZZ_OPERATIONS") or usual)


@pytest.mark.timeout(180)
def test_random_operations_leave_the_daemon_whole(tmp_path: Path, disk: Path) -> None:
    fuzz(tmp_path, disk, SEED, operations(300))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_ten_thousand_random_operations_leave_the_daemon_whole(tmp_path: Path, disk: Path) -> None:
    fuzz(tmp_path, disk, SEED, operations(10_000))
