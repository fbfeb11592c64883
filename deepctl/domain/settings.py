"""Settings: their names, their values, and the precedence of their sources.

Two TOML files: `config.toml` for this machine's user, `profile.toml` for one profile. The command line and the
environment precede both. Reading uses the standard library; changing a file keeps its comments (tomlkit).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from deepctl import layout, quantities
from deepctl.domain import provider_keys, setting_table
from deepctl.domain.addresses import without_passwords
from deepctl.domain.permissions import Permissions, parse
from deepctl.domain.setting_table import SETTINGS as SETTINGS
from deepctl.domain.setting_table import Setting, patterns, size
from deepctl.errors import BadSetting, Damaged, DeepctlError, NotFound, Refused, StorageError
from deepctl.files import atomic
from deepctl.sandbox.policy import Limits
from deepctl.store.log_file import documents

if TYPE_CHECKING:
    from deepctl.domain.hooks import Hook
    from deepctl.domain.keys import KeyReference, KeyRing
    from deepctl.domain.mcp_servers import McpServer
    from deepctl.store.coverage import CoverageSettings

FORMAT = layout.SETTINGS_FORMAT.current
"""Version of settings files that this deepctl writes and the newest it reads."""

_BOOKKEEPING = ("version", "created_at", "permissions", "mcp_servers", "keys", "hooks")
MODEL_TABLES = ("model_settings", "model_profile")
"""Tables in which an unknown key is an error, because a request without it could have another answer."""


class Value(NamedTuple):
    """A setting's value and its source: option, environment, profile, config or default."""

    key: str
    value: str | None
    source: str


def describe(key: str, where: str | None = None) -> Setting:
    """The setting called `key`. Raises `BadSetting`, with the most similar name, if it does not exist.

    `where` names the file that contains it.
    """
    try:
        return SETTINGS[key]
    except KeyError:
        from difflib import get_close_matches

        from deepctl.domain import keys

        table, _, name = key.partition(".")
        names = [known.removeprefix(f"{table}.") for known in SETTINGS if known.startswith(f"{table}.")]
        near = [f"{table}.{similar_name}" for similar_name in get_close_matches(name, names, 1, 0.6)]
        if not names:
            # `temperature` may be meant for `model_settings.temperature`. A key outside of a table comes first.
            last_parts = {known.rpartition(".")[2]: known for known in reversed(SETTINGS)}
            near = get_close_matches(key, SETTINGS, 1, 0.7)
            near = near or [last_parts[part] for part in get_close_matches(key, last_parts, 1, 0.8)]
        plain_keys = [known for known in SETTINGS if known.partition(".")[0] not in MODEL_TABLES]
        valid_keys = (
            f"Keys of [{table}] are: {', '.join(names)}." if names else f"Settings are: {', '.join(plain_keys)}."
        )
        hint = f"Did you mean {near[0]!r}?" if near else valid_keys
        if table == keys.TABLE or key in provider_keys.all_names():
            hint = (
                "`deepctl keys set NAME` stores a key. A reference to a key is written into [keys] of the file itself."
            )
        place = f" in {where}" if where else ""
        raise BadSetting(f"There is no setting {without_passwords(key)!r}{place}.", hint) from None


def validate(key: str, value: object, where: str | None = None) -> str:
    """`value` if it is valid for `key`. Raises `BadSetting`; `where` names its file."""
    setting = describe(key)
    place = f" in {where}" if where else ""
    if isinstance(value, str) and not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
        raise BadSetting(f"Setting {key!r}{place} is not UTF-8 text.")
    if setting.kind in setting_table.TYPED and not isinstance(value, str):
        value = repr(value)
    if not isinstance(value, str):
        raise BadSetting(f"Setting {key!r}{place} must be text, not {without_passwords(value)!r}.")
    if not value:
        raise BadSetting(f"Setting {key!r}{place} must not be empty.")
    return setting_table.check(key, setting, value, place)


def read_document(path: str) -> bytes:
    """The bytes of a settings file. Raises `FileNotFoundError`, and `Refused` if it is not a file."""
    return documents(os.path.dirname(path)).read(os.path.basename(path))


def replace_document(path: str, raw: bytes, *, is_last: bool = False) -> None:
    """Replace a whole settings file; see `deepctl.store.log_file.Documents`."""
    documents(os.path.dirname(path)).replace(os.path.basename(path), raw, is_last=is_last)


def new_document(name: str, tables: Mapping[str, Any]) -> bytes:
    """The profile.toml of the new profile `name` with these tables."""
    import tomlkit

    head = (
        f"# Settings of the deepctl profile {name}. `deepctl config set KEY VALUE --user {name}` changes them.\n"
        f'version = {FORMAT}\ncreated_at = "{quantities.now_in_seconds()}"\n'
    )
    return head.encode() + (tomlkit.dumps(tables).encode() if tables else b"")


