"""All roles: those that ship with deepctl, and the user's own in `<root>/roles/`.

A role of the user hides the shipped role of the same name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from deepctl import layout
from deepctl.domain import settings, trust
from deepctl.domain.profiles import ProfileSeed
from deepctl.domain.roles import role as reading
from deepctl.domain.roles.role import ROLE_FILE, Role
from deepctl.errors import Damaged, DeepctlError, NotFound, Refused
from deepctl.files import ownership
from deepctl.layout import UNTRUSTED, Root

SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shipped")


class RoleDescription(NamedTuple):
    """A role as lists show it. `problem` is the reason why it cannot be used."""

    name: str
    source: reading.Source
    description: str
    problem: str | None = None


def places(root: Root) -> dict[str, tuple[str, reading.Source, str]]:
    """The name, the source and the directory of every role, by its name in the form for comparisons."""
    places_by_name: dict[str, tuple[str, reading.Source, str]] = {}
    for directory, source in ((SHIPPED, "shipped"), (root.roles, "user")):
        with suppress(FileNotFoundError, NotADirectoryError):
            for name in sorted(os.listdir(directory)):
                path = os.path.join(directory, name)
                if layout.is_good_name(name):
                    places_by_name[layout.folded_name(name)] = (name, "user" if source == "user" else "shipped", path)
    return places_by_name


def describe_all(root: Root, environment: Mapping[str, str]) -> list[RoleDescription]:
    """All roles by name. Never raises for damage in one of them."""
    check_root(root)
    descriptions = []
    for _, (name, source, path) in sorted(places(root).items()):
        try:
            role = _read(name, source, path, environment)
            descriptions.append(RoleDescription(name, source, role.description))
        except (DeepctlError, OSError) as error:
            descriptions.append(RoleDescription(name, source, "", str(error)))
    return descriptions


def check_root(root: Root) -> None:
    """Raises `StorageError` if another user of this machine could write to the roles."""
    ownership.check(root.path, "roles")


def find(root: Root, name: str, environment: Mapping[str, str]) -> Role:
    """The role called `name`, in any case. Raises `BadName`, `NotFound`, and the errors of reading it."""
    layout.check_name(name, "role")
    check_root(root)
    all_places = places(root)
    place = all_places.get(layout.folded_name(name))
    if place is None:
        raise not_found(name, [stored_name for stored_name, _, _ in all_places.values()])
    return _read(*place, environment)


def _read(name: str, source: reading.Source, path: str, environment: Mapping[str, str]) -> Role:
    if source == "user":
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a directory"
            raise Refused(f"Role {name!r} is {kind}: {path}.", "A role must be a directory, and not a link.")
        if not os.path.lexists(os.path.join(path, ROLE_FILE)):
            raise Damaged(f"Role {name!r} has no {ROLE_FILE}: {path}.", f"`deepctl roles delete {name}` deletes it.")
    return reading.read(name, source, path, environment)


def not_found(name: str, names: list[str]) -> NotFound:
    """The error for a role that does not exist; `names` are those of all roles."""
    from difflib import get_close_matches

    near = get_close_matches(layout.folded_name(name), names, 1, 0.6)
    suggestion = f"Did you mean {near[0]!r}? " if near else ""
    return NotFound(
        f"There is no role {name!r}.", f"{suggestion}`deepctl roles list` lists the roles.", code="role_not_found"
    )


def made_from(root: Root, profile: str, environment: Mapping[str, str]) -> list[str]:
    """The names of the roles that were made from a profile, as far as they can be read."""
    names = []
    for name, source, path in places(root).values():
        if source == "user":
            with suppress(DeepctlError, OSError):
                if layout.same_name(_read(name, source, path, environment).made_from, profile):
                    names.append(name)
    return sorted(names)


def seed(role: Role) -> ProfileSeed:
    """What a new profile gets from a role."""
    return ProfileSeed(role.tables, role.untrusted, role.workspace_files(), role.extensions())


def waiting(role: Role) -> list[trust.TrustItem]:
    """The imported settings of a role that are not in force. Raises `Damaged`."""
    if role.untrusted is None:
        return []
    path = os.path.join(role.path, UNTRUSTED)
    return trust.items(settings.parse_tables(role.untrusted, path), path)


def find_own(root: Root, name: str) -> tuple[str, str]:
    """The name and the directory of a role of the user. Raises `BadName`, `NotFound`, and `Refused` for a shipped
    one.
    """
    layout.check_name(name, "role")
    check_root(root)
    all_places = places(root)
    place = all_places.get(layout.folded_name(name))
    if place is None:
        raise not_found(name, [stored_name for stored_name, _, _ in all_places.values()])
    if place[1] == "shipped":
        raise Refused(
            f"Role {place[0]!r} ships with deepctl, and cannot be deleted.",
            "A role of your own with this name hides it: deepctl roles create NAME --from PROFILE",
            code="role_shipped",
        )
    return place[0], place[2]


def is_shipped(name: str) -> bool:
    """Whether a role of this name ships with deepctl."""
    return any(layout.same_name(name, shipped_name) for shipped_name in os.listdir(SHIPPED))
