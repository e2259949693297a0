"""Misbehaviour on demand: which fault hits which call, switchable while the sandbox runs."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, field_validator

from stellerd import Duration, Settings
from stellerd_bamboo_sandbox.badrows import KINDS as ROW_KINDS

Kind = Literal[
    "early_429",  # instead of a decision by the limit
    "server_error", "bad_gateway", "forbidden", "redirect", "not_json", "wrong_shape", "wrong_types",
    "empty",  # another answer
    "truncated", "bad_rows", "page_shift", "pageindex",  # 200 with another body
    "slow_body", "stall", "drip", "silent", "cut", "reset", "gzip_bomb",  # the answer on its way
]  # fmt: skip


class Fault(Settings):
    """One fault; it hits the calls of `endpoint` whose numbers (from 1, refused ones included) are in `calls`."""

    kind: Kind = Field(description="What goes wrong.")
    endpoint: Literal["catalog", "catalog_v2", "categories", "any"] = Field("any", description="Where.")
    calls: list[int] = Field(default_factory=list, description="Call numbers of that endpoint; []: every call.")
    status: int = Field(0, ge=0, le=599, description="server_error, bad_gateway, redirect: another status.")
    wait: int = Field(3406, ge=0, description="early_429: seconds the body names.")
    seconds: Duration = Field(
        5.0, description="slow_body: time for the body; stall, silent: longest silence, then the end of the connection."
    )
    pause: Duration = Field(0.05, description="drip: time between two bytes.")
    at: float = Field(0.5, ge=0, le=1, description="stall, cut, reset, truncated, drip: share of the body before it.")
    size: int = Field(1 << 30, ge=0, description="gzip_bomb: bytes after decompression.")
    location: str = Field("https://elsewhere.invalid/catalog", description="redirect: where to.")
    shift: int = Field(
        -1, description="page_shift: brands by which later pages move; -1: one comes twice, 1: one misses."
    )
    rows: list[str] = Field(
        default_factory=list,
        description=f"bad_rows: which; []: all but the twins. Known: {', '.join(ROW_KINDS)}.",
    )

    @field_validator("rows")
    @classmethod
    def _known_rows(cls, rows: list[str]) -> list[str]:
        if unknown := [row for row in rows if row not in ROW_KINDS]:
            raise ValueError(f"unknown rows {', '.join(unknown)}; known are {', '.join(ROW_KINDS)}")
        return rows

    def hits(self, endpoint: str, number: int) -> bool:
        """This call is meant."""
        return self.endpoint in ("any", endpoint) and (not self.calls or number in self.calls)


class Faults:
    """The faults that are on; safe for several threads."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self._faults = list(faults)

    def add(self, kind: Kind, **options: Any) -> Fault:
        """Switch a fault on; `options` as in `Fault`.

        Raises: pydantic.ValidationError for an unknown kind or option.
        """
        fault = Fault(kind=kind, **options)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Switch all of them off."""
        with self._lock:
            self._faults.clear()

    def find(self, endpoint: str, number: int) -> Fault | None:
        """The first fault that hits this call."""
        with self._lock:
            return next((fault for fault in self._faults if fault.hits(endpoint, number)), None)
