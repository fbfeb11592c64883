"""The paths that a rewind may change: those of the session's workspace and project that no rule ignores.

Every snapshot of a project contains the coverage rules of its time (`deepctl.store.mounts`). A path that the rules of
the target or of now ignore is not changed, because its absence from a tree does not mean that it was deleted.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence

from deepctl import layout
from deepctl.files import atomic
from deepctl.store import mounts
from deepctl.store.coverage import CoverageRules
from deepctl.store.object_store import ObjectReader
from deepctl.store.records import Record
from deepctl.store.trees import TOO_LARGE, Snapshot, excluding
from deepctl.store.workspaces import WorkspaceOptions

Hidden = Callable[[bytes, bool], bool]
"""Whether a snapshot ignored a path; the second argument says whether it is a directory."""

_MEMORY = layout.MEMORY_DIRECTORY.encode()


def in_memory(path: bytes) -> bool:
    """Whether a path of a workspace belongs to memory."""
    return path == _MEMORY or path.startswith(_MEMORY + b"/")


class StoredRules:
    """The coverage rules in trees, each read once."""

    def __init__(self, objects: ObjectReader) -> None:
        self._objects = objects
        self._digests: dict[tuple[bytes, str], bytes | None] = {}
        self._rules: dict[bytes, CoverageRules] = {}

    def of(self, tree: bytes, project: str) -> CoverageRules | None:
        """The rules of a project at the time of a tree; `None` if the tree does not contain it. Raises `Damaged`."""
        key = tree, project
        if key not in self._digests:
            self._digests[key] = mounts.rules_digest(self._objects, tree, project)
        digest = self._digests[key]
        if digest is None:
            return None
        if digest not in self._rules:
            self._rules[digest] = CoverageRules.from_json(self._objects.read(digest))
        return self._rules[digest]

    def hidden(self, tree: bytes, unkept: Sequence[list[str]], exclude: Sequence[str]) -> Hidden:
        """Whether the snapshot with this tree ignored a path: it could not be stored, was excluded or not covered, or
        is a temporary file.
        """
        in_workspace = hidden_by(unkept, exclude)

        def hidden(path: bytes, is_directory: bool) -> bool:
            place = mounts.mounted(path)
            if place is None:
                return in_workspace(path, is_directory)
            if not place.path:
                return False
            rules = self.of(tree, place.project)
            return rules is None or rules.hides(place.path, is_directory) or unstored(path, is_directory)

        unstored = hidden_by(unkept, ())
        return hidden


def hidden_by(unkept: Sequence[Sequence[str]], exclude: Sequence[str]) -> Hidden:
    """Whether a snapshot of a workspace ignored a path: it could not be stored, was excluded, or is temporary."""
    paths = {os.fsencode(path) for path, _ in unkept}
    leave_out = excluding(exclude)

    def hidden(path: bytes, is_directory: bool = False) -> bool:
        if atomic.is_temporary(posixpath.basename(path)):
            return True
        if not paths and leave_out is None:
            return False
        parents = above(path)
        if not paths.isdisjoint((path, *parents)):
            return True
        if leave_out is None:
            return False
        return leave_out(path, True) or leave_out(path, False) or any(leave_out(parent, True) for parent in parents)

    return hidden


def above(path: bytes) -> list[bytes]:
    """The directories above a path, from the nearest on."""
    parents = []
    while path := posixpath.dirname(path):
        parents.append(path)
    return parents


class RewindScope:
    """The paths that one rewind may change. `only` is that of the request."""

    def __init__(
        self, rules: StoredRules, workspace: WorkspaceOptions, target: Record, present: Snapshot, only: str
    ) -> None:
        self._only = only
        self._project = workspace.project.id if workspace.project is not None else None
        self._excluded = hidden_by([], workspace.exclude)
        too_large = [[os.fsdecode(entry.path), entry.reason] for entry in present.unkept if entry.reason == TOO_LARGE]
        now = rules.hidden(present.tree, too_large, workspace.exclude)
        then = rules.hidden(bytes.fromhex(target.tree), _too_large(target), target.exclude)
        self._ends = (now, then)

    def selects(self, path: bytes) -> bool:
        """Whether a path belongs to the rewind."""
        place = mounts.mounted(path)
        if place is None:
            if self._project is not None and self._only == "files":
                return False
            is_part = not self._only or in_memory(path) == (self._only == "memory")
            return is_part and not self._excluded(path, False)
        is_own = place.project == self._project and bool(place.path) and not mounts.is_of_git(place.path or b"")
        return is_own and self._only != "memory" and not atomic.is_temporary(posixpath.basename(path))

    def ignores(self, path: bytes, is_directory: bool) -> bool:
        """Whether the rules of the target or of now ignore a path of the project."""
        return mounts.mounted(path) is not None and any(hidden(path, is_directory) for hidden in self._ends)


def _too_large(record: Record) -> list[list[str]]:
    return [unkept for unkept in record.unkept if unkept[1] == TOO_LARGE]
