"""Calls of tools, and the author of each change around them.

Without more knowledge, a call may change every file. Then the changes before it, which are those of other authors, need
a snapshot of their own: the other authors' version of a file that the call overwrites would be in no checkpoint.

A file tool announces each file that it is about to change (`changed_paths`). If the last snapshot has the present state
of that file, one snapshot after the call is enough: with the paths of the call put back to their state in the last
snapshot (`put_back`), it has the changes of other authors.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from deepctl.errors import Damaged
from deepctl.files.paths_beneath import DirectoryTree
from deepctl.files.sparse_files import Hasher
from deepctl.store import coverage, trees, workspaces
from deepctl.store.object_store import ObjectReader, ObjectWriter
from deepctl.store.records import Position
from deepctl.store.trees import FILE, MADE_BY_DEEPCTL, Snapshot, TreeChange, TreeEntry, TreeReader
from deepctl.store.workspaces import WorkspaceOptions

_MOST_READ = 64 << 20
"""Bytes of the largest file whose content is compared. A snapshot recognises an unchanged file by its status."""
_RULES = b".gitignore"


@dataclass
class ToolCall:
    """A call of the tool `name`. `before` is the position of the conversation before it.

    `paths` are the paths in trees that the call has changed so far; `None` if it may change every path.
    """

    name: str
    before: Position
    paths: set[bytes] | None = None

    @property
    def has_changes(self) -> bool:
        """Whether the call may have changed something."""
        return self.paths is None or bool(self.paths)


def changed_paths(
    workspace: WorkspaceOptions,
    objects: ObjectReader,
    last_tree: str,
    root: str,
    path: str,
    announced: Collection[bytes],
) -> set[bytes] | None:
    """The paths in trees that change if a file tool changes the file `path` of the directory `root`: the file, and the
    missing directories above it, besides those that are `announced` already.

    `None` if the state of one of them is not the one in the tree `last_tree`, or if other paths may change, too: other
    names of the file, and paths whose coverage depends on it.
    """
    prefix, name = workspaces.prefix_of(workspace, root), os.fsencode(path)
    if prefix is None or not last_tree:
        return None
    if prefix + name in announced:
        return set()
    if prefix and (workspaces.is_of_git(name) or posixpath.basename(name).lower() == _RULES):
        return None
    paths = {prefix + name}
    try:
        last = TreeReader(objects, bytes.fromhex(last_tree))
        for directory in _missing_directories(root, name):
            if last.entry(prefix + directory) is not None and directory not in MADE_BY_DEEPCTL:
                return None
            paths.add(prefix + directory)
        entry = last.entry(prefix + name)
        is_stored = trees.is_same(entry, _present(root, name))
        if not is_stored and (entry is not None or not _is_left_out(workspace, root, name)):
            return None
    except (Damaged, OSError):
        return None
    return paths


def _missing_directories(root: str, path: bytes) -> Iterator[bytes]:
    directory = posixpath.dirname(path)
    while directory and not os.path.lexists(os.path.join(os.fsencode(root), directory)):
        yield directory
        directory = posixpath.dirname(directory)


def _present(root: str, path: bytes) -> TreeEntry | None:
    """The present entry of a file, `None` without one. Raises `OSError` if it is no regular file with a single name."""
    try:
        with DirectoryTree(root, follow=False).opened(os.fsdecode(path)) as (descriptor, is_directory):
            status = os.fstat(descriptor)
            if is_directory or status.st_nlink != 1 or status.st_size > _MOST_READ:
                raise OSError("not a file that can be compared")
            digest, size = Hasher().hashed(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return TreeEntry(FILE, stat.S_IMODE(status.st_mode), size, digest, posixpath.basename(path))


def _is_left_out(workspace: WorkspaceOptions, root: str, path: bytes) -> bool:
    """Whether a snapshot leaves out an existing file because of the rules that hold now. Sizes do not count."""
    project = workspace.project
    if project is not None and project.root == root:
        return coverage.hides_now(root, project.coverage, path)
    is_excluded = trees.excluding(workspace.exclude)
    return is_excluded is not None and is_excluded(path, False)


def put_back(
    workspace: WorkspaceOptions,
    objects: ObjectReader,
    sink: ObjectWriter,
    present: Snapshot,
    last_tree: str,
    paths: Collection[bytes],
) -> Snapshot:
    """The snapshot `present` with these paths in their state in `last_tree`; new trees go into `sink`."""
    before, after = TreeReader(objects, bytes.fromhex(last_tree)), TreeReader(objects, present.tree)
    changes = [TreeChange(path, after.entry(path), before.entry(path)) for path in sorted(paths)]
    changes = [
        change
        for change in changes
        if change.before != change.after and not (change.before is None and _is_hidden(workspace, change.path))
    ]
    files, size = present.files, present.bytes
    for change in changes:
        for entry, sign in ((change.before, -1), (change.after, 1)):
            if entry is not None and entry.kind != trees.DIRECTORY:
                files, size = files + sign, size + sign * entry.size
    tree = trees.patch(objects, sink, present.tree, changes) if changes else present.tree
    return Snapshot(tree, files, size, [unkept for unkept in present.unkept if unkept.path not in paths])


def _is_hidden(workspace: WorkspaceOptions, path: bytes) -> bool:
    """Whether rules hide a path in trees that a snapshot lacks. Another author has changed them since the last one."""
    project, place = workspace.project, workspaces.mounted(path)
    if project is None or place is None or not place.path:
        return False
    try:
        return coverage.hides_now(project.root, project.coverage, place.path)
    except OSError:
        return False
