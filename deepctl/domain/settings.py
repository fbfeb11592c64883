"""Settings: their names, their values, and the precedence of their sources.

Two TOML files: `config.toml` for this machine's user, `profile.toml` for one profile. The command line and the
environment precede both. Reading uses the standard library; changing a file keeps its comments (tomlkit).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl import layout
from deepctl.domain.addresses import address_problem, without_passwords
from deepctl.domain.permissions import Permissions, parse
from deepctl.errors import BadSetting, Damaged, DeepctlError, NotFound, Refused, StorageError
from deepctl.files import atomic
from deepctl.sandbox.policy import Limits
from deepctl.store.log_file import documents

if TYPE_CHECKING:
    from deepctl.domain.mcp_servers import McpServer

FORMAT = layout.SETTINGS_FORMAT.current
"""Version of settings files that this deepctl writes and the newest it reads."""

SANDBOXES = ("auto", "bubblewrap", "docker", "none")
APPROVALS = ("ask", "auto", "never")
CHECKPOINTS = ("every_tool", "every_turn", "manual_only")
_BOOKKEEPING = ("version", "created_at", "permissions", "mcp_servers")
_SIZE = re.compile(r"([0-9]{1,12})([KMG]?)")
_LARGEST = 1 << 50
_SMALLEST = {
    "limits.memory": 16 << 20,
    "limits.tmp": 1 << 20,
    "limits.disk": 1 << 20,
    "limits.processes": 4,
    "retries": 0,
    "context_window": 1000,
}
_PERCENT = range(10, 96)
_COST = re.compile(r"(0|[1-9][0-9]{0,5})(\.[0-9]{1,6})?")


_SPENDING = "it limits the cost of a turn"
_LIMIT = "it limits how much of this machine commands may use"


class Setting(NamedTuple):
    """One setting: its purpose, its default, its allowed values, and its environment variable.

    `kind` is the meaning of its text: `text`, `patterns` (several, separated by commas), `count` (a whole number),
    `seconds`, `size` (bytes, or a number with K, M or G for 1024-fold units), or `cost` (USD, up to six places). A
    `percent` is a whole number from 10 to 95, or `never`. `risk` is the possible consequence of a value that another
    person chose.
    """

    help: str
    default: str | None = None
    choices: tuple[str, ...] = ()
    kind: str = "text"
    variable: str | None = None
    in_profile: bool = True
    risk: str = ""


SETTINGS: dict[str, Setting] = {
    "default_user": Setting(
        "profile for commands without --user", "default", variable="DEEPCTL_USER", in_profile=False
    ),
    "model": Setting("model, as provider:name", "offline", variable="DEEPCTL_MODEL"),
    "base_url": Setting(
        "address of an OpenAI-compatible server, for openai-chat: and openai: models",
        risk="conversations and the key for them are sent to this address",
    ),
    "instructions": Setting("instructions for the agent at the start of every conversation"),
    "context_window": Setting("context window of the model in tokens, if it is unknown or wrong", kind="count"),
    "compact_at": Setting(
        "percentage of the context window at which a conversation is summarised, or never",
        "80",
        kind="percent",
    ),
    "approve": Setting(
        "answer to approval requests",
        "ask",
        APPROVALS,
        risk="auto approves every approval request, even for unsandboxed commands",
    ),
    "sandbox": Setting(
        "where the agent's commands run",
        "auto",
        SANDBOXES,
        risk="none runs the agent's commands unsandboxed, with your rights",
    ),
    "checkpoints": Setting(
        "when automatic checkpoints are made",
        "every_tool",
        CHECKPOINTS,
        risk="with fewer checkpoints, there are fewer points to rewind to",
    ),
    "snapshot.exclude": Setting(
        "files that checkpoints leave out, with patterns as in a .gitignore, separated by commas",
        kind="patterns",
        risk="no checkpoint contains these files, and no rewind restores them",
    ),
    "docker.image": Setting(
        "image of the container of the docker sandbox",
        "python:3.12-slim",
        risk="the agent's commands run in this image, which Docker fetches",
    ),
    "max_requests": Setting("maximum number of requests to the model in a turn", "100", kind="count", risk=_SPENDING),
    "max_tokens": Setting("maximum number of tokens that a turn sends and receives", kind="count", risk=_SPENDING),
    "max_cost": Setting("maximum cost of a turn, in USD", kind="cost", risk=_SPENDING),
    "retries": Setting("number of retries when the provider is busy or failing", "3", kind="count", risk=_SPENDING),
    "limits.seconds": Setting("maximum time of a command, in seconds", "600", kind="seconds", risk=_LIMIT),
    "limits.memory": Setting("maximum memory of a command", "2G", kind="size", risk=_LIMIT),
    "limits.processes": Setting("maximum number of processes of a command", "256", kind="count", risk=_LIMIT),
    "limits.tmp": Setting("size of /tmp in a sandbox", "256M", kind="size", risk=_LIMIT),
    "limits.disk": Setting(
        "maximum size of what a command writes to the file system of the workspace", "10G", kind="size", risk=_LIMIT
    ),
    "limits.checkpoints": Setting("size of the checkpoints above which chats warn", "5G", kind="size", risk=_LIMIT),
}


class Value(NamedTuple):
    """A setting's value and its source: option, environment, profile, config or default."""

    key: str
    value: str | None
    source: str


