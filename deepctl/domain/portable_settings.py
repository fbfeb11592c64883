"""The settings of a profile that a copy of it or a role may have: no keys, no tokens, and no trust between profiles.

A key that this deepctl does not know is left out, because its meaning is unknown. A text that looks like a secret
(`deepctl.redaction`) is left out wherever it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from deepctl import layout
from deepctl.domain import hooks, keys, mcp_servers, setting_table, stored_keys
from deepctl.layout import ProfilePaths
from deepctl.redaction import Redaction

_BOOKKEEPING = ("version", "created_at")
_TOKENS = ("env", "http_headers")
"""Keys of an MCP server whose values are often tokens."""
_BETWEEN_PROFILES = ("memory.read", "memory.readers")
"""Settings by which two profiles agree to share something."""
_OF_MACHINE = ("project", "read_only_paths")
"""Settings that name directories of this machine."""


class OmittedSetting(NamedTuple):
    """A setting that was left out, by its full name, and the reason."""

    key: str
    reason: str


class PortableSettings(NamedTuple):
    """The tables of a settings file without the settings that were `left_out`."""

    tables: dict[str, Any]
    left_out: list[OmittedSetting]


def portable(
    tables: Mapping[str, Any], environment: Mapping[str, str], *, for_other_machine: bool = False
) -> PortableSettings:
    """The part of the tables of a profile.toml that may be copied.

    `environment` has the secrets that must not occur in a value. With `for_other_machine`, settings that name
    directories are left out too.
    """
    portable_tables: dict[str, Any] = {}
    left_out: list[OmittedSetting] = []
    for key, value in tables.items():
        if key in _BOOKKEEPING:
            continue
        is_table = isinstance(value, dict) and key not in setting_table.SETTINGS
        entries = {f"{key}.{name}": inner for name, inner in value.items()} if is_table else {key: value}
        for full_key, inner in entries.items():
            reason = _reason(full_key, inner, environment, for_other_machine)
            if reason is not None:
                left_out.append(OmittedSetting(full_key, reason))
            elif is_table:
                portable_tables.setdefault(key, {})[full_key.partition(".")[2]] = inner
            else:
                portable_tables[key] = inner
    return PortableSettings(portable_tables, left_out)


def kept_back(paths: ProfilePaths) -> list[OmittedSetting]:
    """What belongs to a profile beside its profile.toml, and is never copied: stored keys, and untrusted settings."""
    omitted = [
        OmittedSetting(f"{keys.TABLE}.{key.name}", "stored keys belong to one profile")
        for key in stored_keys.listed(paths.keys)
    ]
    if os.path.lexists(paths.untrusted):
        omitted.append(OmittedSetting(layout.UNTRUSTED, "imported settings that are not trusted"))
    return omitted


def _reason(key: str, value: Any, environment: Mapping[str, str], for_other_machine: bool) -> str | None:
    """Why a setting is left out; `None` if it may be copied."""
    table = key.partition(".")[0]
    if table == keys.TABLE:
        return "keys belong to one profile"
    if table == hooks.TABLE:
        return "hooks run commands, so each profile gets its own by hand"
    if key in _BETWEEN_PROFILES:
        return "each profile decides itself whose memory it reads, and who reads its own"
    if for_other_machine and key in _OF_MACHINE:
        return "it names directories of this machine"
    if table == mcp_servers.TABLE:
        if (reason := _of_server(value)) is not None:
            return reason
    elif table != "permissions":
        setting = setting_table.SETTINGS.get(key)
        if setting is None:
            return "this deepctl does not know it"
        if not setting.in_profile:
            return "it is not a setting of a profile"
    return "it contains a secret" if has_secret(value, environment) else None


def _of_server(table: Any) -> str | None:
    if not isinstance(table, dict):
        return "it is not a table"
    for key in _TOKENS:
        if table.get(key):
            return f"its {key} may contain a token"
    url = table.get("url")
    if isinstance(url, str):
        try:
            parts = urlsplit(url)
        except ValueError:
            return "its address is invalid"
        if parts.query or parts.fragment or "@" in parts.netloc:
            return "its address may contain a token"
    return None


def has_secret(value: Any, environment: Mapping[str, str]) -> bool:
    """Whether a text in a value, or a name of a table in it, looks like a secret."""
    redaction = Redaction(environment)
    # As one text, because the name of a key can be the only sign that its value is a secret.
    redaction.text(json.dumps(value, ensure_ascii=False, default=str))
    return redaction.secrets > 0
