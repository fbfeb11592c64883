"""The profile of a command without `--user`, and `directories.json`, the profiles of directories.

    --user NAME  >  $DEEPCTL_USER  >  the profile of the directory  >  default_user  >  default

`profiles use NAME --here` gives a directory a profile. It counts in the directory and everything below it; of several,
the nearest counts. `directories.json` in the root has the real paths of these directories and the names of their
profiles. Directories are compared by their paths only: nothing in a directory is read, so a cloned repository cannot
choose a profile. Nothing is written into the directory either.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from deepctl import layout
from deepctl.domain import profiles
from deepctl.domain.settings import Settings
from deepctl.errors import BadName, Damaged, NotFound
from deepctl.files import atomic
from deepctl.layout import DIRECTORIES_FORMAT, Root
from deepctl.locks import Lease, Lock

DEFAULT = "default"
"""The profile of commands if no source names one."""

_TABLE = "directories"


class ProfileChoice(NamedTuple):
    """The name of a profile; `directory` is the path that gave it, `None` if another source did."""

    name: str
    directory: str | None = None


def choose(in_force: Settings, root: Callable[[], Root], directory: str | None) -> ProfileChoice:
    """The profile of a command without `--user`.

    `directory` is a real path; with `None`, the profiles of directories do not count. Raises `BadName`, naming the
    source; `NotFound` if the profile of the directory is gone; and the errors of `read`.
    """
    default = in_force.resolve("default_user")
    if default.source != "environment" and directory is not None:
        place = root()
        if (choice := nearest(read(place), directory)) is not None:
            if not profiles.exists(place, choice.name):
                raise _gone(choice)
            return choice
    try:
        return ProfileChoice(layout.check_name(default.value or DEFAULT))
    except BadName as error:
        source = "$DEEPCTL_USER" if default.source == "environment" else "default_user in the settings"
        raise BadName(f"{error.message} It comes from {source}.", error.hint) from None


def default_name(in_force: Settings) -> str:
    """The profile that the settings files name for all directories. Raises `BadSetting` and `Damaged`."""
    return in_force._replace(variables={}).get("default_user") or DEFAULT


def _gone(choice: ProfileChoice) -> NotFound:
    from shlex import quote

    command = f"deepctl profiles use --forget -C {quote(choice.directory or '.')}"
    return NotFound(
        f"There is no profile {choice.name!r}, which {choice.directory} uses.",
        f"`{command}` removes this choice; --user NAME names another profile.",
        code="profile_not_found",
    )


def nearest(profiles_of: Mapping[str, str], directory: str) -> ProfileChoice | None:
    """The profile of the nearest directory that is `directory` or contains it. `directory` is a real path."""
    path = directory
    while True:
        if (name := profiles_of.get(path)) is not None:
            return ProfileChoice(name, path)
        if path == (path := os.path.dirname(path)):
            return None


def path_of(root: Root) -> str:
    """The path of directories.json."""
    return os.path.join(root.path, layout.DIRECTORIES)


def read(root: Root) -> dict[str, str]:
    """The names of profiles by the real paths of their directories.

    Raises `Damaged`, `NewerFormat`, and `Refused` if the file is a link.
    """
    path = path_of(root)
    try:
        raw = atomic.read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        document = json.loads(raw)
        if not isinstance(document, dict):
            raise ValueError
        layout.bring_up(DIRECTORIES_FORMAT, document, path)
        return _checked(document.get(_TABLE))
    except (ValueError, RecursionError):
        raise Damaged(
            f"{path} cannot be read.",
            "--user NAME works without it. Correct the file with an editor, or delete it and use "
            "`deepctl profiles use NAME --here` again.",
            code="bad_directories",
        ) from None


def _checked(table: Any) -> dict[str, str]:
    if not isinstance(table, dict):
        raise ValueError(table)
    for path, name in table.items():
        if not (isinstance(name, str) and layout.is_good_name(name) and path == os.path.normpath(path)):
            raise ValueError(path)
    return table


def _lock(root: Root, wait: float) -> Lease:
    profiles.make_root(root)
    # No profile can have this name, so it cannot be confused with a profile's lock.
    return Lock(
        os.path.join(root.locks, ".directories"), work="changing directories.json", command="profiles use", wait=wait
    )


def use(root: Root, directory: str, name: str, *, wait: float = 0.0) -> None:
    """Give a directory, by its real path, a profile."""
    with _lock(root, wait):
        _write(root, {**read(root), directory: name})


def forget(root: Root, directory: str, *, wait: float = 0.0) -> str | None:
    """Take the profile of a directory away. Returns its name, `None` if the directory itself has no profile."""
    with _lock(root, wait):
        profiles_of = read(root)
        name = profiles_of.pop(directory, None)
        if name is not None:
            _write(root, profiles_of)
    return name


def rename(root: Root, name: str, new_name: str | None, *, wait: float = 0.0) -> list[str]:
    """Give the directories of a profile to `new_name`, or to no profile (`None`). Returns their paths."""
    if not directories_of(read(root), name):
        return []
    with _lock(root, wait):
        profiles_of = read(root)
        directories = directories_of(profiles_of, name)
        for path in directories:
            if new_name is None:
                del profiles_of[path]
            else:
                profiles_of[path] = new_name
        _write(root, profiles_of)
    return directories


def directories_of(profiles_of: Mapping[str, str], name: str) -> list[str]:
    """The directories of a profile, sorted."""
    return sorted(path for path, other_name in profiles_of.items() if layout.same_name(other_name, name))


def _write(root: Root, profiles_of: Mapping[str, str]) -> None:
    document = {DIRECTORIES_FORMAT.key: DIRECTORIES_FORMAT.current, _TABLE: dict(sorted(profiles_of.items()))}
    atomic.commit_file(path_of(root), json.dumps(document, indent=1).encode() + b"\n")
