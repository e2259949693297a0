"""TOML texts within bounds, and where each key of one stands: tomllib gives the values, this gives line and column."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]
DEEPEST = 32
"""So deep may tables and lists be nested: parsers, validators and printers work by recursion."""
_LONGEST_NUMBER = 100
_WHOLE_NUMBERS = range(-(2**63), 2**63)
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}'  # multi-line strings
    r'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\''  # strings, quoted keys
    r"|\#[^\n]*|\n|[ \t\r]+|[\[\]{},=.]"  # comment, end of line, blank, punctuation
    r"|[^\s\[\]{},=.\#\"']+",  # bare key or value
    re.DOTALL,
)


def decode(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises: TOMLDecodeError, also for what TOML's grammar allows and this program does not: nesting deeper than
    `DEEPEST`, whole numbers of more than 64 bits, NUL in a text.
    """
    if found := _unbounded(text):
        raise _mistake(*found)
    tables = tomllib.loads(text)
    if wrong := next(_out_of_bounds(tables), None):
        path, what = wrong
        places = key_positions(text)
        raise _mistake(what, *next(places[path[:n]] for n in range(len(path), 0, -1) if path[:n] in places))
    return tables


def _mistake(what: str, line: int, column: int) -> tomllib.TOMLDecodeError:
    return tomllib.TOMLDecodeError(f"{what} (at line {line}, column {column})")


def _unbounded(text: str) -> tuple[str, int, int] | None:
    """What is not to be given to tomllib: it would exhaust the stack, or be at it for minutes."""
    depth = dots = 0
    for token, line, column in _tokens(text):
        if token in "[{":
            depth += 1
        elif token in "]}":
            depth -= 1
        dots = dots + 1 if token == "." else dots if token not in "\n[]{},=" else 0
        if max(depth, dots) > DEEPEST:
            return _TOO_DEEP, line, column
        if len(token) > _LONGEST_NUMBER and token[0] in "+-0123456789":
            return f"A number of {len(token):,} characters", line, column
    return None


_TOO_DEEP = f"Nested more than {DEEPEST} deep"


def _out_of_bounds(tables: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    todo: list[tuple[Path, Any]] = [((), tables)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, dict | list):
            if len(path) > DEEPEST:
                yield path, _TOO_DEEP
                return
            todo += [((*path, key), item) for key, item in _items(value)]
        elif isinstance(value, int) and value not in _WHOLE_NUMBERS:
            yield path, "A whole number of more than 64 bits"
        if any(isinstance(text, str) and "\0" in text for text in (value, *path[-1:])):
            yield path, "NUL in a text"


def _items(value: dict[str, Any] | list[Any]) -> Any:
    return value.items() if isinstance(value, dict) else enumerate(value)


def key_positions(text: str) -> dict[Path, tuple[int, int]]:
    """(line, column), both from 1, of every key, table and array item of a text that `decode` accepts."""
    written: dict[Path, tuple[int, int]] = {}
    implied: dict[Path, tuple[int, int]] = {}
    for path, where in _Walker(text).walk():
        written[path] = where
        for length in range(1, len(path)):  # [a.b] and a.b = 1 make a table "a" that has no line of its own
            implied.setdefault(path[:length], where)
    return implied | written


def _tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """Each token but blanks and comments, with line and column."""
    line, start = 1, 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token.strip(" \t\r") and not token.startswith("#"):
            yield token, line, match.start() - start + 1
        if "\n" in token:
            line += token.count("\n")
            start = match.start() + token.rindex("\n") + 1


class _Walker:
    def __init__(self, text: str) -> None:
        self.tokens = list(_tokens(text))
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
