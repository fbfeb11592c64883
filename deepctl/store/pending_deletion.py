"""Sessions whose deletion has begun: out of everybody's sight at once, under names that no session can have."""

from __future__ import annotations

import os

from deepctl.files import atomic
from deepctl.layout import ProfilePaths

_PREFIX = ".deleted-"


def put_away(paths: ProfilePaths, name: str, identity: str) -> str:
    """Take the session spelled `name` out of sight in one step; it is deleted from here on. Returns its new place."""
    directory = os.path.join(paths.sessions, _PREFIX + identity)
    os.rename(os.path.join(paths.sessions, name), directory)
    with atomic.after_commit("The session is deleted", atomic.FINISHED_NEXT):
        atomic.sync_directory(paths.sessions)
    return directory


def leaving(paths: ProfilePaths) -> dict[str, str]:
    """The directories of what has been put away and is not gone yet, by the ids of the sessions."""
    try:
        found = os.listdir(paths.sessions)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {
        name.removeprefix(_PREFIX): os.path.join(paths.sessions, name) for name in found if name.startswith(_PREFIX)
    }
