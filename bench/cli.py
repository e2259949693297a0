"""How long the `stellerd` command takes, against bare Python and bare click.

    make bench BENCH=cli ARGS="--times 40"

`status` asks a running daemon with the jobs of etc/demo.toml. The commands take turns; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from _table import Table, medians
from servers import free_port

ROOT = Path(__file__).parents[1]
STELLERD = str(Path(sys.executable).with_name("stellerd"))
CLICK = "import click\n@click.group()\ndef main(): pass\nmain(['--help'])"
UP_TIMEOUT_S = 30.0


def demo_configuration(folder: Path) -> Path:
    """etc/demo.toml with all its state in `folder` and the sandbox on a free port."""
    text = (ROOT / "etc" / "demo.toml").read_text()
    file = folder / "stellerd.toml"
    file.write_text(text.replace("../.demo", str(folder)).replace("18427", str(free_port())))
    return file


def is_up(config: Path) -> bool:
    """True when the daemon answers and every job's process is ready."""
    done = subprocess.run(
        [STELLERD, "-c", str(config), "status", "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return False
    return all(job["state"] == "RUNNING" for job in json.loads(done.stdout)["jobs"])


@contextmanager
def daemon(config: Path) -> Iterator[None]:
    """A daemon that is up, with its log beside its configuration; ended after the block.

    Raises: RuntimeError with the end of its log when it does not come up.
    """
    log = config.with_suffix(".log")
    with log.open("wb") as out:
        process = subprocess.Popen([STELLERD, "-c", str(config), "run"], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + UP_TIMEOUT_S
        while not is_up(config):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the daemon did not come up:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(UP_TIMEOUT_S)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=20, help="runs of each command (default: 20)")
    times = parser.parse_args().times
    table = Table(f"Command line, median of {times}", ["ms", "CPU ms", "peak MiB"])
    with tempfile.TemporaryDirectory(prefix="stellerd-bench-") as folder:
        config = demo_configuration(Path(folder))
        with daemon(config):
            commands = {
                "floor: bare Python": [sys.executable, "-c", "pass"],
                "floor: bare click --help": [sys.executable, "-c", CLICK],
                "stellerd --help": [STELLERD, "--help"],
                "stellerd version": [STELLERD, "version"],
                "stellerd status": [STELLERD, "-c", str(config), "status"],
                "stellerd status --json": [STELLERD, "-c", str(config), "status", "--json"],
            }
            figures = medians(commands, times)
    targets = {"stellerd --help": "<= 150 ms", "stellerd status": "<= 250 ms"}
    floor = figures["floor: bare Python"].wall_s
    for name, usage in figures.items():
        values = [usage.wall_s * 1000, usage.cpu_s * 1000, usage.peak_mib]
        table.row(name, values, target=targets.get(name), ratio=usage.wall_s / floor)
    table.finish()


if __name__ == "__main__":
    main()
