"""The JSON Schema of stellerd.toml, for editors: the core's tables and those of the configured plugins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stellerd.config import Config

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def of_settings(model: Any, job: str) -> dict[str, Any]:
    """A plugin's settings; its definitions carry the job's name, so that two plugins cannot collide."""
    schema: dict[str, Any] = model.model_json_schema(ref_template=f"#/$defs/{job}.{{model}}")
    return schema


def build(plugins: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The whole schema; `plugins`: job name → what `of_settings` gave for it."""
    schema = Config.model_json_schema()
    schema = {"$schema": DIALECT, **schema, "title": "stellerd.toml"}
    named = {}
    for job, settings in plugins.items():
        settings = dict(settings)
        for name, definition in settings.pop("$defs", {}).items():
            schema["$defs"][f"{job}.{name}"] = definition
        own = dict(schema["$defs"]["JobSettings"])
        own["properties"] = own["properties"] | {"settings": settings}
        named[job] = own
    if named:
        schema["properties"]["jobs"]["properties"] = named
    return schema
