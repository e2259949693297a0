"""`[jobs.order_queue.settings]`."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from stellerd import Duration, Settings
from stellerd_order_queue.publisher import Wishes
from stellerd_order_queue.records import Rules, Wanted


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("must be longer than zero")
    return seconds


_DAY_S = 86_400.0
_LONGEST_HEARTBEAT_S = 65_535.0
"""AMQP has 16 bits for it."""
_CLAIM_OVER_CONFIRM = 4
"""Messages go out in a claim's first half; in the other one each may be sent twice, and waits for its answer."""
Positive = Annotated[Duration, AfterValidator(_positive)]


def _moment(raw: Any) -> Any:
    """A TOML date or time, or the same as text; without an offset it is UTC."""
    if isinstance(raw, str):
        try:
            raw = datetime.fromisoformat(raw)
        except ValueError:
            raise ValueError('not a date; write 2026-02-01 or "2026-02-01T08:00:00Z"') from None
    if isinstance(raw, date) and not isinstance(raw, datetime):
        raw = datetime.combine(raw, time())
    return raw.replace(tzinfo=UTC) if isinstance(raw, datetime) and raw.tzinfo is None else raw


Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    PlainSerializer(datetime.isoformat, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["2026-02-01"]}),
]


def _order(raw: str) -> str:
    try:
        return str(uuid.UUID(raw)) if raw else ""
    except ValueError:
        raise ValueError('not an order: write its "Id" or "RequestId", a UUID') from None


class OrderQueueSettings(Settings):
    """What counts as pending, how often an order is published, and how."""

    database: str = Field("steller", description="Name of the [databases.NAME] that holds the orders.")
    create_tables: bool = Field(
        False,
        description='true: stellerd owns the tables and creates "Orders" and "Users" when they are missing; '
        "false: they belong to the platform's own migrations.",
    )
    lookback: Positive = Field(24 * 3600.0, description="Orders created within it go first.")
    fallback: Literal["when-empty", "always", "never"] = Field(
        "when-empty",
        description="Orders older than lookback. when-empty: in a run, once no newer one is due. "
        "always: together with the newer ones, oldest first. never: left alone.",
    )
    min_age: Duration = Field(0.0, description="Younger orders are left to the platform itself.")
    since: Moment | None = Field(
        None,
        description="Only orders created then or later, however old. For run-once, which also sends what is not due "
        "again yet: --set since=2026-02-01 --set until=2026-02-02.",
    )
    until: Moment | None = Field(None, description="Only orders created before; see since.")
    order: Annotated[str, AfterValidator(_order)] = Field(
        "", description='Only the order with this "Id" or "RequestId"; see since.'
    )
    exclude_statuses: list[str] = Field(
        ["Failed", "Succeeded"], description="Orders in these are not pending; any case."
    )
    republish_after: Positive = Field(
        900.0,
        description="Pause before an order that is still pending is published again; doubles each time.",
    )
    republish_cap: Positive = Field(6 * 3600.0, description="Longest such pause.")
    max_attempts: int = Field(
        8,
        ge=1,
        description="Publications after which a still pending order is reported as stuck; it is never dropped, but "
        "published again after each longest pause.",
    )
    limit: int = Field(0, ge=0, description="Most orders taken in one run; 0: all.")
    message_type: str = Field(
        "SharedContracts:OrderCreated",
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="Namespace:Name of the .NET message; also the exchange.",
    )
    message_property: str = Field(
        "orderId", pattern=r"^[A-Za-z_]\w*$", description="Property of the message that carries the request id."
    )
    window: int = Field(
        1_500, ge=3, le=65535,
        description="Messages sent and not yet written down, and so what a kill -9 can make come twice: a third is on "
        "its way, a third confirmed, a third being written.",
    )  # fmt: skip
    confirm_timeout: Positive = Field(30.0, le=_DAY_S, description="Longest wait for the broker to confirm a message.")
    connect_timeout: Positive = Field(10.0, le=_DAY_S, description="Longest wait for a connection to a broker.")
    heartbeat: Positive = Field(
        30.0,
        le=_LONGEST_HEARTBEAT_S,
        description="Asked of the broker, so that both sides notice a dead connection; a URL's own wins.",
    )
    claim: Positive = Field(
        300.0,
        description="How long a process holds an order it is publishing; after a kill -9 the order is due again then. "
        "At least four times confirm_timeout.",
    )
    keep: Positive = Field(7 * 86400.0, description="How long the ledger remembers an order that is no longer pending.")
    broker_ca: str = Field(
        "", description="PEM file of the CA that signed an amqps broker's certificate; default: the system's."
    )

    @model_validator(mode="after")
    def _in_order(self) -> OrderQueueSettings:
        if self.since and self.until and self.until <= self.since:
            raise ValueError("until must be later than since")
        if self.claim < _CLAIM_OVER_CONFIRM * self.confirm_timeout:
            raise ValueError(
                f"claim must be at least {_CLAIM_OVER_CONFIRM} times confirm_timeout: it has to last until the broker "
                f"answers, even for the second time"
            )
        return self

    @property
    def asks_for_some(self) -> bool:
        """Whether a person chose the orders, instead of the schedule's rules."""
        return bool(self.since or self.until or self.order)

    def wanted(self, by_hand: bool) -> Wanted:
        """What the ledger may offer; `by_hand`: a person waits for it (`run-once`)."""
        return Wanted(self.order or None, forced=by_hand and self.asks_for_some)

    def rules(self) -> Rules:
        """The part that the ledger goes by."""
        return Rules(
            excluded=tuple(self.exclude_statuses),
            max_attempts=self.max_attempts,
            republish_after=self.republish_after,
            republish_cap=max(self.republish_cap, self.republish_after),
            claim=self.claim,
        )

    @property
    def share(self) -> int:
        """A third of the window."""
        return self.window // 3

    def wishes(self) -> Wishes:
        """The part that the publisher goes by."""
        return Wishes(
            exchange=self.message_type,
            window=self.share,
            confirm_timeout=self.confirm_timeout,
            connect_timeout=self.connect_timeout,
            heartbeat=self.heartbeat,
            ca_file=self.broker_ca,
        )
