"""What commands leave that were killed: who finishes or removes it, and what a person may still want of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from deepctl import layout, names
from deepctl.domain.doctor.check import Check, some
from deepctl.domain.memory import drafts
from deepctl.domain.wipe import trash
from deepctl.layout import IMPORT, NEW, ProfilePaths, Root
from deepctl.quantities import counted
from deepctl.store import todo
from deepctl.store.pending_deletion import leaving

_TEMPORARY = ".tmp"
KNOWN = (NEW, IMPORT, trash.PREFIX)
"""How the names begin of what is not a profile and lies among them."""

_NEXT = "The next command that changes something in this profile"


def beside_profiles(root: Root) -> Iterator[Check]:
    """Wipes that were interrupted, and profiles that were being made."""
    if not os.path.isdir(root.profiles):
        return  # what is in its place, the check of the root says
    for left in trash.unfinished(root):
        what = f"parts of {left.profile}" if left.is_partial else left.profile
        yield Check(
            "unfinished",
            "warning",
            f"the wipe of {what} was interrupted; what is left of it is in {left.path}",
            "The next command that changes something, in whichever profile, finishes it.",
        )
    if half_made := trash.half_made(root):
        yield Check(
            "leftovers",
            "ok",
            "of profiles that were being made or imported, removed by the next command that changes something, in "
            f"whichever profile: {some(half_made)}",
        )


def in_profile(paths: ProfilePaths) -> Iterator[Check]:
    """Deletions that were interrupted, drafts with somebody's text, and temporary files."""
    gone = leaving(paths)
    if gone:
        yield Check(
            "unfinished",
            "warning",
            f"the deletion of {counted(len(gone), 'session')} was interrupted: {some(sorted(gone.values()))}",
            f"{_NEXT} finishes it.",
        )
    for draft in drafts.left(paths):
        yield Check(
            "draft",
            "warning",
            f"{draft} has the text of an edit that goes on, or came to no end",
            "What is wanted of it can be copied into `deepctl memory edit`; then its directory can be removed.",
        )
    temporary = list(_temporary(paths))
    if temporary:
        yield Check(
            "leftovers",
            "ok",
            f"{counted(len(temporary), 'temporary file')} of killed commands, removed by the next one that changes "
            f"something in this profile: {some(temporary)}",
        )


def todo_lists(paths: ProfilePaths) -> Iterator[Check]:
    """The to-do list of before there was one a session, and lists that are none or nobody's."""
    if todo.unsettled(paths):
        session = todo.old_lists_owner(paths, None)
        whose = f"that of session {session.name}, as which the next turn keeps it" if session else "no session's"
        yield Check("todo", "ok", f"{layout.TODO_FILE} in the workspace is {whose}")
    if broken := todo.unreadable(paths):
        yield Check(
            "todo", "warning", f"to-do lists that cannot be read: {some(broken)}", "Repair or remove the files."
        )
    if lost := todo.orphans(paths):
        yield Check("todo", "ok", f"to-do lists of sessions that are gone, which no agent sees: {some(lost)}")


def _temporary(paths: ProfilePaths) -> Iterable[str]:
    places = [paths.directory, paths.sessions, paths.checkpoints, paths.packs, paths.cache]
    places += [os.path.join(paths.sessions, name) for name in _listed(paths.sessions) if names.is_good(name)]
    for place in places:
        for name in _named(place):
            if name.endswith(_TEMPORARY) or (place == paths.sessions and name.startswith(NEW)):
                yield os.path.join(place, name)


def _named(directory: str) -> list[str]:
    """What is hidden in a directory."""
    return [name for name in _listed(directory) if name.startswith(".")]


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []  # what is in its place, others say
