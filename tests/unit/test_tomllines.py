"""Positions of keys: TOML texts are generated together with the place of every key, in every form there is."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stellerd.tomllines import Path, key_positions

Marks = dict[Path, tuple[int, int]]

_SCALARS = [
    "1", "-1_000", "0xff", "1.5", "6.02e23", "true", "inf", "1979-05-27", "1979-05-27T07:32:00.999-07:00",
    "1979-05-27 07:32:00", "07:32:00.5", '"plain"', '""', "''",
    '"a # no comment"', '"[not.a.table]"', '"k = {1}, [2]"', r'"a \" quote \\"', "'C:\\path\\'", "'it is \" # ['",
    '"""one line"""', '""""""', '"""\n[x]\ny = "1" # \n"""', '"""two "" quotes"""', '"""ends with two """""',
    '"""esc \\""" still in\n"""', '"""line \\\n   goes on"""', "'''\nraw [x]\n'' y = \\ '''", "''''quoted''''", '"ü€𝄞"',
]  # fmt: skip
_KEYS = ["bare", "with-dash", "under_score", "123", '"quoted"', "'literal'", '"a.b"', "'[x]'", '"has space"', '"#"',
         r'"quo\"te"', r'"back\\slash"', r'"tab\t"', r'"\u00e9"', r'"\U0001F600 x"', '"ü€"', '"="']  # fmt: skip


class Document:
    """A TOML text that grows, with the place where each key was put."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.text, self.count = draw, "", 0
        self.marks: Marks = {}

    def put(self, text: str) -> None:
        self.text += text

    def mark(self, path: Path) -> None:
        self.marks[path] = (self.text.count("\n") + 1, len(self.text) - self.text.rfind("\n"))

    def one_of(self, choices: list[str]) -> str:
        return str(self.draw(st.sampled_from(choices)))

    def fresh_key(self) -> tuple[str, str]:
        """(as written, as read); a number makes it unique."""
        self.count += 1
        form = self.one_of(_KEYS)
        quote = form[-1] if form[-1] in "\"'" else ""
        written = form.removesuffix(quote) + str(self.count) + quote
        return written, next(iter(tomllib.loads(f"{written} = 1")))

    def dotted(self) -> tuple[str, Path]:
        parts = [self.fresh_key() for _ in range(self.draw(st.integers(1, 3)))]
        between = self.one_of([".", " . "])
        return between.join(written for written, _ in parts), tuple(read for _, read in parts)

    def pair(self, table: Path, depth: int = 0) -> None:
        written, parts = self.dotted()
        path = (*table, *parts)
        self.mark(path)
        self.put(written + self.one_of([" = ", "=", "\t=  "]))
        self.value(path, depth)

    def value(self, path: Path, depth: int) -> None:
        kind = self.one_of(["scalar", "scalar", "array", "table"]) if depth < 2 else "scalar"
        if kind == "scalar":
            self.put(self.one_of(_SCALARS))
        elif kind == "array":
            self.array(path, depth)
        else:
            self.put("{" + self.one_of(["", " "]))
            for index in range(self.draw(st.integers(0, 2))):
                self.put(", " if index else "")
                self.pair(path, depth + 1)
            self.put(self.one_of(["", " "]) + "}")

    def array(self, path: Path, depth: int) -> None:
        self.put("[")
        for index in range(self.draw(st.integers(0, 3))):
            self.put(self.one_of(["", " ", "\n  ", "\n # ] a comment [\n\t"]))
            self.mark((*path, index))
            self.value((*path, index), depth + 1)
            self.put(self.one_of([",", " ,", ", # , ]\n"]))
        self.put(self.one_of(["", " ", "\n"]) + "]")

    def line(self, table: Path) -> None:
        self.put(self.one_of(["", "  ", "\t"]))
        self.pair(table)
        self.put(self.one_of(["\n", " # = [comment] \"'\n", "\n\n", "\n# ''' whole line\n"]))

    def table(self, inside: Path, prefix: str, brackets: str) -> tuple[Path, str]:
        """A header and its pairs; the path and the header's text, for tables further in."""
        written, parts = self.dotted()
        path, name = (*inside, *parts), f"{prefix}{written}"
        self.put(self.one_of(["", "  "]))
        marked = (*path, 0) if brackets == "[[" else path
        self.mark(marked)
        self.put(brackets + self.one_of(["", " "]) + name + brackets.replace("[", "]") + self.one_of(["\n", " # x\n"]))
        for _ in range(self.draw(st.integers(0, 2))):
            self.line(marked)
        return path, name

    def array_of_tables(self) -> None:
        path, name = self.table((), "", "[[")
        self.table((*path, 0), f"{name}.", "[")
        for index in (1, 2):
            self.mark((*path, index))
            self.put(f"[[{name}]]\n")
            self.line((*path, index))
            self.table((*path, index), f"{name}.", self.one_of(["[", "[["]))


@st.composite
def documents(draw: Any) -> Document:
    document = Document(draw)
    for _ in range(draw(st.integers(0, 2))):
        document.line(())
    for kind in draw(st.lists(st.sampled_from(["table", "array"]), max_size=3)):
        if kind == "table":
            document.table((), "", "[")
        else:
            document.array_of_tables()
    return document


def with_implied(marks: Marks) -> Marks:
    """A table without a line of its own stands where its first key or table does."""
    implied: Marks = {}
    for path, place in marks.items():
        for length in range(1, len(path)):
            implied[path[:length]] = min(place, implied.get(path[:length], place))
    return implied | marks


@settings(max_examples=300, deadline=None)
@given(documents())
def test_every_key_is_found_where_it_was_written(document: Document) -> None:
    tomllib.loads(document.text)  # the generator writes valid TOML
    assert key_positions(document.text) == with_implied(document.marks)


@settings(max_examples=50, deadline=None)
@given(documents())
def test_carriage_returns_move_nothing(document: Document) -> None:
    assert key_positions(document.text.replace("\n", "\r\n")) == with_implied(document.marks)


@settings(max_examples=100, deadline=None)
@given(documents())
def test_every_position_leads_into_the_decoded_value(document: Document) -> None:
    for path in key_positions(document.text):
        value: Any = tomllib.loads(document.text)
        for part in path:
            value = value[part]


@pytest.mark.parametrize(
    ("text", "path", "place"),
    [
        ('[jobs.brand_sync]\nevery = "30m"\n  evry = "1m"\n', ("jobs", "brand_sync", "evry"), (3, 3)),
        ("a = [\n  1,\n  [2, 3],\n]", ("a", 1, 1), (3, 7)),
        ("[[x]]\n[[x]]\n[x.y]\nz = 1", ("x", 1, "y", "z"), (4, 1)),
        ('url = { env = "X" }', ("url", "env"), (1, 9)),
        ('ü = 1\n"€" = {é = 1}', ("€", "é"), (2, 8)),
    ],
)
def test_a_key_has_line_and_column_from_one(text: str, path: Path, place: tuple[int, int]) -> None:
    text = text.replace("ü =", '"ü" =').replace("{é", '{"é"')
    assert key_positions(text)[path] == place


def test_an_empty_text_has_no_keys() -> None:
    assert key_positions("") == {}
