"""Every table of stellerd.toml but the top one, as frozen typed models; each key knows what a reload does with it."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema

from stellerd.durations import LARGEST, LONGEST_S, Rate, duration, format_duration, format_size, parse_rate, size
from stellerd.locate import DEFAULT_ADMIN_SOCKET, DEFAULT_SOCKET
from stellerd.secret import Secret


def _read(raw: Any) -> Rate:
    if isinstance(raw, Rate):  # a default of ours
        return raw
    if isinstance(raw, str):
        return parse_rate(raw)
    raise ValueError('write it as text with a unit, as in "2/1h"')


_SPAN = r"\s*[0-9]{1,15}(\.[0-9]{1,15})?\s*(ms|s|m|h|d|w)"
_SIZE = r"^\s*[0-9]{1,15}\s*(B|KiB|MiB|GiB)?\s*$"


def _seconds(**least: float) -> WithJsonSchema:
    number = {"type": "number", **least, "maximum": LONGEST_S}
    return WithJsonSchema({"anyOf": [{"type": "string", "pattern": rf"^({_SPAN})+\s*$"}, number], "examples": ["30m"]})


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("must be greater than 0")
    return seconds


Duration = Annotated[
    float, BeforeValidator(duration), PlainSerializer(format_duration, return_type=str), _seconds(minimum=0)
]
"""Seconds; in TOML a text with a unit, or a number of seconds. Never negative, at most ten years."""

Positive = Annotated[Duration, AfterValidator(_positive), _seconds(exclusiveMinimum=0)]
"""A duration that is not zero."""

_RATE = {"type": "string", "pattern": rf"^\s*[0-9]{{1,15}}\s*/({_SPAN})+\s*$", "examples": ["2/1h"]}
RateText = Annotated[Rate, BeforeValidator(_read), PlainSerializer(str, return_type=str), WithJsonSchema(_RATE)]


def _of_a_file(text: str) -> str:
    if text and not os.path.basename(text.rstrip("/")):
        raise ValueError("must name a file, not the root directory")
    return text


FileName = Annotated[str, AfterValidator(_of_a_file)]


class Settings(BaseModel):
    """Base of every table in stellerd.toml and of a plugin's own settings: frozen, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, hide_input_in_errors=True,
        arbitrary_types_allowed=True, allow_inf_nan=False,
    )  # fmt: skip


Size = Annotated[
    int,
    BeforeValidator(size),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema({
        "anyOf": [{"type": "string", "pattern": _SIZE}, {"type": "integer", "minimum": 0, "maximum": LARGEST}],
        "examples": ["256MiB"],
    }),
]  # fmt: skip
"""Bytes; in TOML a text with a unit, or a number of bytes."""


class SupervisorSettings(Settings):
    """The daemon itself."""

    socket: FileName = Field(DEFAULT_SOCKET, description="Control socket; its folder must exist or be ours.")
    admin_group: str = Field(
        "",
        description='Members of this group may use every command, by a socket of their own; "": only root and the '
        "daemon's user. Who reaches the control socket alone may look.",
    )
    admin_socket: FileName = Field(
        DEFAULT_ADMIN_SOCKET,
        description="Their socket; its folder belongs to the group: owner the daemon's user, mode 2750.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line to log.")
    log_format: Literal["auto", "json", "text", "color"] = Field(
        "auto", description="auto: color on a terminal, JSON lines otherwise."
    )
    log_file: FileName = Field("", description='Log here instead of standard error; SIGUSR1 opens it anew. "": none.')
    holds: FileName = Field(
        "/var/lib/stellerd/holds.json", description="Remembers over restarts which jobs an operator stopped or paused."
    )
    stop_timeout: Positive = Field(30.0, description="Longest time for all jobs together to end at shutdown.")
    preload: list[str] = Field(
        ["auto"],
        description="Third-party modules imported once, before the jobs are forked, so that all of them share the "
        'memory. "auto" stands for what these jobs need for sure: the drivers of the databases, requests if there are '
        "limits, and msgspec, pika, psycopg or requests if the plugin of a job depends on it. []: nothing is imported "
        "before.",
    )


