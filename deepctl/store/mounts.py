"""Projects in the tree of a workspace: a checkpoint has one tree, and each project of the profile is mounted in it.

The tree of the project `<id>` is `.deep/projects/<id>/files`. The file `.deep/projects/<id>/rules` beside it has the
coverage rules at that time (`deepctl.store.coverage`). Nothing of this exists in the workspace itself; a real entry
`.deep/projects` there is left out of snapshots.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from deepctl import layout
from deepctl.store.coverage import CoverageSettings
from deepctl.store.object_store import ObjectReader, ObjectWriter
from deepctl.store.records import Record
from deepctl.store.trees import DIRECTORY, FILE, TreeEntry, TreeReader, decode, encode

PROJECTS = layout.PROJECTS_DIRECTORY.encode()
FILES, RULES = b"files", b"rules"
_DIRECTORY_MODE, _FILE_MODE = 0o700, 0o600
_OWN_MODE = 0o755
"""The mode that `.deep` has when the first command makes it, so that it does not differ then."""
_GIT = b".git"


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


def is_of_git(path: bytes) -> bool:
    """Whether a path of a project is a `.git` or lies in one. Nothing there is ever covered or restored."""
    return _GIT in path.lower().split(b"/")


def mounts_in(objects: ObjectReader, tree: bytes) -> dict[str, bytes]:
    """The mounted projects in a tree: the tree of `.deep/projects/<id>` by id. Raises `Damaged`."""
    entry = TreeReader(objects, tree).entry(PROJECTS)
    if entry is None or entry.kind != DIRECTORY:
        return {}
    entries = decode(objects.read(entry.digest))
    return {entry.name.decode("ascii", "replace"): entry.digest for entry in entries if entry.kind == DIRECTORY}


def rules_digest(objects: ObjectReader, tree: bytes, project: str) -> bytes | None:
    """The hash of the rules of a mounted project; `None` if the tree does not contain it. Raises `Damaged`."""
    entry = TreeReader(objects, tree).entry(b"%s/%s/%s" % (PROJECTS, project.encode(), RULES))
    return entry.digest if entry is not None and entry.kind == FILE else None


def all_rules(objects: ObjectReader, tree: bytes) -> dict[str, bytes | None]:
    """The hash of the rules of every mounted project in a tree, by its id. Raises `Damaged`."""
    return {project: rules_digest(objects, tree, project) for project in mounts_in(objects, tree)}


def mount_of(sink: ObjectWriter, files: bytes, rules: bytes) -> bytes:
    """The tree of `.deep/projects/<id>`: the tree of the files, and the stored form of the rules."""
    return _directory(
        sink,
        TreeEntry(DIRECTORY, _DIRECTORY_MODE, 0, files, FILES),
        TreeEntry(FILE, _FILE_MODE, len(rules), sink.add(rules), RULES),
    )


class Mount(NamedTuple):
    """The tree of a workspace with projects mounted in it.

    `replaced_path` is the path of an entry of another kind that was in the place of a directory above them.
    """

    tree: bytes
    replaced_path: bytes | None = None


def mount(objects: ObjectReader, sink: ObjectWriter, tree: bytes, projects: Mapping[str, bytes]) -> Mount:
    """Mount these projects in the tree of a workspace; it stays the same if there are none."""
    if not projects:
        return Mount(tree)
    entries = [TreeEntry(DIRECTORY, _DIRECTORY_MODE, 0, inner, name.encode()) for name, inner in projects.items()]
    own_name, name = PROJECTS.split(b"/")
    top = {entry.name: entry for entry in decode(objects.read(tree))}
    own = top.get(own_name)
    replaced_path = own_name if own is not None and own.kind != DIRECTORY else None
    if own is None or replaced_path is not None:
        own = TreeEntry(DIRECTORY, _OWN_MODE, 0, sink.add(encode([])), own_name)
    inner = [entry for entry in decode(objects.read(own.digest)) if entry.name != name]
    inner.append(TreeEntry(DIRECTORY, _DIRECTORY_MODE, 0, _directory(sink, *entries), name))
    top[own_name] = own._replace(digest=_directory(sink, *inner))
    return Mount(_directory(sink, *top.values()), replaced_path)


def _directory(sink: ObjectWriter, *entries: TreeEntry) -> bytes:
    return sink.add(encode(list(entries)))


def is_shown(path: bytes, project: str) -> bool:
    """Whether a path of a tree is of interest in a session of `project`: a file of it, or of the workspace."""
    place = mounted(path)
    return place is None or (place.project == project and bool(place.path))


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
    return inner.path or b"." if inner.project == project and inner.path is not None else path


def shown_unkept(record: Record) -> list[list[str]]:
    """The unkept entries of a checkpoint, with their paths as they are shown."""
    return [[os.fsdecode(shown(os.fsencode(path), record.project)), reason] for path, reason in record.unkept]