def _content(path: str) -> bytes | None:
    """The bytes of a settings file; `None` if the file does not exist."""
    try:
        return read_document(path)
    except FileNotFoundError:
        return None
    except (Refused, NotADirectoryError):
        if "DEEPCTL_CONFIG" in os.environ and path == layout.config_file(os.environ):
            raise _misplaced(path) from None
        raise


def _misplaced(path: str) -> DeepctlError:
    """The problem of `$DEEPCTL_CONFIG`, which names a file that deepctl did not create."""
    help = "Set $DEEPCTL_CONFIG to a file of your own."
    above = path
    while (above := os.path.dirname(above)) != "/":
        if os.path.exists(above) and not os.path.isdir(above):
            return StorageError(f"{above} is not a directory.", help, code="storage_enotdir")
    return Refused(f"{path} is not a regular file.", help)


def parse_tables(raw: bytes, path: str, form: layout.Format | None = None) -> dict[str, Any]:
    """The tables of the settings file at `path` that has the bytes `raw`, in the present format; a role.toml has
    another `form`.

    Raises `Damaged` if it is not TOML and `NewerFormat`.
    """
    import tomllib

    form = form or layout.SETTINGS_FORMAT
    try:
        tables = tomllib.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Damaged(
            f"{path} is not valid TOML: {_without_tuples(str(error))}.",
            "Correct the file with an editor. Commands that need no settings still work.",
            code="bad_toml",
        ) from None
    try:
        layout.bring_up(form, tables, path)
    except layout.BadVersion:
        raise Damaged(
            f"{path} has version = {tables['version']!r}, which is not a valid version.",
            f"It must be {form.current}, or missing. Correct the file with an editor.",
        ) from None
    return tables


def _without_tuples(text: str) -> str:
    """`text` of tomllib with the names of tables as in TOML: `a.b` instead of `('a', 'b')`."""
    import re

    names = re.compile(r"\(('[^']+'(, |,)?)+\)")
    return names.sub(lambda match: ".".join(re.findall(r"'([^']+)'", match[0])), text)


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
    for key in values.keys() & SETTINGS.keys():
        values[key] = setting_table.to_text(SETTINGS[key], values[key])
    return values


def check_spelling(keys: Iterable[str], table: str, where: str) -> None:
    """Raises `BadSetting` for a misspelled `table`, because its contents would be ignored silently."""
    from difflib import get_close_matches

    for key in keys:
        if key != table and get_close_matches(key.lower(), [table], cutoff=0.85):
            raise BadSetting(f"[{without_passwords(key)}] in {where} is unknown.", f"Did you mean [{table}]?")