def describe(key: str) -> Setting:
    """The setting called `key`. Raises `BadSetting`, with the most similar name, if it does not exist."""
    try:
        return SETTINGS[key]
    except KeyError:
        from difflib import get_close_matches

        near = get_close_matches(key, SETTINGS, 1, 0.7)
        hint = f"Did you mean {near[0]!r}?" if near else f"Settings are: {', '.join(SETTINGS)}."
        raise BadSetting(f"There is no setting {without_passwords(key)!r}.", hint) from None


def validate(key: str, value: object, where: str | None = None) -> str:
    """`value` if it is valid for `key`. Raises `BadSetting`; `where` names its file."""
    setting = describe(key)
    place = f" in {where}" if where else ""
    if isinstance(value, str) and not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
        raise BadSetting(f"Setting {key!r}{place} is not UTF-8 text.")
    if not isinstance(value, str):
        raise BadSetting(f"Setting {key!r}{place} must be text, not {without_passwords(value)!r}.")
    if not value:
        raise BadSetting(f"Setting {key!r}{place} must not be empty.")
    if setting.choices and value not in setting.choices:
        raise BadSetting(
            f"Setting {key!r}{place} cannot be {without_passwords(value)!r}.",
            f"It must be one of: {', '.join(setting.choices)}.",
        )
    if setting.kind == "patterns":
        _check_patterns(value, place)
    if setting.kind == "cost" and not (_COST.fullmatch(value) and value.strip("0.")):
        raise BadSetting(
            f"Setting {key!r}{place} cannot be {without_passwords(value)!r}.",
            "It must be a sum in USD above 0 and below 1000000, such as 0.50.",
        )
    if setting.kind == "percent" and value not in ("never", *map(str, _PERCENT)):
        raise BadSetting(
            f"Setting {key!r}{place} cannot be {without_passwords(value)!r}.",
            f"It must be a percentage from {_PERCENT.start} to {_PERCENT.stop - 1}, or never.",
        )
    if setting.kind in ("count", "seconds", "size"):
        _check_number(key, setting.kind, value, place)
    if key == "base_url":
        value = value.strip()
        if (problem := address_problem(value)) is not None:
            raise BadSetting(
                f"Setting {key!r}{place} cannot be {without_passwords(value)!r}: it {problem}.",
                "It must be an address such as http://127.0.0.1:8000/v1.",
            )
    return value


def read_document(path: str) -> bytes:
    """The bytes of a settings file. Raises `FileNotFoundError`, and `Refused` if it is not a file."""
    return documents(os.path.dirname(path)).read(os.path.basename(path))


def replace_document(path: str, raw: bytes, *, is_last: bool = False) -> None:
    """Replace a whole settings file; see `deepctl.store.log_file.Documents`."""
    documents(os.path.dirname(path)).replace(os.path.basename(path), raw, is_last=is_last)


