"""Write what is derived from the code: etc/stellerd.toml, docs/reference/settings.md and the JSON Schema.

`make docs` runs it; with --check it only says which file is out of date (exit 1).
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic_core import PydanticUndefined
from stellerd_bamboo_sandbox.demo_orders import DemoOrders
from stellerd_bamboo_sandbox.service import BambooSandbox
from stellerd_brand_sync import BrandSync
from stellerd_order_queue import OrderQueue

from stellerd import settings, tomlschema

ROOT = Path(__file__).parents[1]
PLUGINS = {
    "brand_sync": BrandSync,
    "order_queue": OrderQueue,
    "bamboo_sandbox": BambooSandbox,
    "demo_orders": DemoOrders,
}
NO_DEFAULT = {  # what a key without a default may look like
    "every": "30m", "concurrent": False, "heartbeat_timeout": "1m", "max_rss": "512MiB", "margin": "1s",
    "since": "2026-02-01", "until": "2026-02-02",
    "url": {"credential": "steller_database_url"}, "rate": "2/1h", "client_id": {"credential": "bamboo_client_id"},
    "client_secret": {"credential": "bamboo_client_secret"},
}  # fmt: skip
HEADER = """\
#:schema ../docs/reference/stellerd.schema.json
# stellerd's configuration, with every setting. A line "#key = value" shows the default, or an example where there is
# none; remove the # to change it. Durations are texts with units ("30m", "1h30m") or numbers of seconds, from "1ms" to
# "3650d"; rates are "2/1h", sizes "256MiB" or numbers of bytes. Secrets come from { env = "NAME" }, { file = "path" }
# (mode 0600) or { credential = "name" } (systemd's LoadCredential). Relative paths start at this file's folder. Check
# it with: stellerd check
"""
UNITS = """\
A duration is a text with units (`ms`, `s`, `m`, `h`, `d`, `w`; "30m", "1h30m") or a number of seconds: 0, or from "1ms"
to "3650d". A rate is "REQUESTS/DURATION", at most 1,000,000 requests. A size is a text with a unit (`B`, `KiB`, `MiB`,
`GiB`) or a number of bytes, at most 1 PiB. The file is at most 1 MiB long; tables and lists are nested at most 32 deep,
whole numbers have 64 bits, and no text contains NUL.
"""
TABLES: list[tuple[str, Any, dict[str, Any], str]] = [  # (table, model, what is set, remark)
    ("supervisor", settings.SupervisorSettings, {}, ""),
    ("state", settings.StateSettings, {}, ""),
    ("databases.steller", settings.DatabaseSettings, {"url": {"credential": "steller_database_url"}},
     "A database that jobs name; as many as you like."),
    ("broker", settings.BrokerSettings, {"url": {"credential": "amqp_url"}}, ""),
    ("limits.bamboo_catalog", settings.LimitSettings, {"rate": "2/1h"},
     "One bucket; a plugin knows the limits of its vendor, a table here wins over them."),
    ("limits.bamboo_categories", settings.LimitSettings, {"rate": "1/1s"}, "="),
    ("jobs.brand_sync", settings.JobSettings, {"every": "30m", "timeout": "20m"},
     "A job; each of these keys may stand in every [jobs.NAME]."),
    ("jobs.brand_sync.settings", BrandSync.Settings, {
        "client_id": {"credential": "bamboo_client_id"}, "client_secret": {"credential": "bamboo_client_secret"},
    }, ""),
    ("jobs.order_queue", settings.JobSettings, {"every": "1m", "timeout": "10m"}, "="),
    ("jobs.order_queue.settings", OrderQueue.Settings, {}, ""),
]  # fmt: skip


def toml(value: Any) -> str:
    """A value as it stands in the file."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def default_of(model: Any, name: str) -> Any:
    """The default as TOML would hold it, or None when there is none."""
    field = model.model_fields[name]
    if field.is_required() or field.get_default(call_default_factory=True) is None:
        return None
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    return dump(model, name, value)


def dump(model: Any, name: str, value: Any) -> Any:
    """One field's value through the model's own serializer."""
    return model.model_construct(**{name: value}).model_dump(mode="json", include={name})[name]


def example() -> str:
    """etc/stellerd.toml."""
    out = [HEADER]
    for table, model, given, remark in TABLES:
        out.append("")
        doc = (model.__doc__ or "").strip() if remark in ("", "=") else remark
        if remark != "=":
            out.append(f"# {doc}")
        out.append(f"[{table}]")
        for name, field in model.model_fields.items():
            if name in given and remark == "=":
                out.append(f"{name} = {toml(given[name])}")
            if remark == "=" or (table.startswith("jobs.") and name == "settings"):
                continue
            out += [f"# {line}" for line in textwrap.wrap(field.description or "", 115)]
            default = default_of(model, name)
            shown = NO_DEFAULT[name] if default is None else default
            out.append(f"{name} = {toml(given[name])}" if name in given else f"#{name} = {toml(shown)}")
    return "\n".join(out) + "\n"


def reference() -> str:
    """docs/reference/settings.md."""
    out = [
        "# Settings",
        "",
        "Written by `make docs` from the code. Every table of stellerd.toml, with types and defaults.",
        "",
        *textwrap.wrap(UNITS, 130),
        "",
    ]
    tables = [("[supervisor]", settings.SupervisorSettings), ("[state]", settings.StateSettings),
              ("[databases.NAME]", settings.DatabaseSettings), ("[broker]", settings.BrokerSettings),
              ("[limits.NAME]", settings.LimitSettings), ("[jobs.NAME]", settings.JobSettings)]  # fmt: skip
    tables += [(f"[jobs.{name}.settings]", job.Settings) for name, job in PLUGINS.items()]
    for title, model in tables:
        out += [
            f"## {title}",
            "",
            (model.__doc__ or "").strip().split("\n")[0],
            "",
            "| key | default | meaning |",
            "|---|---|---|",
        ]
        for name, field in model.model_fields.items():
            default = default_of(model, name)
            shown = "required" if field.is_required() else "none" if default is None else f"`{toml(default)}`"
            out.append(
                f"| `{name}` | {shown} | {choices(field)}{(field.description or '').replace('|', chr(92) + '|')} |"
            )
        out.append("")
    return "\n".join(out)


def choices(field: Any) -> str:
    """The allowed words of a Literal."""
    words = [word for word in get_args(field.annotation) if isinstance(word, str)]
    return f"One of {', '.join(f'`{word}`' for word in words)}. " if words else ""


def schema() -> str:
    """docs/reference/stellerd.schema.json."""
    plugins = {name: tomlschema.of_settings(job.Settings, name) for name, job in PLUGINS.items()}
    return json.dumps(tomlschema.build(plugins), indent=2, ensure_ascii=False) + "\n"


FILES = {
    "etc/stellerd.toml": example, "docs/reference/settings.md": reference,
    "docs/reference/stellerd.schema.json": schema,
}  # fmt: skip


def main() -> int:
    """Write the files, or with --check compare them."""
    stale = [name for name, make in FILES.items() if not (ROOT / name).is_file() or (ROOT / name).read_text() != make()]
    for name in stale:
        if "--check" in sys.argv:
            sys.stdout.write(f"{name} is out of date: make docs\n")
        else:
            (ROOT / name).write_text(FILES[name]())
            sys.stdout.write(f"{name} written\n")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
