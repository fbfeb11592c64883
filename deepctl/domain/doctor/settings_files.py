"""config.toml and profile.toml as one finds them: there, readable, TOML, known keys, possible values."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from deepctl.domain import mcp_tables, settings
from deepctl.domain.doctor.check import Check, told
from deepctl.domain.layout import ProfilePaths
from deepctl.domain.permissions import parse
from deepctl.domain.words import counted
from deepctl.errors import DeepctlError


def settings_file(name: str, path: str, profile: ProfilePaths | None, unset: str) -> Iterator[Check]:
    """What there is to say of one; `unset` is the command that takes a key out of it."""
    try:
        if not os.path.lexists(path):
            yield Check(name, "ok", f"{path}, not there: the defaults hold")
            return
        if stat.S_IMODE(os.stat(path).st_mode) & 0o400 == 0:
            yield Check(name, "warning", f"{path} is not for its owner to read", f"chmod u+rw {path}")
        found = settings.read(path)
        problems = list(_impossible(found, path, in_profile=profile is not None))
    except DeepctlError as error:
        yield Check(name, "problem", error.message, error.hint)
        return
    except OSError as error:
        yield Check(name, "problem", told(error), "It cannot be read; its settings do not hold.")
        return
    for problem in problems:
        yield Check(name, "problem", problem.message, problem.hint)
    unknown = settings.unknown(found)
    if unknown:
        yield Check(
            name,
            "warning",
            f"{path} has settings that mean nothing: {', '.join(unknown)}",
            f"Misspelled? `deepctl config show` has those there are; `deepctl {unset}` takes one out.",
        )
    if not problems and not unknown:
        yield Check(name, "ok", f"{path}, {counted(sum(key in settings.SETTINGS for key in found), 'setting')}")


def _impossible(found: dict[str, object], path: str, *, in_profile: bool) -> Iterator[DeepctlError]:
    for key, value in found.items():
        try:
            if key == "permissions":
                parse(value, path)
            elif key == mcp_tables.TABLE:
                mcp_tables.parse(value, path)
            elif key in settings.SETTINGS and (not in_profile or settings.SETTINGS[key].in_profile):
                settings.validate(key, value, path)
        except DeepctlError as error:
            yield error
