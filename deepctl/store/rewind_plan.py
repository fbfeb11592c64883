"""The changes of a rewind: only the agent's own changes are undone.

The time between a target and now consists of intervals between two snapshots. The author of the changes in an interval
is the session, or another author (the user's editor, another session). A path is restored to its state before the
session's first change. If another author changed it later, that edit would be lost: a conflict. Notebooks of memory
and text files of projects are merged by line instead, if possible (`line_merge`).

`RewindScope` has the paths that a rewind may change: those of the session's workspace and project that no rule ignores.
Every snapshot of a project contains the coverage rules of its time (`deepctl.store.workspaces`). A path that the rules
of the target or of now ignore is not changed, because its absence from a tree does not mean that it was deleted.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from deepctl import layout
from deepctl.files import atomic
from deepctl.store import trees, workspaces
from deepctl.store.coverage import CoverageRules
from deepctl.store.line_merge import MERGED_UP_TO, is_text, take_back_lines
from deepctl.store.object_store import ObjectReader, ObjectWriter
from deepctl.store.records import Record, WorkspaceState
from deepctl.store.trees import (
    DIRECTORY,
    FILE,
    NO_CONTENT,
    TOO_LARGE,
    Snapshot,
    TreeChange,
    TreeEntry,
    TreeReader,
    changes,
    excluding,
)
from deepctl.store.workspaces import WorkspaceOptions

_RECEIPTS = b".memory-operations.json"
"""The journal of the harness' memory store; its only purpose is that a repeated call is not done twice."""
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
            self._digests[key] = workspaces.rules_digest(self._objects, tree, project)
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
            place = workspaces.mounted(path)
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
        place = workspaces.mounted(path)
        if place is None:
            if self._project is not None and self._only == "files":
                return False
            is_part = not self._only or in_memory(path) == (self._only == "memory")
            return is_part and not self._excluded(path, False)
        is_own = place.project == self._project and bool(place.path) and not workspaces.is_of_git(place.path or b"")
        return is_own and self._only != "memory" and not atomic.is_temporary(posixpath.basename(path))

    def ignores(self, path: bytes, is_directory: bool) -> bool:
        """Whether the rules of the target or of now ignore a path of the project."""
        return workspaces.mounted(path) is not None and any(is_hidden(path, is_directory) for is_hidden in self._ends)


def _too_large(record: Record) -> list[list[str]]:
    return [unkept for unkept in record.unkept if unkept[1] == TOO_LARGE]


class Interval(NamedTuple):
    """The time between two snapshots: the trees before and after, and the author of the changes.

    `by` is a session's id, empty for another author, `None` if it is unknown; `merged` has the authors by path instead,
    unless it is empty. `hidden` says whether the first snapshot ignored a path, `hidden_after` the second one; their
    second argument says whether the path is a directory. `is_command` says that a command ran in this time.
    """

    before: bytes
    after: bytes
    by: str | None
    merged: Sequence[tuple[str | None, frozenset[bytes]]] = ()
    hidden: Hidden = lambda path, is_directory: False
    hidden_after: Hidden = lambda path, is_directory: False
    is_command: bool = False

    def authors(self, path: bytes) -> set[str | None]:
        """The possible authors of the change of this path."""
        if not self.merged:
            return {self.by}
        return {author for author, paths in self.merged if path in paths} or {None}


def interval(before: WorkspaceState, after: WorkspaceState, rules: StoredRules) -> Interval:
    """The interval between two neighbouring states of a workspace."""
    old, new = bytes.fromhex(before.tree), bytes.fromhex(after.tree)
    return Interval(
        old,
        new,
        after.by,
        [(by, frozenset(map(os.fsencode, paths))) for by, paths in after.merged],
        rules.hidden(old, before.unkept, before.exclude),
        rules.hidden(new, [unkept for unkept in after.unkept if unkept[1] not in NO_CONTENT], after.exclude),
    )