DEFAULT_FOLDER = "/var/lib/stellerd"


class StateSettings(Settings):
    """Where runs, slots, limits and leases are kept."""

    url: Secret = Field(
        Secret("plain", "sqlite:////var/lib/stellerd/state.db"),
        description="SQLAlchemy URL; PostgreSQL when several hosts share the work.",
    )
    keep: Duration = Field(30 * 86400.0, description="How long finished runs and their quarantine are kept.")
    lease: Annotated[Duration, Field(ge=1), _seconds(minimum=1)] = Field(
        60.0, description="A job of a host that died or was cut off is taken over by another after so long."
    )
    folder: str = Field(
        "",
        description='Where jobs keep files of their own on this host; "": beside an SQLite store, else '
        f"{DEFAULT_FOLDER}.",
    )
    host: str = Field(
        "",
        description='This host\'s name in records and leases, its own on each host; "": what the host calls itself.',
        pattern=r"^[A-Za-z0-9._-]{0,253}$",
    )


OF_THE_DAEMON = {
    "supervisor": frozenset({"socket", "admin_group", "admin_socket", "preload", "log_format", "log_file", "holds"}),
    "state": frozenset({"url", "host"}),
}
"""Keys that only a restart of the daemon changes, by their table."""
C = TypeVar("C", bound=Settings)


def frozen(new: C, old: C) -> C:
    """A configuration as a reload takes it over: all that is new, but what needs a restart of the daemon as it was.

    What is forked later goes by it too: two processes on two state stores would each have the limits for itself.
    """
    kept = {
        table: getattr(new, table).model_copy(update={key: getattr(getattr(old, table), key) for key in keys})
        for table, keys in OF_THE_DAEMON.items()
    }
    return new.model_copy(update=kept)


class DatabaseSettings(Settings):
    """A database that jobs use by its name."""

    url: Secret = Field(description="SQLAlchemy URL (postgresql+psycopg://… or sqlite:///…).")


def _one_or_more(raw: Any, info: ValidationInfo) -> tuple[Secret, ...]:
    if raw == []:
        raise ValueError("must name at least one broker")
    return tuple(Secret.parse(each, info) for each in (raw if isinstance(raw, list | tuple) else [raw]))


def _shown(secrets: tuple[Secret, ...]) -> Any:
    return secrets[0].shown() if len(secrets) == 1 else [secret.shown() for secret in secrets]