def read(path: str) -> dict[str, Any]:
    """A settings file as a mapping; empty if there is none. Raises `Damaged` if it is not TOML."""
    try:
        raw = read_document(path)
    except FileNotFoundError:
        return {}
    except (Refused, NotADirectoryError):
        if "DEEPCTL_CONFIG" in os.environ and path == layout.config_file(os.environ):
            raise _misplaced(path) from None
        raise
    return flat(parse_tables(raw, path), path)


def _misplaced(path: str) -> DeepctlError:
    """The problem of `$DEEPCTL_CONFIG`, which names a file that deepctl did not create."""
    help = "Set $DEEPCTL_CONFIG to a file of your own."
    above = path
    while (above := os.path.dirname(above)) != "/":
        if os.path.exists(above) and not os.path.isdir(above):
            return StorageError(f"{above} is not a directory.", help, code="storage_enotdir")
    return Refused(f"{path} is not a regular file.", help)


def parse_tables(raw: bytes, path: str) -> dict[str, Any]:
    """The tables of the settings file at `path` that has the bytes `raw`, in the present format.

    Raises `Damaged` if it is not TOML and `NewerFormat`.
    """
    import tomllib

    try:
        tables = tomllib.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Damaged(
            f"{path} is not valid TOML: {error}.",
            "Correct the file with an editor. Commands that need no settings still work.",
            code="bad_toml",
        ) from None
    try:
        layout.bring_up(layout.SETTINGS_FORMAT, tables, path)
    except layout.BadVersion:
        raise Damaged(
            f"{path} has version = {tables['version']!r}, which is not a valid version.",
            f"It must be {layout.SETTINGS_FORMAT.current}, or missing. Correct the file with an editor.",
        ) from None
    return tables


