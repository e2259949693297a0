"""stellerd.toml as one frozen, typed object; every mistake is reported at once with file:line:column."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from stellerd import locate, tomllines
from stellerd.errors import ConfigError
from stellerd.secret import Secret
from stellerd.settings import (
    DEFAULT_FOLDER,
    BrokerSettings,
    DatabaseSettings,
    JobSettings,
    LimitSettings,
    Settings,
    StateSettings,
    SupervisorSettings,
)
from stellerd.texts import clean

JOB_NAME = r"^[a-z][a-z0-9_-]{0,62}$"


Positions = Mapping[tuple[str | int, ...], tuple[Any, ...]]
"""Line and column of each key, and where it was given when that was not in the file."""


class Config(Settings):
    """The whole file."""

    supervisor: SupervisorSettings = SupervisorSettings()
    state: StateSettings = StateSettings()
    databases: dict[str, DatabaseSettings] = Field(default_factory=dict)
    broker: BrokerSettings | None = None
    limits: dict[str, LimitSettings] = Field(default_factory=dict)
    jobs: dict[Annotated[str, Field(pattern=JOB_NAME)], JobSettings] = Field(default_factory=dict)

    _file: Path = PrivateAttr(Path("stellerd.toml"))
    _positions: Positions = PrivateAttr(default_factory=dict)
    _text: str = PrivateAttr("")

    @property
    def file(self) -> Path:
        """The file it was read from."""
        return self._file

    @property
    def text(self) -> str:
        """The text it was read from."""
        return self._text

    @property
    def base(self) -> Path:
        """The folder that relative paths start from."""
        return self._file.parent

    def where(self, *path: str | int) -> str:
        """ "file:line:column: a.b.c" of a key, or of the nearest table around it."""
        return _where(self._file, self._positions, path)

    def with_settings(self, job: str, values: Mapping[str, Any], said: str) -> Config:
        """The same with some of a job's settings changed; `said` and the key name them in messages."""
        entry = self.jobs[job]
        changed = entry.model_copy(update={"settings": entry.settings | dict(values)})
        new = self.model_copy(update={"jobs": self.jobs | {job: changed}})
        places: Positions = {("jobs", job, "settings", key): (0, 0, f"{said} {key}") for key in values}
        new._positions = {**self._positions, **places}
        return new

    def path(self, text: str) -> Path:
        """A path of the file as an absolute one."""
        return Path(os.path.normpath(self.base.absolute() / text))

    def reveal(self, secret: Secret, *path: str | int) -> str:
        """A secret's value, or a ConfigError that names its key."""
        try:
            return secret.reveal()
        except ValueError as error:
            raise ConfigError(f"{self.where(*path)}: {error}") from None

    def state_url(self) -> str:
        """URL of the state store."""
        return self._absolute(self.reveal(self.state.url, "state", "url"))

    def state_folder(self) -> Path | None:
        """Where jobs have folders of their own on this host; None: nowhere, the state is in memory.

        Raises: ConfigError when it goes by the state store's URL and that cannot be read.
        """
        if self.state.folder:
            return self.path(self.state.folder)
        if not self.state_url().startswith("sqlite"):
            return Path(DEFAULT_FOLDER)
        file = self.state_file()
        return file.parent if file else None

    def state_file(self) -> Path | None:
        """The file of the state store; None: it is in memory or on a server. Raises: ConfigError."""
        scheme, _, rest = self.state_url().partition(":")
        file = rest.removeprefix("///").partition("?")[0]
        return None if not scheme.startswith("sqlite") or file in ("", "//", ":memory:") else Path(file)

    def database_url(self, name: str) -> str:
        """URL of `[databases.name]`.

        Raises: ConfigError when there is no such table or its secret is missing.
        """
        if name not in self.databases:
            raise ConfigError(f"{self.file}: databases.{name}: missing; add [databases.{name}] with a url")
        return self._absolute(self.reveal(self.databases[name].url, "databases", name, "url"))

    def broker_urls(self) -> list[str]:
        """URLs of `[broker]`, in the order in which they are to be tried.

        Raises: ConfigError when there is none or a secret is missing.
        """
        if self.broker is None:
            raise ConfigError(f"{self.file}: broker: missing; add [broker] with a url")
        return [self._absolute(self.reveal(secret, "broker", "url")) for secret in self.broker.url]

    def _absolute(self, url: str) -> str:
        scheme, _, rest = url.partition(":")
        if scheme.startswith("sqlite") and rest.startswith("///") and not rest.startswith("////"):
            return url if rest == "///:memory:" else f"{scheme}:///{self.path(rest[3:])}"
        if scheme == "spool":
            return f"spool://{self.path(rest.removeprefix('//'))}"
        return url

    def require_usable(self) -> None:
        """The one judgement of `run`, `check` and `reload` on a valid file: there is work, and every secret is there.

        Raises: ConfigError.
        """
        if not self.jobs:
            raise ConfigError(f"{self.file}: no [jobs.NAME] table: there is nothing to run")
        if problems := self.problems_of_secrets():
            raise ConfigError(problems)

    def problems_of_secrets(self) -> list[str]:
        """A line for each secret of the core that cannot be read now; no value is kept."""
        probes: list[Callable[[], Any]] = [self.state_url]
        probes += [lambda name=name: self.database_url(name) for name in self.databases]  # type: ignore[misc]
        probes += [self.broker_urls] if self.broker else []
        problems = []
        for probe in probes:
            try:
                probe()
            except ConfigError as error:
                problems += error.problems
        return problems


