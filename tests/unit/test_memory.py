"""What was freed goes back to the kernel when it is told to."""

from __future__ import annotations

import subprocess
import sys

CODE = """
from pathlib import Path
from stellerd import memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
blocks = [bytes(3000) for _ in range(20_000)]
few = blocks[::400]  # so that the heap cannot shrink from its end
del blocks
before = resident()
memory.give_back()
print(before - resident())
"""


def test_freed_memory_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) > 40_000_000, "of 60 MB"