class RewindChanges(NamedTuple):
    """The changes that a rewind makes, and the paths at which it would lose an edit of another author.

    Of these paths, `unknown_paths` have an edit of an unknown author. `blocked_paths` are changed paths of the session
    that cannot be restored, because their earlier content was not stored. `unsaved_paths` are paths of the changes
    whose present content could not be stored, so that a change would lose it permanently. `ignored_paths` stay, because
    coverage rules ignore them. `merged_paths` are paths of the changes that keep the lines of other authors.
    `command_paths` are paths of the changes that a command of the session changed: an edit that another author saved
    meanwhile counts as the command's. `occupied_paths` are conflicts that --force cannot override: a directory with
    files of another author is in the place of a file.
    """

    changes: list[TreeChange]
    conflict_paths: list[bytes]
    blocked_paths: list[bytes] = []
    unknown_paths: list[bytes] = []
    unsaved_paths: list[bytes] = []
    ignored_paths: list[bytes] = []
    merged_paths: list[bytes] = []
    command_paths: list[bytes] = []
    occupied_paths: list[bytes] = []


def exact(
    objects: ObjectReader,
    now: bytes,
    target: bytes,
    *,
    is_selected: Callable[[bytes], bool] = lambda path: True,
    is_hidden: Hidden = lambda path, is_directory: False,
    is_ignored: Hidden = lambda path, is_directory: False,
    unread_paths: Sequence[bytes] = (),
) -> RewindChanges:
    """Restore the whole workspace, for all authors, except for paths that the target's snapshot ignored (`is_hidden`),
    or that coverage rules ignore (`is_ignored`).

    `unread_paths` are paths that could not be read now: changing them, or paths below them, would lose content.
    """
    blocked_paths: list[bytes] = []
    ignored_paths: list[bytes] = []
    planned_changes: dict[bytes, TreeChange] = {}
    for change in changes(objects, now, target):
        path, is_directory = change.path, change.is_directory
        if not is_selected(path) or change.is_made_by_deepctl:
            continue
        if is_ignored(path, is_directory):
            ignored_paths.append(path)
        elif is_hidden(path, is_directory):
            blocked_paths.append(path)
        else:
            planned_changes[path] = change
    is_unread = hidden_by([[os.fsdecode(path), ""] for path in unread_paths], ())
    unsaved_paths = {
        path for path in planned_changes if is_unread(path, False) and not atomic.is_temporary(posixpath.basename(path))
    }
    for path in unread_paths:
        is_kept = is_ignored(path, False) or is_hidden(path, False)
        if is_selected(path) and not is_kept and path not in planned_changes:
            # The path is in no tree. The target has no entry there, or another one.
            planned_changes[path] = TreeChange(path, None, None)
            unsaved_paths.add(path)
    return RewindChanges(
        [planned_changes[path] for path in sorted(planned_changes)],
        sorted(unsaved_paths),
        blocked_paths,
        [],
        sorted(unsaved_paths),
        ignored_paths,
    )


def own_work(
    objects: ObjectReader,
    intervals: Iterable[Interval],
    now: bytes,
    session: str,
    sink: ObjectWriter,
    *,
    is_selected: Callable[[bytes], bool] = lambda path: True,
    is_ignored: Hidden = lambda path, is_directory: False,
    is_unseen: Callable[[bytes], bool] = lambda path: False,
    content: Callable[[bytes, TreeEntry], bytes] | None = None,
    merge: bool = True,
) -> RewindChanges:
    """Undo the changes of `session` in `intervals`, which are in the order of time and end at the tree `now`.

    `is_selected` says whether a path may be changed, `is_ignored` whether coverage rules ignore it, `is_unseen` whether
    it could not be read now. The changes ignore conflicts; a caller that must not lose an edit does nothing if there
    are conflicts. Merged files are stored in `sink`; `content` reads present contents that `objects` does not have.
    Without `merge`, a file that would be merged is a conflict.
    """
    work = _SessionWork(objects, content or (lambda path, entry: objects.read(entry.digest)), is_ignored, merge)
    for interval in intervals:
        for change in changes(objects, interval.before, interval.after):
            if is_selected(change.path) and not change.is_made_by_deepctl:
                work.take(change, interval, session)
    return work.plan(now, sink, is_unseen, is_selected)


