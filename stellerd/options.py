"""What several groups of commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stellerd.config import Config

WIDE = click.option("--wide", is_flag=True, help="Show every column in full, however narrow the terminal is.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program instead of a table.")


def load(context: click.Context) -> Config:
    """The configuration that the command line names, or the first that is found. Raises: ConfigError."""
    from stellerd import config

    return config.load(context.obj)
