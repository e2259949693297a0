"""Runs brand_sync in a new process for each line of JSON on standard input, and writes what became of it.

The process is forked from this one, which has imported everything, as the daemon's jobs are forked from the supervisor:
what a run needs on top of that is what is measured.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import requests
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite.pysqlite
from stellerd_brand_sync import BrandSync

from stellerd.testing import Harness

LOADED = (psycopg, sqlalchemy.dialects.postgresql.psycopg, sqlalchemy.dialects.sqlite.pysqlite, requests)


def one(order: dict[str, Any]) -> dict[str, Any]:
    """A run at `at`, in `folder`, with `settings`, into the database `url`."""
    harness = Harness(
        BrandSync, name="brand_sync", folder=Path(order["folder"]), databases={"steller": order["url"]},
        settings=order["settings"],
    )  # fmt: skip
    harness.clock.time = datetime.fromisoformat(order["at"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record = harness.run()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "state": record.state, "reason": record.reason, "counters": record.counters, "grown": grown * 1024,
        "not_before": record.not_before.isoformat() if record.not_before else "", "at": harness.clock().isoformat(),
        "quarantined": harness.quarantined(),
    }  # fmt: skip


def main() -> None:
    """One after another, until the end of the input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                print(json.dumps(one(json.loads(line))), file=answers, flush=True)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        print(file=answers, flush=True)


if __name__ == "__main__":
    main()