class _SessionWork:
    """The changes of a session, by path."""

    def __init__(
        self, objects: ObjectReader, content: Callable[[bytes, TreeEntry], bytes], is_ignored: Hidden, merge: bool
    ) -> None:
        self._objects = objects
        self._merge = merge
        self._is_ignored = is_ignored
        self._ignored: set[bytes] = set()
        self._content = content
        self._goal: dict[bytes, TreeEntry | None] = {}
        self._steps: dict[bytes, list[tuple[TreeEntry | None, TreeEntry | None]]] = {}
        self._mixed: set[bytes] = set()
        self._conflicts: set[bytes] = set()
        self._certain: set[bytes] = set()
        self._blocked: set[bytes] = set()
        self._by_command: set[bytes] = set()

    def take(self, change: TreeChange, interval: Interval, session: str) -> None:
        path, is_directory = change.path, change.is_directory
        authors = interval.authors(path)
        is_own = bool(authors & {session, None})
        if interval.hidden_after(path, is_directory):
            # The snapshot ignored it, so it was not necessarily deleted, and the session may have changed it since.
            if is_own and self._is_ignored(path, is_directory):
                self._ignored.add(path)
            return
        if is_own and self._is_ignored(path, is_directory):
            self._ignored.add(path)
            return
        if is_own and path not in self._goal:
            if interval.hidden(path, is_directory):
                self._blocked.add(path)
                return
            self._goal[path] = change.before
        if is_own and interval.is_command:
            self._by_command.add(path)
        if is_own and _is_mergeable(path):
            self._steps.setdefault(path, []).append((change.before, change.after))
            if authors != {session}:
                # The authors of single lines in this step are unknown: undoing it could delete another author's line.
                self._mixed.add(path)
        if authors - {session} and path in self._goal:
            self._conflicts.add(path)
            self._certain.update({path} if authors - {session, None} else ())

    def plan(
        self, now: bytes, sink: ObjectWriter, is_unseen: Callable[[bytes], bool], is_selected: Callable[[bytes], bool]
    ) -> RewindChanges:
        present = TreeReader(self._objects, now)
        planned_changes: dict[bytes, TreeChange] = {}
        merged_paths: list[bytes] = []
        for path, entry in self._goal.items():
            current = present.entry(path)
            if is_unseen(path):
                self._conflicts.add(path)
                planned_changes[path] = TreeChange(path, current, entry)
                continue
            if trees.is_same(current, entry):
                self._conflicts.discard(path)
                continue
            if path in self._conflicts and in_memory(path) and posixpath.basename(path) == _RECEIPTS:
                self._conflicts.discard(path)
                continue
            if (
                path in self._conflicts
                and self._merge
                and (merged_entry := self._merged(path, current, sink)) is not None
            ):
                self._conflicts.discard(path)
                entry = merged_entry[0]
                if trees.is_same(current, entry):
                    continue
                merged_paths.append(path)
            planned_changes[path] = TreeChange(path, current, entry)
        for path in list(planned_changes):
            for directory in _above_in_place(path):
                self._place(path, directory, planned_changes, present, is_selected)
        occupied_paths = [
            path for path, change in planned_changes.items() if self._is_occupied(change, planned_changes)
        ]
        self._conflicts.update(occupied_paths)
        self._certain.update(occupied_paths)
        unsaved_paths = [path for path in sorted(planned_changes) if is_unseen(path)]
        self._conflicts.update(unsaved_paths)
        return RewindChanges(
            [planned_changes[path] for path in sorted(planned_changes)],
            sorted(self._conflicts),
            sorted(self._blocked),
            sorted(self._conflicts - self._certain),
            unsaved_paths,
            sorted(path for path in self._ignored if self._ignored.isdisjoint(above(path))),
            sorted(merged_paths),
            sorted(path for path in self._by_command if _is_effective(planned_changes.get(path))),
            sorted(occupied_paths),
        )

    def _is_occupied(self, change: TreeChange, planned_changes: dict[bytes, TreeChange]) -> bool:
        """Whether a file or link cannot come back because a directory is there in which something stays."""
        before, after = change.before, change.after
        if before is None or before.kind != DIRECTORY or after is None or after.kind == DIRECTORY:
            return False
        for path, _ in trees.walk(self._objects, before.digest, change.path + b"/"):
            if path not in planned_changes or planned_changes[path].after is not None:
                return True
        return False

    def _place(
        self,
        path: bytes,
        directory: bytes,
        planned_changes: dict[bytes, TreeChange],
        present: TreeReader,
        is_selected: Callable[[bytes], bool],
    ) -> None:
        """Plan the directory `directory`, so that it exists and has the right mode after the change of `path`."""
        current = present.entry(directory)
        entry = planned_changes[directory].after if directory in planned_changes else current
        if entry is not None and entry.kind == DIRECTORY:
            # With this change its mode is restored at the end, even if the directory had to be made writable.
            planned_changes.setdefault(directory, TreeChange(directory, current, current))
        elif planned_changes[path].after is not None:
            if directory not in self._goal and is_selected(directory) and directory not in trees.MADE_BY_DEEPCTL:
                # Another author removed the directory of the path that should be restored.
                self._conflicts.add(path)
                self._certain.add(path)
            planned_changes[directory] = TreeChange(
                directory, current, TreeEntry(DIRECTORY, 0o755, 0, bytes(32), posixpath.basename(directory))
            )

    def _merged(self, path: bytes, current: TreeEntry | None, sink: ObjectWriter) -> tuple[TreeEntry | None] | None:
        """The file without the session's changes, or `None` if lines collide or their authors are unknown."""
        steps = self._steps.get(path, [])
        if path in self._mixed or not steps:
            return None
        return self._merged_notebook(path, current, sink) if in_memory(path) else self._merged_file(path, current, sink)

    def _merged_notebook(
        self, path: bytes, current: TreeEntry | None, sink: ObjectWriter
    ) -> tuple[TreeEntry | None] | None:
        steps = self._steps[path]
        entries = [current, *(entry for step in steps for entry in step)]
        if any(entry is not None and (entry.kind != FILE or entry.size > MERGED_UP_TO) for entry in entries):
            return None
        text = self._content(path, current) if current is not None else b""
        for before, after in reversed(steps):
            content = take_back_lines(self._read(before), self._read(after), text)
            if content is None:
                return None
            text = content
        if not text and self._goal[path] is None:
            return (None,)
        like = current or self._goal[path] or steps[-1][1]
        if like is None:
            return None
        return (like._replace(size=len(text), digest=sink.add(text)),)

    def _merged_file(self, path: bytes, current: TreeEntry | None, sink: ObjectWriter) -> tuple[TreeEntry] | None:
        """The same for a file of a project. Mode and content are merged independently.

        A file that the session created or deleted is not merged, because single lines of it make no sense.
        """
        if current is None or current.kind != FILE:
            return None
        entry, text = current, None
        for before, after in reversed(self._steps[path]):
            if before is None or after is None or before.kind != FILE or after.kind != FILE:
                return None
            if before.mode != after.mode:
                if entry.mode != after.mode:
                    return None
                entry = entry._replace(mode=before.mode)
            if before.digest == after.digest:
                continue
            if text is None and entry.digest == after.digest:
                entry = entry._replace(digest=before.digest, size=before.size)
                continue
            if text is None:
                if max(entry.size, before.size, after.size) > MERGED_UP_TO:
                    return None
                is_present = entry.digest == current.digest
                text = self._content(path, entry) if is_present else self._read(entry)
            texts = (self._read(before), self._read(after), text)
            text = take_back_lines(*texts, is_ordered=True) if all(map(is_text, texts)) else None
            if text is None:
                return None
        return (entry if text is None else entry._replace(size=len(text), digest=sink.add(text)),)

    def _read(self, entry: TreeEntry | None) -> bytes:
        return self._objects.read(entry.digest) if entry is not None else b""


def _is_mergeable(path: bytes) -> bool:
    """Whether a file at this path may be merged by line: notebooks of memory, and files of projects."""
    place = workspaces.mounted(path)
    return bool(place.path) if place is not None else in_memory(path)


def _above_in_place(path: bytes) -> list[bytes]:
    """The directories above a path in the workspace; for a path of a project, those in the project."""
    if workspaces.mounted(path) is None:
        return above(path)
    return [
        directory for directory in above(path) if (place := workspaces.mounted(directory)) is not None and place.path
    ]


def _is_effective(change: TreeChange | None) -> bool:
    return change is not None and not change.is_directory and not trees.is_same(change.before, change.after)
