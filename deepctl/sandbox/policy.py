"""What every sandbox promises: the same place, the same environment, the same limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from deepctl.layout import HOME_DIRECTORY

MOUNT = "/workspace"
"""Where commands in a sandbox find the workspace, wherever it lies on this machine."""

PROFILE_MOUNT = "/profile"
"""Where the agent of a project, and its commands, find the workspace of the profile."""

CACHE_MOUNT = "/profile-cache"
"""Where commands in a project find the package caches of the profile."""

SKILLS_MOUNT = "/skills"
"""Where the agent and its commands find the skills of the profile and of the root, in directories of these names. They
cannot change them.
"""

PROTECTED = (".envrc", ".vscode/", ".idea/")
"""Files of a project that commands cannot change, by default: programs of the user obey them without a question."""

COMMAND_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

OUTPUT_BYTES = 10 << 20
"""What a command may print, both streams together, before it is ended; pydantic-ai's own limit."""


VARIABLES: Mapping[str, str] = {"PATH": COMMAND_PATH, "LANG": "C.UTF-8", "HOME": f"{MOUNT}/{HOME_DIRECTORY}"}
"""All the variables that a command gets; nothing of this process's own environment is among them."""


class ProjectMounts(NamedTuple):
    """What commands in a project see besides the system: the project under its own path and as `/workspace`, the
    profile's files as `/profile`, and the package caches as `/profile-cache`.

    Commands start in the project under its own path, so that every path they print or store is valid outside, too.
    """

    root: str
    """The real path of the project."""
    workspace: str
    """The workspace of the profile."""
    cache: str | None = None
    """The directory of package caches, created if it is missing; without one, caches are in the home of commands."""
    protected: tuple[str, ...] = PROTECTED
    """Paths relative to the project that are read-only, and cannot be created."""


class Limits(NamedTuple):
    """What one command may use: time in seconds, everything else but `processes` in bytes.

    `memory` is for all its processes together where cgroups hold it (Docker; bubblewrap for root), else for each.
    `disk` is what it may add to the workspace, `tmp` the size of `/tmp` and of `/dev/shm`.
    """

    seconds: float = 600
    memory: int = 2 << 30
    processes: int = 256
    tmp: int = 256 << 20
    disk: int = 10 << 30


class Unavailable(Exception):
    """A sandbox that cannot be used here: why, without a full stop, and what would help, in sentences."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.reason = reason.rstrip(".")
        self.fix = fix
