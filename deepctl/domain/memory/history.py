"""The history of notebooks, read from the checkpoints: as of one checkpoint, and every version.

Without the lock, and without writing. Only differences between checkpoints are read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import NamedTuple

from deepctl import layout
from deepctl.domain.memory.directory import Memory, Notebook, file_name
from deepctl.errors import Damaged, MemoryNotFound, NotFound, Refused
from deepctl.store import lookup, session_catalogue
from deepctl.store.diff import line_counts, unified
from deepctl.store.ledger import Ledger
from deepctl.store.lookup import CheckpointProblem
from deepctl.store.object_store import ObjectReader
from deepctl.store.records import Record, WorkspaceState
from deepctl.store.repository import ReadOnlyRepository
from deepctl.store.rewind_plan import Hidden, hidden_by
from deepctl.store.trees import DIRECTORY, FILE, NO_CONTENT, TreeEntry, decode

NOW, REWOUND = "now", "rewound"


class Version(NamedTuple):
    """The state of a notebook from a time on.

    `checkpoint` contains it, `None` if none does; `kind` is the kind of that checkpoint, or `rewound` if a rewind
    restored the content, or `now`. `at` is RFC 3339 in UTC, `None` for a notebook that was deleted since the last
    checkpoint. `size` is in bytes, `None` for a missing notebook; lines are `None` if they are unknown.
    """

    checkpoint: str | None
    kind: str
    session: str | None
    at: str | None
    size: int | None
    added: int | None
    removed: int | None


class NotebookHistory(NamedTuple):
    """The versions of one notebook, newest first, and the checkpoints without information about it."""

    file: str
    versions: list[Version]
    damaged: list[CheckpointProblem]


class CheckpointTrees:
    """Reads the trees of checkpoints; a directory that two of them share is read once."""

    def __init__(self, objects: ObjectReader) -> None:
        self._objects = objects
        self._known: dict[tuple[bytes, bytes], TreeEntry | None] = {}
        self._rules: dict[tuple[str, ...], Hidden] = {}

    def entry(self, tree: bytes, path: str) -> TreeEntry | None:
        """The entry at `path` in a tree, or the entry that blocks the way; `None` for nothing. Raises `Damaged`."""
        match: TreeEntry | None = None
        for name in os.fsencode(path).split(b"/"):
            if match is not None and match.kind != DIRECTORY:
                return match
            digest = match.digest if match is not None else tree
            if (digest, name) not in self._known:
                entries = {entry.name: entry for entry in decode(self._objects.read(digest))}
                self._known[digest, name] = entries.get(name)
            match = self._known[digest, name]
            if match is None:
                return None
        return match

    def entries(self, tree: bytes, path: str) -> list[TreeEntry]:
        """The entries of a directory in a tree; none if it does not exist."""
        entry = self.entry(tree, path)
        return decode(self._objects.read(entry.digest)) if entry is not None and entry.kind == DIRECTORY else []

    def unseen(self, state: WorkspaceState | Record, path: str) -> bool:
        """Whether the checkpoint left `path` out, so that it only seems to be missing."""
        exclude = tuple(state.exclude)
        if exclude not in self._rules:
            self._rules[exclude] = hidden_by([], exclude)
        unread_items = [item for item in state.unkept if item[1] not in NO_CONTENT]
        return self._rules[exclude](os.fsencode(path), False) or (
            bool(unread_items) and hidden_by(unread_items, ())(os.fsencode(path), False)
        )


def notebook_at(reader: ReadOnlyRepository, memory: Memory, file: str, record: Record) -> Notebook:
    """A notebook as of a checkpoint with files; its `modified_at` is the checkpoint's time.

    Raises `MemoryNotFound`, `Damaged`, or `Refused` if the checkpoint has no information, or another entry there.
    """
    name = file_name(file)
    path = memory.path(name)
    past = CheckpointTrees(reader.objects)
    check_seen(past, record, path)
    entry = past.entry(bytes.fromhex(record.tree), path)
    problem = next(
        (reason for unkept, reason in record.unkept if unkept == path or path.startswith(f"{unkept}/")), None
    )
    if entry is not None and entry.kind != FILE:
        problem = f"a {entry.what}"
    if problem is not None:
        raise Refused(
            f"In checkpoint {record.id}, {path} is not a readable notebook: it is {problem}.", code="memory_refused"
        )
    if entry is None:
        raise MemoryNotFound(
            f"Checkpoint {record.id} has no memory file {name!r} of agent {memory.agent!r}.",
            f"`deepctl memory history {name} --user {memory.profile.name}` lists its versions.",
        )
    content = reader.objects.read(entry.digest)
    return Notebook(name, path, len(content), record.created_at, content)


def checkpoint_with_files(reader: ReadOnlyRepository, reference: str, session: str | None = None) -> Record:
    """The checkpoint of `reference`; `~N` counts in `session`, or in the session of the workspace that was used last.

    Raises `CheckpointNotFound`, `Damaged`, or `Refused` without files.
    """
    record = lookup.find_checkpoint(reader.paths, reader.ledger, reference, session)
    lookup.check_files(record, lookup.OTHER_CHECKPOINTS_HINT)
    if not record.tree:
        raise Refused(
            f"Checkpoint {record.id} contains only the conversation, no notebooks.",
            "`deepctl checkpoints list` lists the others.",
            code="no_files",
        )
    return record


def check_seen(past: CheckpointTrees, record: Record, path: str) -> None:
    """Raises `Refused` if a checkpoint left `path` out."""
    if past.unseen(record, path):
        raise Refused(
            f"Checkpoint {record.id} does not contain {path}.",
            "The setting snapshot.exclude leaves files out of checkpoints; `deepctl checkpoints show` lists the "
            "missing files.",
            code="not_kept",
        )


def history(reader: ReadOnlyRepository, memory: Memory, file: str) -> NotebookHistory:
    """Every version of a notebook, from the checkpoints and the present state.

    Raises `MemoryNotFound` if it never existed, `Refused` if an entry of another kind is in its place now.
    """
    name = file_name(file)
    past = CheckpointTrees(reader.objects)
    collector = _HistoryBuilder(reader, past, memory.path(name))
    for state in reader.ledger.states:
        if not past.unseen(state, memory.path(name)):
            collector.take(state)
    present = memory.find(name)
    collector.take_present(present)
    if not collector.versions and not collector.damaged:
        memory.read(name)  # raises the error for a missing notebook
    return NotebookHistory(name, collector.versions[::-1], collector.damaged)


class _HistoryBuilder:
    """The history of one notebook, state by state."""

    def __init__(self, reader: ReadOnlyRepository, past: CheckpointTrees, path: str) -> None:
        self._objects = reader.objects
        self._ledger = reader.ledger
        self._names = session_catalogue.by_id(reader.paths)
        self._past = past
        self._path = path
        self._digest: bytes | None = None
        self._content = b""
        self.versions: list[Version] = []
        self.damaged: list[CheckpointProblem] = []

    def take(self, state: WorkspaceState) -> None:
        """Add the state of a checkpoint or a rewind."""
        try:
            entry = self._past.entry(bytes.fromhex(state.tree), self._path)
        except Damaged as error:
            self._damage(state, error)
            return
        digest = entry.digest if entry is not None and entry.kind == FILE else None
        if digest == self._digest:
            return
        content: bytes | None = b""
        try:
            content = self._objects.read(digest) if digest is not None else b""
        except Damaged as error:
            self._damage(state, error)
            content = None
        self._add(content, entry.size if entry is not None and digest is not None else None, *self._told(state, digest))
        self._digest = digest

    def take_present(self, present: Notebook | None) -> None:
        """Add the present state."""
        digest = hashlib.sha256(present.content).digest() if present is not None else None
        if digest == self._digest:
            return
        if present is None:
            self._add(b"", None, None, NOW, None, None)
        else:
            self._add(present.content, present.size, None, NOW, None, present.modified_at)

    def _add(
        self,
        content: bytes | None,
        size: int | None,
        checkpoint: str | None,
        kind: str,
        session: str | None,
        at: str | None,
    ) -> None:
        lines = line_counts(self._content, content) if content is not None else None
        additions, deletions = lines if lines is not None else (None, None)
        self.versions.append(Version(checkpoint, kind, session, at, size, additions, deletions))
        # Unreadable states are skipped: the next version is compared with the last readable one.
        self._content = content if content is not None else self._content

    def _told(self, state: WorkspaceState, digest: bytes | None) -> tuple[str | None, str, str | None, str | None]:
        """The checkpoint that contains it, its kind and session, and its time."""
        record = self._ledger.records.get(state.id)
        if record is not None:
            return record.id, record.kind, self._session(record.session), record.created_at
        rewind = self._ledger.rewinds.get(state.id)
        if rewind is None:
            return None, REWOUND, None, None
        target = self._ledger.records.get(rewind.to)
        has_it = target is not None and self._same(target, digest)
        return target.id if target and has_it else None, REWOUND, self._session(rewind.session), rewind.at

    def _same(self, record: Record, digest: bytes | None) -> bool:
        try:
            entry = self._past.entry(bytes.fromhex(record.tree), self._path) if record.tree else None
        except Damaged:
            return False
        return digest == (entry.digest if entry is not None and entry.kind == FILE else None)

    def _session(self, identity: str) -> str:
        return self._names.get(identity, identity)

    def _damage(self, state: WorkspaceState, error: Damaged) -> None:
        self.damaged.append(CheckpointProblem(state.id, self._path, error.message))


class NotebookDifference(NamedTuple):
    """One notebook that differs; `change` is `added`, `deleted` or `modified`.

    `diff` is unified, for `patch -p1 --binary` in a workspace; `remark` is the reason if there is no diff.
    """

    name: str
    path: str
    change: str
    added: int | None
    removed: int | None
    diff: bytes
    remark: str | None


class NotebookComparison(NamedTuple):
    """The notebooks that differ between two checkpoints, or between one and now (`after` is `None`)."""

    before: Record
    after: Record | None
    differences: list[NotebookDifference]


def compare(
    reader: ReadOnlyRepository, memory: Memory, before: str | None, after: str | None, session: str | None = None
) -> NotebookComparison:
    """Compare the notebooks of two checkpoints; `before` defaults to the latest, `after` to the present state.

    `~N` counts in `session`, or in the session of the workspace that was used last.

    Raises `NotFound` without checkpoints, `Damaged`, or `Refused` if one does not contain the notebooks.
    """
    first = checkpoint_with_files(reader, before, session) if before is not None else _latest(reader.ledger)
    second = checkpoint_with_files(reader, after, session) if after is not None else None
    past = CheckpointTrees(reader.objects)
    old = _checkpoint_notebooks(reader, past, memory, first)
    new = _checkpoint_notebooks(reader, past, memory, second) if second is not None else _present_notebooks(memory)
    differences = []
    for name in sorted(old.keys() | new.keys()):
        old_side, now = old.get(name), new.get(name)
        if (old_side and old_side.digest) != (now and now.digest):
            differences.append(_difference(name, memory.path(name), old_side, now))
    return NotebookComparison(first, second, differences)


def _latest(ledger: Ledger) -> Record:
    latest = next((record for record in reversed(ledger.records.values()) if record.tree), None)
    if latest is None:
        raise NotFound(
            "There is no checkpoint to compare with.",
            "`deepctl checkpoints save` makes one.",
            code="checkpoint_not_found",
        )
    return latest


class _ComparedNotebook(NamedTuple):
    """A notebook on one side of a comparison; its content is read on demand."""

    digest: bytes
    content: Callable[[], bytes]


def _checkpoint_notebooks(
    reader: ReadOnlyRepository, past: CheckpointTrees, memory: Memory, record: Record
) -> dict[str, _ComparedNotebook]:
    check_seen(past, record, memory.path(layout.NOTEBOOK))
    objects = reader.objects

    def side(entry: TreeEntry) -> _ComparedNotebook:
        return _ComparedNotebook(entry.digest, lambda: objects.read(entry.digest))

    return {
        os.fsdecode(entry.name): side(entry)
        for entry in past.entries(bytes.fromhex(record.tree), memory.directory)
        if entry.kind == FILE and entry.name.endswith(b".md") and not entry.name.startswith(b".")
    }


def _present_notebooks(memory: Memory) -> dict[str, _ComparedNotebook]:
    notebooks = {}
    for entry in memory.notebooks():
        notebook = memory.find(entry.name)
        if notebook is not None:
            notebooks[entry.name] = _side_of(notebook.content)
    return notebooks


def _side_of(content: bytes) -> _ComparedNotebook:
    return _ComparedNotebook(hashlib.sha256(content).digest(), lambda: content)


def _difference(
    name: str, path: str, old_side: _ComparedNotebook | None, now: _ComparedNotebook | None
) -> NotebookDifference:
    change = "added" if old_side is None else "deleted" if now is None else "modified"
    try:
        before, after = (side.content() if side is not None else b"" for side in (old_side, now))
    except Damaged as error:
        return NotebookDifference(name, path, change, None, None, b"", error.message)
    difference = unified(path, before if old_side is not None else None, after if now is not None else None)
    if difference is None:
        return NotebookDifference(name, path, change, None, None, b"", "too many lines to compare")
    return NotebookDifference(name, path, change, *difference, None)