class SettingsFile(NamedTuple):
    """A settings file as it was read: its settings by name, or the reason why it could not be read.

    `path` is empty if the environment gives no path for config.toml.
    """

    source: str
    """`profile` or `config`: the `Value.source` of its settings."""
    path: str
    values: Mapping[str, Any] = {}
    problem: DeepctlError | OSError | None = None
    content: bytes | None = None
    """The bytes of the file; `None` if it does not exist, or could not be read."""

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
    stored_keys: str | None = None
    """The directory with the stored keys of the profile; `None` without a profile."""

    def resolve(self, key: str) -> Value:
        """The value in force and its source: option, environment, profile.toml, config.toml or default."""
        setting = SETTINGS[key]
        if not setting.in_config:
            self._check_config(key)
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

    def _check_config(self, key: str) -> None:
        """Raises `BadSetting` if config.toml has a setting that is for one profile."""
        for file in self.files:
            if file.source == "config" and key in file.checked():
                raise not_for_all(key, file.path)

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

    def paths(self, key: str) -> list[str]:
        """The paths in force of a setting of kind `paths`."""
        return setting_table.paths(self.get(key))

    def size(self, key: str) -> int:
        """The bytes in force of a setting of kind `size`."""
        return size(self.get(key) or "")

    def of_table(self, table: str) -> dict[str, Any]:
        """The values in force of the settings in a table of `MODEL_TABLES`, by their names in it.

        Raises `BadSetting` also for an unknown key in the table of a file.
        """
        for file in self.files:
            _check_table(file.checked(), table, file.path)
        values = {key: self.get(key) for key in SETTINGS if key.startswith(f"{table}.")}
        return {
            key.removeprefix(f"{table}."): setting_table.to_value(SETTINGS[key], value)
            for key, value in values.items()
            if value is not None
        }

    def limits(self) -> Limits:
        """The limits of one command of the agent."""
        return Limits(
            seconds=self.number("limits.seconds") or 0,
            memory=self.size("limits.memory"),
            processes=self.number("limits.processes") or 0,
            tmp=self.size("limits.tmp"),
            disk=self.size("limits.disk"),
        )

    def coverage(self) -> CoverageSettings:
        """Which files of a project a checkpoint covers."""
        from deepctl.store.coverage import CoverageSettings

        include, exclude = self.patterns("snapshot.include"), self.patterns("snapshot.exclude")
        return CoverageSettings(include, self.size("snapshot.max_file"), exclude)

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

    def hooks(self) -> list[Hook]:
        """The hooks of config.toml, then those of profile.toml. Raises `BadSetting`."""
        hooks: list[Hook] = []
        for file in reversed(self.files):
            values = file.checked()
            check_spelling(values, "hooks", file.path)
            if "hooks" in values:
                from deepctl.domain.hooks import parse as parse_hooks  # most profiles have none

                hooks += parse_hooks(values["hooks"], file.path, file.source)
        return hooks

    def keys(self, environment: Mapping[str, str]) -> KeyRing:
        """The references to keys: of profile.toml, stored for the profile, then of config.toml. Raises `BadSetting`."""
        from deepctl.domain import keys  # most commands do not use it

        tables: dict[str, dict[str, KeyReference]] = {}
        for file in self.files:
            values = file.checked()
            check_spelling(values, keys.TABLE, file.path)
            if keys.TABLE in values:
                source: Literal["profile", "config"] = "profile" if file.source == "profile" else "config"
                tables[source] = keys.parse(values[keys.TABLE], file.path, source)
        if any(tables.values()):
            used_names = {name for server in self.mcp_servers() for name in server.named_variables}
            for name in [name for table in tables.values() for name in table]:
                keys.check_spelling(name, used_names)
        stored = keys.stored(self.stored_keys) if self.stored_keys is not None else {}
        return keys.KeyRing({**tables.get("config", {}), **stored, **tables.get("profile", {})}, environment)

    def of_profile(self, profile: layout.ProfilePaths) -> Settings:
        """The same with the profile's settings file, which is read now."""
        other_files = tuple(file for file in self.files if file.source != "profile")
        files = (read("profile", profile.settings), *other_files)
        return self._replace(files=files, stored_keys=profile.keys)


def load(
    environment: Mapping[str, str],
    profile: layout.ProfilePaths | None = None,
    options: Mapping[str, str | None] | None = None,
) -> Settings:
    """Read the settings of this machine's user and of a profile, each file once.

    `options` are values from the command line. Never raises: see `Settings`.
    """
    try:
        config = read("config", layout.config_file(environment))
    except DeepctlError as problem:
        config = SettingsFile("config", "", problem=problem)
    settings = without_files(environment, options)._replace(files=(config,))
    return settings if profile is None else settings.of_profile(profile)


def without_files(environment: Mapping[str, str], options: Mapping[str, str | None] | None = None) -> Settings:
    """The settings of the command line, the environment and the defaults."""
    names_of_variables = {setting.variable for setting in SETTINGS.values() if setting.variable is not None}
    variables = {name: environment[name] for name in names_of_variables if name in environment}
    return Settings(dict(options or {}), variables, ())


def read(source: str, path: str) -> SettingsFile:
    """Read a settings file. Never raises: see `SettingsFile.checked`."""
    content = None
    try:
        content = _content(path)
        values = flat(parse_tables(content, path), path) if content is not None else {}
    except (DeepctlError, OSError) as problem:
        return SettingsFile(source, path, problem=problem, content=content)
    return SettingsFile(source, path, values, content=content)


def _check_table(values: Mapping[str, Any], table: str, path: str) -> None:
    """Raises `BadSetting` for an unknown key in a table of `MODEL_TABLES`, and for a misspelled name of the table."""
    check_spelling([key.partition(".")[0] for key in values], table, path)
    for key in values:
        if key.startswith(f"{table}."):
            describe(key, path)


def not_for_all(key: str, path: str) -> BadSetting:
    """The error for a setting of one profile in the config.toml at `path`."""
    return BadSetting(
        f"Setting {key!r} in {path} cannot be set for all profiles.",
        f"`deepctl config unset {key}` removes it. For one profile: deepctl config set {key} VALUE --user NAME",
    )


def unknown_keys(values: Mapping[str, Any]) -> list[str]:
    """Keys of a settings file that are unknown and ignored."""
    unknown = [key for key in values if key.partition(".")[0] not in MODEL_TABLES]
    return [key for key in unknown if key not in SETTINGS and key not in _BOOKKEEPING]


