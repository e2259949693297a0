"""What several groups of commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stellerd.config import Config

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program instead of a table.")


def complain(text: str, *, one_entry: bool = False) -> None:
    """An error for people on standard error; in the journal with that priority, a line an entry or `one_entry`."""
    from stellerd import systemd, texts

    if systemd.is_journal():
        whole = str(texts.clean(text)) if one_entry else text
        text = systemd.journal_lines(whole.encode("utf-8", "replace"), bytes([systemd.ERROR])).decode()
    click.echo(text, err=True)


def load(context: click.Context) -> Config:
    """The configuration that the command line names, or the first that is found; see `read`."""
    return read(context.obj)


def read(named: str | None) -> Config:
    """The configuration for an operator's command, which from now on acts for whose state it is.

    Raises: ConfigError, Unreachable.
    """
    from stellerd import acting, config

    found = config.load(named)
    acting.act_for_owner(found)
    return found
