"""config.toml and profile.toml as one finds them: there, readable, TOML, known keys, possible values; and whose."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from deepctl.domain import mcp_servers, settings
from deepctl.domain.doctor.check import Check, told
from deepctl.domain.settings import SettingsFile
from deepctl.errors import DeepctlError
from deepctl.files import atomic
from deepctl.layout import UNTRUSTED, ProfilePaths
from deepctl.quantities import counted


def settings_file(name: str, file: SettingsFile, unset: str) -> Iterator[Check]:
    """What there is to say of one; `unset` is the command that takes a key out of it."""
    path = file.path
    try:
        if not path:
            file.checked()
        if not os.path.lexists(path):
            yield Check(name, "ok", f"{path}, not there: the defaults hold")
            return
        if stat.S_IMODE(os.stat(path).st_mode) & 0o400 == 0:
            yield Check(name, "warning", f"{path} is not for its owner to read", f"chmod u+rw {path}")
        found = file.checked()
        problems = list(settings.problems(found, path, in_profile=file.source == "profile"))
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
        yield Check(name, "ok", f"{path}, {_amount(found)}")


def _amount(found: Mapping[str, Any]) -> str:
    """How many settings there are, and how many entries in the tables that have names of their own."""
    amounts = [counted(sum(key in settings.SETTINGS for key in found), "setting")]
    for table, noun in ((mcp_servers.TABLE, "MCP server"), ("permissions", "permission")):
        if found.get(table):
            amounts.append(counted(len(found[table]), noun))
    return ", ".join(amounts)


def untrusted(paths: ProfilePaths) -> Iterator[Check]:
    """Imported settings that wait for a yes, and settings in force that would wait if they were imported now."""
    from deepctl.domain import trust

    try:
        waiting = trust.waiting(paths).items
    except DeepctlError as error:
        yield Check("trust", "warning", error.message, f"Correct the file with an editor, or remove it: {UNTRUSTED}")
        return
    if waiting:
        listed = ", ".join(f"{item.key}{' (cannot be used)' if item.problem is not None else ''}" for item in waiting)
        yield Check(
            "trust",
            "warning",
            f"imported, and not in force: {listed}",
            f"`deepctl profiles trust {paths.name}` shows them and puts them into force."
            if any(item.problem is None for item in waiting)
            else f"Correct {paths.untrusted} with an editor, or remove it.",
        )
    try:
        found = settings.parsed(atomic.read_file(paths.settings), paths.settings)
    except (DeepctlError, OSError):
        return  # the check of the file says what is wrong with it
    # Nothing tells a profile that 0.1 imported, with all its settings in force, from one that was made here.
    risky = [item for item in trust.risky(found) if item.problem is None]
    if risky:
        listed = "; ".join(f"{item.key} ({item.reason})" for item in risky)
        yield Check("trust", "ok", f"in force here, and held back by an import: {listed}")