def _position(positions: Positions, path: tuple[str | int, ...]) -> tuple[Any, ...]:
    """Line and column of the key or the nearest table around it; (0, 0) when the file has none of them."""
    return next((positions[path[:n]] for n in range(len(path), 0, -1) if path[:n] in positions), (0, 0))


def _where(file: Path, positions: Positions, path: tuple[str | int, ...]) -> str:
    line, column, *elsewhere = _position(positions, path)
    place = elsewhere[0] if elsewhere else f"{file}:{line}:{column}" if line else str(file)
    return f"{place}: {'.'.join(clean(str(part)) for part in path)}"


def load(named: str | None = None) -> Config:
    """Find, read and validate the configuration.

    Raises: ConfigError with every problem of the file.
    """
    file = locate.config_file(named)
    return parse(locate.read(file), file)


def parse(text: str, file: Path) -> Config:
    """The configuration in a TOML text; `file` names it in messages and is where relative paths start.

    Raises: ConfigError with every problem of the text.
    """
    try:
        raw = tomllines.decode(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax(file, text, str(error))) from None
    config = from_tables(raw, file, tomllines.key_positions(text))
    config._text = text
    return config


def from_tables(raw: dict[str, Any], file: Path, positions: Positions | None = None) -> Config:
    """The configuration in decoded tables, with the place of each key where it is known.

    Raises: ConfigError with every problem.
    """
    config = _validated(Config, raw, file, positions or {}, ())
    config._file, config._positions = file, positions or {}
    if problems := _dangling(config):
        raise ConfigError(problems)
    return config


def _syntax(file: Path, text: str, said: str) -> str:
    """tomllib's sentence with the place in front, where an editor can jump to."""
    match = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", said, re.DOTALL)
    if match:
        return f"{file}:{match[2]}:{match[3]}: {match[1]}"
    lines = text.split("\n")
    return (
        f"{file}:{len(lines)}:{len(lines[-1]) + 1}: {said.removesuffix(' (at end of document)')} at the end of the file"
    )


def _dangling(config: Config) -> list[str]:
    """What no key alone shows."""
    problems = []
    for name, job in config.jobs.items():
        if job.backoff_cap < job.backoff:
            problems.append(f"{config.where('jobs', name, 'backoff_cap')}: shorter than backoff")
        for index, other in enumerate(job.after):
            where = config.where("jobs", name, "after", index)
            if other not in config.jobs:
                problems.append(f'{where}: no job "{other}"; there are: {", ".join(config.jobs)}')
            elif name in _all_before(config, other):
                problems.append(f'{where}: "{other}" waits for "{name}" itself')
    return problems


def _all_before(config: Config, job: str) -> set[str]:
    """The job and all that it waits for, however far away."""
    found: set[str] = set()
    todo = [job]
    while todo:
        name = todo.pop()
        if name not in found and name in config.jobs:
            found.add(name)
            todo += config.jobs[name].after
    return found


