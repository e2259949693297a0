"""Tables that fit the terminal: one line a row, the least important columns left out, the last cut with "…"."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

Row = Mapping[str, str | Text]
_GAP = 2
_LAST_COLUMN = 24
"""Characters that the last column should have before a roomier layout is given up."""


def show(headings: Mapping[str, str], rows: Sequence[Row], layouts: Sequence[str], *, wide: bool = False) -> None:
    """Print `rows` in the first of `layouts` that fits; each is a line of keys, the narrowest comes last.

    `wide`, no terminal, or one that does not know its width (0): the first one, with nothing cut.
    """
    console = Console()
    width = console.width if sys.stdout.isatty() and not wide else 0
    console.width = console.width or 1  # at 0 rich prints nothing; lines are not wrapped at it
    table = [{key: Text(name, style="bold") for key, name in headings.items()}, *map(_texts, rows)]
    for line in _lines(table, [layout.split() for layout in layouts], width):
        console.print(line, soft_wrap=True)


def _texts(row: Row) -> dict[str, Text]:
    return {key: cell if isinstance(cell, Text) else Text(cell) for key, cell in row.items()}


def _lines(table: Sequence[Mapping[str, Text]], layouts: Sequence[list[str]], width: int) -> list[Text]:
    widths = {key: max(row[key].cell_len for row in table) for key in table[0]}

    def needed(keys: list[str]) -> int:
        return sum(widths[key] + _GAP for key in keys[:-1]) + min(widths[keys[-1]], _LAST_COLUMN)

    keys = next((each for each in layouts if not width or needed(each) <= width), layouts[-1])
    return [_line([row[key] for key in keys], [widths[key] for key in keys[:-1]], width) for row in table]


def _line(cells: Sequence[Text], widths: Sequence[int], width: int) -> Text:
    line = Text()
    for cell, own in zip(cells, widths, strict=False):
        line.append_text(cell)
        line.append(" " * (own - cell.cell_len + _GAP))
    line.append_text(cells[-1])
    line.rstrip()
    if width:
        line.truncate(width, overflow="ellipsis")
    return line