def flat(tables: dict[str, Any], path: str) -> dict[str, Any]:
    """The settings in tables by their full names: `exclude` of `[snapshot]` is `snapshot.exclude`.

    Raises `BadSetting` for a value in the place of a table.
    """
    values: dict[str, Any] = {}
    for key, value in tables.items():
        if any(name.startswith(f"{key}.") for name in SETTINGS):
            if not isinstance(value, dict):
                raise BadSetting(
                    f"{key!r} in {path} must be a table, not {without_passwords(value)!r}.",
                    "Correct the file with an editor.",
                )
            values.update({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            values[key] = value
    for key, setting in SETTINGS.items():
        value = values.get(key)
        if setting.kind == "patterns" and isinstance(value, list) and all(isinstance(item, str) for item in value):
            values[key] = ",".join(value)
        elif setting.kind == "cost" and isinstance(value, float):
            values[key] = f"{value:.6f}".rstrip("0").rstrip(".") if abs(value) < 1e7 else str(value)
        elif setting.kind not in ("text", "patterns") and isinstance(value, int) and not isinstance(value, bool):
            values[key] = str(value)
    return values


def _check_number(key: str, kind: str, value: str, place: str) -> None:
    try:
        number = size(value) if kind == "size" else size(value, units="")
    except ValueError:
        hint = (
            "It must be a number of bytes, optionally followed by K, M or G."
            if kind == "size"
            else "It must be a whole number."
        )
        raise BadSetting(f"Setting {key!r}{place} cannot be {without_passwords(value)!r}.", hint) from None
    least = _SMALLEST.get(key, 1)
    if not least <= number < _LARGEST:
        range_text = (
            f"It must be at least {_shortest_number(least, kind)} and less than {_shortest_number(_LARGEST, kind)}."
        )
        raise BadSetting(f"Setting {key!r}{place} cannot be {without_passwords(value)!r}.", range_text)


def _shortest_number(number: int, kind: str) -> str:
    """A number in the shortest form for a setting of this kind."""
    for unit, bits in (("G", 30), ("M", 20), ("K", 10)) if kind == "size" else ():
        if number % (1 << bits) == 0:
            return f"{number >> bits}{unit}"
    return str(number)


def size(value: str, *, units: str = "KMG") -> int:
    """The bytes of a value of kind `size`. Raises `ValueError`."""
    match = _SIZE.fullmatch(value)
    if match is None or match[2] not in units:
        raise ValueError(f"{value!r} is no size")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def check_spelling(keys: Iterable[str], table: str, where: str) -> None:
    """Raises `BadSetting` for a misspelled `table`, because its contents would be ignored silently."""
    from difflib import get_close_matches

    for key in keys:
        if key != table and get_close_matches(key.lower(), [table], cutoff=0.85):
            raise BadSetting(f"[{without_passwords(key)}] in {where} is unknown.", f"Did you mean [{table}]?")


def _check_patterns(value: str, place: str) -> None:
    from pathspec import GitIgnoreSpec

    try:
        GitIgnoreSpec.from_lines(patterns(value))
    except ValueError as error:
        raise BadSetting(
            f"Setting 'snapshot.exclude'{place} cannot be {without_passwords(value)!r}: "
            f"{without_passwords(str(error))}."
        ) from None


def patterns(value: str | None) -> list[str]:
    """The values of a setting with several values, separated by commas."""
    return [pattern.strip() for pattern in (value or "").split(",") if pattern.strip()]


class SettingsFile(NamedTuple):
    """A settings file as it was read: its settings by name, or the reason why it could not be read.

    `path` is empty if the environment gives no path for config.toml.
    """

    source: str
    """`profile` or `config`: the `Value.source` of its settings."""
    path: str
    values: Mapping[str, Any] = {}
    problem: DeepctlError | OSError | None = None

    def checked(self) -> Mapping[str, Any]:
        """The settings in it. Raises the error of reading it."""
        if self.problem is not None:
            raise self.problem
        return self.values


class Settings(NamedTuple):
    """The settings in force: the command line, the environment and the two files at the time of reading.

    A command reads them once (`load`) and passes them on. An unreadable file or an invalid value raises an error when a
    setting is requested that depends on it; other settings still work.
    """

    options: Mapping[str, str | None]
    variables: Mapping[str, str]
    files: tuple[SettingsFile, ...]
    """The file with precedence comes first."""

    def resolve(self, key: str) -> Value:
        """The value in force and its source: option, environment, profile.toml, config.toml or default."""
        setting = SETTINGS[key]
        if (option := self.options.get(key)) is not None:
            return Value(key, validate(key, option), "option")
        if setting.variable and setting.variable in self.variables:
            return Value(key, validate(key, self.variables[setting.variable], f"${setting.variable}"), "environment")
        for file in self.files:
            if file.source == "profile" and not setting.in_profile:
                continue
            values = file.checked()
            if key in values:
                return Value(key, validate(key, values[key], file.path), file.source)
        return Value(key, setting.default, "default")

    def get(self, key: str) -> str | None:
        """The value in force."""
        return self.resolve(key).value

    def number(self, key: str) -> int | None:
        """The number in force; `None` if the setting is not set, or `never`."""
        value = self.get(key)
        return None if value in (None, "never") else int(value or 0)

    def patterns(self, key: str) -> list[str]:
        """The values in force of a setting with several values."""
        return patterns(self.get(key))

    def size(self, key: str) -> int:
        """The bytes in force of a setting of kind `size`."""
        return size(self.get(key) or "")

    def limits(self) -> Limits:
        """The limits of one command of the agent."""
        return Limits(
            seconds=self.number("limits.seconds") or 0,
            memory=self.size("limits.memory"),
            processes=self.number("limits.processes") or 0,
            tmp=self.size("limits.tmp"),
            disk=self.size("limits.disk"),
        )

    def permissions(self) -> Permissions:
        """The rules: for each operation the profile's own, else those in config.toml. Raises `BadSetting`."""
        rules: Permissions = {}
        for file in reversed(self.files):
            values = file.checked()
            check_spelling(values, "permissions", file.path)
            if "permissions" in values:
                rules |= parse(values["permissions"], file.path)
        return rules

    def mcp_servers(self) -> list[McpServer]:
        """The MCP servers by name, including those that are switched off. Raises `BadSetting`."""
        servers: dict[str, McpServer] = {}
        for file in reversed(self.files):
            values = file.checked()
            check_spelling(values, "mcp_servers", file.path)
            if "mcp_servers" in values:
                from deepctl.domain import mcp_servers  # most profiles do not use it

                servers |= mcp_servers.parse(values["mcp_servers"], file.path, file.source)
        return [servers[name] for name in sorted(servers)]

    def of_profile(self, profile: layout.ProfilePaths) -> Settings:
        """The same with the profile's settings file, which is read now."""
        other_files = tuple(file for file in self.files if file.source != "profile")
        return self._replace(files=(_loaded("profile", profile.settings), *other_files))


def load(
    environment: Mapping[str, str],
    profile: layout.ProfilePaths | None = None,
    options: Mapping[str, str | None] | None = None,
) -> Settings:
    """Read the settings of this machine's user and of a profile, each file once.

    `options` are values from the command line. Never raises: see `Settings`.
    """
    try:
        config = _loaded("config", layout.config_file(environment))
    except DeepctlError as problem:
        config = SettingsFile("config", "", problem=problem)
    settings = without_files(environment, options)._replace(files=(config,))
    return settings if profile is None else settings.of_profile(profile)


def without_files(environment: Mapping[str, str], options: Mapping[str, str | None] | None = None) -> Settings:
    """The settings of the command line, the environment and the defaults."""
    names_of_variables = {setting.variable for setting in SETTINGS.values() if setting.variable is not None}
    variables = {name: environment[name] for name in names_of_variables if name in environment}
    return Settings(dict(options or {}), variables, ())


def _loaded(source: str, path: str) -> SettingsFile:
    try:
        return SettingsFile(source, path, read(path))
    except (DeepctlError, OSError) as problem:
        return SettingsFile(source, path, problem=problem)


def unknown_keys(values: Mapping[str, Any]) -> list[str]:
    """Unknown keys of a settings file."""
    return [key for key in values if key not in SETTINGS and key not in _BOOKKEEPING]


def _checked(key: str, value: str) -> str:
    """`value` in the form for a settings file. A value that would fail in the next command is refused now."""
    value = validate(key, value)
    if key == "default_user":
        layout.check_name(value)
    if key == "model" and value != "offline" and ":" not in value:
        raise BadSetting(
            f"Setting 'model' cannot be {without_passwords(value)!r}.", "It must be `offline` or provider:name."
        )
    return value


def problems(values: Mapping[str, object], path: str, *, in_profile: bool) -> Iterator[DeepctlError]:
    """The problems of the settings in the file at `path`, each as the error of its use."""
    from deepctl.domain import mcp_servers

    for key, value in values.items():
        try:
            if key == "permissions":
                parse(value, path)
            elif key == mcp_servers.TABLE:
                mcp_servers.parse(value, path)
            elif key in SETTINGS and (not in_profile or SETTINGS[key].in_profile):
                validate(key, value, path)
        except DeepctlError as error:
            yield error


def check(values: Mapping[str, object], path: str) -> None:
    """Raises the first error that commands of a profile with these settings would raise."""
    from deepctl.domain import mcp_servers

    check_spelling(values, "permissions", path)
    check_spelling(values, mcp_servers.TABLE, path)
    for problem in problems(values, path, in_profile=True):
        raise problem


def change(path: str, key: str, value: str | None) -> None:
    """Set `key` in a settings file, or remove it (`None`), without other changes.

    The caller holds the lock of the file. Raises `NotFound` if there is nothing to remove.
    """
    import tomlkit

    read(path)
    try:
        document = tomlkit.parse(read_document(path).decode("utf-8-sig"))
    except FileNotFoundError:
        document = tomlkit.document()
    layout.bring_up(layout.SETTINGS_FORMAT, document, path)
    table, _, name = key.rpartition(".")
    place = (
        document
        if not table
        else document.setdefault(table, tomlkit.table())
        if value is not None
        else document.get(table, {})
    )
    if value is not None:
        valid_value = _checked(key, value)
        kind = describe(key).kind
        place[name] = (
            patterns(valid_value)
            if kind == "patterns"
            else int(valid_value)
            if kind in ("count", "seconds") or (kind == "percent" and valid_value != "never")
            else tomlkit.value(valid_value)
            if kind == "cost"
            else valid_value
        )
    else:
        if name not in place:
            describe(key)
            raise NotFound(f"Setting {without_passwords(key)!r} is not set in {path}.", code="setting_not_set")
        del place[name]
    atomic.make_root(os.path.dirname(path))
    replace_document(path, tomlkit.dumps(document).encode(), is_last=True)
