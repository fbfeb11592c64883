"""The workspace of a session: the directory in the profile, and the directory of its project.

A snapshot has both in one tree, and the trees of the other projects of the profile as in the snapshot before. The tree
of the project `<id>` is `.deep/projects/<id>/files`. The file `.deep/projects/<id>/rules` beside it has the coverage
rules at that time (`deepctl.store.coverage`). Nothing of this exists in the workspace itself; a real entry
`.deep/projects` there is left out of snapshots.

A restore maps the paths of that tree to the two directories. These two, the reader of contents and `prefix_of` are the
only places that know where a path of a tree lies.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from deepctl import layout
from deepctl.errors import Damaged, Refused
from deepctl.files import atomic
from deepctl.files.paths_beneath import DirectoryTree
from deepctl.store import coverage, restore, trees
from deepctl.store.coverage import CoverageSettings
from deepctl.store.index_db import Cache
from deepctl.store.log_file import Message
from deepctl.store.object_store import ObjectReader, ObjectWriter
from deepctl.store.projects import is_available
from deepctl.store.records import Record
from deepctl.store.restore import RestoreResult, WorkingTree
from deepctl.store.trees import (
    DIRECTORY,
    FILE,
    LINK,
    NO_CONTENT,
    Report,
    Snapshot,
    TreeChange,
    TreeEntry,
    TreeReader,
    UnkeptPath,
    decode,
    encode,
)

PROJECTS = layout.PROJECTS_DIRECTORY.encode()
FILES, RULES = b"files", b"rules"
_DIRECTORY_MODE, _FILE_MODE = 0o700, 0o600
_GIT = b".git"

_ALIAS = "/workspace"
"""Where tools see the project, besides its own path."""

Content = Callable[[bytes, TreeEntry], bytes]
"""Reads the content of a path. Raises `Damaged` or `OSError`."""

NOT_OWN = "it does not belong to this session"
OF_GIT = "it belongs to git"

_MISSING = "its directory is missing, or cannot be opened"


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


def mount_prefix(project: str) -> bytes:
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
        # The mode that the first command will give it, so that it does not differ then.
        own = TreeEntry(DIRECTORY, 0o777 & ~_umask(), 0, sink.add(encode([])), own_name)
    inner = [entry for entry in decode(objects.read(own.digest)) if entry.name != name]
    inner.append(TreeEntry(DIRECTORY, _DIRECTORY_MODE, 0, _directory(sink, *entries), name))
    top[own_name] = own._replace(digest=_directory(sink, *inner))
    return Mount(_directory(sink, *top.values()), replaced_path)


def _umask() -> int:
    # There is no other way to read it. Files that another thread creates meanwhile are private.
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


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


class WorkspaceOptions(NamedTuple):
    """A workspace: its directory, the patterns of left out files, and the function that receives the progress of a
    long snapshot.

    `project` is the project whose files belong to it. `is_known` says whether a snapshot keeps the tree of another
    project, by its id.
    """

    root: str
    exclude: Sequence[str] = ()
    report: Report | None = None
    project: MountedProject | None = None
    is_known: Callable[[str], bool] = lambda project: True

    def shown(self, path: bytes) -> bytes:
        """A path of its tree as it is shown to the user."""
        return shown(path, self.project.id if self.project is not None else "")


def prefix_of(workspace: WorkspaceOptions, root: str) -> bytes | None:
    """The prefix that the paths of the directory `root`, a real path, have in trees; `None` if it is not part of the
    workspace.
    """
    project = workspace.project
    if project is not None and project.root == root:
        return mount_prefix(project.id) + b"/"
    return b"" if os.path.realpath(workspace.root) == root else None


def snapshot(
    workspace: WorkspaceOptions, objects: ObjectReader, sink: ObjectWriter, cache: Cache, last_tree: str, *, tidy: bool
) -> Snapshot:
    """A snapshot of a workspace and of its project; new objects go into `sink`, and can be read from `objects`.

    `last_tree` is the tree of the snapshot before, from which the trees of other projects are taken, and that of its
    own project if its directory is not there. The numbers of files and bytes are those of the workspace and of its
    project. `tidy` is that of `trees.snapshot`; without it, for readers, a missing workspace is empty.
    """
    if tidy or os.path.isdir(workspace.root):
        leave_out = trees.excluding(workspace.exclude)
        own = trees.snapshot(workspace.root, sink, cache, leave_out=leave_out, report=workspace.report, tidy=tidy)
    else:
        own = Snapshot(sink.add(trees.encode([])), 0, 0, [])
    projects = _kept_projects(objects, last_tree, workspace) if last_tree != own.tree.hex() else {}
    project = workspace.project
    if project is not None and is_available(project.root):
        rules = coverage.read_rules(project.root, project.coverage)
        files = trees.snapshot(
            project.root,
            sink,
            cache,
            leave_out=rules.top(),
            report=workspace.report,
            tidy=tidy,
            mount=mount_prefix(project.id),
            max_file=project.coverage.max_file,
        )
        for entry in files.unkept:
            if (place := mounted(entry.path)) is not None and place.path:
                rules.uncovered.setdefault(place.path, False)
        coverage.remember(project.root, rules)
        projects[project.id] = mount_of(sink, files.tree, rules.to_json())
        own = Snapshot(own.tree, own.files + files.files, own.bytes + files.bytes, own.unkept + files.unkept)
    elif project is not None:
        # What the snapshot before had of it is only a guess, so nothing there may be changed.
        own = own._replace(unkept=[*own.unkept, UnkeptPath(mount_prefix(project.id), _MISSING)])
    tree, replaced_path = mount(objects, sink, own.tree, projects)
    replaced_paths = [UnkeptPath(replaced_path, NO_CONTENT[-1])] if replaced_path is not None else []
    return own._replace(tree=tree, unkept=own.unkept + replaced_paths)


def _kept_projects(objects: ObjectReader, last_tree: str, workspace: WorkspaceOptions) -> dict[str, bytes]:
    """The mounted projects of the snapshot before. They are lost if it is damaged."""
    if not last_tree:
        return {}
    with suppress(Damaged):
        before = mounts_in(objects, bytes.fromhex(last_tree))
        own = workspace.project.id if workspace.project is not None else None
        return {name: tree for name, tree in before.items() if name == own or workspace.is_known(name)}
    return {}


def content(workspace: WorkspaceOptions, objects: ObjectReader) -> Content:
    """Reads the present content of a path, from the store if it has it, without following links."""
    workspace_tree = DirectoryTree(workspace.root, follow=False)
    project = workspace.project
    project_tree = DirectoryTree(project.root, follow=False) if project is not None else None

    def read(path: bytes, entry: TreeEntry) -> bytes:
        place = mounted(path)
        tree, name = workspace_tree, path
        if place is not None and place.path is not None and project_tree is not None:
            tree, name = project_tree, place.path
        if entry.kind == LINK:
            return os.fsencode(tree.link_target(os.fsdecode(name)))
        if objects.has(entry.digest):
            return objects.read(entry.digest)
        return tree.read(os.fsdecode(name))

    return read


class ProjectGone(Refused):
    """The directory of a project that a rewind would change is not there."""

    code = "project_gone"


def check_available(workspace: WorkspaceOptions, changes: Iterable[TreeChange]) -> None:
    """Raises `ProjectGone` if changes concern a project whose directory is not there."""
    project = workspace.project
    if project is None or is_available(project.root):
        return
    if any(mounted(change.path) is not None for change in changes):
        raise ProjectGone(
            f"The project directory {project.root} is missing, or cannot be opened.",
            "`--only conversation` and `--only memory` still work.",
        )


def working_tree(workspace: WorkspaceOptions, objects: ObjectReader) -> WorkingTree:
    """The files of a workspace and of its project, by the paths of its trees."""
    return _WorkspaceTree(workspace, objects)


class _Parts(NamedTuple):
    """Changes by the directory in which they lie; those of the project are relative to it."""

    workspace: list[TreeChange]
    project: list[TreeChange]
    refused: list[tuple[bytes, str]]


class _WorkspaceTree:
    """A workspace and its project. Paths of other projects and of `.git` are never changed."""

    def __init__(self, workspace: WorkspaceOptions, objects: ObjectReader) -> None:
        project = workspace.project
        self._project = project.id if project is not None else None
        self._prefix = mount_prefix(project.id) + b"/" if project is not None else b""
        self._workspace_tree = restore.working_tree(workspace.root, objects)
        self._project_tree = restore.working_tree(project.root, objects) if project is not None else None

    def _parts(self, changes: Iterable[TreeChange]) -> _Parts:
        parts = _Parts([], [], [])
        for change in changes:
            place = mounted(change.path)
            if place is None:
                parts.workspace.append(change)
            elif place.project == self._project and place.path and not is_of_git(place.path):
                parts.project.append(change._replace(path=place.path))
            elif not trees.is_same(change.before, change.after):
                reason = OF_GIT if place.path and place.project == self._project else NOT_OWN
                parts.refused.append((change.path, reason))
        return parts

    def _in_tree(self, paths: Iterable[bytes]) -> list[bytes]:
        return [self._prefix + path for path in paths]

    def check_writable(self, changes: Iterable[TreeChange]) -> None:
        parts = self._parts(changes)
        self._workspace_tree.check_writable(parts.workspace)
        if self._project_tree is not None:
            self._project_tree.check_writable(parts.project)

    def apply(self, changes: Iterable[TreeChange], mark: str = "restore") -> RestoreResult:
        parts = self._parts(changes)
        written_paths, deleted_paths, kept_paths = self._workspace_tree.apply(parts.workspace, mark)
        kept_paths = [*kept_paths, *parts.refused]
        if self._project_tree is not None and parts.project:
            result = self._project_tree.apply(parts.project, mark)
            written_paths = written_paths + self._in_tree(result.written_paths)
            deleted_paths = deleted_paths + self._in_tree(result.deleted_paths)
            kept_paths += [(self._prefix + path, reason) for path, reason in result.kept_paths]
        return RestoreResult(written_paths, deleted_paths, kept_paths)

    def sweep(self, paths: Iterable[bytes], mark: str) -> None:
        parts = self._parts(TreeChange(path, None, None) for path in paths)
        self._workspace_tree.sweep((change.path for change in parts.workspace), mark)
        if self._project_tree is not None:
            self._project_tree.sweep((change.path for change in parts.project), mark)

    def unmet(self, changes: Iterable[TreeChange]) -> list[bytes]:
        parts = self._parts(changes)
        unmet = self._workspace_tree.unmet(parts.workspace)
        if self._project_tree is not None:
            unmet = unmet + self._in_tree(self._project_tree.unmet(parts.project))
        return unmet


def remove_temporary_files(workspace: WorkspaceOptions, messages: Iterable[Message], turn: int) -> None:
    """Remove the temporary files beside the paths in the tool calls of a killed turn of a project.

    A snapshot removes those that it meets, but it does not enter ignored directories. The call in the log names the
    file that the tool was writing.
    """
    project = workspace.project
    if project is None:
        return
    for directory in {posixpath.dirname(path) for path in _paths_in_calls(project.root, messages, turn)}:
        with suppress(OSError), restore.directory(project.root, os.fsencode(directory)) as descriptor:
            for name in os.listdir(descriptor):
                if atomic.is_temporary(name):
                    atomic.remove_dead_temporary(descriptor, os.fsencode(name))


def _paths_in_calls(root: str, messages: Iterable[Message], turn: int) -> Iterator[str]:
    """The paths in the calls of a turn, relative to the project. Other texts among them name no directory."""
    for entry in messages:
        parts = entry.message.get("parts") if entry.turn == turn else None
        for part in parts if isinstance(parts, list) else ():
            if not isinstance(part, dict) or part.get("part_kind") != "tool-call":
                continue
            for value in _arguments(part.get("args")).values():
                if not isinstance(value, str) or "\0" in value or len(value) > 4096:
                    continue
                for place in (root, _ALIAS):
                    value = value.removeprefix(f"{place}/")
                path = posixpath.normpath(value)
                if not path.startswith(("/", "..")):
                    yield path


def _arguments(arguments: object) -> dict[str, Any]:
    """The arguments of a call, which a model may have sent as text."""
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return arguments if isinstance(arguments, dict) else {}
