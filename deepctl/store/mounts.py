"""Projects in the tree of a workspace: a checkpoint has one tree, and each project of the profile is mounted in it.

The tree of the project `<id>` is `.deep/projects/<id>/files`. The file `.deep/projects/<id>/rules` beside it has the
coverage rules at that time (`deepctl.store.coverage`). Nothing of this exists in the workspace itself; a real entry
`.deep/projects` there is left out of snapshots.
"""

from __future__ import annotations

from typing import NamedTuple

from deepctl.store.coverage import CoverageSettings

PROJECTS = b".deep/projects"
FILES, RULES = b"files", b"rules"


class MountedProject(NamedTuple):
    """A project whose files are part of the snapshots of a session: its id, its directory, the settings of coverage."""

    id: str
    root: str
    coverage: CoverageSettings = CoverageSettings()


class MountedPath(NamedTuple):
    """A path below `.deep/projects` in a tree: the project, and the path relative to its directory.

    `path` is `None` for the rules and the directories above the files, and empty for the directory of the project.
    """

    project: str
    path: bytes | None


def prefix(project: str) -> bytes:
    """The path of the files of a project in a tree."""
    return b"%s/%s/%s" % (PROJECTS, project.encode(), FILES)


def mounted(path: bytes) -> MountedPath | None:
    """The parts of a path in a tree; `None` for a path of the workspace."""
    if path == PROJECTS:
        return MountedPath("", None)
    if not path.startswith(PROJECTS + b"/"):
        return None
    project, _, inner = path[len(PROJECTS) + 1 :].partition(b"/")
    name = project.decode("ascii", "replace")
    if inner == FILES:
        return MountedPath(name, b"")
    return MountedPath(name, inner[len(FILES) + 1 :] if inner.startswith(FILES + b"/") else None)


def shown(path: bytes, project: str) -> bytes:
    """A path of a tree as it is shown in a session of `project`.

    A path of the project is relative to its directory, and one of the workspace is below `/profile`. Without a project,
    the path is shown as it is.
    """
    if not project:
        return path
    inner = mounted(path)
    if inner is None:
        return b"/profile/" + path
    return inner.path if inner.project == project and inner.path is not None else path