def _checked(key: str, value: str) -> str:
    """`value` in the form for a settings file. A value that would fail in the next command is refused now."""
    value = validate(key, value)
    if key == "default_user":
        layout.check_name(value)
    if key == "model" and value != "offline" and ":" not in value:
        raise BadSetting(
            f"Setting 'model' cannot be {without_passwords(value)!r}.",
            "It must be `offline` or provider:name. A model of the server at base_url is openai-chat:NAME.",
        )
    if key == "model" and (near := provider_keys.near(value)) is not None:
        raise BadSetting(
            f"Setting 'model' cannot be {without_passwords(value)!r}: there is no such provider.",
            f"Did you mean {without_passwords(near)!r}?",
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
            elif key == "hooks":
                from deepctl.domain.hooks import parse as parse_hooks

                parse_hooks(value, path)
            elif key == "keys":
                from deepctl.domain import keys  # most files have none

                keys.parse(value, path)
            elif key.partition(".")[0] in MODEL_TABLES:
                describe(key, path)
                validate(key, value, path)
            elif key in SETTINGS and not in_profile and not SETTINGS[key].in_config:
                raise not_for_all(key, path)
            elif key in SETTINGS and (not in_profile or SETTINGS[key].in_profile):
                validate(key, value, path)
        except DeepctlError as error:
            yield error


def check(values: Mapping[str, object], path: str, *, in_profile: bool = True) -> None:
    """Raises the first error that commands would raise with these settings of a profile, or of all profiles."""
    from deepctl.domain import mcp_servers

    for table in ("permissions", mcp_servers.TABLE, "keys", "hooks", *MODEL_TABLES):
        check_spelling(values, table, path)
    for problem in problems(values, path, in_profile=in_profile):
        raise problem


def check_document(raw: bytes, path: str, *, in_profile: bool) -> None:
    """Raises the first error that commands would raise if the settings file at `path` had the bytes `raw`."""
    check(flat(parse_tables(raw, path), path), path, in_profile=in_profile)


def change(path: str, key: str, value: str | None) -> None:
    """Set `key` in a settings file, or remove it (`None`), without other changes.

    The caller holds the lock of the file. Raises `NotFound` if there is nothing to remove.
    """
    import tomlkit

    content = _content(path) or b""
    flat(parse_tables(content, path), path)  # raises for a file that commands could not read
    document = tomlkit.parse(content.decode("utf-8-sig"))
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
        kind = SETTINGS[key].kind
        place[name] = (
            tomlkit.value(valid_value)
            if kind == "cost"
            else _inline(setting_table.to_value(SETTINGS[key], valid_value))
            if kind == "table"
            else setting_table.to_value(SETTINGS[key], valid_value)
        )
    else:
        if name not in place:
            describe(key)
            raise NotFound(f"Setting {without_passwords(key)!r} is not set in {path}.", code="setting_not_set")
        del place[name]
    atomic.make_root(os.path.dirname(path))
    replace_document(path, tomlkit.dumps(document).encode(), is_last=True)


def add_server(path: str, name: str, values: Mapping[str, Any], profile: str) -> None:
    """Add the table of an MCP server to the settings of a profile, without other changes. The caller holds the lock.

    Raises `BadSetting` if the table is invalid, and `Refused` if the file has a server of this name.
    """
    import tomlkit

    from deepctl.domain import mcp_servers

    mcp_servers.parse({name: values}, path, "profile")
    content = _content(path) or b""
    tables = parse_tables(content, path)
    flat(tables, path)
    if name in tables.get(mcp_servers.TABLE, {}):
        raise Refused(
            f"Profile {profile!r} already has an MCP server {name!r}.",
            f"`deepctl mcp remove {name} --user {profile}` removes it.",
            code="mcp_server_exists",
        )
    document = tomlkit.parse(content.decode("utf-8-sig"))
    layout.bring_up(layout.SETTINGS_FORMAT, document, path)
    table = tomlkit.table()
    for key, value in values.items():
        table[key] = _inline(value)
    if mcp_servers.TABLE not in document:
        document[mcp_servers.TABLE] = tomlkit.table(is_super_table=True)
    document[mcp_servers.TABLE][name] = table
    replace_document(path, tomlkit.dumps(document).encode(), is_last=True)


def _inline(value: Any) -> Any:
    """A table as inline tables, so that the settings after it stay in the table around it."""
    import tomlkit

    if isinstance(value, list):
        return [_inline(item) for item in value]
    if not isinstance(value, dict):
        return value
    table = tomlkit.inline_table()
    for key, inner in value.items():
        table[key] = _inline(inner)
    return table
