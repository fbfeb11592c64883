"""Imported settings that need trust: `untrusted.toml`, beside the profile's profile.toml.

An import writes the harmless settings to profile.toml and all others to untrusted.toml, including those that this
deepctl does not know. untrusted.toml has no effect: `profiles trust` puts it into force, `config show` and `doctor`
list it, and no other code opens it. A new setting is dangerous until it is named in `HARMLESS`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from deepctl import quantities
from deepctl.domain import addresses, hooks, keys, mcp_servers, settings, untrusted_files
from deepctl.domain.settings import SettingsFile
from deepctl.errors import BadSetting, Damaged, DeepctlError, NewerFormat, Refused
from deepctl.files import atomic
from deepctl.layout import UNTRUSTED, ProfilePaths

HARMLESS = ("version", "created_at", "model", "instructions", "context_window", "compact_at", "editing_mode", "notify")
"""Settings that run nothing, send nothing to another address and weaken no protection."""

MAX_BYTES = 1 << 20
"""Bytes of the largest profile.toml that is accepted from an archive."""
MAX_DEPTH = 32
"""Maximum nesting of its tables and lists."""

_TABLES = frozenset(key.partition(".")[0] for key in settings.SETTINGS if "." in key) | {
    "permissions",
    mcp_servers.TABLE,
    keys.TABLE,
    hooks.TABLE,
}
"""Tables whose entries are settings of their own."""
_UNKNOWN = "this deepctl does not know it; a later version may act on it"


_ADDRESSES = ("base_url", "url")
"""Settings that consist of an address."""
_PASSWORD = re.compile(r"\A([^:/]+://[^/?#:@]*):[^/?#@]*@")
_ORDINARY_PASSWORD = re.compile(r"(:/{2}[\w.%~-]*):[A-Za-z0-9_%-]*@(?=[A-Za-z0-9\[])", re.ASCII)


class TrustItem(NamedTuple):
    """One setting: its name, its value as in TOML, and its possible consequence. `place` is its path in the file.

    `problem` is the reason why no profile could be used with it.
    """

    key: str
    value: Any
    reason: str
    place: tuple[str, ...]
    problem: DeepctlError | None = None


class WaitingSettings(NamedTuple):
    """What is not in force: the contents of untrusted.toml, and imported skills and commands.

    `untrusted` and `profile` are the bytes of the two settings files as they were read, `files` is the digest of the
    skills and commands.
    """

    items: list[TrustItem]
    untrusted: bytes | None
    profile: bytes | None
    files: str = ""


class UnusableProfileFile(Exception):
    """A profile.toml that no export creates, and the reason."""


def split(raw: bytes, path: str) -> tuple[bytes, bytes | None]:
    """The result for an archive's profile.toml: a profile.toml, and an untrusted.toml if not all of it is harmless.

    An unreadable file is not in force either. `path` names it in errors. Raises `NewerFormat` and
    `UnusableProfileFile`.
    """
    if len(raw) > MAX_BYTES:
        raise UnusableProfileFile(f"its profile.toml has {len(raw):,} bytes")
    try:
        values = settings.parse_tables(raw, path)
    except NewerFormat:
        raise
    except Damaged:
        return _dumped({"version": settings.FORMAT}), raw
    if _depth(values) > MAX_DEPTH:
        raise UnusableProfileFile("its profile.toml is nested too deeply")
    harmless = {key: values[key] for key in HARMLESS if key in values and _is_usable(key, values[key])}
    if harmless.keys() == values.keys():
        return raw, None
    rest = {key: value for key, value in values.items() if key not in harmless}
    untrusted = _dumped({"version": settings.FORMAT, **rest})
    # A name or a text that cannot be written again unchanged stays in the file as it came.
    return _dumped({"version": settings.FORMAT, **harmless}), untrusted if _is_same(untrusted, rest) else raw


def _is_usable(key: str, value: object) -> bool:
    """Whether a harmless setting may have this value; an invalid one could block every command."""
    if key == "version":
        return True
    if key == "created_at":
        return isinstance(value, str) and quantities.is_time(value)
    try:
        settings.validate(key, settings.flat({key: value}, "")[key])
    except DeepctlError:
        return False
    return True


def _dumped(values: Mapping[str, Any]) -> bytes:
    import tomlkit

    return tomlkit.dumps(values).encode()


def _is_same(raw: bytes, values: Mapping[str, Any]) -> bool:
    """Whether a file has the expected contents, apart from its version."""
    try:
        document = settings.parse_tables(raw, "")
    except DeepctlError:
        return False
    return _compared(document) == _compared(values)


def _compared(values: Mapping[str, Any]) -> str:
    # Compared as text, because some numbers do not equal themselves (nan), and 1 equals true.
    return json.dumps({**values, "version": 0}, sort_keys=True, default=repr)


def _depth(value: object) -> int:
    level = [value]
    depth = 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        containers = [container for container in level if isinstance(container, dict | list)]
        level = [
            inner
            for container in containers
            for inner in (container.values() if isinstance(container, dict) else container)
        ]
    return depth


def items(values: Mapping[str, Any], path: str = "") -> list[TrustItem]:
    """The settings in the tables of the file at `path`, without its version, each with its possible consequence."""
    return [_item(place, value, path) for place, value in _places(values) if place != ("version",)]


def _item(place: tuple[str, ...], value: Any, path: str) -> TrustItem:
    key = ".".join(place)
    problem = _problem(place, value, path or UNTRUSTED)
    if problem is None:
        return TrustItem(key, value, risk(place, value), place)
    if place[0] == keys.TABLE:
        # It may be a key that was written into the file.
        shown_key = key if keys.is_name(place[-1]) or len(place) == 1 else f"{keys.TABLE}.{addresses.HIDDEN_PASSWORD}"
        return TrustItem(
            shown_key, value, f"it cannot be put into force: {problem.message.rstrip('.')}", place, problem
        )
    reason = problem.message.rstrip(".").replace(f" in {path or UNTRUSTED}", "")
    suggestion = re.match(r"Did you mean [^?]*\?", problem.hint or "")
    reason = f"{addresses.without_passwords(reason)}{f' ({suggestion[0]})' if suggestion else ''}"
    return TrustItem(key, value, f"it cannot be put into force: {reason}", place, problem)


def _problem(place: tuple[str, ...], value: Any, path: str) -> DeepctlError | None:
    """The reason why no profile could be used with a setting, if there is one."""
    if place[0] == "created_at" and not _is_usable("created_at", value):
        return BadSetting(
            f"Setting 'created_at' in {path} is not a time.", "Correct the file with an editor, or remove it."
        )
    values: dict[str, Any] = {}
    _put(values, place, value)
    try:
        settings.check(settings.flat(values, path), path)
    except DeepctlError as error:
        error.hint = f"{error.hint or ''} Correct the file with an editor, or remove it.".strip()
        return error
    return None


def _places(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if key in _TABLES and isinstance(value, dict):
            yield from (((key, inner), inner_value) for inner, inner_value in value.items())
        else:
            yield (key,), value


def risky(values: Mapping[str, Any]) -> list[TrustItem]:
    """The settings in a file that an import would have kept out of force."""
    return [item for item in items(values) if item.key not in HARMLESS]


def risk(place: tuple[str, ...], value: Any) -> str:
    """The possible consequence of a setting whose value another person chose."""
    key = ".".join(place)
    if place[0] == mcp_servers.TABLE and len(place) == 2:
        return _server_risk(value)
    if place[0] == hooks.TABLE:
        return hooks.risk(value)
    if place[0] == keys.TABLE and len(place) == 2:
        return keys.risk(place[1], value)
    if place[0] == "permissions":
        return "rules of its own ([permissions]) decide what the agent may do without an approval request"
    setting = settings.SETTINGS.get(key)
    if setting is None:
        return _UNKNOWN
    if not setting.in_profile:
        return "it is unknown in a profile"
    return setting.risk or "it is not known to be harmless"


def _server_risk(table: Any) -> str:
    """The effect of an MCP server, from a value that need not be a table."""
    server = table if isinstance(table, dict) else {}
    sources = [server.get("env_vars"), server.get("bearer_token_env_var"), server.get("env_http_headers")]
    variables = [f"${name}" for source in sources for name in _texts(source)]
    gets = f", and gives it {' and '.join(variables)}" if variables else ""
    if "url" in server:
        return f"it sends data of the agent to this address{gets}"
    return f"it runs this command unsandboxed, with your rights{gets}"


def _texts(value: object) -> list[str]:
    """The texts in a value, or the value itself."""
    values = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
    return [text for text in values if isinstance(text, str)]


def json_value(value: Any, key: str = "") -> Any:
    """The value of the setting `key` in a form for JSON, and complete for the person who decides about it."""
    if isinstance(value, dict):
        return {_judged(name): json_value(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [json_value(item) for item in value]
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _judged(str(value), key)


def _judged(text: str, key: str = "") -> str:
    """A text in full, without the password of an address.

    Text that is left out here comes into force unseen, so only passwords are left out: in an address for requests, the
    part before its host; in any other text, only letters and digits.
    """
    if key not in _ADDRESSES:
        return _ORDINARY_PASSWORD.sub(rf"\1:{addresses.HIDDEN_PASSWORD}@", text)
    if addresses.address_problem(text) is not None:
        # It cannot come into force, and its password may be anywhere.
        safe_text: str = addresses.without_passwords(text)
        return safe_text
    return _PASSWORD.sub(rf"\1:{addresses.HIDDEN_PASSWORD}@", text)


def shown_value(item: TrustItem) -> Any:
    """The value of a setting in a form for JSON. An invalid entry of `[keys]` may be a key, and is not shown."""
    if item.place[0] == keys.TABLE and item.problem is not None:
        return addresses.HIDDEN_PASSWORD
    return json_value(item.value, item.place[-1])


def text(item: TrustItem) -> str:
    """The value of a setting on a line: a text as it is, anything else in JSON."""
    plain_value = shown_value(item)
    return plain_value if isinstance(plain_value, str) else json.dumps(plain_value, ensure_ascii=False)


def waiting(paths: ProfilePaths, file: SettingsFile) -> WaitingSettings:
    """The settings of a profile that need trust; `file` is its profile.toml. Raises `Damaged` if its untrusted.toml
    cannot be read.
    """
    untrusted = _read(paths.untrusted)
    if file.content is None:
        file.checked()
    return with_files(paths, paths, compared(paths, untrusted, file.content))


_FILES = "files"
"""The first part of the place of a skill or a command, which has three parts; that of a setting has two at most."""


def with_files(paths: ProfilePaths, final_paths: ProfilePaths, preview: WaitingSettings) -> WaitingSettings:
    """The settings, and the skills and commands of the profile at `paths` that are not in force.

    They are named by `final_paths`, where the profile will be.
    """
    files = untrusted_files.waiting(paths)
    if not files:
        return preview
    new_items = [
        TrustItem(
            f"{file.kind}.{file.name}",
            {"path": os.path.join(final_paths.untrusted_files, file.kind, file.entry)},
            file.risk if file.problem is None else f"it cannot be put into force: {file.problem.message.rstrip('.')}",
            (_FILES, file.kind, file.entry),
            file.problem,
        )
        for file in files
    ]
    return preview._replace(items=[*preview.items, *new_items], files=untrusted_files.digest(paths))


def _is_file(item: TrustItem) -> bool:
    return len(item.place) == 3 and item.place[0] == _FILES


def compared(paths: ProfilePaths, untrusted: bytes | None, before: bytes | None) -> WaitingSettings:
    """The same for the bytes of the two files; `before` is profile.toml. Raises `Damaged` if one is not TOML."""
    values = settings.parse_tables(untrusted, paths.untrusted) if untrusted is not None else {}
    if not values or before is None:
        return WaitingSettings(items(values, paths.untrusted), untrusted, before)
    now = {item.place: item.value for item in items(settings.parse_tables(before, paths.settings))}
    waiting_items = [
        item._replace(reason=f"{item.reason}; it replaces the present setting of this profile")
        if item.place in now and item.problem is None
        else item
        for item in items(values, paths.untrusted)
    ]
    return WaitingSettings(waiting_items, untrusted, before)


def _read(path: str) -> bytes | None:
    try:
        return settings.read_document(path)
    except FileNotFoundError:
        return None


def merge(paths: ProfilePaths, preview: WaitingSettings) -> None:
    """Put the shown settings into force, except unusable ones. The caller holds the profile's lock.

    Raises `Refused` if either file has changed since, and `BadSetting` or `Damaged` if the profile could not be used
    with these settings; nothing has changed then. After a kill they are either in force or not.
    """
    # Read again, because another process may have changed them while the person read them.
    now = (_read(paths.untrusted), _read(paths.settings), untrusted_files.digest(paths))
    if now != (preview.untrusted, preview.profile, preview.files):
        raise Refused(
            "The settings changed after they were shown; nothing was put into force.",
            f"Look at them again: deepctl profiles trust {paths.name}",
            code="changed",
        )
    if not all(map(_is_file, preview.items)):
        _merge_settings(paths, preview._replace(items=[item for item in preview.items if not _is_file(item)]))
    entries = {item.place[1:] for item in preview.items if _is_file(item) and item.problem is None}
    untrusted_files.put_into_force(
        paths, [file for file in untrusted_files.waiting(paths) if (file.kind, file.entry) in entries]
    )


def _merge_settings(paths: ProfilePaths, preview: WaitingSettings) -> None:
    before = preview.profile if preview.profile is not None else _dumped({"version": settings.FORMAT})
    tables = settings.parse_tables(before, paths.settings)
    usable = [item for item in preview.items if item.problem is None]
    rest: dict[str, Any] = {}
    for item in preview.items:
        _put(rest if item.problem is not None else tables, item.place, item.value)
    settings.check(settings.flat(tables, paths.settings), paths.settings)
    settings.replace_document(paths.settings, _with_comments(before, usable, tables))
    with atomic.after_commit():
        content = _dumped({"version": settings.FORMAT, **rest})
        if not rest:
            os.unlink(paths.untrusted)
        elif _is_same(content, rest):  # otherwise it stays as it came
            settings.replace_document(paths.untrusted, content)
        atomic.sync_directory(paths.directory)


def _put(document: Any, place: tuple[str, ...], value: Any) -> None:
    *tables, name = place
    for table in tables:
        if not isinstance(document.get(table), dict):
            document[table] = {}
        document = document[table]
    document[name] = value


def _with_comments(before: bytes, new_items: list[TrustItem], values: Mapping[str, Any]) -> bytes:
    """The file with these settings, and with a person's comments if they can be kept."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(before.decode("utf-8-sig"))
        for item in new_items:
            _put(document, item.place, item.value)
        content = tomlkit.dumps(document).encode()
        if _is_same(content, values):
            return content
    except (TOMLKitError, ValueError, TypeError):
        pass
    return _dumped(values)
