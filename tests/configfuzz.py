"""Configurations that no person would write, from the JSON Schema of those that one would."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import tomli_w

_BY_PATTERN = {  # a part of the pattern: what fits it
    "KiB": ["0", "1B", "64KiB", "256 MiB", "2GiB", "1048576GiB"],
    "*/(": ["1/1s", "2/1h", " 10 / 1m30s ", "1000000/3650d", "1/1ms"],
    "ms|s|m": ["1ms", "0.5s", "5s", "1h30m", " 2 d ", "3650d", "1w"],
    "0-7": ["", "027", "0777"],
    "253": ["", "host-a", "h" * 253],
}
_BY_NAME: dict[str, list[Any]] = {  # what the schema does not say
    "after": [[]], "wait_patterns": [[], [r"again in (?P<minutes>\d+)"]], "backoff": ["1ms", 0.5], "plugin": [""],
    "user": [""], "cwd": [""], "url": ["sqlite:///x.db", "postgresql://h/d", "amqp://h"], "client_id": ["me"],
    "client_secret": ["sesame"], "rlimits": [{}, {"NOFILE": 512}], "env": [{}, {"A": "b"}], "folder": [""],
}  # fmt: skip
HOSTILE: list[Any] = [
    -1, 0, 1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, -0.0, -3600.0, 1.5, 1e300, -1e300, float("inf"),
    float("nan"), "", " ", "0", "-5s", "0s", "0.1ms", "500000w", "1000000d", "9999999w", "1/9999999w", "0/1h", "1/0s",
    "nan", "inf", "1e9s", "٣s", "1_000", "\0", "a\0b", "\x1b[2J", "\u2028", "é" * 300, "x" * 5000, "/", "..", "../" * 9,
    "~", "*", "%s%n", "{x}", "${HOME}", "postgresql://u:p@h:notaport/x", "sqlite:///\0", "http://[", True, False, [],
    [[]], [[[[[1]]]]], {}, {"": 1}, {"a": {"b": {}}}, [1, "a", {}], date(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59),  # noqa: DTZ001
    datetime(1, 1, 1, tzinfo=UTC), {"env": "NO_SUCH"}, {"file": "/etc/shadow"}, {"env": 1}, {"vault": "x"},
]  # fmt: skip


class Fuzzer:
    """An endless, repeatable stream of texts; the same `seed` gives the same ones."""

    def __init__(self, schema: dict[str, Any], seed: int, fixed: dict[str, Any] | None = None) -> None:
        self.schema, self.random = schema, random.Random(seed)
        self.fixed = fixed or {}
        """Tables whose keys are set in every document, whatever else befalls it."""

    def texts(self) -> Iterator[str]:
        """Documents as the schema wants them, most of them spoilt in up to three places, some as texts."""
        while True:
            tables = self.document()
            for _ in range(self.random.choice([0, 1, 1, 2, 3])):
                self.spoil(tables)
            for table, keys in self.fixed.items():
                tables[table] = (tables[table] if isinstance(tables.get(table), dict) else {}) | copy.deepcopy(keys)
            text = tomli_w.dumps(tables)
            yield self.garble(text) if self.random.random() < 0.2 else text

    def document(self) -> dict[str, Any]:
        """One that the schema describes."""
        made: dict[str, Any] = self.value(self.schema)
        return made

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """Something that fits, mostly."""
        choose = self.random.choice
        if "$ref" in schema:
            return self.value(self.schema["$defs"][schema["$ref"].removeprefix("#/$defs/")], depth)
        if "anyOf" in schema:
            return self.value(choose([one for one in schema["anyOf"] if one.get("type") != "null"]), depth)
        if "enum" in schema or "const" in schema:
            return choose(schema.get("enum") or [schema["const"]])
        kind = schema.get("type")
        if kind == "string":
            fits = next((fits for part, fits in _BY_PATTERN.items() if part in schema.get("pattern", "")), None)
            return choose(fits or ["a", "it", "127.0.0.1", "/tmp/x", "sqlite:///x.db", "2026-02-01", "auto", "b" * 40])
        if kind in ("integer", "number"):
            least = schema.get("minimum", schema.get("exclusiveMinimum", -5))
            most = min(schema.get("maximum", 10**6), 10**18)
            return choose([int(least) + (kind == "number"), int(most), self.random.randint(int(least), int(most))])
        if kind == "boolean":
            return choose([True, False])
        if kind == "array":
            return [self.value(schema.get("items", {}), depth + 1) for _ in range(self.random.randint(0, 3))]
        return self.table(schema, depth) if kind == "object" or not kind else choose(HOSTILE)

    def table(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """Required keys, and some of the others."""
        known, required = schema.get("properties", {}), schema.get("required", [])
        share = 0.9 if depth < 2 else 0.25
        names = [name for name in known if name in required or self.random.random() < share]
        made = {
            name: copy.deepcopy(self.random.choice(_BY_NAME[name]))
            if name in _BY_NAME
            else self.value(known[name], depth + 1)
            for name in names
        }
        if isinstance(others := schema.get("additionalProperties"), dict):
            allowed = schema.get("propertyNames", {}).get("enum", ["a", "b_2", "steller"])
            made |= {name: self.value(others, depth + 1) for name in allowed if self.random.random() < 0.3}
        return made

    def spoil(self, tables: dict[str, Any]) -> None:
        """One change anywhere: a hostile value, a key too many, one less, another name, one thing within another."""
        at: Any = self.random.choice(list(_containers(tables)))
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        how = self.random.randrange(6)
        hostile = copy.deepcopy(self.random.choice(HOSTILE))
        if not keys or how == 0:
            key = self.random.choice(["evry", "", "a.b", "\0", "\u202e", "x" * 300, "limits", "1"])
            at.update({key: hostile}) if isinstance(at, dict) else at.append(hostile)
            return
        key = self.random.choice(keys)
        if how == 1:
            del at[key]
        elif how == 2 and isinstance(at, dict):
            at[self.random.choice([*map(str, keys), "Evry", "jobs", "\n"])] = at.pop(key)
        elif how == 3:
            at[key] = [copy.deepcopy(at[key])] * self.random.choice([1, 3])
        else:
            at[key] = hostile

    def garble(self, text: str) -> str:
        """A change that tables cannot hold: another text in place of a value, or anything anywhere."""
        at, to = sorted(self.random.randrange(len(text) + 1) for _ in range(2))
        piece = self.random.choice(_PIECES)
        if places := [match.span(1) for match in re.finditer(r"^[^=\n]+ = (.+)$", text, re.MULTILINE)]:
            start, end = self.random.choice(places)
            if self.random.random() < 0.6:
                return text[:start] + piece + text[end:]
        return self.random.choice([
            text[:at], text[:at] + piece + text[at:], text[:at] + text[to:], text + text[at:to],
            text[:at] + piece + text[to:],
        ])  # fmt: skip


_PIECES = [
    "[" * 3000, "{a=" * 2000, "9" * 5000, "-0x" + "f" * 4999, "0x" + "f" * 4999, "a." * 3000, '"""', "'", "\\", "\r",
    "\0", "=", "\n[[jobs]]\n", "\n[jobs]\n", "[" * 300 + "]" * 300, "{a=" * 200 + "1" + "}" * 200, "1979-13-99",
    "\ufeff", "1e9999", "0." + "1" * 5000, "# é\r\n", '"' + "\\u0000" * 9 + '"', "{" + "a." * 500 + "b = 1}",
    "1979-05-27T00:00:00+99:99",
]  # fmt: skip


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers(item)


def in_json(text: str) -> str:
    """For a failing test's message: short, and whatever it holds."""
    return json.dumps(text if len(text) < 3000 else f"{text[:1500]} … {text[-1500:]}")