S = TypeVar("S", bound=Settings)


def plugin_settings(config: Config, job: str, model: type[S] | None, *, with_secrets: bool = True) -> S | None:
    """`[jobs.JOB.settings]` as the plugin's own model; `with_secrets`: each of them can be read now.

    Raises: ConfigError with every problem of the table.
    """
    raw = config.jobs[job].settings
    path = ("jobs", job, "settings")
    if model is None:
        if raw:
            raise ConfigError([f"{config.where(*path, key)}: unknown key, this job has no settings" for key in raw])
        return None
    settings = _validated(model, raw, config.file, config._positions, path)
    problems = []
    for place, secret in _secrets_in(settings, path) if with_secrets else ():
        try:
            secret.reveal()
        except ValueError as error:
            problems.append(f"{config.where(*place)}: {error}")
    if problems:
        raise ConfigError(problems)
    return settings


def shown_settings(config: Config, job: str, model: type[S] | None) -> dict[str, Any]:
    """`[jobs.JOB.settings]` as it is written, for when it is not valid; what may be secret is not shown."""

    def shown(key: str, value: Any) -> Any:
        field = model.model_fields.get(key) if model else None
        return "***" if field is None or _may_be_secret(field.annotation) else value

    return {key: shown(key, value) for key, value in config.jobs[job].settings.items()}


def _may_be_secret(kind: Any) -> bool:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return any(_may_be_secret(field.annotation) for field in kind.model_fields.values())
    inner = getattr(kind, "__args__", ())
    return kind is Any or (isinstance(kind, type) and "Secret" in kind.__name__) or any(map(_may_be_secret, inner))


def _secrets_in(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Secret]]:
    """Every secret in a value, however deep, with its place."""
    if isinstance(value, Secret):
        yield path, value
    elif isinstance(value, BaseModel | Mapping):
        for name, item in value if isinstance(value, BaseModel) else value.items():
            yield from _secrets_in(item, (*path, name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _secrets_in(item, (*path, index))


def _validated(model: type[S], raw: Any, file: Path, positions: Positions, prefix: tuple[str | int, ...]) -> S:
    try:
        return model.model_validate(raw, context={"base": file.parent.absolute()})
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            loc = tuple(part for part in problem["loc"] if part != "[key]")
            path = (*prefix, *loc)
            line = f"{_where(file, positions, path)}: {_reason(problem, model, loc)}"
            lines.append((_position(positions, path), line))
        raise ConfigError([line for _, line in sorted(lines)]) from None


_NOT_A_NAME = "not a name: use small letters, digits, - and _, a letter first"
_REASONS = {
    "missing": "missing; this key is required",
    "string_type": "must be a text in quotes",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
}


def _reason(problem: Any, model: type[BaseModel], loc: tuple[str | int, ...]) -> str:
    kind = problem["type"]
    if kind == "extra_forbidden":
        return _unknown_key(str(loc[-1]), _keys_at(model, loc[:-1]))
    if kind == "literal_error":
        return f"must be one of {problem['ctx']['expected']}"
    if kind == "string_pattern_mismatch":
        pattern = problem["ctx"]["pattern"]
        return _NOT_A_NAME if pattern == JOB_NAME else f"does not fit the pattern {pattern}"
    said = str(problem["msg"]).removeprefix("Value error, ")
    return _REASONS.get(kind) or said.replace("Input should be", "must be")


def _unknown_key(key: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(key, allowed, n=1)
    known = f"; known are {', '.join(allowed)}" if allowed else ""
    return f'unknown key, did you mean "{close[0]}"?' if close else f"unknown key{known}"


def _keys_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Field names of the model that a location inside `model` leads to."""
    current: Any = model
    for part in loc:
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = current.model_fields[str(part)].annotation
        else:  # dict[str, Model], or one of several that may stand here: then the part is its name
            choices = getattr(current, "__args__", (None,))
            current = next((choice for choice in choices if getattr(choice, "__name__", None) == part), choices[-1])
        while not isinstance(current, type) and type(None) in getattr(current, "__args__", ()):
            current = current.__args__[0]
    return list(getattr(current, "model_fields", ()))


def without_none(value: Any) -> Any:
    """Tables without keys that have no value: TOML cannot write them."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value
