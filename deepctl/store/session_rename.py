"""Giving a session another name: one rename of its directory, which nothing else of a profile points at by name."""

from __future__ import annotations

import os
from typing import NamedTuple

from deepctl import layout
from deepctl.errors import Refused, SessionNotFound
from deepctl.files import atomic
from deepctl.store import checkpoint_store, session_catalogue
from deepctl.store.checkpoint_store import ProfileStore


class Renamed(NamedTuple):
    """The names of a session before and now."""

    before: str
    now: str


def rename(work: ProfileStore, old: str, new: str) -> Renamed:
    """Rename a session; to another spelling of its own name, too. A damaged session has a name like any other.

    Raises `BadName`, `SessionNotFound`, or `Refused` if the name is taken.
    """
    paths = work.paths
    layout.check_name(new, "session")
    found = session_catalogue.spelled(paths, old)
    if found is None:
        raise SessionNotFound(old, paths.name)
    taken = session_catalogue.spelled(paths, new)
    target = os.path.join(paths.sessions, new)
    if taken not in (None, found) or (taken is None and os.path.lexists(target)):
        raise Refused(
            f"There is a session {taken or new!r} already.",
            f"`deepctl sessions list --user {paths.name}` shows those there are.",
            code="session_exists",
        )
    if found != new:
        os.rename(os.path.join(paths.sessions, found), target)
        with atomic.after_commit():
            atomic.sync_directory(paths.sessions)
            checkpoint_store.rewrite_index(paths, work.ledger)
    return Renamed(found, new)
