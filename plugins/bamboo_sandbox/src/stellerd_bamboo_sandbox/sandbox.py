"""The sandbox as an object: start, ask, misbehave, stop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Self

from stellerd import errors
from stellerd_bamboo_sandbox.calllog import Call, CallLog
from stellerd_bamboo_sandbox.catalog import Catalog
from stellerd_bamboo_sandbox.faults import Fault, Faults, Kind
from stellerd_bamboo_sandbox.server import Server
from stellerd_bamboo_sandbox.settings import SandboxSettings
from stellerd_bamboo_sandbox.vendor import V1, V2, Vendor


class Sandbox:
    """The vendor's API on a loopback port, served by threads of this process.

        with Sandbox(products=200, limits=False) as sandbox:
            requests.get(sandbox.v1_url + "/catalog", auth=sandbox.auth)

    `settings`, or its fields as keywords (then `port` is any free one). `clock`: seconds since 1970; limits and log
    go by it. Raises, on start: errors.JobFailed when the port is taken.
    """

    def __init__(
        self, settings: SandboxSettings | None = None, *, clock: Callable[[], float] = time.time, **fields: Any
    ) -> None:
        if settings is None:
            settings = SandboxSettings(**{"port": 0, **fields})
        elif fields:
            raise TypeError("give Sandbox either a settings object or its fields")
        self.settings = settings
        self.faults = Faults(settings.faults)
        self._ahead = 0.0
        self._log = CallLog()
        self._vendor = Vendor(settings, self._log, self.faults, lambda: clock() + self._ahead)
        self._server: Server | None = None

    def start(self) -> Self:
        """Listen and serve.

        Raises: errors.JobFailed when the address cannot be had or the call log cannot be written; ConfigError when
        the secret cannot be read.
        """
        try:
            self.settings.client_secret.reveal()
        except ValueError as error:
            raise errors.ConfigError(f"bamboo_sandbox: client_secret: {error}") from None
        server = Server((self.settings.host, self.settings.port), self._vendor)
        try:
            self._log.open(self.settings.call_log)
        except OSError as error:
            server.server_close()
            raise errors.JobFailed(f"bamboo_sandbox: call_log {self.settings.call_log}: {error.strerror}") from None
        server.start()
        self._server = server
        return self

    def stop(self) -> None:
        """End all connections and threads; at once."""
        if self._server:
            self._server.stop()
            self._server = None
        self._log.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._server is None:
            raise RuntimeError("the sandbox is not started")
        return self._server.server_port

    @property
    def base_url(self) -> str:
        """`http://host:port`, without a path."""
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"http://{host}:{self.port}"

    @property
    def v1_url(self) -> str:
        """Base URL of v1, as operators configure it."""
        return self.base_url + V1

    @property
    def v2_url(self) -> str:
        """Base URL of v2, as operators configure it."""
        return self.base_url + V2

    @property
    def auth(self) -> tuple[str, str]:
        """The credentials it accepts."""
        return self.settings.client_id, self.settings.client_secret.reveal()

    @property
    def catalog(self) -> Catalog:
        """The assortment; look, don't touch while requests are under way."""
        return self._vendor.catalog

    def calls(self, endpoint: str | None = None) -> list[Call]:
        """What arrived at "catalog", "catalog_v2", "categories", "unknown" or anywhere, oldest first."""
        return self._log.calls(endpoint)

    @property
    def requests(self) -> int:
        """How many requests arrived in all."""
        return self._log.total

    def fail(self, kind: Kind, **options: Any) -> Fault:
        """Switch a fault on from now; `options` as in `Fault`: endpoint, calls, …"""
        return self.faults.add(kind, **options)

    def refuse_as(self, form: str, retry_after: str = "none") -> None:
        """Write 429 answers in another form from now; names as in the settings `refusal` and `retry_after`."""
        self._vendor.refusal, self._vendor.retry_after = form, retry_after

    def advance(self, seconds: float) -> None:
        """Move the sandbox's clock forward: its windows and its log see the time gone by."""
        self._ahead += seconds

    def snapshot(self) -> list[dict[str, Any]]:
        """The brands of the current edition, decoded, every number with a point a Decimal."""
        decoded = json.loads(self.catalog.whole().joined(), parse_float=Decimal)
        brands: list[dict[str, Any]] = decoded["brands"]
        return brands
