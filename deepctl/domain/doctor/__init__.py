"""Whether deepctl can do its work here: every check says what it found and, where something is amiss, what helps.

Nothing is created or changed, no lock is taken that anybody would notice, and what cannot be read is one more finding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from deepctl import layout, names
from deepctl.domain import budget, settings
from deepctl.domain.budget import Part
from deepctl.domain.doctor import leftovers, machine, mcp
from deepctl.domain.doctor.check import Check, Status, guarded
from deepctl.domain.doctor.profile_state import by_settings, checks_of, model
from deepctl.domain.doctor.sandboxing import Sandboxes
from deepctl.errors import ProfileNotFound
from deepctl.layout import ProfilePaths, Root
from deepctl.quantities import counted, size

__all__ = ["Check", "Status", "examine"]


def examine(environment: Mapping[str, str], user: str | None, version: str) -> Iterator[Check]:
    """All checks: of the machine, and of the profile called `user`, or of all of them.

    `version` is deepctl's own. Raises `BadName`, or `ProfileNotFound` if there is no such profile.
    """
    root = layout.root(environment)
    wanted = _profiles(root) if user is None else [_find(root, user)]
    return _checks(environment, root, wanted, user, version)


def _checks(
    environment: Mapping[str, str], root: Root, wanted: list[ProfilePaths], user: str | None, version: str
) -> Iterator[Check]:
    only = wanted[0] if user is not None else None
    in_force = settings.load(environment)
    sandboxes = Sandboxes(environment)
    yield from guarded("versions", lambda: machine.versions(version))
    yield from guarded("namesakes", lambda: machine.namesakes(environment))
    yield from guarded("root", lambda: machine.root(root))
    yield from guarded("leftovers", lambda: leftovers.beside_profiles(root))
    yield from guarded("config", lambda: machine.config(in_force.files[0]))
    yield from guarded("disk", lambda: machine.disk(root))
    yield from guarded(
        "sandbox", lambda: sandboxes.machine(in_force.of_profile(only) if only is not None else in_force)
    )
    if not wanted:
        # What the first profile would find.
        yield from by_settings("sandbox", lambda: sandboxes.in_force(in_force))
        yield from by_settings("model", lambda: model(environment, in_force))
        yield from guarded("mcp", lambda: mcp.servers(environment, in_force))
    parts = {paths: budget.parts(paths) for paths in wanted}
    if len(wanted) > 1:
        yield _space(parts)
    for paths in wanted:
        yield from checks_of(environment, in_force.of_profile(paths), paths, sandboxes, parts[paths])


def _profiles(root: Root) -> list[ProfilePaths]:
    """What has the place and the name of a profile, whatever it is."""
    try:
        return [root.profile(name) for name in sorted(os.listdir(root.profiles)) if name[:1].isalnum()]
    except OSError:
        return []  # the check of the root says why


def _find(root: Root, name: str) -> ProfilePaths:
    folded = names.fold(names.check(name))
    found = next((paths for paths in _profiles(root) if names.fold(paths.name) == folded), None)
    if found is not None:
        return found
    if not os.path.lexists(root.profile(name).directory):
        raise ProfileNotFound(name)
    return root.profile(name)


def _space(parts: Mapping[ProfilePaths, list[Part]]) -> Check:
    taken = sorted(((sum(part.bytes for part in found), paths.name) for paths, found in parts.items()), reverse=True)
    shown = ", ".join(f"{name} {size(number)}" for number, name in taken[:5])
    more = f" and {len(taken) - 5} more" if len(taken) > 5 else ""
    total = sum(number for number, _ in taken)
    return Check("space", "ok", f"{counted(len(taken), 'profile')}, {size(total)}: {shown}{more}")
