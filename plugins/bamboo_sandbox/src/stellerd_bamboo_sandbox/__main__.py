"""`python -m stellerd_bamboo_sandbox --port 18080 --set products=200`: the sandbox on its own, without the daemon."""

from __future__ import annotations

import argparse
import signal
import sys
import tomllib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from stellerd import errors
from stellerd_bamboo_sandbox.sandbox import Sandbox
from stellerd_bamboo_sandbox.settings import SandboxSettings

_STOP = (signal.SIGINT, signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; the first line on standard output is the base URL. Returns the exit code."""
    try:
        settings = _settings(_parser().parse_args(arguments))
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)  # before any thread, so that only sigwait sees them
        with Sandbox(settings) as sandbox:
            sys.stdout.write(f"{sandbox.base_url}\n")
            sys.stdout.flush()
            signal.sigwait(_STOP)
    except errors.StellerdError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stellerd_bamboo_sandbox", description=__doc__)
    parser.add_argument("--port", type=int, help="TCP port on loopback; 0: any free one (default 18080)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, its value written as in TOML"
    )
    return parser


def _settings(options: argparse.Namespace) -> SandboxSettings:
    fields: dict[str, Any] = {} if options.port is None else {"port": options.port}
    for text in options.set:
        key, _, value = text.partition("=")
        fields[key.strip()] = _value(value)
    try:
        return SandboxSettings(**fields)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise errors.ConfigError([f"{'.'.join(map(str, row['loc']))}: {row['msg']}" for row in problems]) from None


def _value(text: str) -> Any:
    """A TOML value; what is none is taken as text, so that quotes may be left out."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


if __name__ == "__main__":
    sys.exit(main())
