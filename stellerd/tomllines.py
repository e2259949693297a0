"""Where each key of a TOML text stands: tomllib gives the values, this gives line and column.

The text was already accepted by tomllib, so this walks over it without judging the syntax.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

Path = tuple[str | int, ...]
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}'  # multi-line strings
    r'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\''  # strings, quoted keys
    r"|\#[^\n]*|\n|[ \t\r]+|[\[\]{},=.]"  # comment, end of line, blank, punctuation
    r"|[^\s\[\]{},=.\#\"']+",  # bare key or value
    re.DOTALL,
)


def key_positions(text: str) -> dict[Path, tuple[int, int]]:
    """(line, column), both from 1, of every key, table and array item of a valid TOML text."""
    written: dict[Path, tuple[int, int]] = {}
    implied: dict[Path, tuple[int, int]] = {}
    for path, where in _Walker(text).walk():
        written[path] = where
        for length in range(1, len(path)):  # [a.b] and a.b = 1 make a table "a" that has no line of its own
            implied.setdefault(path[:length], where)
    return implied | written


class _Walker:
    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, int, int]] = []
        line, start = 1, 0
        for match in _TOKEN.finditer(text):
            token = match[0]
            if token.strip(" \t\r") and not token.startswith("#"):
                self.tokens.append((token, line, match.start() - start + 1))
            if "\n" in token:
                line += token.count("\n")
                start = match.start() + token.rindex("\n") + 1
        self.at = 0
        self.array_items: dict[Path, int] = {}

    def peek(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def next(self) -> tuple[str, int, int]:
        self.at += 1
        return self.tokens[self.at - 1]

    def walk(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        table: Path = ()
        while self.peek():
            if self.peek() == "\n":
                self.next()
            elif self.peek() == "[":
                table, where = self.header()
                yield table, where
            else:
                yield from self.pair(table)

    def header(self) -> tuple[Path, tuple[int, int]]:
        _, line, column = self.next()
        is_array = self.peek() == "["
        if is_array:
            self.next()
        path = self.inside_arrays(self.key(("]",)))
        while self.peek() == "]":
            self.next()
        if is_array:
            index = self.array_items[path] = self.array_items.get(path, -1) + 1
            path = (*path, index)
        return path, (line, column)

    def inside_arrays(self, path: Path) -> Path:
        """The path with the current index after every array of tables on the way ("a.b" means "a[last].b")."""
        out: Path = ()
        for position, part in enumerate(path):
            out = (*out, part)
            if out in self.array_items and position < len(path) - 1:
                out = (*out, self.array_items[out])
        return out

    def key(self, ends: tuple[str, ...]) -> Path:
        parts: list[str] = []
        while self.peek() not in ends:
            token, _, _ = self.next()
            if token != ".":
                parts.append(_unquote(token))
        return tuple(parts)

    def pair(self, table: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
        _, line, column = self.tokens[self.at]
        path = (*table, *self.key(("=",)))
        self.next()
        yield path, (line, column)
        yield from self.value(path)

    def value(self, path: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
        if self.peek() == "[":
            yield from self.array(path)
        elif self.peek() == "{":
            self.next()
            while self.peek() != "}":
                if self.peek() in (",", "\n"):
                    self.next()
                else:
                    yield from self.pair(path)
            self.next()
        else:  # a scalar: a float or date has dots of its own
            while self.peek() not in ("\n", ",", "]", "}", ""):
                self.next()

    def array(self, path: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
        self.next()
        index = 0
        while self.peek() != "]":
            if self.peek() in (",", "\n"):
                self.next()
                continue
            _, line, column = self.tokens[self.at]
            yield (*path, index), (line, column)
            yield from self.value((*path, index))
            index += 1
        self.next()


def _unquote(token: str) -> str:
    return next(iter(tomllib.loads(f"{token} = 0"))) if token[0] in "\"'" else token