class Secrets(tuple[Secret, ...]):
    """One secret or a list of them, in TOML and in `config show` alike."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        shown = core_schema.plain_serializer_function_ser_schema(_shown)
        return core_schema.with_info_plain_validator_function(_one_or_more, serialization=shown)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        one = Secret.__get_pydantic_json_schema__(schema, handler)["anyOf"]
        return {"anyOf": [*one, {"type": "array", "items": {"anyOf": one}, "minItems": 1}]}


class BrokerSettings(Settings):
    """Where messages are published."""

    url: Secrets = Field(description="amqp://…, amqps://… or spool:///directory; a list of brokers is tried in turn.")


def _rates(raw: Any) -> Any:
    return raw if isinstance(raw, list) else [raw]


def _wait_pattern(text: str) -> str:
    try:
        groups = set(re.compile(text).groupindex)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if len(groups & {"seconds", "minutes", "hours"}) != 1:
        raise ValueError(r"needs one group named seconds, minutes or hours, as in 'retry in (?P<minutes>\d+) min'")
    return text


WaitPattern = Annotated[str, AfterValidator(_wait_pattern)]


class LimitSettings(Settings):
    """One rate-limit bucket, shared by every process and host on the same state store."""

    rate: Annotated[
        list[RateText],
        BeforeValidator(_rates),
        WithJsonSchema({"anyOf": [_RATE, {"type": "array", "items": _RATE, "minItems": 1}]}),
    ] = Field(description='Requests per window, as in "2/1h"; a list when several windows hold at once.', min_length=1)
    margin: Duration | None = Field(
        None,
        description="Added to each window for clocks and networks; default 2 % of it, at most 1 s. A process whose "
        "requests are refused right after a window doubles it for itself.",
    )
    max_learned: Duration = Field(86400.0, description="Longest wait believed when the server names one.")
    wait_patterns: list[WaitPattern] = Field(
        default_factory=list,
        description="Regular expressions that find the wait in the text of a 429, tried before stellerd's own; each "
        "has a number in a group named seconds, minutes or hours.",
    )
    breaker_failures: int = Field(
        5, ge=0,
        description="Requests without an answer (or with a 5xx) in a row after which the bucket is closed; 0: never.",
    )  # fmt: skip
    breaker_pause: Positive = Field(60.0, description="For how long it is closed then; one probe follows, and decides.")


class JobSettings(Settings):
    """One job."""

    plugin: str = Field("", description="Entry point in the group `stellerd`; default: the job's name.")
    enabled: bool = Field(True, description="false: known, never started.")
    every: Positive | None = Field(None, description="Interval between slots; default: the plugin's.")
    after: list[str] = Field(
        default_factory=list,
        description="Jobs that have their first try before this one: it starts once they are ready.",
    )
    concurrent: bool | None = Field(
        None, description="true: every host runs it, each on its own; false: one at a time. Default: the plugin's."
    )
    misfire: Literal["once", "skip"] = Field(
        "once", description="A slot missed while nothing ran: one catch-up run, or wait for the next slot."
    )
    retry_lost: int = Field(
        1,
        ge=0,
        le=1000,
        description="How often a slot is tried again whose run was lost with its process, be that killed, crashed or "
        "on a host that is gone; not once the next slot has come. 0: never.",
    )
    restart: Literal["always", "on-failure", "never"] = Field(
        "always", description="Whether a process that ended by itself comes back; on-failure: not after exit code 0."
    )
    max_restarts: int = Field(
        0,
        ge=0,
        description="More restarts than this within `window` end as FATAL; 0: tried for ever, called degraded.",
    )
    window: Positive = Field(600.0, description="See max_restarts.")
    timeout: Positive = Field(3600.0, description="Longest run; then stacks are logged and the process ends.")
    heartbeat_timeout: Positive | None = Field(
        None, description="A process without a sign of life for so long is ended and restarted; default: not watched."
    )
    max_rss: Size | None = Field(
        None, description="A process larger than this is replaced between two runs; default: any size."
    )
    max_runs: int = Field(0, ge=0, description="A process is replaced after so many runs; 0: never.")
    stop_signal: Literal["TERM", "INT", "QUIT", "HUP", "USR1", "USR2"] = Field(
        "TERM", description="What asks the job's group to end."
    )
    stop_grace: Duration = Field(10.0, description="From stop_signal to SIGKILL.")
    settle: Duration = Field(5.0, description="Uptime after which a crash is forgiven: restarted at once.")
    backoff: Positive = Field(0.5, description="Wait before the second restart in a row; doubles each time.")
    backoff_cap: Positive = Field(60.0, description="Longest wait between restarts.")
    log: Literal["pump", "inherit"] = Field(
        "pump", description="pump: tagged and kept for `stellerd logs`; inherit: straight to the daemon's output."
    )
    env: dict[Annotated[str, Field(pattern=r"^[^=\x00]+$")], str] = Field(
        default_factory=dict, description="Environment variables of this job."
    )
    cwd: str = Field("", description='Working directory; "": the daemon\'s.')
    umask: str = Field("", description='File mode mask, as in "027"; "": the daemon\'s.', pattern="^[0-7]{0,4}$")
    nice: int = Field(0, ge=0, le=19, description="Added to the daemon's niceness.")
    rlimits: dict[Literal["AS", "CORE", "CPU", "DATA", "FSIZE", "NOFILE", "NPROC", "STACK"], Size] = Field(
        default_factory=dict,
        description='Resource limits, as in { NOFILE = 1024, AS = "2GiB" }. CORE is 0 unless it is here: '
        "a core file holds the job's secrets.",
    )
    user: str = Field("", description="Run as this user; only when the daemon runs as root.")
    settings: dict[str, Any] = Field(default_factory=dict, description="The plugin's own settings.")
